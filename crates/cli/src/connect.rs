//! Which controller, and the token for it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};
use api::agent::Token;
use api::client::{Client, ClientError};
use clap::Args;

const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";
const DEFAULT_TOKEN_FILE: &str = "/var/lib/rackswarm/operator.token";

/// Options that every command takes, in any place.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Controller")]
pub(crate) struct Connection {
    /// URL of the controller
    #[arg(long, global = true, env = "RACKSWARM_SERVER", hide_env_values = true, default_value = DEFAULT_SERVER, value_name = "URL", hide_short_help = true)]
    pub(crate) server: String,
    /// File with the operator's token, which the controller writes at its first start
    #[arg(long, global = true, env = "RACKSWARM_TOKEN_FILE", hide_env_values = true, default_value = DEFAULT_TOKEN_FILE, value_name = "FILE", hide_short_help = true)]
    pub(crate) token_file: PathBuf,
}

impl Connection {
    /// A client with the operator's token; nothing is asked yet.
    pub(crate) fn client(&self) -> Result<Client> {
        let server = self.server.trim_end_matches('/');
        if !server.starts_with("http://") {
            return Err(anyhow!(
                "`{server}` is not the URL of a controller: write it as in {DEFAULT_SERVER} (--server or RACKSWARM_SERVER)"
            ));
        }
        let token = read_token(&self.token_file)?;
        Client::new(server, token).context("no HTTP client can be set up")
    }
}

fn read_token(path: &Path) -> Result<Token> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "there is no token file {shown}: `rackswarm serve` writes it as operator.token into its data_dir at the first start \
             and prints its path; name it by --token-file or RACKSWARM_TOKEN_FILE"
        ),
        ErrorKind::PermissionDenied => anyhow!(
            "the token file {shown} may not be read by you: run this as root, or copy the token into a file of your own and name \
             it by --token-file or RACKSWARM_TOKEN_FILE"
        ),
        _ => anyhow!("the token file {shown} cannot be read: {error}"),
    })?;
    let token = text.trim();
    if token.is_empty() || token.len() > 512 || token.contains(char::is_whitespace) {
        return Err(anyhow!(
            "the token file {shown} does not hold one token: expected a single word of at most 512 characters"
        ));
    }
    Ok(Token(token.to_owned()))
}

/// The sentence for an operator: what went wrong and what to do.
pub(crate) fn explain(error: ClientError) -> Error {
    match &error {
        ClientError::Unreachable { .. } => {
            anyhow!(
                "{error}; does `rackswarm serve` run there? Another controller is named by --server or RACKSWARM_SERVER"
            )
        }
        ClientError::Refused { status: 401, .. } => {
            anyhow!(
                "{error}; the token is that of another controller: name the right file by --token-file or RACKSWARM_TOKEN_FILE"
            )
        }
        _ => Error::new(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_file_holds_one_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_token(&path)
        };
        assert_eq!(read("abc\n").unwrap(), Token("abc".into()));
        for wrong in ["", "\n", "a b", &"x".repeat(600)] {
            assert!(read(wrong).unwrap_err().to_string().contains("one token"), "{wrong:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read_token(&path).unwrap_err().to_string().contains("writes it"));
    }

    #[test]
    fn only_plain_http_is_spoken() {
        let connection = Connection { server: "controller:8080".into(), token_file: "/none".into() };
        assert!(connection.client().unwrap_err().to_string().contains("not the URL"));
    }
}
