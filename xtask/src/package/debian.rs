//! The Debian package. `dpkg-deb` makes it from a tree: there is nothing to compile that a build system would have to know.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::contents::{Tree, files};
use super::{Release, output};
use crate::place;

/// What an administrator edits: kept over upgrades.
const CONFFILES: [&str; 2] = ["/etc/foggara/coordinator.toml", "/etc/foggara/worker.toml"];

/// Makes it in `out`.
pub fn make(release: &Release, out: &Path) -> Result<PathBuf> {
    let tree = Tree(release.work.join("deb"));
    let deploy = place::root().join("deploy");
    let program = release.work.join("foggara");
    tree.file(&program, "usr/bin/foggara", true)?;
    tree.units("usr/lib/systemd/system", "/usr/bin/foggara")?;
    tree.folder(&deploy.join("config"), "etc/foggara")?;
    let completions = release.work.join("completions");
    for (name, folder) in [
        ("foggara", "usr/share/bash-completion/completions"),
        ("_foggara", "usr/share/zsh/vendor-completions"),
        ("foggara.fish", "usr/share/fish/vendor_completions.d"),
    ] {
        tree.file(&completions.join(name), &format!("{folder}/{name}"), false)?;
    }
    for page in files(&release.work.join("man"))? {
        output(Command::new("gzip").args(["--no-name", "--best", "--keep", "--force"]).arg(&page))?;
        let name = page.file_name().unwrap_or_default().to_string_lossy();
        tree.file(
            &page.with_file_name(format!("{name}.gz")),
            &format!("usr/share/man/man1/{name}.gz"),
            false,
        )?;
    }
    tree.file(&place::root().join("LICENSE"), "usr/share/doc/foggara/copyright", false)?;
    tree.file(&place::root().join("docs/install.md"), "usr/share/doc/foggara/install.md", false)?;
    tree.folder(&deploy.join("prometheus"), "usr/share/doc/foggara/examples/prometheus")?;
    tree.folder(&deploy.join("grafana"), "usr/share/doc/foggara/examples/grafana")?;
    control(release, &tree, &program)?;
    let package = out.join(format!("foggara_{}_amd64.deb", release.version));
    let mut build = Command::new("dpkg-deb");
    // With more threads, the bytes would depend on how many there are.
    build.args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"]);
    output(build.arg(&tree.0).arg(&package).env("SOURCE_DATE_EPOCH", &release.epoch))?;
    Ok(package)
}

/// What is about the package itself.
fn control(release: &Release, tree: &Tree, program: &Path) -> Result<()> {
    let installed = files(&tree.0)?;
    let (mut bytes, mut names) = (0, Vec::new());
    for path in &installed {
        bytes += std::fs::metadata(path)?.len();
        names.push(path.strip_prefix(&tree.0)?.to_owned());
    }
    let sums = output(Command::new("md5sum").args(&names).current_dir(&tree.0))?;
    let sources = place::root().join("deploy/debian");
    let glibc = newest_glibc(&std::fs::read(program)?).context("the program asks for no glibc")?;
    let text = std::fs::read_to_string(sources.join("control"))?
        .replace("@VERSION@", release.version)
        .replace("@KIB@", &bytes.div_ceil(1024).to_string())
        .replace("@GLIBC@", &format!("{}.{}", glibc.0, glibc.1));
    tree.bytes(text.as_bytes(), "DEBIAN/control", false)?;
    tree.bytes(sums.as_bytes(), "DEBIAN/md5sums", false)?;
    tree.bytes(format!("{}\n", CONFFILES.join("\n")).as_bytes(), "DEBIAN/conffiles", false)?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.file(&sources.join(script), &format!("DEBIAN/{script}"), true)?;
    }
    Ok(())
}

/// The newest version of glibc's symbols that a program names: what it needs at least.
fn newest_glibc(program: &[u8]) -> Option<(u32, u32)> {
    const NAME: &[u8] = b"GLIBC_";
    let versions =
        program.windows(NAME.len()).enumerate().filter(|(_, found)| *found == NAME).filter_map(|(at, _)| {
            let rest = &program[at + NAME.len()..];
            let end = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.')?;
            let (major, minor) = std::str::from_utf8(&rest[..end]).ok()?.split_once('.')?;
            Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
        });
    versions.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_what_is_needed() {
        let program = b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0GLIBC_\0";
        assert_eq!(newest_glibc(program), Some((2, 34)));
        assert_eq!(newest_glibc(b"nothing"), None);
    }

    #[test]
    fn what_is_edited_is_there() {
        for file in CONFFILES {
            let name = file.rsplit('/').next().unwrap_or_default();
            assert!(place::root().join("deploy/config").join(name).is_file(), "{file}");
        }
    }
}
