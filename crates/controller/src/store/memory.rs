//! A store that forgets everything when the process ends: for trials
//! (`url = "memory:"`), and the oracle that the others are tested against.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use boot::director::Lease;
use fleet::change::{Change, Note, Snapshot};
use fleet::ids::{DeploymentId, NodeName};
use fleet::run::Run;
use futures_util::future::{BoxFuture, ready};

use super::{Revision, Store, TIMELINE_LINES};
use crate::error::Error;

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: Revision,
    /// All stored changes; the state is nothing but their replay.
    log: Vec<(Revision, Change)>,
    leases: BTreeMap<Ipv4Addr, Lease>,
}

impl MemoryStore {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load(&self) -> BoxFuture<'_, Result<(Snapshot, Revision), Error>> {
        let inner = self.inner();
        let mut snapshot = Snapshot::default();
        inner.log.iter().for_each(|(_, change)| snapshot.apply(change));
        Box::pin(ready(Ok((snapshot, inner.revision))))
    }

    fn apply<'a>(&'a self, base: Revision, changes: &'a [Change]) -> BoxFuture<'a, Result<Revision, Error>> {
        let mut inner = self.inner();
        if inner.revision != base {
            return Box::pin(ready(Err(Error::Conflict { base: base.0, present: inner.revision.0 })));
        }
        inner.revision = base.next();
        let revision = inner.revision;
        inner.log.extend(changes.iter().filter(|c| c.is_stored()).map(|change| (revision, change.clone())));
        Box::pin(ready(Ok(revision)))
    }

    fn since(&self, base: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), Error>> {
        let inner = self.inner();
        let changes = inner.log.iter().filter(|(revision, _)| *revision > base).map(|(_, c)| c.clone()).collect();
        Box::pin(ready(Ok((changes, inner.revision))))
    }

    fn timeline<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<Vec<Note>, Error>> {
        let mut lines = Vec::new();
        for (_, change) in &self.inner().log {
            match change {
                Change::Note(note) if note.node == *node => lines.push(note.clone()),
                Change::DropNode(name) if name == node => lines.clear(),
                _ => {}
            }
        }
        lines.drain(..lines.len().saturating_sub(TIMELINE_LINES));
        Box::pin(ready(Ok(lines)))
    }

    fn runs(&self, deployment: DeploymentId) -> BoxFuture<'_, Result<Vec<Run>, Error>> {
        let mut runs = BTreeMap::new();
        for (_, change) in &self.inner().log {
            if let Change::PutRun(run) = change
                && run.deployment == deployment
            {
                runs.insert(run.node.clone(), run.clone());
            }
        }
        Box::pin(ready(Ok(runs.into_values().collect())))
    }

    fn save_leases<'a>(&'a self, leases: &'a [Lease]) -> BoxFuture<'a, Result<(), Error>> {
        self.inner().leases.extend(leases.iter().map(|lease| (lease.address, *lease)));
        Box::pin(ready(Ok(())))
    }

    fn load_leases(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>> {
        Box::pin(ready(Ok(self.inner().leases.values().copied().collect())))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}
