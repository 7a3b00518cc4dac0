//! Who holds which address. Pure: time and reservations are arguments, and an
//! address is never promised to two machines.
//!
//! Leases are kept by hardware address, not by client identifier (option 61):
//! firmware, iPXE and the installed system of one machine each send another
//! identifier, and with identifiers as keys a machine would use up three
//! addresses on its way up and change its address at each stage.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use fleet::ids::{Mac, Millis};
use ipnet::Ipv4Net;
use wire::dhcp::{Request, RequestKind};

use crate::dhcp::config::{AddressRange, DhcpConfig};
use crate::director::{Lease, Reservations};

/// How long an offered address waits for its machine, milliseconds. Firmware
/// collects offers for up to 32 s before it selects one.
pub const OFFER_HOLD_MS: u64 = 60_000;

/// How long an address is not given to anybody after a machine found it in
/// use, milliseconds.
pub const QUARANTINE_MS: u64 = 600_000;

/// How long a complete search that found no fresh address is believed,
/// milliseconds. Bounds the work of a full pool under a storm of requests.
const SWEEP_PAUSE_MS: u64 = 10_000;

/// What to do about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Propose this address; it is held for the machine.
    Offer(Ipv4Addr),
    /// Confirm the address, after everything in `save` is durable. Nothing is
    /// to be saved when what is stored covers the new lease already.
    Ack {
        /// The address.
        address: Ipv4Addr,
        /// Records to store before the answer is sent.
        save: Vec<Lease>,
    },
    /// The machine has an address of its own and asks for parameters.
    Inform,
    /// Refuse; the sentence is for the machine's log.
    Nak(&'static str),
    /// The machine gave its address back. There is no answer.
    Released {
        /// The address.
        address: Ipv4Addr,
        /// The record to store.
        save: Vec<Lease>,
    },
    /// The machine found the address in use by something else, which is now
    /// not given to anybody for [`QUARANTINE_MS`]. There is no answer.
    Declined {
        /// The address.
        address: Ipv4Addr,
        /// The record to store.
        save: Vec<Lease>,
    },
    /// No answer.
    Silent(Silence),
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The machine has chosen another server.
    OtherServer,
    /// A restarted machine asks to confirm an address that we know nothing
    /// about; RFC 2131 section 4.3.2 wants silence, another server may know.
    NoRecord,
    /// No `[[dhcp.subnets]]` holds this relay or interface address.
    NoSubnet(Ipv4Addr),
    /// Every address of the network is held.
    Exhausted(Ipv4Net),
    /// The machine's reserved address is held by another machine or in
    /// quarantine.
    ReservedInUse {
        /// The reserved address.
        address: Ipv4Addr,
        /// Who holds it now.
        holder: Mac,
    },
    /// The fields contradict each other.
    Malformed,
}

/// All addresses of all networks.
#[derive(Debug)]
pub struct Leases {
    server: Ipv4Addr,
    lease_ms: u64,
    pools: Vec<Pool>,
}

impl Leases {
    /// Empty tables for these networks. `server` is never given away, nor are
    /// the configured routers and name servers.
    #[must_use]
    pub fn new(config: &DhcpConfig, server: Ipv4Addr) -> Self {
        let pools = config
            .subnets
            .iter()
            .map(|subnet| Pool {
                network: subnet.network,
                ranges: subnet.ranges.clone(),
                kept: subnet.router.into_iter().chain(subnet.dns.iter().copied()).chain([server]).collect(),
                entries: BTreeMap::new(),
                by_end: BTreeSet::new(),
                by_mac: BTreeMap::new(),
                fresh: 0,
                sweep_after: Millis(0),
            })
            .collect();
        Self { server, lease_ms: u64::from(config.lease_seconds) * 1_000, pools }
    }

    /// Takes over what an earlier run stored. Records of networks that are no
    /// longer configured are left out.
    pub fn restore(&mut self, leases: impl IntoIterator<Item = Lease>) {
        for lease in leases {
            if let Some(pool) = self.pools.iter_mut().find(|pool| pool.network.contains(&lease.address)) {
                let ends = lease.expires;
                let entry = Entry { mac: lease.mac, held_until: Millis(0), leased_until: ends, durable_until: ends };
                pool.set(lease.address, entry);
            }
        }
    }

    /// Decides about one request.
    pub fn step(&mut self, now: Millis, request: &Request, reservations: &impl Reservations) -> Outcome {
        let (server, lease_ms) = (self.server, self.lease_ms);
        let mac = Mac(request.mac);
        let index = match self.pool_of(request) {
            Ok(index) => index,
            Err(silence) => return Outcome::Silent(silence),
        };
        let pool = &mut self.pools[index];
        let ours = request.server_id.is_none_or(|id| id == server);
        match request.kind {
            RequestKind::Discover => pool.discover(now, mac, request.requested_address, reservations),
            RequestKind::Inform => Outcome::Inform,
            _ if !ours => {
                pool.forget_hold(now, mac);
                Outcome::Silent(Silence::OtherServer)
            }
            RequestKind::Request => match Claim::of(request) {
                Some(claim) => pool.claim(now, mac, claim, lease_ms, reservations),
                None => Outcome::Silent(Silence::Malformed),
            },
            RequestKind::Release => pool.release(now, mac, request.ciaddr),
            RequestKind::Decline => match request.requested_address {
                Some(address) => pool.decline(now, mac, address),
                None => Outcome::Silent(Silence::Malformed),
            },
        }
    }

    /// The network a machine is in: its relay's; else the one of the address it
    /// uses already, because a renewal comes directly even from behind a relay;
    /// else ours.
    fn pool_of(&self, request: &Request) -> Result<usize, Silence> {
        let find = |address: Ipv4Addr| self.pools.iter().position(|pool| pool.network.contains(&address));
        if !request.giaddr.is_unspecified() {
            return find(request.giaddr).ok_or(Silence::NoSubnet(request.giaddr));
        }
        find(request.ciaddr).or_else(|| find(self.server)).ok_or(Silence::NoSubnet(self.server))
    }

    /// These records are durable now; later extensions that they cover need
    /// not be stored again.
    pub fn saved(&mut self, leases: &[Lease]) {
        for lease in leases {
            for pool in &mut self.pools {
                if let Some(entry) = pool.entries.get_mut(&lease.address)
                    && entry.mac == lease.mac
                    && entry.leased_until >= lease.expires
                {
                    entry.durable_until = lease.expires;
                }
            }
        }
    }

    /// Addresses in use or held at this moment, and addresses in all ranges.
    #[must_use]
    pub fn usage(&self, now: Millis) -> (usize, usize) {
        let used = self.pools.iter().map(|pool| pool.by_end.range((now.plus(1), Ipv4Addr::UNSPECIFIED)..).count());
        let size = self.pools.iter().flat_map(|pool| &pool.ranges).map(|range| range.count() as usize);
        (used.sum(), size.sum())
    }
}

/// A DHCPREQUEST, by the state of its sender (RFC 2131 section 4.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Takes our offer.
    Selecting(Ipv4Addr),
    /// Wants its former address confirmed after a restart.
    Rebooting(Ipv4Addr),
    /// Extends its lease, asking us or everybody.
    Renewing(Ipv4Addr),
}

impl Claim {
    fn of(request: &Request) -> Option<Self> {
        let current = Some(request.ciaddr).filter(|address| !address.is_unspecified());
        match (request.server_id, request.requested_address, current) {
            (Some(_), Some(address), _) | (Some(_), None, Some(address)) => Some(Self::Selecting(address)),
            (None, _, Some(address)) => Some(Self::Renewing(address)),
            (None, Some(address), None) => Some(Self::Rebooting(address)),
            (_, None, None) => None,
        }
    }

    fn address(self) -> Ipv4Addr {
        match self {
            Self::Selecting(address) | Self::Rebooting(address) | Self::Renewing(address) => address,
        }
    }
}

/// One address that is or was promised to a machine.
#[derive(Debug, Clone, Copy)]
struct Entry {
    mac: Mac,
    /// End of an offer or of a quarantine.
    held_until: Millis,
    /// End of the lease, with the slack that is stored.
    leased_until: Millis,
    /// The end that is known to be stored.
    durable_until: Millis,
}

impl Entry {
    fn end(&self) -> Millis {
        self.held_until.max(self.leased_until)
    }
}

/// Marks a quarantined address: no machine has this hardware address.
const NOBODY: Mac = Mac([0; 6]);

#[derive(Debug)]
struct Pool {
    network: Ipv4Net,
    ranges: Vec<AddressRange>,
    /// Addresses in the ranges that are never given.
    kept: BTreeSet<Ipv4Addr>,
    entries: BTreeMap<Ipv4Addr, Entry>,
    /// Every entry by its end: the oldest expired one comes first.
    by_end: BTreeSet<(Millis, Ipv4Addr)>,
    by_mac: BTreeMap<Mac, BTreeSet<Ipv4Addr>>,
    /// Position in the concatenated ranges up to which every address has been
    /// given at least once.
    fresh: u32,
    /// No fresh address is looked for before this moment.
    sweep_after: Millis,
}

impl Pool {
    fn discover(
        &mut self,
        now: Millis,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        reservations: &impl Reservations,
    ) -> Outcome {
        match self.choose(now, mac, wanted, reservations) {
            Ok(address) => {
                self.hold(now, mac, address);
                Outcome::Offer(address)
            }
            Err(silence) => Outcome::Silent(silence),
        }
    }

    fn claim(
        &mut self,
        now: Millis,
        mac: Mac,
        claim: Claim,
        lease_ms: u64,
        reservations: &impl Reservations,
    ) -> Outcome {
        let address = claim.address();
        if !self.network.contains(&address) {
            return Outcome::Nak("that address does not belong to this network");
        }
        if self.fixed(mac, reservations).is_some_and(|fixed| fixed != address) {
            return Outcome::Nak("this machine has another, reserved address");
        }
        if !self.available(now, mac, address, reservations) {
            return Outcome::Nak("that address is not yours");
        }
        let known = self.entries.get(&address).is_some_and(|entry| entry.mac == mac);
        let reserved = reservations.reserved_for(address) == Some(mac);
        if matches!(claim, Claim::Rebooting(_)) && !known && !reserved {
            return Outcome::Silent(Silence::NoRecord);
        }
        Outcome::Ack { address, save: self.lease(now, mac, address, lease_ms) }
    }

    fn release(&mut self, now: Millis, mac: Mac, address: Ipv4Addr) -> Outcome {
        match self.entries.get(&address).copied() {
            Some(entry) if entry.mac == mac => {
                self.set(address, Entry { held_until: now, leased_until: now, ..entry });
                Outcome::Released { address, save: vec![Lease { address, mac, expires: now }] }
            }
            _ => Outcome::Silent(Silence::NoRecord),
        }
    }

    /// Only the machine to which the address was promised can put it into
    /// quarantine; otherwise one machine could empty the pool.
    fn decline(&mut self, now: Millis, mac: Mac, address: Ipv4Addr) -> Outcome {
        if self.entries.get(&address).is_none_or(|entry| entry.mac != mac) {
            return Outcome::Silent(Silence::NoRecord);
        }
        let entry = Entry {
            mac: NOBODY,
            held_until: now.plus(QUARANTINE_MS),
            leased_until: Millis(0),
            durable_until: Millis(0),
        };
        self.set(address, entry);
        Outcome::Declined { address, save: vec![Lease { address, mac, expires: now }] }
    }

    /// The machine took another server's offer: what we held for it is free.
    fn forget_hold(&mut self, now: Millis, mac: Mac) {
        for address in self.addresses_of(mac) {
            if let Some(entry) = self.entries.get(&address).copied() {
                self.set(address, Entry { held_until: now.min(entry.held_until), ..entry });
            }
        }
    }

    /// Reserved, then own, then wanted, then never used, then longest expired.
    fn choose(
        &mut self,
        now: Millis,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        reservations: &impl Reservations,
    ) -> Result<Ipv4Addr, Silence> {
        if let Some(address) = self.fixed(mac, reservations) {
            return match self.entries.get(&address) {
                Some(entry) if !self.available(now, mac, address, reservations) => {
                    Err(Silence::ReservedInUse { address, holder: entry.mac })
                }
                _ => Ok(address),
            };
        }
        let own = self.addresses_of(mac).into_iter().max_by_key(|address| self.entries.get(address).map(Entry::end));
        own.into_iter()
            .chain(wanted)
            .find(|address| self.available(now, mac, *address, reservations))
            .or_else(|| self.next_fresh(now, mac, reservations))
            .or_else(|| self.oldest_expired(now, mac, reservations))
            .ok_or(Silence::Exhausted(self.network))
    }

    /// The reserved address, when it belongs to this network. A machine with a
    /// reservation for another network gets an ordinary address here.
    fn fixed(&self, mac: Mac, reservations: &impl Reservations) -> Option<Ipv4Addr> {
        reservations.reservation(mac).filter(|address| self.network.contains(address))
    }

    fn available(&self, now: Millis, mac: Mac, address: Ipv4Addr, reservations: &impl Reservations) -> bool {
        let unclaimed = self.entries.get(&address).is_none_or(|entry| entry.mac == mac || entry.end() <= now);
        let allowed = match reservations.reserved_for(address) {
            Some(owner) => owner == mac,
            None => self.ranges.iter().any(|range| range.contains(address)) && !self.kept.contains(&address),
        };
        unclaimed && allowed
    }

    fn next_fresh(&mut self, now: Millis, mac: Mac, reservations: &impl Reservations) -> Option<Ipv4Addr> {
        if now < self.sweep_after {
            return None;
        }
        while let Some(address) = self.nth(self.fresh) {
            self.fresh += 1;
            if !self.entries.contains_key(&address) && self.available(now, mac, address, reservations) {
                return Some(address);
            }
        }
        self.fresh = 0;
        self.sweep_after = now.plus(SWEEP_PAUSE_MS);
        None
    }

    fn oldest_expired(&self, now: Millis, mac: Mac, reservations: &impl Reservations) -> Option<Ipv4Addr> {
        self.by_end
            .iter()
            .take_while(|(end, _)| *end <= now)
            .map(|(_, address)| *address)
            .find(|address| self.available(now, mac, *address, reservations))
    }

    fn nth(&self, mut index: u32) -> Option<Ipv4Addr> {
        for range in &self.ranges {
            if index < range.count() {
                return Some(Ipv4Addr::from_bits(range.first.to_bits() + index));
            }
            index -= range.count();
        }
        None
    }

    fn hold(&mut self, now: Millis, mac: Mac, address: Ipv4Addr) {
        let until = now.plus(OFFER_HOLD_MS);
        let entry = match self.entries.get(&address) {
            Some(entry) if entry.mac == mac => Entry { held_until: until, ..*entry },
            _ => Entry { mac, held_until: until, leased_until: Millis(0), durable_until: Millis(0) },
        };
        self.set(address, entry);
    }

    /// Makes the lease and says what must be stored first. An eighth more than
    /// was promised is stored, so that the three requests of one start and
    /// early renewals are covered by one write.
    fn lease(&mut self, now: Millis, mac: Mac, address: Ipv4Addr, lease_ms: u64) -> Vec<Lease> {
        let promised = now.plus(lease_ms);
        let mut save = self.leave_others(now, mac, address);
        let former = self.entries.get(&address).copied().filter(|entry| entry.mac == mac);
        let durable_until = former.map_or(Millis(0), |entry| entry.durable_until);
        let covered = durable_until >= promised;
        let leased_until = if covered { durable_until } else { promised.plus(lease_ms / 8) };
        self.set(address, Entry { mac, held_until: Millis(0), leased_until, durable_until });
        if !covered {
            save.push(Lease { address, mac, expires: leased_until });
        }
        save
    }

    /// A machine that takes an address no longer uses its other ones here.
    fn leave_others(&mut self, now: Millis, mac: Mac, address: Ipv4Addr) -> Vec<Lease> {
        let mut save = Vec::new();
        for other in self.addresses_of(mac).into_iter().filter(|other| *other != address) {
            if let Some(entry) = self.entries.get(&other).copied()
                && entry.end() > now
            {
                self.set(other, Entry { held_until: now, leased_until: now, ..entry });
                if entry.leased_until > now {
                    save.push(Lease { address: other, mac, expires: now });
                }
            }
        }
        save
    }

    fn addresses_of(&self, mac: Mac) -> Vec<Ipv4Addr> {
        self.by_mac.get(&mac).into_iter().flatten().copied().collect()
    }

    /// The only place that changes the three tables.
    fn set(&mut self, address: Ipv4Addr, entry: Entry) {
        if let Some(former) = self.entries.insert(address, entry) {
            self.by_end.remove(&(former.end(), address));
            if former.mac != entry.mac
                && let Some(addresses) = self.by_mac.get_mut(&former.mac)
            {
                addresses.remove(&address);
                if addresses.is_empty() {
                    self.by_mac.remove(&former.mac);
                }
            }
        }
        self.by_end.insert((entry.end(), address));
        self.by_mac.entry(entry.mac).or_default().insert(address);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::dhcp::config::{Mode, Subnet};

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const LEASE_MS: u64 = 600_000;

    fn config(last: u8) -> DhcpConfig {
        DhcpConfig {
            mode: Mode::Full,
            interface: Some("br0".to_owned()),
            lease_seconds: 600,
            subnets: vec![
                Subnet {
                    network: "10.77.0.0/24".parse().unwrap(),
                    ranges: vec![AddressRange { first: host(10), last: host(last) }],
                    router: Some(SERVER),
                    dns: vec![],
                    domain: None,
                },
                Subnet {
                    network: "10.78.0.0/24".parse().unwrap(),
                    ranges: vec!["10.78.0.10-10.78.0.20".parse().unwrap()],
                    router: None,
                    dns: vec![],
                    domain: None,
                },
            ],
            ..DhcpConfig::default()
        }
    }

    fn host(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, last)
    }

    fn machine(number: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, number])
    }

    fn ask(kind: RequestKind, mac: Mac) -> Request {
        Request {
            kind,
            xid: 1,
            secs: 0,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            hops: 0,
            mac: mac.0,
            requested_address: None,
            server_id: None,
            parameters: vec![],
            max_message_bytes: None,
            vendor_class: vec![],
            user_class: vec![],
            architecture: None,
            machine_id: None,
            ipxe: false,
            relay_agent: vec![],
        }
    }

    fn selecting(mac: Mac, address: Ipv4Addr) -> Request {
        Request { requested_address: Some(address), server_id: Some(SERVER), ..ask(RequestKind::Request, mac) }
    }

    fn rebooting(mac: Mac, address: Ipv4Addr) -> Request {
        Request { requested_address: Some(address), ..ask(RequestKind::Request, mac) }
    }

    fn renewing(mac: Mac, address: Ipv4Addr) -> Request {
        Request { ciaddr: address, ..ask(RequestKind::Request, mac) }
    }

    struct Table {
        leases: Leases,
        fixed: BTreeMap<Mac, Ipv4Addr>,
        now: Millis,
    }

    impl Table {
        fn new(last: u8) -> Self {
            Self { leases: Leases::new(&config(last), SERVER), fixed: BTreeMap::new(), now: Millis(1_000_000) }
        }

        fn step(&mut self, request: &Request) -> Outcome {
            let outcome = self.leases.step(self.now, request, &self.fixed);
            if let Outcome::Ack { save, .. } | Outcome::Released { save, .. } | Outcome::Declined { save, .. } =
                &outcome
            {
                self.leases.saved(save);
            }
            outcome
        }

        fn offered(&mut self, mac: Mac) -> Ipv4Addr {
            match self.step(&ask(RequestKind::Discover, mac)) {
                Outcome::Offer(address) => address,
                other => panic!("no offer: {other:?}"),
            }
        }

        fn leased(&mut self, mac: Mac) -> Ipv4Addr {
            let address = self.offered(mac);
            assert!(matches!(self.step(&selecting(mac, address)), Outcome::Ack { .. }));
            address
        }

        fn pass(&mut self, milliseconds: u64) {
            self.now = self.now.plus(milliseconds);
        }
    }

    #[test]
    fn an_offer_is_held_and_found_again() {
        let mut table = Table::new(12);
        let first = table.offered(machine(1));
        assert_eq!(table.offered(machine(1)), first);
        assert_ne!(table.offered(machine(2)), first);
        assert_ne!(table.offered(machine(3)), first);
        assert_eq!(
            table.step(&ask(RequestKind::Discover, machine(4))),
            Outcome::Silent(Silence::Exhausted("10.77.0.0/24".parse().unwrap()))
        );
        table.pass(OFFER_HOLD_MS);
        assert_eq!(table.offered(machine(4)), first, "the oldest hold is over");
    }

    #[test]
    fn an_ack_is_saved_once_for_a_whole_start() {
        let mut table = Table::new(20);
        let address = table.offered(machine(1));
        let Outcome::Ack { save, .. } = table.step(&selecting(machine(1), address)) else { panic!("no ack") };
        assert_eq!(save.len(), 1);
        assert!(save[0].expires >= table.now.plus(LEASE_MS));
        table.pass(20_000);
        assert_eq!(table.leased(machine(1)), address, "iPXE gets the firmware's address");
        table.pass(20_000);
        assert_eq!(
            table.step(&renewing(machine(1), address)),
            Outcome::Ack { address, save: vec![] },
            "what is stored covers it"
        );
        table.pass(LEASE_MS / 2);
        let Outcome::Ack { save, .. } = table.step(&renewing(machine(1), address)) else { panic!("no ack") };
        assert_eq!(save.len(), 1);
    }

    #[test]
    fn a_failed_save_is_tried_again() {
        let mut table = Table::new(20);
        let address = table.offered(machine(1));
        for _ in 0..2 {
            let outcome = table.leases.step(table.now, &selecting(machine(1), address), &table.fixed);
            let Outcome::Ack { save, .. } = outcome else { panic!("no ack") };
            assert_eq!(save.len(), 1, "not reported as saved, so it is to be saved again");
        }
    }

    #[test]
    fn a_reservation_is_exclusive_and_enforced() {
        let mut table = Table::new(12);
        table.fixed.insert(machine(1), host(11));
        table.fixed.insert(machine(2), host(200));
        assert_eq!(table.offered(machine(2)), host(200), "outside the ranges");
        assert_eq!(table.offered(machine(3)), host(10));
        assert_eq!(table.offered(machine(4)), host(12), "11 is kept for its owner");
        assert_eq!(table.leased(machine(1)), host(11));
        assert!(matches!(table.step(&rebooting(machine(1), host(12))), Outcome::Nak(_)));
        assert!(matches!(table.step(&rebooting(machine(2), host(200))), Outcome::Ack { .. }));
    }

    #[test]
    fn a_reservation_made_while_another_machine_holds_the_address_waits_for_it() {
        let mut table = Table::new(12);
        let address = table.leased(machine(1));
        table.fixed.insert(machine(2), address);
        assert_eq!(
            table.step(&ask(RequestKind::Discover, machine(2))),
            Outcome::Silent(Silence::ReservedInUse { address, holder: machine(1) })
        );
        assert!(matches!(table.step(&renewing(machine(1), address)), Outcome::Nak(_)), "the holder has to leave");
        table.pass(2 * LEASE_MS);
        assert_eq!(table.leased(machine(2)), address);
    }

    #[test]
    fn a_new_reservation_moves_its_machine() {
        let mut table = Table::new(12);
        let former = table.leased(machine(1));
        table.fixed.insert(machine(1), host(50));
        assert!(matches!(table.step(&renewing(machine(1), former)), Outcome::Nak(_)));
        assert_eq!(table.offered(machine(1)), host(50));
        let Outcome::Ack { save, .. } = table.step(&selecting(machine(1), host(50))) else { panic!("no ack") };
        assert_eq!(save.len(), 2, "the new lease and the end of the former");
        assert_eq!(table.offered(machine(2)), host(11), "fresh before expired");
        assert_eq!(table.offered(machine(3)), host(12));
        assert_eq!(table.offered(machine(4)), former);
    }

    #[test]
    fn requests_by_the_state_of_their_sender() {
        let mut table = Table::new(12);
        let address = table.leased(machine(1));
        let elsewhere = Ipv4Addr::new(192, 168, 7, 7);

        assert!(matches!(table.step(&rebooting(machine(1), address)), Outcome::Ack { .. }));
        assert!(matches!(table.step(&rebooting(machine(1), elsewhere)), Outcome::Nak(_)), "wrong network");
        assert!(matches!(table.step(&rebooting(machine(2), address)), Outcome::Nak(_)), "somebody else's");
        assert_eq!(table.step(&rebooting(machine(2), host(12))), Outcome::Silent(Silence::NoRecord));
        assert!(matches!(table.step(&renewing(machine(2), host(12))), Outcome::Ack { .. }), "free, so it is adopted");
        assert!(matches!(table.step(&renewing(machine(3), address)), Outcome::Nak(_)));
        assert!(matches!(table.step(&selecting(machine(3), host(250))), Outcome::Nak(_)), "not in any range");
        assert!(matches!(table.step(&selecting(machine(3), SERVER)), Outcome::Nak(_)), "the server's own");
        assert_eq!(table.step(&ask(RequestKind::Request, machine(3))), Outcome::Silent(Silence::Malformed));
        assert_eq!(table.step(&ask(RequestKind::Inform, machine(3))), Outcome::Inform);
    }

    #[test]
    fn choosing_another_server_frees_the_hold() {
        let mut table = Table::new(10);
        let address = table.offered(machine(1));
        let elsewhere = Request { server_id: Some(host(2)), ..selecting(machine(1), address) };
        assert_eq!(table.step(&elsewhere), Outcome::Silent(Silence::OtherServer));
        assert_eq!(table.offered(machine(2)), address);
    }

    #[test]
    fn a_release_keeps_the_address_in_mind() {
        let mut table = Table::new(12);
        let address = table.leased(machine(1));
        let foreign = Request { ciaddr: address, ..ask(RequestKind::Release, machine(2)) };
        assert_eq!(table.step(&foreign), Outcome::Silent(Silence::NoRecord));
        let release = Request { ciaddr: address, ..ask(RequestKind::Release, machine(1)) };
        let Outcome::Released { save, .. } = table.step(&release) else { panic!("not released") };
        assert_eq!(save[0].expires, table.now);
        assert_ne!(table.offered(machine(2)), address, "fresh addresses first");
        assert_eq!(table.offered(machine(1)), address);
    }

    #[test]
    fn a_declined_address_rests() {
        let mut table = Table::new(10);
        let address = table.leased(machine(1));
        let decline = |mac| Request { requested_address: Some(address), ..ask(RequestKind::Decline, mac) };
        assert_eq!(table.step(&decline(machine(2))), Outcome::Silent(Silence::NoRecord), "not its address");
        assert!(matches!(table.step(&decline(machine(1))), Outcome::Declined { .. }));
        assert!(matches!(table.step(&ask(RequestKind::Discover, machine(1))), Outcome::Silent(_)));
        table.pass(QUARANTINE_MS);
        assert_eq!(table.offered(machine(2)), address);
    }

    #[test]
    fn a_relay_chooses_the_network_and_a_direct_renewal_keeps_it() {
        let mut table = Table::new(12);
        let relay = Ipv4Addr::new(10, 78, 0, 1);
        let relayed = Request { giaddr: relay, ..ask(RequestKind::Discover, machine(1)) };
        let Outcome::Offer(address) = table.step(&relayed) else { panic!("no offer") };
        assert_eq!(address, Ipv4Addr::new(10, 78, 0, 10));
        let take = Request { giaddr: relay, ..selecting(machine(1), address) };
        assert!(matches!(table.step(&take), Outcome::Ack { .. }));
        assert!(matches!(table.step(&renewing(machine(1), address)), Outcome::Ack { .. }));
        let nowhere = Request { giaddr: Ipv4Addr::new(10, 79, 0, 1), ..relayed };
        assert_eq!(table.step(&nowhere), Outcome::Silent(Silence::NoSubnet(Ipv4Addr::new(10, 79, 0, 1))));
    }

    #[test]
    fn stored_leases_survive_a_restart() {
        let mut table = Table::new(12);
        let address = table.offered(machine(1));
        let Outcome::Ack { save, .. } = table.step(&selecting(machine(1), address)) else { panic!("no ack") };
        let mut later = Table::new(12);
        later.now = table.now.plus(1_000);
        later.leases.restore(save);
        assert_ne!(later.offered(machine(2)), address);
        assert_ne!(later.offered(machine(3)), address);
        assert!(matches!(later.step(&ask(RequestKind::Discover, machine(4))), Outcome::Silent(_)));
        assert_eq!(later.leased(machine(1)), address);
        assert_eq!(later.leases.usage(later.now), (3, 14));
    }

    #[test]
    fn the_oldest_expired_address_is_used_again_first() {
        let mut table = Table::new(12);
        let first = table.leased(machine(1));
        table.pass(1_000);
        let second = table.leased(machine(2));
        table.pass(1_000);
        table.leased(machine(3));
        table.pass(2 * LEASE_MS);
        assert_eq!(table.offered(machine(4)), first);
        assert_eq!(table.offered(machine(5)), second);
    }

    /// One message of a random conversation.
    #[derive(Debug, Clone)]
    enum Move {
        Say { kind: RequestKind, machine: u8, address: u8, own_server: bool, form: u8 },
        Wait(u64),
        Reserve { machine: u8, address: u8 },
        Restart,
    }

    fn any_move() -> impl Strategy<Value = Move> {
        let kind = prop_oneof![
            4 => Just(RequestKind::Discover),
            8 => Just(RequestKind::Request),
            1 => Just(RequestKind::Release),
            1 => Just(RequestKind::Decline),
        ];
        prop_oneof![
            12 => (kind, 1u8..7, 9u8..15, prop::bool::weighted(0.9), 0u8..3).prop_map(
                |(kind, machine, address, own_server, form)| Move::Say { kind, machine, address, own_server, form }
            ),
            2 => (1u64..LEASE_MS).prop_map(Move::Wait),
            1 => (1u8..7, 9u8..15).prop_map(|(machine, address)| Move::Reserve { machine, address }),
            1 => Just(Move::Restart),
        ]
    }

    /// What the machines believe: who may use which address until when.
    #[derive(Default)]
    struct Belief {
        granted: BTreeMap<Ipv4Addr, (Mac, Millis)>,
        offered: BTreeMap<Ipv4Addr, (Mac, Millis)>,
        stored: BTreeMap<Ipv4Addr, Lease>,
    }

    impl Belief {
        fn check(&mut self, now: Millis, mac: Mac, outcome: &Outcome) {
            match outcome {
                Outcome::Offer(address) => {
                    self.nobody_else_uses(now, mac, *address);
                    if let Some((holder, until)) = self.offered.get(address) {
                        assert!(*holder == mac || *until <= now, "{address} offered to {holder} and {mac}");
                    }
                    self.offered.insert(*address, (mac, now.plus(OFFER_HOLD_MS)));
                }
                Outcome::Ack { address, save } => {
                    self.nobody_else_uses(now, mac, *address);
                    self.granted.retain(|_, (holder, _)| *holder != mac);
                    self.granted.insert(*address, (mac, now.plus(LEASE_MS)));
                    self.offered.retain(|_, (holder, _)| *holder != mac);
                    self.store(save);
                    let stored = self.stored.get(address).unwrap();
                    assert!(stored.mac == mac && stored.expires >= now.plus(LEASE_MS), "promise is not stored");
                }
                Outcome::Released { address, save } | Outcome::Declined { address, save } => {
                    self.granted.remove(address);
                    self.offered.remove(address);
                    self.store(save);
                }
                Outcome::Silent(Silence::OtherServer) => self.offered.retain(|_, (holder, _)| *holder != mac),
                _ => {}
            }
        }

        fn nobody_else_uses(&self, now: Millis, mac: Mac, address: Ipv4Addr) {
            if let Some((holder, until)) = self.granted.get(&address) {
                assert!(*holder == mac || *until <= now, "{address} is used by {holder} and was given to {mac}");
            }
        }

        fn store(&mut self, save: &[Lease]) {
            self.stored.extend(save.iter().map(|lease| (lease.address, *lease)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_address_ever_has_two_holders(moves in prop::collection::vec(any_move(), 1..150)) {
            let mut table = Table::new(13);
            let mut belief = Belief::default();
            for step in moves {
                match step {
                    Move::Wait(milliseconds) => table.pass(milliseconds),
                    Move::Reserve { machine: number, address } => {
                        let address = host(address);
                        table.fixed.retain(|_, held| *held != address);
                        table.fixed.insert(machine(number), address);
                    }
                    Move::Restart => {
                        table.leases = Leases::new(&config(13), SERVER);
                        table.leases.restore(belief.stored.values().copied());
                        belief.offered.clear();
                    }
                    Move::Say { kind, machine: number, address, own_server, form } => {
                        let server = if own_server { SERVER } else { host(2) };
                        let mut request = ask(kind, machine(number));
                        match form {
                            0 => (request.requested_address, request.server_id) = (Some(host(address)), Some(server)),
                            1 => request.requested_address = Some(host(address)),
                            _ => request.ciaddr = host(address),
                        }
                        let outcome = table.step(&request);
                        belief.check(table.now, machine(number), &outcome);
                        let pool = &table.leases.pools[0];
                        prop_assert_eq!(pool.entries.len(), pool.by_end.len());
                        prop_assert_eq!(pool.entries.len(), pool.by_mac.values().map(BTreeSet::len).sum::<usize>());
                    }
                }
            }
        }
    }
}
