//! A page of documentation, as what there is to type.

use crate::paths;

/// The text of a page.
#[derive(Debug)]
pub struct Page(String);

impl Page {
    /// That of `docs/NAME.md`.
    ///
    /// # Panics
    /// If there is none.
    pub fn read(name: &str) -> Self {
        let path = paths::root().join(format!("docs/{name}.md"));
        Self(std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The texts of its blocks of a language; of those without one for "".
    pub fn blocks(&self, language: &str) -> Vec<String> {
        let mut blocks = Vec::new();
        let mut open: Option<(bool, String)> = None;
        for line in self.0.lines() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(of)) => open = Some((of == language, String::new())),
                (Some((true, text)), None) => *text += &format!("{line}\n"),
                (Some(_), Some(_)) => {
                    blocks.extend(open.take().filter(|(wanted, _)| *wanted).map(|(_, text)| text))
                }
                _ => {}
            }
        }
        blocks
    }

    /// What its blocks without a language say to type, in order: lines that end with `\` go on, and what stands behind three spaces
    /// explains.
    pub fn commands(&self) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in self.blocks("").concat().lines() {
            let typed = line.trim_start().split("   ").next().unwrap_or_default();
            let part = typed.trim_end_matches('\\').trim_end();
            match commands.last_mut().filter(|_| goes_on) {
                Some(command) => *command += &format!(" {part}"),
                None if !part.is_empty() => commands.push(part.to_owned()),
                None => {}
            }
            goes_on = typed.ends_with('\\');
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_commands_are_found() {
        let page = Page("# A\n```\nfoggara a     does it\ncurl x \\\n  -d y\n```\n```toml\nid = 1\n```\n```\n\nfoggara b\n```\n".into());
        assert_eq!(page.commands(), ["foggara a", "curl x -d y", "foggara b"]);
        assert_eq!(page.blocks("toml"), ["id = 1\n"]);
    }
}
