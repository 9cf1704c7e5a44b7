//! `cargo xtask dashboards`: Grafana's dashboards, made from deploy/grafana/dashboards.toml.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::place;

/// Write deploy/grafana/dashboards/*.json from deploy/grafana/dashboards.toml
#[derive(clap::Args)]
pub struct Arguments {
    /// Only say whether they are as they should be.
    #[arg(long)]
    check: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    dashboard: Vec<Dashboard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dashboard {
    uid: String,
    title: String,
    about: String,
    variables: Vec<String>,
    panel: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Panel {
    title: String,
    about: String,
    unit: String,
    /// It may have nothing to show.
    #[serde(default)]
    empty: bool,
    expressions: Vec<(String, String)>,
}

/// Panels of a row, Grafana's columns of one, and its rows.
const ACROSS: usize = 3;
const WIDTH: usize = 24 / ACROSS;
const HEIGHT: usize = 8;

/// Writes them, or compares.
pub fn run(arguments: &Arguments) -> Result<()> {
    for (path, text) in made()? {
        let shown = place::typed(&path);
        if arguments.check {
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            ensure!(found == text, "{shown} is not what dashboards.toml says: run `cargo xtask dashboards`");
        } else {
            std::fs::write(&path, text).with_context(|| format!("writing {shown}"))?;
            println!("{shown}");
        }
    }
    Ok(())
}

/// Every file, and what should be in it.
fn made() -> Result<Vec<(PathBuf, String)>> {
    let folder = place::root().join("deploy/grafana");
    let source = folder.join("dashboards.toml");
    let text = std::fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
    let document: Document =
        toml::from_str(&text).with_context(|| format!("reading {}", source.display()))?;
    let file = |dashboard: &Dashboard| {
        let path = folder.join("dashboards").join(format!("{}.json", dashboard.uid));
        Ok((path, serde_json::to_string_pretty(&rendered(dashboard))? + "\n"))
    };
    document.dashboard.iter().map(file).collect()
}

/// In Grafana's schema of dashboards, version 38.
fn rendered(dashboard: &Dashboard) -> Value {
    let panels: Vec<_> =
        dashboard.panel.iter().enumerate().map(|(i, panel)| rendered_panel(i, panel)).collect();
    let variables: Vec<_> = dashboard.variables.iter().map(|name| variable(name)).collect();
    json!({
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["foggara"],
        "timezone": "browser",
        "editable": true,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": 38,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    })
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "prometheus"})
}

/// A label's values, to choose from. Every metric has a cluster, and every model has replicas.
fn variable(label: &str) -> Value {
    let from =
        if label == "cluster" { "foggara_build_info" } else { "foggara_replicas{cluster=~\"$cluster\"}" };
    json!({
        "type": "query",
        "name": label,
        "label": label,
        "datasource": source(),
        "query": format!("label_values({from}, {label})"),
        "refresh": 2,
        "multi": true,
        "includeAll": true,
        "allValue": ".*",
        "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
    })
}

fn rendered_panel(index: usize, panel: &Panel) -> Value {
    let targets: Vec<_> = panel
        .expressions
        .iter()
        .zip('A'..)
        .map(|((expression, legend), letter)| {
            json!({"refId": letter.to_string(), "datasource": source(), "expr": expression, "legendFormat": legend,
                "range": true})
        })
        .collect();
    let mut defaults = json!({"unit": panel.unit, "min": 0});
    if panel.empty {
        defaults["noValue"] = json!("none");
    }
    json!({
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source(),
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": index % ACROSS * WIDTH, "y": index / ACROSS * HEIGHT},
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_there_is_what_the_source_says() {
        run(&Arguments { check: true }).expect("it is");
    }

    #[test]
    fn panels_have_places_of_their_own() {
        let panel = |title: &str| Panel {
            title: title.into(),
            about: String::new(),
            unit: "s".into(),
            empty: false,
            expressions: vec![("a".into(), "b".into()), ("c".into(), "d".into())],
        };
        let dashboard = Dashboard {
            uid: "u".into(),
            title: "t".into(),
            about: String::new(),
            variables: vec!["cluster".into()],
            panel: ["1", "2", "3", "4"].map(panel).into(),
        };
        let all = rendered(&dashboard);
        let places: Vec<_> = (0..4)
            .map(|i| (all["panels"][i]["gridPos"]["x"].clone(), all["panels"][i]["gridPos"]["y"].clone()))
            .collect();
        assert_eq!(places, [(0, 0), (8, 0), (16, 0), (0, 8)].map(|(x, y)| (json!(x), json!(y))));
        assert_eq!(all["panels"][0]["targets"][1]["refId"], "B");
    }
}
