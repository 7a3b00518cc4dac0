//! What can go wrong in the controller, each with what to do about it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use fleet::intake::Refused;
use thiserror::Error;

/// Every failure of this crate.
#[derive(Debug, Error)]
pub enum Error {
    /// The configuration file is not understood, or a value in it is out of range.
    #[error("{}{}: {why}", file.display(), line.map(|n| format!(", line {n}")).unwrap_or_default())]
    Config {
        /// The file.
        file: PathBuf,
        /// The line, counted from one, where it is known.
        line: Option<usize>,
        /// What is wrong and what to write.
        why: String,
    },
    /// What the configuration asks for cannot be had on this machine.
    #[error("{0}")]
    Setup(String),
    /// A file or folder of ours cannot be used.
    #[error("cannot {doing} {}: {cause}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Another controller works on the same data.
    #[error(
        "another controller is using {}; stop it first, or give this one another `server.data_dir`",
        data_dir.display()
    )]
    Locked {
        /// The folder.
        data_dir: PathBuf,
    },
    /// A port cannot be opened.
    #[error("cannot listen on {address} for {what}: {cause}. {remedy}")]
    Bind {
        /// What would be served there.
        what: &'static str,
        /// Address and port.
        address: SocketAddr,
        /// The system's answer.
        cause: io::Error,
        /// Who may hold the port or which capability is missing, and what to do.
        remedy: String,
    },
    /// A boot service failed.
    #[error(transparent)]
    Boot(#[from] boot::Error),

    /// The database's address is of no known kind.
    #[error(
        "`database.url` is `{url}`: write sqlite:///folder/file.db, postgres://user@host/name, or leave it out for a file in `server.data_dir`"
    )]
    DatabaseScheme {
        /// The address.
        url: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the database {place} has schema version {found} and this program knows versions up to {known}: it was written by a newer Rackswarm. Install that version again or restore an older backup; nothing was changed"
    )]
    NewerDatabase {
        /// The database.
        place: String,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The database does not do its work; trying again may help.
    #[error("cannot {doing} in the database {place}: {cause}")]
    Database {
        /// The database.
        place: String,
        /// What was being done.
        doing: &'static str,
        /// The engine's answer.
        cause: String,
    },
    /// Somebody else has changed the state in between; it must be read anew.
    #[error("the state has moved on from revision {base} to {present}; read it again")]
    Conflict {
        /// The revision that the changes were made for.
        base: u64,
        /// The revision that the store has.
        present: u64,
    },

    /// The state could not be stored, so nothing was changed; trying again may help.
    #[error("nothing was changed, because the state could not be stored: {0}")]
    NotStored(String),
    /// A set of machines did not answer as it should; asking again may help.
    #[error("{0}")]
    Set(String),
    /// An event was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The controller is ending.
    #[error("the controller is stopping; ask again in a moment")]
    Stopping,
}
