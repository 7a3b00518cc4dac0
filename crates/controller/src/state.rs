//! The state as the controller holds it: the snapshot, and indexes into it
//! that answer the questions of the packet path without a search.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use boot::director::Lease;
use fleet::change::{Change, Snapshot};
use fleet::ids::{Mac, NodeName};
use fleet::node::{Node, TokenHash};

/// What a token of a node is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bearer {
    /// The agent of the present attempt.
    Boot,
    /// The system that the present attempt writes; it has not proved itself yet.
    Pending,
    /// The system that runs.
    Running,
}

/// Snapshot and indexes.
#[derive(Debug, Default)]
pub struct State {
    snapshot: Snapshot,
    tokens: BTreeMap<String, (NodeName, Bearer)>,
    reserved_by_mac: BTreeMap<Mac, Ipv4Addr>,
    reserved_by_address: BTreeMap<Ipv4Addr, Mac>,
    leases: BTreeMap<Ipv4Addr, Lease>,
    leased_to: BTreeMap<Mac, Ipv4Addr>,
}

impl State {
    /// A state with its indexes.
    #[must_use]
    pub fn new(snapshot: Snapshot, leases: Vec<Lease>) -> Self {
        let mut state = Self { snapshot, ..Self::default() };
        let nodes: Vec<Node> = state.snapshot.nodes.values().cloned().collect();
        nodes.iter().for_each(|node| state.index(node));
        state.put_leases(&leases);
        state
    }

    /// Everything that is known.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Applies one change.
    pub fn apply(&mut self, change: &Change) {
        let name = match change {
            Change::PutNode(node) => Some(&node.name),
            Change::DropNode(name) => Some(name),
            _ => None,
        };
        if let Some(old) = name.and_then(|name| self.snapshot.nodes.get(name)) {
            for token in [&old.boot_token, &old.pending_token, &old.node_token].into_iter().flatten() {
                self.tokens.remove(&token.0);
            }
            if let (Some(address), Some(mac)) = (old.address, old.macs.first()) {
                self.reserved_by_mac.remove(mac);
                self.reserved_by_address.remove(&address);
            }
        }
        self.snapshot.apply(change);
        if let Change::PutNode(node) = change {
            self.index(node);
        }
    }

    /// The node that a token belongs to. The look-up is by a hash that its
    /// bearer cannot choose, so its timing tells nothing about other tokens.
    #[must_use]
    pub fn bearer(&self, token: &TokenHash) -> Option<(&Node, Bearer)> {
        let (name, bearer) = self.tokens.get(&token.0)?;
        Some((self.snapshot.nodes.get(name)?, *bearer))
    }

    /// The address that is kept for this machine.
    #[must_use]
    pub fn reservation(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.reserved_by_mac.get(&mac).copied()
    }

    /// The machine that this address is kept for.
    #[must_use]
    pub fn reserved_for(&self, address: Ipv4Addr) -> Option<Mac> {
        self.reserved_by_address.get(&address).copied()
    }

    /// The address that a node has or had last.
    #[must_use]
    pub fn address_of(&self, node: &Node) -> Option<Ipv4Addr> {
        node.macs.iter().find_map(|mac| self.leased_to.get(mac)).copied().or(node.address)
    }

    /// Notes leases that are stored.
    pub fn put_leases(&mut self, leases: &[Lease]) {
        for lease in leases {
            if let Some(old) = self.leases.insert(lease.address, *lease)
                && old.mac != lease.mac
                && self.leased_to.get(&old.mac) == Some(&lease.address)
            {
                self.leased_to.remove(&old.mac);
            }
            // A machine may have held several; the latest to end is its present one.
            let present = self.leased_to.get(&lease.mac).and_then(|address| self.leases.get(address));
            if present.is_none_or(|p| p.expires <= lease.expires || p.address == lease.address) {
                self.leased_to.insert(lease.mac, lease.address);
            }
        }
    }

    fn index(&mut self, node: &Node) {
        for (token, bearer) in [
            (&node.node_token, Bearer::Running),
            (&node.pending_token, Bearer::Pending),
            (&node.boot_token, Bearer::Boot),
        ] {
            if let Some(token) = token {
                self.tokens.insert(token.0.clone(), (node.name.clone(), bearer));
            }
        }
        if let (Some(address), Some(mac)) = (node.address, node.macs.first()) {
            self.reserved_by_mac.insert(*mac, address);
            self.reserved_by_address.insert(address, *mac);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use fleet::ids::Millis;

    use super::*;

    fn node(name: &str, mac: u8) -> Node {
        Node::new(name.parse().unwrap(), vec![Mac([2, 0, 0, 0, 0, mac])], true, Millis(1))
    }

    fn hash(text: &str) -> TokenHash {
        TokenHash(text.to_owned())
    }

    #[test]
    fn tokens_lead_to_their_node_and_are_forgotten_with_it() {
        let mut state = State::default();
        let mut n1 = node("n1", 1);
        n1.boot_token = Some(hash("boot"));
        n1.node_token = Some(hash("running"));
        state.apply(&Change::PutNode(Box::new(n1.clone())));
        assert_eq!(state.bearer(&hash("boot")).unwrap().1, Bearer::Boot);
        assert_eq!(state.bearer(&hash("running")).unwrap().1, Bearer::Running);
        n1.boot_token = None;
        n1.pending_token = Some(hash("pending"));
        state.apply(&Change::PutNode(Box::new(n1.clone())));
        assert!(state.bearer(&hash("boot")).is_none());
        assert_eq!(state.bearer(&hash("pending")).unwrap().1, Bearer::Pending);
        let again = State::new(state.snapshot().clone(), Vec::new());
        assert_eq!(again.bearer(&hash("pending")).unwrap().0.name, n1.name);
        state.apply(&Change::DropNode(n1.name));
        assert!(state.bearer(&hash("running")).is_none());
    }

    #[test]
    fn reservations_follow_the_node() {
        let mut state = State::default();
        let mut n1 = node("n1", 1);
        n1.address = Some([10, 0, 0, 7].into());
        state.apply(&Change::PutNode(Box::new(n1.clone())));
        assert_eq!(state.reserved_for([10, 0, 0, 7].into()), Some(n1.macs[0]));
        n1.address = Some([10, 0, 0, 8].into());
        state.apply(&Change::PutNode(Box::new(n1.clone())));
        assert_eq!(state.reserved_for([10, 0, 0, 7].into()), None);
        assert_eq!(state.reservation(n1.macs[0]), Some([10, 0, 0, 8].into()));
        state.apply(&Change::DropNode(n1.name));
        assert_eq!(state.reserved_for([10, 0, 0, 8].into()), None);
    }

    #[test]
    fn the_latest_lease_is_a_nodes_address() {
        let mut state = State::default();
        let n1 = node("n1", 1);
        let lease =
            |last: u8, mac: Mac, expires| Lease { address: [10, 0, 0, last].into(), mac, expires: Millis(expires) };
        state.put_leases(&[lease(1, n1.macs[0], 50), lease(2, n1.macs[0], 90), lease(3, n1.macs[0], 20)]);
        assert_eq!(state.address_of(&n1), Some([10, 0, 0, 2].into()));
        state.put_leases(&[lease(2, Mac([9; 6]), 100)]);
        assert_eq!(state.address_of(&n1), None);
        assert_eq!(state.address_of(&Node { address: Some([10, 0, 0, 9].into()), ..n1 }), Some([10, 0, 0, 9].into()));
    }
}
