//! What survives a restart: changes of the state, timelines and leases.
//!
//! One trait and three engines behind it. SQLite is the embedded default,
//! PostgreSQL the shared one, and both run the same SQL ([`sql`]); the third
//! keeps everything in memory and is for trials and tests.

pub mod memory;
pub mod sql;

use std::path::Path;
use std::sync::Arc;

use boot::director::Lease;
use fleet::change::{Change, Note, Snapshot};
use fleet::ids::{DeploymentId, NodeName};
use fleet::run::Run;
use futures_util::future::BoxFuture;

use crate::config::DatabaseConfig;
use crate::error::Error;
pub use memory::MemoryStore;
pub use sql::SqlStore;

/// How often the state was changed; grows by one with every [`Store::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Lines of a node's timeline that are kept; older ones are dropped, a few
/// hundred at a time.
pub const TIMELINE_LINES: usize = 4_000;

/// Where the state is kept. Every call ends within a bounded time.
pub trait Store: Send + Sync + 'static {
    /// All stored changes so far.
    fn load(&self) -> BoxFuture<'_, Result<(Snapshot, Revision), Error>>;

    /// Stores changes in one transaction; when it returns, they are durable.
    /// Changes that are not stored ([`Change::is_stored`]) are passed over.
    ///
    /// # Errors
    /// [`Error::Conflict`] when `base` is not the present revision; nothing was
    /// changed then. After any other error the changes may or may not have
    /// been stored, and [`Store::since`] tells.
    fn apply<'a>(&'a self, base: Revision, changes: &'a [Change]) -> BoxFuture<'a, Result<Revision, Error>>;

    /// What changed after `base`: applied in order to the snapshot of `base`
    /// it gives the present one.
    fn since(&self, base: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), Error>>;

    /// The newest [`TIMELINE_LINES`] lines of a node's timeline, oldest first.
    fn timeline<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<Vec<Note>, Error>>;

    /// What each node did in a deployment, of those that have come to its end, by their names.
    fn runs(&self, deployment: DeploymentId) -> BoxFuture<'_, Result<Vec<Run>, Error>>;

    /// Stores leases, each under its address, in one transaction.
    fn save_leases<'a>(&'a self, leases: &'a [Lease]) -> BoxFuture<'a, Result<(), Error>>;

    /// All stored leases.
    fn load_leases(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>>;

    /// Lets go of files and connections; later calls fail.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Opens the store that the configuration names.
///
/// # Errors
/// When it cannot be opened, is from a newer version of this program, or is
/// not a database.
pub async fn open(config: &DatabaseConfig, data_dir: &Path) -> Result<Arc<dyn Store>, Error> {
    match config.url.as_deref() {
        Some("memory:") => Ok(Arc::new(MemoryStore::default())),
        Some(url) => Ok(Arc::new(SqlStore::open(url, config.password_file.as_deref()).await?)),
        None => Ok(Arc::new(SqlStore::open_file(&data_dir.join("rackswarm.db")).await?)),
    }
}
