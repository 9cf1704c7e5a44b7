//! The tables of a module's README: its inputs and outputs, as its files have them. Pure.

use anyhow::{Context, Result};

use super::hcl::{self, Block, Body};

/// What the tables stand between.
const MARKS: (&str, &str) = ("<!-- tables: cargo xtask terraform tables -->\n", "<!-- end of tables -->\n");

/// `readme` with the tables of a module that has these files.
///
/// # Errors
/// If there is no place for them, or a variable or output lacks what a table shows.
pub fn replaced(readme: &str, files: &[(String, Body)]) -> Result<String> {
    let (before, rest) =
        readme.split_once(MARKS.0).context("there is no line that says where the tables begin")?;
    let (_, after) = rest.split_once(MARKS.1).context("there is no line that says where the tables end")?;
    Ok(format!("{before}{}{}{}{after}", MARKS.0, tables(files)?, MARKS.1))
}

fn tables(files: &[(String, Body)]) -> Result<String> {
    let blocks = |kind: &'static str| {
        files.iter().flat_map(|(_, body)| &body.blocks).filter(move |block| block.kind == kind)
    };
    let mut text = String::from("\n| input | type | default | |\n|---|---|---|---|\n");
    for block in blocks("variable") {
        let (name, description) = described(block)?;
        let kind =
            shortened(block.body.argument("type").with_context(|| format!("variable {name} has no type"))?);
        let default = match block.body.argument("default") {
            None => String::new(),
            Some(value) => format!("`{}`", one_line(value)),
        };
        text += &format!("| `{name}` | `{kind}` | {default} | {description} |\n");
    }
    text += "\n| output | |\n|---|---|\n";
    for block in blocks("output") {
        let (name, description) = described(block)?;
        text += &format!("| `{name}` | {description} |\n");
    }
    Ok(text + "\n")
}

fn described(block: &Block) -> Result<(&str, String)> {
    let name = block.labels.first().context("a variable or output has no name")?;
    let description =
        block.body.argument("description").with_context(|| format!("{name} has no description"))?;
    Ok((name, hcl::unquoted(description).replace('|', "\\|")))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// A type without what objects have: the description says it.
fn shortened(kind: &str) -> String {
    let Some((before, rest)) = kind.split_once("object({") else { return one_line(kind) };
    let end = rest.rfind("})").unwrap_or(rest.len());
    format!("{before}object({{…{}", &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_follow_the_files() {
        let file = "variable \"a\" {\n  description = \"An \\\"a\\\" | b.\"\n  type = map(object({\n    x = string\n  }))\n  default = {}\n}\n\
                    output \"o\" {\n  description = \"Out.\"\n  value = 1\n}\n";
        let files = [("m.tf".to_owned(), hcl::parse(file).expect("well formed"))];
        let readme = format!("# m\n{}old\n{}rest\n", MARKS.0, MARKS.1);
        let new = replaced(&readme, &files).expect("there is a place");
        assert!(new.contains("| `a` | `map(object({…}))` | `{}` | An \"a\" \\| b. |\n"), "{new}");
        assert!(new.contains("| `o` | Out. |\n") && !new.contains("old") && new.ends_with("rest\n"), "{new}");
        assert_eq!(replaced(&new, &files).expect("there is a place"), new);
    }

    #[test]
    fn what_is_not_described_is_refused() {
        let readme = format!("{}{}", MARKS.0, MARKS.1);
        for file in [
            "variable \"a\" {\n  type = string\n}",
            "variable \"a\" {\n  description = \"x\"\n}",
            "output \"a\" {\n}",
        ] {
            let files = [("m.tf".to_owned(), hcl::parse(file).expect("well formed"))];
            assert!(replaced(&readme, &files).is_err(), "{file}");
        }
        assert!(replaced("# no place", &[]).is_err());
    }
}
