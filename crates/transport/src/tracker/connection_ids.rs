//! Connection ids of BEP 15 without a memory of who got one.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// An id is taken in the period it was given in and in the next.
const PERIOD: Duration = Duration::from_secs(60);

/// Gives ids that only their receiver can repeat: a keyed hash (SipHash, keyed
/// anew by each process) of address and time.
#[derive(Debug, Default)]
pub(super) struct ConnectionIds {
    key: RandomState,
}

impl ConnectionIds {
    pub(super) fn of(&self, address: IpAddr, now: Duration) -> u64 {
        self.in_period(address, period(now))
    }

    pub(super) fn is_valid(&self, id: u64, address: IpAddr, now: Duration) -> bool {
        let period = period(now);
        id == self.in_period(address, period) || period > 0 && id == self.in_period(address, period - 1)
    }

    fn in_period(&self, address: IpAddr, period: u64) -> u64 {
        self.key.hash_one((address, period))
    }
}

fn period(now: Duration) -> u64 {
    now.as_secs() / PERIOD.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_for_one_address_and_a_minute_or_two() {
        let ids = ConnectionIds::default();
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let at = Duration::from_secs;
        let id = ids.of(a, at(59));
        assert!(ids.is_valid(id, a, at(0)) && ids.is_valid(id, a, at(119)));
        assert!(!ids.is_valid(id, a, at(120)) && !ids.is_valid(id, b, at(59)) && !ids.is_valid(id ^ 1, a, at(59)));
        assert!(!ConnectionIds::default().is_valid(id, a, at(59)), "another process, another key");
    }
}
