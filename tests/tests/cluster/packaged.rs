//! What users install: the tarball and the Debian package of the program that the other tests run.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use foggara_tests::paths;
use foggara_tests::process::{foggara, text};
use foggara_tests::scratch::Scratch;

/// Runs a program that must succeed, and gives what it says.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn package(out: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["xtask", "package", "--binary"]).arg(paths::foggara()).arg("--out").arg(out);
    // What a session of git elsewhere would say, and another time, must make no difference to the second.
    run(command.current_dir(paths::root()).env("SOURCE_DATE_EPOCH", "1700000000"));
}

/// Where the packages are, made once for all tests that want them; the next run removes them.
pub(crate) fn packages() -> &'static Path {
    static MADE: LazyLock<Scratch> = LazyLock::new(|| {
        let scratch = Scratch::new("packages");
        package(scratch.path());
        scratch
    });
    MADE.path()
}

#[test]
fn packages_can_be_installed_and_are_the_same_each_time() {
    let scratch = Scratch::new("packages-again");
    let (once, again) = (packages(), scratch.path().join("again"));
    package(&again);
    let sums = std::fs::read_to_string(once.join("SHA256SUMS")).unwrap();
    assert_eq!(sums, std::fs::read_to_string(again.join("SHA256SUMS")).unwrap());
    run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(once));
    let version = text(&foggara(&["--version"]));
    let version = version.trim().rsplit(' ').next().unwrap();

    let name = format!("foggara-{version}-x86_64-linux");
    run(Command::new("tar")
        .arg("-xf")
        .arg(once.join(format!("{name}.tar.gz")))
        .arg("-C")
        .arg(scratch.path()));
    let unpacked = scratch.path().join(&name);
    let said = run(Command::new(unpacked.join("bin/foggara")).arg("--version"));
    assert_eq!(said.trim(), format!("foggara {version}"));
    for file in [
        "LICENSE",
        "config/coordinator.toml",
        "systemd/foggara-worker@.service",
        "man/man1/foggara-coordinator.1",
        "completions/_foggara",
        "prometheus/rules/alerts.yml",
        "docs/install.md",
        "grafana/dashboards/foggara-cluster.json",
    ] {
        assert!(unpacked.join(file).is_file(), "{file}");
    }

    let deb = once.join(format!("foggara_{version}_amd64.deb"));
    let control = run(Command::new("dpkg-deb").arg("--info").arg(&deb));
    for line in [&format!("Version: {version}"), "Architecture: amd64", "libc6 (>= 2."] {
        assert!(control.contains(line), "{line}: {control}");
    }
    let contents = run(Command::new("dpkg-deb").arg("--contents").arg(&deb));
    for line in contents.lines() {
        assert!(line.contains(" root/root ") && line.contains(" 2023-11-14 "), "{line}");
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "installing a package needs root: run this test as root (`sudo -E cargo xtask test`)"
    );
    let root = scratch.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let script = paths::root().join("tests/tools/install_deb.sh");
    let said = run(Command::new("sh").arg(script).arg(&deb).arg(&root).arg(version));
    assert!(said.ends_with("installed, looked at, removed\n"), "{said}");
}
