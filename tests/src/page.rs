//! Pages of documentation, as what there is to type. Tests of other crates include this file, too: it needs nothing of this one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What pages leave open, and what may stand there.
const OPEN: [(&str, &str); 9] = [
    ("ADDR", "127.0.0.1:1"),
    ("HOST", "127.0.0.1"),
    ("PORT", "1"),
    ("URL", "http://127.0.0.1:1"),
    ("SECONDS", "1"),
    ("NUMBER", "1"),
    ("TIMES", "1"),
    ("N", "1"),
    ("TYPE", "q8_0"),
];

/// A page.
#[derive(Debug)]
pub struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    /// `docs/NAME.md`.
    ///
    /// # Panics
    /// If there is none.
    pub fn read(name: &str) -> Self {
        Self::at(root().join(format!("docs/{name}.md")))
    }

    fn at(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path, text }
    }

    /// Every page there is, those below `docs`, `deploy` and `bench` included.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn all() -> Vec<Self> {
        let mut paths = Vec::new();
        let mut folders = vec![(root(), false), (root().join("docs"), true), (root().join("deploy"), true)];
        folders.push((root().join("bench/results"), true));
        while let Some((folder, below)) = folders.pop() {
            let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            for path in entries.flatten().map(|entry| entry.path()) {
                let is_hidden =
                    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                if path.extension().is_some_and(|end| end == "md") {
                    paths.push(path);
                } else if below && !is_hidden && path.is_dir() {
                    folders.push((path, true));
                }
            }
        }
        paths.sort();
        paths.into_iter().map(Self::at).collect()
    }

    /// Where it is, from the root.
    pub fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its blocks, each with its language, and its paragraphs between them, each as one line.
    fn parts(&self) -> (Vec<(String, String)>, Vec<String>) {
        let (mut blocks, mut paragraphs) = (Vec::new(), vec![String::new()]);
        let mut open: Option<(String, String)> = None;
        for line in self.text.lines() {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (None, Some(language)) => open = Some((language.to_owned(), String::new())),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some((_, text)), None) => *text += &format!("{line}\n"),
                (None, None) if line.is_empty() => paragraphs.push(String::new()),
                (None, None) => {
                    if let Some(paragraph) = paragraphs.last_mut() {
                        *paragraph += &format!("{line} ");
                    }
                }
            }
        }
        (blocks, paragraphs)
    }

    /// The texts of its blocks of a language; of those without one for "".
    pub fn blocks(&self, language: &str) -> Vec<String> {
        let wanted = |(of, text): (String, String)| (of == language).then_some(text);
        self.parts().0.into_iter().filter_map(wanted).collect()
    }

    /// What its blocks without a language say to type, in order: lines that end with `\` go on, and what stands behind three spaces
    /// explains.
    pub fn commands(&self) -> Vec<String> {
        lines(&self.blocks("").concat())
    }

    /// What stands between backticks in its text, in order.
    pub fn spans(&self) -> Vec<String> {
        let spans = |paragraph: String| {
            paragraph.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
        };
        self.parts().1.into_iter().flat_map(spans).collect()
    }

    /// What it says to type, in blocks and between backticks, that begins with one of these words. What goes on elsewhere, or is only
    /// the beginning of a command, is left out.
    pub fn typed(&self, beginnings: &[&str]) -> Vec<String> {
        let blocks = self.parts().0.into_iter().flat_map(|(_, text)| lines(&text));
        let begins = |command: &String| {
            beginnings.iter().any(|word| command.strip_prefix(word).is_some_and(|rest| rest.starts_with(' ')))
        };
        blocks.chain(self.spans()).filter(begins).filter(|command| !command.contains('…')).collect()
    }
}

/// The repository: every crate is a folder of it.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// The commands of a block.
fn lines(block: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in block.lines() {
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

/// A command as a shell cuts it, up to where its output goes on to, with values for what pages leave open and with what is optional.
///
/// # Panics
/// If a shell cannot read it.
pub fn words(command: &str) -> Vec<String> {
    let alone = [" > ", " | ", "; "]
        .iter()
        .fold(command, |command, end| command.split_once(end).map_or(command, |(first, _)| first));
    let all = alone.replace(" [", " ").replace("] ", " ").trim_end_matches(']').to_owned();
    let cut = Command::new("sh").args(["-c", &format!("printf '%s\\n' {all}")]).output().expect("a shell");
    assert!(cut.status.success(), "{command}: a shell cannot read it");
    String::from_utf8_lossy(&cut.stdout).lines().map(filled).collect()
}

/// A word with values in place of what it leaves open.
fn filled(word: &str) -> String {
    let mut filled = String::new();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for part in word.split_inclusive(|c| !is_part(c)) {
        let name = part.trim_end_matches(|c| !is_part(c));
        let value = OPEN.iter().find(|(open, _)| *open == name).map_or(name, |(_, value)| value);
        filled += value;
        filled += &part[name.len()..];
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_spans_and_commands_are_found() {
        let text = "# A\n```\nfoggara a     does it\ncurl x \\\n  -d y\n```\nSay `foggara\nc` or `foggara c …`.\n```toml\nid = 1\n```\n```\n\nfoggara b\n```\n";
        let page = Page { path: PathBuf::new(), text: text.into() };
        assert_eq!(page.commands(), ["foggara a", "curl x -d y", "foggara b"]);
        assert_eq!(page.blocks("toml"), ["id = 1\n"]);
        assert_eq!(page.spans(), ["foggara c", "foggara c …"]);
        assert_eq!(page.typed(&["foggara"]), ["foggara a", "foggara b", "foggara c"]);
        assert!(Page::all().iter().any(|page| page.name() == "docs/runbooks/FoggaraMemory.md"));
    }

    #[test]
    fn what_is_open_gets_a_value() {
        for (command, expected) in [
            ("a \"b c\" 'd' | e; f", &["a", "b c", "d"][..]),
            (
                "a --join HOST:PORT -n N --url http://HOST:PORT > x",
                &["a", "--join", "127.0.0.1:1", "-n", "1", "--url", "http://127.0.0.1:1"],
            ),
            ("a NAME=URL [--ep 2] [--x]", &["a", "NAME=http://127.0.0.1:1", "--ep", "2", "--x"]),
            ("a MODEL q8_0     # why", &["a", "MODEL", "q8_0"]),
        ] {
            assert_eq!(words(command), expected, "{command}");
        }
    }
}
