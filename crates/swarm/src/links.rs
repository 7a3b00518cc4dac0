//! All connections, sorted by their keys. Keys only grow, so a new one goes to
//! the end.

use std::ops::{Index, IndexMut};

use crate::io::Peer;
use crate::peer::Link;

/// The connections of an engine. An index is good until one is removed.
#[derive(Debug, Default)]
pub(crate) struct Links(Vec<Link>);

impl Links {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn find(&self, peer: Peer) -> Option<usize> {
        self.0.binary_search_by_key(&peer, |link| link.peer).ok()
    }

    pub(crate) fn get(&self, peer: Peer) -> Option<&Link> {
        self.find(peer).map(|at| &self.0[at])
    }

    pub(crate) fn get_mut(&mut self, peer: Peer) -> Option<&mut Link> {
        self.find(peer).map(|at| &mut self.0[at])
    }

    /// A key that is in use already is replaced.
    pub(crate) fn insert(&mut self, link: Link) {
        match self.0.binary_search_by_key(&link.peer, |link| link.peer) {
            Ok(at) => self.0[at] = link,
            Err(at) => self.0.insert(at, link),
        }
    }

    pub(crate) fn remove(&mut self, peer: Peer) -> Option<Link> {
        self.find(peer).map(|at| self.0.remove(at))
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Link> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Link> {
        self.0.iter_mut()
    }

    /// The keys of those that are meant.
    pub(crate) fn peers(&self, meant: impl Fn(&Link) -> bool) -> Vec<Peer> {
        self.0.iter().filter(|link| meant(link)).map(|link| link.peer).collect()
    }
}

impl Index<usize> for Links {
    type Output = Link;

    fn index(&self, at: usize) -> &Link {
        &self.0[at]
    }
}

impl IndexMut<usize> for Links {
    fn index_mut(&mut self, at: usize) -> &mut Link {
        &mut self.0[at]
    }
}
