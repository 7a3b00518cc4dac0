//! Bearer tokens: 256 random bits, of which only the SHA-256 is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::agent::Token;
use data_encoding::HEXLOWER;
use fleet::node::TokenHash;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// A new token, written in hexadecimal so that a kernel line can carry it.
///
/// # Errors
/// When the operating system has no random bytes.
pub fn mint() -> Result<Token, Error> {
    let mut bytes = [0u8; 32];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|e| Error::Setup(format!("the operating system gives no random bytes for a token: {e}")))?;
    Ok(Token(HEXLOWER.encode(&bytes)))
}

/// What is kept of a token.
#[must_use]
pub fn hash(token: &str) -> TokenHash {
    TokenHash(HEXLOWER.encode(&Sha256::digest(token.as_bytes())))
}

/// Compares in a time that does not depend on where two hashes differ.
#[must_use]
pub fn same(a: &TokenHash, b: &TokenHash) -> bool {
    let (a, b) = (a.0.as_bytes(), b.0.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Reads the operators' token from `path`; at the first start it is made, in a
/// file that only its owner can read.
///
/// # Errors
/// [`Error::File`] when it cannot be read or written, [`Error::Setup`] when
/// what it holds is no token.
pub fn operator(path: &Path) -> Result<Token, Error> {
    let broken = |doing: &'static str| move |cause| Error::File { doing, path: path.to_owned(), cause };
    let text = match File::open(path) {
        Ok(file) => {
            let mut text = String::new();
            file.take(1024).read_to_string(&mut text).map_err(broken("read the operator token from"))?;
            text
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = mint()?;
            write_private(path, &token.0).map_err(broken("write the operator token to"))?;
            return Ok(token);
        }
        Err(error) => return Err(broken("read the operator token from")(error)),
    };
    let token = text.trim();
    if token.len() < 32 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Setup(format!(
            "{} holds no operator token (at least 32 letters and digits); remove the file and a new one is made",
            path.display()
        )));
    }
    Ok(Token(token.to_owned()))
}

/// Whole or not at all: a crash must not leave half a token.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let _ = fs::remove_file(&unfinished);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_differ_and_hash_to_known_values() {
        let (a, b) = (mint().unwrap(), mint().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.0.len(), 64);
        assert_eq!(hash("abc").0, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(same(&hash("abc"), &hash("abc")) && !same(&hash("abc"), &hash("abd")));
        assert!(!same(&hash("abc"), &TokenHash(String::new())));
    }

    #[test]
    fn the_operator_token_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.token");
        let token = operator(&path).unwrap();
        assert_eq!(operator(&path).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short\n").unwrap();
        assert!(operator(&path).unwrap_err().to_string().contains("holds no operator token"));
    }
}
