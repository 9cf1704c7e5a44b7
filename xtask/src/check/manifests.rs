//! One table of dependencies and one of lints: crates refer to them.

use super::{Finding, Source};

pub fn findings(manifests: &[Source]) -> Vec<Finding> {
    manifests.iter().filter(|manifest| manifest.path != "Cargo.toml").flat_map(of_crate).collect()
}

fn of_crate(manifest: &Source) -> Vec<Finding> {
    let (mut section, mut findings, mut lints) = ("", Vec::new(), false);
    for line in manifest.text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            continue;
        }
        lints |= section == "lints" && is_inherited(line);
        if section.ends_with("dependencies") && !is_inherited(line) {
            findings.push(format!("{}: `{line}` should take its version from the workspace", manifest.path));
        }
    }
    if !lints {
        findings.push(format!("{}: lacks `[lints] workspace = true`", manifest.path));
    }
    findings
}

/// `name.workspace = true`, `workspace = true`, `name = { workspace = true, … }`.
fn is_inherited(line: &str) -> bool {
    line.split_whitespace().collect::<String>().contains("workspace=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<Finding> {
        findings(&[Source { path: "a/Cargo.toml".into(), text: text.into() }])
    }

    #[test]
    fn what_is_inherited_passes() {
        let text = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n[dependencies]\n# why\nx.workspace = true\n\
                    y = { workspace = true, features = [\"z\"] }\n";
        assert!(of(text).is_empty());
    }

    #[test]
    fn own_versions_and_missing_lints_are_found() {
        assert_eq!(of("[dev-dependencies]\nx = \"1\"\n").len(), 2);
    }
}
