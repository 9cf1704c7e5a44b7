//! `cargo xtask terraform`: what keeps the modules in deploy/terraform true.

mod hcl;
mod schema;
mod tables;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{place, process};
use hcl::Body;
use schema::Schema;

/// Check the Terraform modules, or make what is generated of them.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Formatting, `terraform validate` and `terraform test` of what needs no provider that must be downloaded
    Check,
    /// Write the tables of inputs and outputs into the modules' READMEs
    Tables,
    /// Fetch the published schema of AWS's provider from npm, and keep what the module uses of it in modules/aws/schema.json
    Schema,
}

/// The package that has AWS's schema as TypeScript's declarations.
const PACKAGE: &str = "@cdktf/provider-aws@21.22.1";
/// Modules and examples that use Terraform's own provider alone.
const WITHOUT_PROVIDERS: [&str; 3] = ["modules/cluster-files", "modules/bare-metal", "examples/bare-metal"];

pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.task {
        Task::Check => check(),
        Task::Tables => write_tables(),
        Task::Schema => write_schema(),
    }
}

fn folder() -> PathBuf {
    place::root().join("deploy/terraform")
}

fn schema_file() -> PathBuf {
    folder().join("modules/aws/schema.json")
}

/// Files of a module: path, and what is in it.
type Files = Vec<(String, Body)>;

/// The modules, and their files.
fn modules() -> Result<Vec<(PathBuf, Files)>> {
    let all = std::fs::read_dir(folder().join("modules"))?;
    let mut all: Vec<PathBuf> =
        all.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    all.sort();
    all.into_iter().map(|module| Ok((module.clone(), files(&module)?))).collect()
}

fn files(module: &Path) -> Result<Files> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(module)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "tf"));
    paths.sort();
    let read = |path: PathBuf| {
        let shown = place::typed(&path);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {shown}"))?;
        let body = hcl::parse(&text).with_context(|| shown.clone())?;
        Ok((shown, body))
    };
    paths.into_iter().map(read).collect()
}

/// Of what needs no program: tables that are not as the modules are, and what AWS's provider does not have.
pub fn findings() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (module, files) in modules()? {
        let readme = module.join("README.md");
        let text =
            std::fs::read_to_string(&readme).with_context(|| format!("reading {}", place::typed(&readme)))?;
        if tables::replaced(&text, &files).with_context(|| place::typed(&readme))? != text {
            found.push(format!(
                "{}: its tables are old: `cargo xtask terraform tables`",
                place::typed(&readme)
            ));
        }
    }
    let text = std::fs::read_to_string(schema_file()).context("reading AWS's schema")?;
    let schema: Schema = serde_json::from_str(&text).context("AWS's schema")?;
    found.extend(schema::findings(&schema, &files(&folder().join("modules/aws"))?));
    Ok(found)
}

fn check() -> Result<()> {
    let terraform = |words: &[&str], module: &str| {
        let mut command = Command::new("terraform");
        let data = place::root().join("target/terraform").join(module);
        // Nothing is asked of anybody's servers, and nothing is written beside the modules.
        command.args(words).current_dir(folder().join(module)).env("TF_DATA_DIR", data);
        command.env("CHECKPOINT_DISABLE", "1").env("TF_CLI_CONFIG_FILE", "/dev/null");
        process::run(&mut command)
    };
    terraform(&["fmt", "-check", "-recursive", "-diff"], "")?;
    for module in WITHOUT_PROVIDERS {
        terraform(&["init", "-backend=false", "-no-color"], module)?;
        terraform(&["validate", "-no-color"], module)?;
        if folder().join(module).join("tests").is_dir() {
            terraform(&["test", "-no-color"], module)?;
        }
    }
    Ok(())
}

fn write_tables() -> Result<()> {
    for (module, files) in modules()? {
        let readme = module.join("README.md");
        let text =
            std::fs::read_to_string(&readme).with_context(|| format!("reading {}", place::typed(&readme)))?;
        let new = tables::replaced(&text, &files).with_context(|| place::typed(&readme))?;
        std::fs::write(&readme, new).with_context(|| format!("writing {}", place::typed(&readme)))?;
    }
    Ok(())
}

fn write_schema() -> Result<()> {
    let used = files(&folder().join("modules/aws"))?;
    let blocks = used.iter().flat_map(|(_, body)| &body.blocks).filter(|block| block.kind == "resource");
    let mut used: Vec<&str> = blocks.filter_map(|block| block.labels.first()).map(String::as_str).collect();
    used.sort_unstable();
    used.dedup();
    let work = place::cache().join("provider-aws");
    std::fs::create_dir_all(&work)?;
    process::run(Command::new("npm").args(["pack", "--silent", PACKAGE]).current_dir(&work))?;
    let archive = std::fs::read_dir(&work)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archive.into_iter().find(|path| path.extension().is_some_and(|end| end == "tgz"));
    let archive = archive.context("npm has fetched nothing")?;
    let declarations = |resource: &str| {
        let resource = resource.strip_prefix("aws_").unwrap_or(resource).replace('_', "-");
        format!("package/lib/{resource}/index.d.ts")
    };
    let mut unpack = Command::new("tar");
    unpack
        .arg("xzf")
        .arg(&archive)
        .args(used.iter().map(|resource| declarations(resource)))
        .current_dir(&work);
    process::run(&mut unpack)?;
    let (mut resources, mut providers) =
        (std::collections::BTreeMap::new(), std::collections::BTreeSet::new());
    for resource in used {
        let text = std::fs::read_to_string(work.join(declarations(resource)))?;
        let (read, provider) = schema::from_declarations(&text).with_context(|| resource.to_owned())?;
        resources.insert(resource.to_owned(), read);
        providers.insert(provider);
    }
    let mut providers = providers.into_iter();
    let (Some(provider), None) = (providers.next(), providers.next()) else {
        bail!("they are of several providers")
    };
    let schema = Schema { package: PACKAGE.into(), provider, resources };
    std::fs::write(schema_file(), serde_json::to_string(&schema)? + "\n").context("writing the schema")?;
    std::fs::remove_dir_all(&work).context("removing the package")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_resources_are_as_they_should_be() {
        assert_eq!(findings().expect("the modules can be read"), Vec::<String>::new());
    }
}
