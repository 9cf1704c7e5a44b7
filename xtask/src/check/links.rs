//! Links from one document to a file of the workspace.

use super::{Finding, Source};

/// `exists` says whether a path from the root leads to something.
pub fn findings(documents: &[Source], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in documents {
        for target in targets(&document.text) {
            if !exists(&resolve(&document.path, target)) {
                findings.push(format!("{}: there is no `{target}`", document.path));
            }
        }
    }
    findings
}

/// Targets of the links in `text` that are files of ours.
fn targets(text: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        // What stands between backticks is no link.
        for part in line.split('`').step_by(2) {
            let after = part.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
            let files = after.filter_map(|target| target.split('#').next());
            targets.extend(files.filter(|target| {
                !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")
            }));
        }
    }
    targets
}

/// `target` as seen from `document`, from the root.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => document.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_links_are_found() {
        let text = "[a](api.md#errors) [b](../README.md) [c](https://example.org/x) [d](#here) [e](gone.md \"title\")\n\
                    a [link whose text holds `code`](gone2.md) and `[no](link.md)`\n```\n[f](in-code.md)\n```\n";
        let document = Source { path: "docs/quick-start.md".into(), text: text.into() };
        let found = findings(&[document], |path| ["docs/api.md", "README.md"].contains(&path));
        assert_eq!(
            found,
            ["docs/quick-start.md: there is no `gone.md`", "docs/quick-start.md: there is no `gone2.md`"]
        );
    }
}
