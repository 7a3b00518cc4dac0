//! All connections, sorted by their keys. Keys only grow, so a new one goes to
//! the end.

use std::ops::{Index, IndexMut};

use crate::io::Peer;
use crate::peer::Link;

/// The connections of an engine. An index is good until one is removed. The
/// keys stand apart: connections are long, and a search shall not touch them.
#[derive(Debug, Default)]
pub(crate) struct Links {
    keys: Vec<Peer>,
    links: Vec<Link>,
}

impl Links {
    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// The place of a connection in the order of all.
    pub(crate) fn find(&self, peer: Peer) -> Option<usize> {
        self.keys.binary_search(&peer).ok()
    }

    pub(crate) fn get(&self, peer: Peer) -> Option<&Link> {
        self.find(peer).map(|at| &self.links[at])
    }

    pub(crate) fn get_mut(&mut self, peer: Peer) -> Option<&mut Link> {
        self.find(peer).map(|at| &mut self.links[at])
    }

    pub(crate) fn insert(&mut self, link: Link) {
        match self.keys.binary_search(&link.peer) {
            Ok(at) => self.links[at] = link,
            Err(at) => {
                self.keys.insert(at, link.peer);
                self.links.insert(at, link);
            }
        }
    }

    pub(crate) fn remove(&mut self, peer: Peer) -> Option<Link> {
        let at = self.find(peer)?;
        self.keys.remove(at);
        Some(self.links.remove(at))
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Link> {
        self.links.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Link> {
        self.links.iter_mut()
    }

    /// The keys of those that are meant.
    pub(crate) fn peers(&self, meant: impl Fn(&Link) -> bool) -> Vec<Peer> {
        self.links.iter().filter(|link| meant(link)).map(|link| link.peer).collect()
    }
}

impl Index<usize> for Links {
    type Output = Link;

    fn index(&self, at: usize) -> &Link {
        &self.links[at]
    }
}

impl IndexMut<usize> for Links {
    fn index_mut(&mut self, at: usize) -> &mut Link {
        &mut self.links[at]
    }
}
