//! `foggara certificates`

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use foggara_tls::making::{Pair, authority, ends, issue};
use foggara_tls::{date, now};

use crate::exit::UsageError;

/// Files of an authority in its folder.
const AUTHORITY: &str = "ca";

/// Make certificates for the processes of a cluster, and the authority that signs them.
///
/// Whoever has certificates from elsewhere needs none of this: the processes take any in PEM. The key of the authority (ca.key)
/// signs for the cluster: keep it where no process of it runs. What the processes need is their own two files and ca.crt.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  foggara certificates ca --out authority\n  \
    foggara certificates issue --ca authority --host 10.0.0.1 --host node-1.example --out node-1\n  \
    foggara coordinator … --tls-certificate node-1/10.0.0.1.crt --tls-key node-1/10.0.0.1.key --tls-ca authority/ca.crt")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an authority: ca.crt, for all processes and clients, and ca.key, for nobody but who issues
    Ca {
        /// Where the files go; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// What the authority is called in its certificate
        #[arg(long, default_value = "foggara", value_name = "NAME")]
        name: String,
        /// How long it is good
        #[arg(long, default_value_t = 3652, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
        /// Write over files that are there: certificates of the authority before count no more
        #[arg(long)]
        force: bool,
    },
    /// Make a certificate and its key, HOST.crt and HOST.key, called after the first --host
    Issue {
        /// The folder of the authority, with ca.crt and ca.key
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// A host that the certificate is for, as others write it: the host of --peers, of --listen or --advertise, of --endpoint
        /// and of clients' URLs; may be repeated
        #[arg(long, required = true, value_name = "NAME_OR_IP")]
        host: Vec<String>,
        /// Where the files go; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it is good, but no longer than the authority
        #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
        /// Write over files that are there: processes that use them take the new ones by themselves
        #[arg(long)]
        force: bool,
    },
}

/// Makes what is asked for, and says what it was.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match &arguments.command {
        Command::Ca { out: folder, name, days, force } => {
            let made = authority(name, *days, now()).map_err(UsageError)?;
            write(&mut out, folder, AUTHORITY, &made, *force)?;
            writeln!(
                out,
                "keep {AUTHORITY}.key apart: whoever has it can make certificates for this cluster"
            )?;
        }
        Command::Issue { ca, host, out: folder, days, force } => {
            let file = |end: &str| ca.join(format!("{AUTHORITY}.{end}"));
            let read = |path: PathBuf| {
                std::fs::read_to_string(&path).with_context(|| format!("ca: {}", path.display()))
            };
            let signs = Pair { certificate: read(file("crt"))?, key: read(file("key"))? };
            let hosts: Vec<String> =
                host.iter().map(|host| host.trim_matches(['[', ']']).to_owned()).collect();
            let made = issue(&signs, &hosts, *days, now()).map_err(UsageError)?;
            write(&mut out, folder, &hosts[0], &made, *force)?;
        }
    }
    Ok(out.flush()?)
}

/// Writes both files; the certificate last, so that whoever looks for it finds its key.
fn write(out: &mut impl Write, folder: &Path, name: &str, made: &Pair, force: bool) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("out: {}", folder.display()))?;
    let [certificate, key] = ["crt", "key"].map(|end| folder.join(format!("{name}.{end}")));
    if let Some(there) = [&certificate, &key].into_iter().find(|path| path.exists() && !force) {
        bail!(UsageError(format!("out: {} is there already; --force writes over it", there.display())));
    }
    put(&key, &made.key, 0o600)?;
    put(&certificate, &made.certificate, 0o644)?;
    let until = ends(&made.certificate).map(date).map_err(UsageError)?;
    writeln!(out, "{} and {}, good until {until}", certificate.display(), key.display())?;
    Ok(())
}

/// Writes a file of its own and puts it in its place whole: a process may be looking.
fn put(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || -> std::io::Result<()> {
        std::fs::remove_file(&new).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("out: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_nothing_is_written_over() {
        let folder = std::env::temp_dir().join(format!("foggara-certificates-{}", std::process::id()));
        std::fs::remove_dir_all(&folder).ok();
        let made = |key: &str| Pair {
            certificate: authority("a", 1, 0).expect("made").certificate,
            key: key.to_owned(),
        };
        let written = |key: &str, force| write(&mut Vec::new(), &folder, "a", &made(key), force);
        written("one", false).expect("nothing is there");
        let error = written("two", false).expect_err("it is there").to_string();
        assert!(error.contains("--force"), "{error}");
        let key = folder.join("a.key");
        assert_eq!(std::fs::read_to_string(&key).expect("written"), "one");
        written("two", true).expect("told to");
        assert_eq!(std::fs::read_to_string(&key).expect("written"), "two");
        let mode =
            |name: &str| std::fs::metadata(folder.join(name)).expect("written").permissions().mode() & 0o777;
        assert_eq!((mode("a.key"), mode("a.crt") & 0o700), (0o600, 0o600));
        assert_eq!(std::fs::read_dir(&folder).expect("it is there").count(), 2, "and nothing else");
        std::fs::remove_dir_all(&folder).ok();
    }
}
