//! What a tracker remembers over its own restart: who was in which swarm, and
//! who knows whom. The bytes are for the same release of the program; anything
//! else is refused as damaged and nothing is lost but a moment.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::metainfo::InfoHash;
use wire::peer::{PeerId, RackName};

use super::Tracker;
use super::swarm::{Member, Place, Swarm};

/// Largest snapshot that is made or read, in bytes: about 400 000 peers.
pub const MAX_SNAPSHOT_BYTES: usize = 64 << 20;

const MAGIC: &[u8; 8] = b"RSTRACK1";
const CHECK_BYTES: usize = 8;
/// No announces say more links of one peer.
const MAX_LINKS: usize = 1024;

const COMPLETE: u8 = 1;
const SEED: u8 = 2;
const IN_CELL: u8 = 4;
const V6: u8 = 8;

/// The bytes are no snapshot of this release, or not all of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tracker's memory is damaged or of another release: nodes announce again by themselves; delete the file")]
pub struct Damaged;

impl Tracker {
    /// Everything worth remembering, at most [`MAX_SNAPSHOT_BYTES`]: swarms
    /// that do not fit are left out.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (info_hash, swarm) in &self.swarms {
            let before = out.len();
            out.extend_from_slice(&info_hash.0);
            put_swarm(swarm, &mut out);
            if out.len() > MAX_SNAPSHOT_BYTES - CHECK_BYTES {
                out.truncate(before);
            }
        }
        let check = checksum(&out);
        out.extend_from_slice(&check);
        out
    }

    /// Remembers what a snapshot says; a swarm comes to life when its torrent
    /// is registered. Its peers count as heard `now`. Says how many peers.
    ///
    /// # Errors
    /// [`Damaged`]; the tracker is as before.
    pub fn restore(&mut self, now: Duration, snapshot: &[u8]) -> Result<usize, Damaged> {
        let (body, check) = snapshot.split_last_chunk::<CHECK_BYTES>().ok_or(Damaged)?;
        if snapshot.len() > MAX_SNAPSHOT_BYTES || checksum(body) != *check {
            return Err(Damaged);
        }
        let mut rest = Reader(body.strip_prefix(MAGIC).ok_or(Damaged)?);
        let (mut swarms, mut peers) = (Vec::new(), 0);
        while !rest.0.is_empty() {
            let info_hash = InfoHash(rest.array()?);
            let swarm = self.read_swarm(now, &mut rest)?;
            peers += swarm.everybody.len();
            swarms.push((info_hash, swarm));
        }
        for (info_hash, swarm) in swarms {
            match self.swarms.get_mut(&info_hash) {
                Some(served) if served.everybody.is_empty() => *served = swarm,
                Some(_) => {}
                None => drop(self.remembered.insert(info_hash, swarm)),
            }
        }
        Ok(peers)
    }

    fn read_swarm(&mut self, now: Duration, rest: &mut Reader<'_>) -> Result<Swarm, Damaged> {
        let mut swarm = Swarm::default();
        swarm.downloaded = rest.u32()?;
        let mut slots = Vec::new();
        for _ in 0..rest.u32()? {
            let (mut member, rack) = read_member(now, rest)?;
            let links = rest.u16()?;
            member.is_known = true;
            if matches!(member.place, Place::Cell(_)) {
                member.place = swarm.place_for(false, true, rack);
            }
            if swarm.slot_of(member.address).is_some() || swarm.everybody.len() >= self.policy.max_swarm {
                return Err(Damaged);
            }
            let slot = swarm.put(member);
            for _ in 0..links {
                let other = *slots.get(rest.u32()? as usize).ok_or(Damaged)?;
                swarm.graph.connect(slot, other);
            }
            slots.push(slot);
            swarm.rewire(slot, &self.policy, &mut self.chance);
        }
        Ok(swarm)
    }
}

/// Members that announce, in the order of their slots; each with its links to
/// earlier ones.
fn put_swarm(swarm: &Swarm, out: &mut Vec<u8>) {
    let told = |slot: &u32| swarm.member(*slot).is_some_and(|member| member.seen.is_some());
    let slots: Vec<u32> = (0..swarm.members.len() as u32).filter(told).collect();
    out.extend_from_slice(&swarm.downloaded.to_be_bytes());
    out.extend_from_slice(&(slots.len() as u32).to_be_bytes());
    for slot in &slots {
        let Some(member) = swarm.member(*slot) else { continue };
        put_member(swarm, member, out);
        let earlier = swarm.graph.of(*slot).iter().filter(|other| *other < slot);
        let mut earlier: Vec<usize> =
            earlier.filter_map(|other| slots.binary_search(other).ok()).take(MAX_LINKS).collect();
        earlier.sort_unstable();
        out.extend_from_slice(&(earlier.len() as u16).to_be_bytes());
        earlier.iter().for_each(|other| out.extend_from_slice(&(*other as u32).to_be_bytes()));
    }
}

fn put_member(swarm: &Swarm, member: &Member, out: &mut Vec<u8>) {
    let (place, rack) = match member.place {
        Place::Stranger => (0, None),
        Place::Seed => (SEED, None),
        Place::Cell(cell) => (IN_CELL, swarm.cells[cell as usize].name.as_ref()),
    };
    out.push(place | if member.complete { COMPLETE } else { 0 } | if member.address.is_ipv6() { V6 } else { 0 });
    match member.address.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&member.address.port().to_be_bytes());
    out.extend_from_slice(&member.id.0);
    let rack = rack.map_or("", RackName::as_str);
    // Names have at most 64 bytes.
    out.push(rack.len() as u8);
    out.extend_from_slice(rack.as_bytes());
}

fn read_member(now: Duration, rest: &mut Reader<'_>) -> Result<(Member, Option<RackName>), Damaged> {
    let [flags] = rest.array()?;
    let ip = match flags & V6 {
        0 => IpAddr::from(rest.array::<4>()?),
        _ => IpAddr::from(rest.array::<16>()?),
    };
    let address = SocketAddr::new(ip, rest.u16()?);
    let id = PeerId(rest.array()?);
    let [length] = rest.array()?;
    let rack = rest.take(length.into())?;
    let rack = match rack {
        [] => None,
        name => Some(std::str::from_utf8(name).ok().and_then(|name| RackName::new(name).ok()).ok_or(Damaged)?),
    };
    let place = match flags & (SEED | IN_CELL) {
        0 => Place::Stranger,
        SEED => Place::Seed,
        _ => Place::Cell(0),
    };
    Ok((Member::new(address, id, flags & COMPLETE != 0, place, Some(now)), rack))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        self.take(N)?.try_into().map_err(|_| Damaged)
    }

    fn u16(&mut self) -> Result<u16, Damaged> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Damaged> {
        self.array().map(u32::from_be_bytes)
    }
}

/// FNV-1a: against torn and rotten files, not against people.
fn checksum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes()
}
