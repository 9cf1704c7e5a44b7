//! What resources of a provider may have, as far as a module uses them; and whether it keeps to that: pure.
//!
//! The provider itself need not be there. Its schema is published in another form, too: as TypeScript's declarations, in
//! a package of npm. `cargo xtask terraform schema` makes [`Schema`] from those.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::hcl::{Block, Body};

/// Of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Where it is from.
    pub package: String,
    /// Which provider it says it is of.
    pub provider: String,
    pub resources: BTreeMap<String, Resource>,
}

/// A resource: what can be said of it, and what can be asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    #[serde(flatten)]
    pub content: Content,
    /// What it has when it is made.
    pub attributes: BTreeSet<String>,
}

/// What stands in a resource or in one of its blocks.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Whether it must be there.
    pub arguments: BTreeMap<String, bool>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<String, Inner>,
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    pub required: bool,
    #[serde(flatten)]
    pub content: Content,
}

/// What is Terraform's own, in any resource.
const OF_ALL: &[&str] = &["for_each", "count", "depends_on", "provider"];

/// What is against the schema in `files`, of one module.
pub fn findings(schema: &Schema, files: &[(String, Body)]) -> Vec<String> {
    let mut found = Vec::new();
    let resources = || {
        files.iter().flat_map(|(path, body)| {
            let resources =
                body.blocks.iter().filter(|block| block.kind == "resource" && block.labels.len() == 2);
            resources.map(move |block| (path, block))
        })
    };
    let declared: BTreeSet<String> = resources().map(|(_, block)| block.labels.join(".")).collect();
    for (path, block) in resources() {
        let at = format!("{path}: {}", block.labels.join("."));
        match schema.resources.get(&block.labels[0]) {
            Some(resource) => check(&at, &block.body, &resource.content, &mut found),
            None => {
                found.push(format!("{at}: the schema has no such resource (cargo xtask terraform schema)"))
            }
        }
    }
    for (path, body) in files {
        for expression in body.expressions() {
            for Reference { resource, name, attribute } in references(expression) {
                let full = format!("{resource}.{name}");
                if !declared.contains(&full) {
                    found.push(format!("{path}: there is no {full}"));
                }
                let known = schema.resources.get(resource);
                let unknown = |attribute: &&str| !known.is_some_and(|resource| resource.has(attribute));
                if let Some(attribute) = attribute.filter(unknown) {
                    found.push(format!("{path}: {full} has no `{attribute}`"));
                }
            }
        }
    }
    found
}

impl Resource {
    fn has(&self, attribute: &str) -> bool {
        self.attributes.contains(attribute) || self.content.arguments.contains_key(attribute)
    }
}

fn check(at: &str, body: &Body, content: &Content, found: &mut Vec<String>) {
    let blocks: Vec<(&str, &Body)> = body.blocks.iter().filter_map(named).collect();
    for (name, _) in body.arguments.iter().filter(|(name, _)| !OF_ALL.contains(&name.as_str())) {
        if !content.arguments.contains_key(name) {
            found.push(format!("{at}: no argument `{name}`"));
        }
    }
    for (name, body) in &blocks {
        match content.blocks.get(*name) {
            Some(inner) => check(&format!("{at}.{name}"), body, &inner.content, found),
            None => found.push(format!("{at}: no block `{name}`")),
        }
    }
    let missing =
        content.arguments.iter().filter(|(name, required)| **required && body.argument(name).is_none());
    found.extend(missing.map(|(name, _)| format!("{at}: `{name}` must be there")));
    let missing =
        content.blocks.iter().filter(|(name, inner)| inner.required && blocks.iter().all(|(n, _)| n != name));
    found.extend(missing.map(|(name, _)| format!("{at}: a block `{name}` must be there")));
}

/// The name of a block of the provider, and what stands in it.
fn named(block: &Block) -> Option<(&str, &Body)> {
    match block.kind.as_str() {
        "lifecycle" | "connection" | "provisioner" => None,
        "dynamic" => {
            let content = block.body.blocks.iter().find(|inner| inner.kind == "content")?;
            Some((block.labels.first()?, &content.body))
        }
        kind => Some((kind, &block.body)),
    }
}

/// `aws_vpc.cluster.id`, or without what is asked of it.
struct Reference<'a> {
    resource: &'a str,
    name: &'a str,
    attribute: Option<&'a str>,
}

fn references(expression: &str) -> Vec<Reference<'_>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let word = |text: &str| text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    let mut found = Vec::new();
    for (start, _) in expression.match_indices("aws_") {
        if expression[..start].chars().next_back().is_some_and(|c| is_word(c) || c == '.' || c == '"') {
            continue;
        }
        let resource = &expression[start..start + word(&expression[start..])];
        let Some(rest) = expression[start + resource.len()..].strip_prefix('.') else { continue };
        let name = &rest[..word(rest)];
        let mut rest = &rest[name.len()..];
        if let Some(index) = rest.strip_prefix('[') {
            // What stands between the brackets has none of its own here.
            rest = index.split_once(']').map_or("", |(_, after)| after);
        }
        let attribute = rest.strip_prefix('.').map(|rest| &rest[..word(rest)]);
        found.push(Reference { resource, name, attribute });
    }
    found
}

/// Reads one resource from TypeScript's declarations, and which provider's version they say they are of.
///
/// # Errors
/// If they are not as expected.
pub fn from_declarations(text: &str) -> Result<(Resource, String)> {
    let interfaces = interfaces(text);
    let marker = "registry.terraform.io/providers/";
    let from = text.find(marker).context("they do not say which provider they are of")?;
    let provider: Vec<&str> = text[from + marker.len()..].split('/').take(3).collect();
    let root = interfaces.keys().filter(|name| name.ends_with("Config"));
    let root = root.min_by_key(|name| name.len()).context("they have no `…Config`")?;
    let content = content(&interfaces, root, 0);
    let attributes = text.lines().filter_map(|line| {
        let name = line.strip_prefix("    get ")?.split_once('(')?.0;
        (!name.ends_with("Input")).then(|| snake(name))
    });
    Ok((Resource { content, attributes: attributes.collect() }, provider.join(" ").replacen(' ', "/", 1)))
}

/// A property: its name in Terraform, whether it must be there, and its type.
type Property<'a> = (String, bool, &'a str);

fn interfaces(text: &str) -> BTreeMap<&str, Vec<Property<'_>>> {
    let mut found: BTreeMap<&str, Vec<Property<'_>>> = BTreeMap::new();
    let (mut current, mut documented) = (None, None);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("export interface ") {
            current = rest.split([' ', '{']).next();
        } else if line.starts_with('}') || line.starts_with("export declare class") {
            current = None;
        } else if let Some((_, name)) =
            line.split_once("/docs/resources/").and_then(|(_, rest)| rest.split_once('#'))
        {
            documented = name.split([' ', '}']).next();
        } else if let (Some(interface), Some(rest)) = (current, line.strip_prefix("    readonly ")) {
            let Some((name, kind)) = rest.split_once(": ") else { continue };
            let required = !name.ends_with('?');
            let name = documented.take().map_or_else(|| snake(name.trim_end_matches('?')), str::to_owned);
            found.entry(interface).or_default().push((name, required, kind));
        }
    }
    found
}

fn content(interfaces: &BTreeMap<&str, Vec<Property<'_>>>, interface: &str, depth: usize) -> Content {
    // Some resources have blocks in themselves.
    const DEEPEST: usize = 8;
    let mut content = Content::default();
    for (name, required, kind) in interfaces.get(interface).into_iter().flatten() {
        let inner = kind.split(['[', ';', ' ']).next().unwrap_or_default();
        if interfaces.contains_key(inner) && depth < DEEPEST {
            let inner = self::content(interfaces, inner, depth + 1);
            content.blocks.insert(name.clone(), Inner { required: *required, content: inner });
        } else {
            content.arguments.insert(name.clone(), *required);
        }
    }
    content
}

fn snake(camel: &str) -> String {
    let mut snake = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::super::hcl;
    use super::*;

    const DECLARATIONS: &str = r"
export interface DiskConfig extends cdktf.TerraformMetaArguments {
    /**
    * Docs at Terraform Registry: {@link https://registry.terraform.io/providers/acme/aws/1.2.3/docs/resources/disk#size_gib Disk#size_gib}
    */
    readonly sizeGib: number;
    /**
    * Docs at Terraform Registry: {@link https://registry.terraform.io/providers/acme/aws/1.2.3/docs/resources/disk#tags Disk#tags}
    */
    readonly tags?: {
        [key: string]: string;
    };
    /**
    * encryption block
    *
    * Docs at Terraform Registry: {@link https://registry.terraform.io/providers/acme/aws/1.2.3/docs/resources/disk#encryption Disk#encryption}
    */
    readonly encryption?: DiskEncryption[] | cdktf.IResolvable;
}
export interface DiskEncryption {
    /**
    * Docs at Terraform Registry: {@link https://registry.terraform.io/providers/acme/aws/1.2.3/docs/resources/disk#key_id Disk#key_id}
    */
    readonly keyId: string;
}
export declare class Disk extends cdktf.TerraformResource {
    get arn(): string;
    get sizeGib(): number;
    get sizeGibInput(): number | undefined;
}
";

    fn schema() -> Schema {
        let (resource, provider) = from_declarations(DECLARATIONS).expect("they are as expected");
        assert_eq!(provider, "acme/aws 1.2.3");
        Schema { package: "p".into(), provider, resources: [("aws_disk".to_owned(), resource)].into() }
    }

    #[test]
    fn declarations_are_read() {
        let resource = &schema().resources["aws_disk"];
        assert_eq!(resource.content.arguments, [("size_gib".into(), true), ("tags".into(), false)].into());
        assert_eq!(resource.content.blocks["encryption"].content.arguments, [("key_id".into(), true)].into());
        assert_eq!(resource.attributes, ["arn".into(), "size_gib".into()].into());
    }

    #[test]
    fn what_the_schema_has_not_is_found() {
        for (text, expected) in [
            (
                "resource \"aws_disk\" \"a\" {\n  size_gib = 1\n}\nlocals {\n  x = aws_disk.a[\"k\"].arn\n}",
                "",
            ),
            ("resource \"aws_disk\" \"a\" {\n  size_gib = 1\n  encryption {\n    key_id = 1\n  }\n}", ""),
            ("resource \"aws_disk\" \"a\" {\n  for_each = {}\n}", "`size_gib` must be there"),
            ("resource \"aws_disk\" \"a\" {\n  size_gib = 1\n  sise = 2\n}", "no argument `sise`"),
            (
                "resource \"aws_disk\" \"a\" {\n  size_gib = 1\n  encription {\n  }\n}",
                "no block `encription`",
            ),
            (
                "resource \"aws_disk\" \"a\" {\n  size_gib = 1\n  dynamic \"encryption\" {\n    content {\n    }\n  }\n}",
                "`key_id` must be there",
            ),
            ("resource \"aws_dish\" \"a\" {\n}", "no such resource"),
            (
                "resource \"aws_disk\" \"a\" {\n  size_gib = 1\n}\nlocals {\n  x = \"${aws_disk.a.anr}\"\n}",
                "no `anr`",
            ),
            ("locals {\n  x = aws_disk.b\n}", "there is no aws_disk.b"),
        ] {
            let found = findings(&schema(), &[("m.tf".to_owned(), hcl::parse(text).expect("well formed"))]);
            match expected {
                "" => assert_eq!(found, Vec::<String>::new(), "{text}"),
                expected => assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}"),
            }
        }
    }
}
