//! A file of every setting, with comments: `deploy/config/*.toml` are these texts.

use std::fmt::Write as _;

use crate::config::{Kind, Setting, settings};

/// Lines are at most so long.
const WIDTH: usize = 110;

/// What an example says for settings that somebody has to choose; everything else stands in it as a comment.
fn chosen(kind: Kind, key: &str) -> Option<&'static str> {
    Some(match (kind, key) {
        (Kind::Coordinator, "id") => "1",
        (Kind::Coordinator, "peers") => r#"["1=10.0.0.1:8081", "2=10.0.0.2:8081", "3=10.0.0.3:8081"]"#,
        (Kind::Coordinator, "grpc") => r#""10.0.0.1:8081""#,
        (Kind::Coordinator, "http") => r#""10.0.0.1:8080""#,
        (Kind::Coordinator, "data_dir") => r#""/var/lib/foggara""#,
        (_, "cluster_token_file") => r#""/etc/foggara/token""#,
        (Kind::Worker, "join") => r#"["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.3:8081"]"#,
        (Kind::Worker, "listen") => r#""10.0.0.7:8082""#,
        (Kind::Worker, "models") => r#"["/var/lib/foggara/models"]"#,
        _ => return None,
    })
}

/// The file.
pub(super) fn text(kind: Kind) -> String {
    let name = kind.name();
    let mut text = format!(
        "# Settings of a {name}: /etc/foggara/{name}.toml, read by `foggara {name} --config FILE`. Check it with\n\
         # `foggara config check FILE`. A variable of the environment, as FOGGARA_LOG, goes before what is here.\n\
         # Printed by `foggara config example {name}`.\n"
    );
    for setting in settings(&kind.command(&crate::command_line())) {
        text.push('\n');
        wrapped(&mut text, &setting.help);
        // Writing to a string never fails.
        match (chosen(kind, &setting.key), default(&setting)) {
            (Some(value), _) => writeln!(text, "{} = {value}", setting.key).ok(),
            (None, Some(value)) => writeln!(text, "#{} = {value}", setting.key).ok(),
            (None, None) => writeln!(text, "#{} = {}", setting.key, placeholder(&setting)).ok(),
        };
    }
    text
}

fn default(setting: &Setting) -> Option<String> {
    let values: Vec<_> = setting.argument.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    (!values.is_empty()).then(|| setting.shown(&values.join(",")))
}

/// What stands for a value that there is by no default: the option's own word for it.
fn placeholder(setting: &Setting) -> String {
    let names = setting.argument.get_value_names().unwrap_or_default();
    let name = names.first().map_or("…", |name| name.as_str());
    let told = match setting.default.as_str() {
        "" => String::new(),
        told => format!("  # default: {told}"),
    };
    match setting.list {
        true => format!("[\"{name}\"]{told}"),
        false => format!("{}{told}", setting.shown(name)),
    }
}

/// `help` as comments.
fn wrapped(text: &mut String, help: &str) {
    let mut line = String::from("#");
    for word in help.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_deploy_are_the_examples() {
        for (kind, found) in [
            (Kind::Coordinator, include_str!("../../../../deploy/config/coordinator.toml")),
            (Kind::Worker, include_str!("../../../../deploy/config/worker.toml")),
        ] {
            let made = text(kind);
            let name = kind.name();
            assert!(
                found == made,
                "deploy/config/{name}.toml should be (`foggara config example {name}`):\n{made}"
            );
        }
    }

    #[test]
    fn what_an_example_says_can_be_read() {
        for kind in Kind::ALL {
            let settings = settings(&kind.command(&crate::command_line()));
            let path =
                std::env::temp_dir().join(format!("foggara-example-{}-{}", std::process::id(), kind.name()));
            std::fs::write(&path, text(kind)).expect("written");
            let file = crate::config::ConfigFile::read(&path, &settings).expect("an example is right");
            std::fs::remove_file(path).ok();
            assert!(settings.iter().filter(|one| one.required).all(|one| file.entry(&one.key).is_some()));
        }
    }
}
