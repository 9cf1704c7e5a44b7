//! The settings there are, as documentation: `docs/reference/config.md` is [`page()`]'s text.

use std::fmt::Write as _;

use crate::config::{Kind, Setting, Type, settings};

/// The page.
pub(super) fn page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         `foggara coordinator` and `foggara worker` take each setting as an option (`--data-dir DIR`), as a variable\n\
         (`FOGGARA_DATA_DIR`), or from the TOML file that `--config FILE` or `FOGGARA_CONFIG` names (`data_dir = \"DIR\"`). An option\n\
         goes before a variable, a variable before the file, the file before the default.\n\n\
         The file is flat: no tables. Text is in quotes, numbers and `true` or `false` are not; a list is an array of texts. A key that is\n\
         no setting is an error. `foggara config check FILE` says what is effective and what is wrong; `foggara config example worker` prints a\n\
         file to begin with.\n\n\
         This page is printed by `foggara config reference`; a test compares it.\n",
    );
    let all = crate::command_line();
    for kind in Kind::ALL {
        let title = match kind {
            Kind::Coordinator => "Coordinator",
            Kind::Worker => "Worker",
        };
        // Writing to a string never fails.
        writeln!(page, "\n## {title}\n| key | variable | type | default | meaning |\n|---|---|---|---|---|")
            .ok();
        for setting in settings(&kind.command(&all)) {
            let Setting { key, variable, .. } = &setting;
            let (ty, default, help) = (ty(&setting), default(&setting), cell(&setting.help));
            writeln!(page, "| `{key}` | `{variable}` | {ty} | {default} | {help} |").ok();
        }
    }
    page
}

fn ty(setting: &Setting) -> &'static str {
    match (setting.ty, setting.list) {
        (_, true) => "list",
        (Type::Text, false) => "text",
        (Type::Number, false) => "number",
        (Type::Flag, false) => "true or false",
    }
}

fn default(setting: &Setting) -> String {
    match (setting.required, setting.default.as_str()) {
        (true, _) => "must be given".into(),
        (false, "") => String::new(),
        // Told in words.
        (false, told) if setting.argument.get_default_values().is_empty() => told.to_owned(),
        (false, value) => format!("`{value}`"),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_what_the_options_are() {
        let (found, made) = (include_str!("../../../../docs/reference/config.md"), page());
        assert!(found == made, "docs/reference/config.md should be (`foggara config reference`):\n{made}");
    }

    #[test]
    fn every_setting_says_what_it_means() {
        let all = crate::command_line();
        for setting in Kind::ALL.into_iter().flat_map(|kind| settings(&kind.command(&all))) {
            assert!(!setting.help.is_empty(), "{}", setting.key);
            // Where OpenTelemetry has a name for it, it is called so.
            let named =
                ["FOGGARA", "OTEL_EXPORTER"].map(|prefix| format!("{prefix}_{}", setting.key.to_uppercase()));
            assert!(named.contains(&setting.variable), "{}: {}", setting.key, setting.variable);
        }
    }
}
