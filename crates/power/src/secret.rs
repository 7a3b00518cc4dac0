//! Passwords and tokens: read from a file, compared and sent, never shown.

use std::fmt;
use std::path::Path;

use crate::{Error, Result};

/// A password or token has a line; a longer file is another file.
const FILE_BYTES: u64 = 4096;

/// A text that no log, error or `Debug` shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The first line of a file. `target` and `what` are for the sentence when it cannot be had.
    pub(crate) async fn read(path: &Path, target: &str, what: &str) -> Result<Secret> {
        let text = read_small(path, target, what).await?;
        match text.lines().next().map(str::trim_end) {
            Some(line) if !line.is_empty() => Ok(Secret::new(line)),
            _ => Err(trouble(path, target, what, "its first line is empty")),
        }
    }

    /// The text itself, for the wire only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A small text file, bounded before it is read.
pub(crate) async fn read_small(path: &Path, target: &str, what: &str) -> Result<String> {
    let about = tokio::fs::metadata(path).await.map_err(|error| trouble(path, target, what, &error.to_string()))?;
    if about.len() > FILE_BYTES {
        return Err(trouble(path, target, what, "it is larger than 4 KiB, so it is another file"));
    }
    tokio::fs::read_to_string(path).await.map_err(|error| trouble(path, target, what, &error.to_string()))
}

fn trouble(path: &Path, target: &str, what: &str, why: &str) -> Error {
    Error::refused(target, format!("{what} file {}: {why}; write the {what} into it", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_is_the_first_line_and_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "hunter2\r\nanother line\n").unwrap();
        let secret = Secret::read(&path, "BMC x", "password").await.unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        std::fs::write(&path, "\n").unwrap();
        let error = Secret::read(&path, "BMC x", "password").await.unwrap_err().to_string();
        assert!(error.contains("BMC x: password file") && error.contains("empty"), "{error}");
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(Secret::read(&path, "BMC x", "password").await.unwrap_err().to_string().contains("larger"));
    }
}
