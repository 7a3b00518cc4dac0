//! Bytes by peer and direction: what was of use, what was wasted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wire::peer::{PeerId, RackName};

/// Most peers that are kept apart; the rest share one account.
pub const MAX_ACCOUNTS: usize = 4096;

/// The bytes exchanged with one peer over all its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Where the peer was last. `None` for the shared account.
    pub address: Option<IpAddr>,
    /// The rack that it named last.
    pub rack: Option<RackName>,
    /// Payload bytes received and kept.
    pub received: u64,
    /// Payload bytes received for nothing: repeated, late, or of a piece that
    /// failed verification.
    pub wasted: u64,
    /// Payload bytes sent.
    pub sent: u64,
}

const NOTHING: Account = Account { address: None, rack: None, received: 0, wasted: 0, sent: 0 };

/// All accounts and their sums.
#[derive(Debug, Clone)]
pub struct Ledger {
    accounts: BTreeMap<PeerId, Account>,
    others: Account,
    total: Account,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger { accounts: BTreeMap::new(), others: NOTHING, total: NOTHING }
    }
}

impl Ledger {
    /// Sums over all peers.
    pub fn total(&self) -> Account {
        self.total.clone()
    }

    /// Every peer with which bytes were exchanged.
    pub fn accounts(&self) -> impl Iterator<Item = (&PeerId, &Account)> {
        self.accounts.iter()
    }

    /// What was exchanged with peers beyond [`MAX_ACCOUNTS`].
    pub fn others(&self) -> Account {
        self.others.clone()
    }

    pub(crate) fn kept(&mut self, who: &Party, bytes: u32) {
        self.book(who, |account| account.received += u64::from(bytes));
    }

    pub(crate) fn wasted(&mut self, who: &Party, bytes: u32) {
        self.book(who, |account| account.wasted += u64::from(bytes));
    }

    pub(crate) fn sent(&mut self, who: &Party, bytes: u32) {
        self.book(who, |account| account.sent += u64::from(bytes));
    }

    /// What was kept turned out to be worthless.
    pub(crate) fn spoiled(&mut self, who: &Party, bytes: u32) {
        self.book(who, |account| {
            account.received = account.received.saturating_sub(bytes.into());
            account.wasted += u64::from(bytes);
        });
    }

    fn book(&mut self, who: &Party, entry: impl Fn(&mut Account)) {
        entry(&mut self.total);
        let known = self.accounts.len() < MAX_ACCOUNTS || self.accounts.contains_key(&who.id);
        if !known {
            return entry(&mut self.others);
        }
        let account = self.accounts.entry(who.id).or_insert(NOTHING);
        account.address = Some(who.ip);
        if account.rack != who.rack {
            account.rack.clone_from(&who.rack);
        }
        entry(account);
    }
}

/// The other party of an entry.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    pub(crate) id: PeerId,
    pub(crate) ip: IpAddr,
    pub(crate) rack: Option<RackName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn party(number: u32) -> Party {
        Party { id: id(number), ip: HERE, rack: None }
    }

    fn id(number: u32) -> PeerId {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PeerId(bytes)
    }

    #[test]
    fn spoiled_bytes_move_from_received_to_wasted() {
        let mut ledger = Ledger::default();
        ledger.kept(&party(1), 100);
        ledger.kept(&party(2), 10);
        ledger.sent(&party(1), 7);
        ledger.spoiled(&party(1), 60);
        let expected = Account { address: Some(HERE), rack: None, received: 40, wasted: 60, sent: 7 };
        assert_eq!(ledger.accounts().next(), Some((&id(1), &expected)));
        assert_eq!(ledger.total(), Account { address: None, rack: None, received: 50, wasted: 60, sent: 7 });
    }

    #[test]
    fn strangers_beyond_the_limit_share_an_account() {
        let mut ledger = Ledger::default();
        for number in 0..MAX_ACCOUNTS as u32 + 5 {
            ledger.wasted(&party(number), 1);
        }
        ledger.wasted(&party(0), 1);
        assert_eq!(ledger.accounts().count(), MAX_ACCOUNTS);
        assert_eq!((ledger.others().wasted, ledger.total().wasted), (5, MAX_ACCOUNTS as u64 + 6));
    }
}
