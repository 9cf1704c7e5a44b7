//! The cluster token, and the files it may be in.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use foggara_proto::auth::ClusterToken;

use crate::exit::UsageError;

/// No token is longer.
const MAX_BYTES: u64 = 4096;

/// The options, as they are given.
#[derive(Debug, Clone, Args)]
struct Given {
    /// What the processes of a cluster and its operators show each other; needed to listen beyond loopback
    #[arg(long, env = "FOGGARA_CLUSTER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    cluster_token: Option<String>,
    /// A file with the cluster token, which only its user (or, if root's, its group) may read
    #[arg(long, env = "FOGGARA_CLUSTER_TOKEN_FILE", value_name = "FILE")]
    cluster_token_file: Option<PathBuf>,
}

/// Where the cluster token is.
#[derive(Debug, Clone, Default)]
pub(crate) enum TokenArguments {
    #[default]
    None,
    Text(String),
    File(PathBuf),
}

impl TokenArguments {
    /// The token's text.
    ///
    /// # Errors
    /// If its file cannot be read, could be by others, or holds no token.
    pub(crate) fn text(&self) -> Result<Option<String>, UsageError> {
        match self {
            Self::None => Ok(None),
            Self::Text(text) => Ok(Some(text.clone())),
            Self::File(path) => read(path)
                .map(Some)
                .map_err(|reason| UsageError(format!("cluster_token_file: {}: {reason}", path.display()))),
        }
    }

    /// The token.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub(crate) fn token(&self) -> Result<ClusterToken, UsageError> {
        Ok(ClusterToken::new(self.text()?.as_deref()))
    }
}

impl Args for TokenArguments {
    fn augment_args(command: Command) -> Command {
        Given::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Given::augment_args_for_update(command)
    }
}

impl FromArgMatches for TokenArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Given { cluster_token, cluster_token_file } = Given::from_arg_matches(matches)?;
        // An empty variable is as good as none.
        let text = cluster_token.filter(|text| !text.is_empty());
        Ok(match (text, cluster_token_file) {
            (None, None) => Self::None,
            (Some(text), None) => Self::Text(text),
            (None, Some(file)) => Self::File(file),
            (Some(text), Some(file)) => {
                let rank = |id| rank(matches.value_source(id));
                match rank("cluster_token").cmp(&rank("cluster_token_file")) {
                    std::cmp::Ordering::Greater => Self::Text(text),
                    std::cmp::Ordering::Less => Self::File(file),
                    std::cmp::Ordering::Equal => {
                        let reason = "cluster_token and cluster_token_file are both given; leave one out\n";
                        return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, reason));
                    }
                }
            }
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What goes before what: an option, a variable, a file (whose values are defaults).
fn rank(source: Option<ValueSource>) -> u8 {
    match source {
        Some(ValueSource::CommandLine) => 3,
        Some(ValueSource::EnvVariable) => 2,
        _ => 1,
    }
}

fn read(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|e| e.to_string())?;
    check_private(path, &metadata)?;
    if metadata.len() > MAX_BYTES {
        return Err(format!("{} bytes; the limit is {MAX_BYTES}", metadata.len()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let token = text.trim_end();
    if token.is_empty() {
        return Err("is empty; `openssl rand -hex 32` makes a token".into());
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the token must be one line of visible ASCII, without spaces".into());
    }
    Ok(token.to_owned())
}

/// Refuses a file that holds a secret and that other users of this machine can read.
///
/// # Errors
/// With the command that mends it.
pub(crate) fn check_private(path: &Path, metadata: &Metadata) -> Result<(), String> {
    let mode = metadata.mode() & 0o777;
    let most = allowed(metadata.uid());
    if mode & 0o077 & !most == 0 {
        return Ok(());
    }
    Err(format!(
        "other users can read it (mode {mode:03o}); run `chmod {:03o} {}`",
        mode & (most | 0o700),
        path.display()
    ))
}

/// The most permissions for a secret of that user. Root shares one with the service's group, and no other way.
fn allowed(owner: u32) -> u32 {
    if owner == 0 { 0o640 } else { 0o600 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Options alone: the tests' own environment has none of the variables.
    fn given(words: &[&str]) -> Result<TokenArguments, clap::Error> {
        let command = TokenArguments::augment_args(Command::new("x").no_binary_name(true));
        TokenArguments::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn a_token_is_given_in_one_way() {
        assert!(matches!(given(&[]), Ok(TokenArguments::None)));
        assert!(matches!(given(&["--cluster-token="]), Ok(TokenArguments::None)));
        assert!(matches!(given(&["--cluster-token=a"]), Ok(TokenArguments::Text(text)) if text == "a"));
        assert!(matches!(given(&["--cluster-token-file=/a"]), Ok(TokenArguments::File(_))));
        let both = given(&["--cluster-token=a", "--cluster-token-file=/a"]).expect_err("two").to_string();
        assert!(both.contains("leave one out"), "{both}");
    }

    #[test]
    fn a_token_file_is_private_and_holds_one_token() {
        let folder = std::env::temp_dir().join(format!("foggara-secret-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("token");
        let outcome = |content: &str, mode: u32| {
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            TokenArguments::File(path.clone()).text().map_err(|e| e.to_string())
        };
        assert_eq!(outcome("abc\n", 0o600), Ok(Some("abc".into())));
        for (content, mode, says) in [
            ("abc", 0o644, "chmod 6"),
            ("abc", 0o666, "mode 666"),
            ("\n", 0o600, "is empty"),
            ("a b", 0o600, "visible ASCII"),
            ("a\nb", 0o600, "one line"),
        ] {
            let error = outcome(content, mode).expect_err("refused");
            assert!(error.contains(says) && error.contains("cluster_token_file"), "{error}");
        }
        let error = outcome(&"a".repeat(5000), 0o600).expect_err("too long");
        assert!(error.contains("4096"), "{error}");
        std::fs::remove_dir_all(&folder).ok();
        let missing = TokenArguments::File(path).text().expect_err("it is gone").to_string();
        assert!(missing.contains("No such file"), "{missing}");
    }

    #[test]
    fn roots_secrets_may_be_shared_with_a_group() {
        assert_eq!((allowed(0), allowed(1000)), (0o640, 0o600));
    }
}
