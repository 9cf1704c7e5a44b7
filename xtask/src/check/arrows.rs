//! Which crate of ours may use which.

use serde::Deserialize;

use super::Finding;

/// What `cargo metadata` says, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub dependencies: Vec<Dependency>,
}

/// Of any kind: tests and build scripts follow the arrows, too.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
    /// Only crates of ours have one.
    pub path: Option<String>,
}

const LIBRARIES: &[&str] = &[
    "foggara-proto",
    "foggara-tls",
    "foggara-kernels",
    "foggara-models",
    "foggara-worker",
    "foggara-coordinator",
];

/// Each crate, and what it may use of ours. ARCHITECTURE.md has the picture.
const ARROWS: &[(&str, &[&str])] = &[
    ("foggara-proto", &[]),
    ("foggara-tls", &[]),
    ("foggara-kernels", &[]),
    ("foggara-models", &[]),
    ("foggara-worker", &["foggara-proto", "foggara-tls", "foggara-models", "foggara-kernels"]),
    ("foggara-coordinator", &["foggara-proto", "foggara-tls", "foggara-models"]),
    ("foggara", LIBRARIES),
    ("foggara-bench", LIBRARIES),
    ("foggara-tests", LIBRARIES),
    ("xtask", &[]),
];

pub fn findings(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!(
                "crate {} has no line in the table of arrows (xtask/src/check/arrows.rs)",
                package.name
            ));
            continue;
        };
        let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        for dependency in ours.filter(|dependency| !allowed.contains(&dependency.name.as_str())) {
            findings.push(format!("{} may not use {}", package.name, dependency.name));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Metadata {
        let ours = |name: &&str| Dependency { name: (*name).to_owned(), path: Some("/somewhere".into()) };
        let mut dependencies: Vec<Dependency> = uses.iter().map(ours).collect();
        dependencies.push(Dependency { name: "serde".into(), path: None });
        Metadata { packages: vec![Package { name: name.into(), dependencies }] }
    }

    #[test]
    fn only_listed_arrows_pass() {
        for (name, uses, expected) in [
            ("foggara-coordinator", vec!["foggara-proto", "foggara-models"], vec![]),
            (
                "foggara-coordinator",
                vec!["foggara-kernels"],
                vec!["foggara-coordinator may not use foggara-kernels"],
            ),
            ("foggara-models", vec!["foggara-proto"], vec!["foggara-models may not use foggara-proto"]),
            ("xtask", vec!["foggara"], vec!["xtask may not use foggara"]),
            ("foggara-tests", LIBRARIES.to_vec(), vec![]),
        ] {
            assert_eq!(findings(&package(name, &uses)), expected, "{name}");
        }
    }

    #[test]
    fn a_crate_without_a_line_is_found() {
        assert_eq!(findings(&package("new", &[])).len(), 1);
    }
}
