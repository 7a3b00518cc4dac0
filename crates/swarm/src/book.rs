//! Addresses of peers: which to dial, and when again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use wire::peer::PeerId;

use crate::chance::Chance;
use crate::policy::Policy;

/// An address that failed this often in a row is forgotten until somebody
/// names it again.
const MAX_FAILURES: u32 = 10;

/// Addresses of hearsay that are remembered.
const MAX_RUMOURS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// May be dialled from then on.
    Ready(Duration),
    /// Was dialled then.
    Dialling(Duration),
    /// A connection that we dialled lives.
    Connected,
    /// Never again: it is ourselves, or it lied.
    Barred,
}

/// Whom there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Nobody,
    /// Those whom a tracker of our own kind chose for us.
    Chosen,
    Anybody,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// By a tracker of our own kind.
    chosen: bool,
    failures: u32,
    /// Who answered there last.
    id: Option<PeerId>,
}

#[derive(Debug)]
pub(crate) struct Book {
    entries: BTreeMap<SocketAddr, Entry>,
    /// Not to be dialled while somebody who knows better answers.
    rumours: Vec<SocketAddr>,
    dialling: usize,
    limit: usize,
    timeout: Duration,
    backoff: Duration,
    backoff_max: Duration,
}

impl Book {
    pub(crate) fn new(policy: &Policy) -> Book {
        Book {
            entries: BTreeMap::new(),
            rumours: Vec::new(),
            dialling: 0,
            limit: policy.max_addresses,
            timeout: policy.dial_timeout,
            backoff: policy.dial_backoff,
            backoff_max: policy.dial_backoff_max,
        }
    }

    /// Dials without an answer yet.
    pub(crate) fn dialling(&self) -> usize {
        self.dialling
    }

    /// Somebody named these addresses; `chosen` when a tracker of our own kind
    /// did, for us.
    pub(crate) fn found(&mut self, addresses: &[SocketAddr], chosen: bool, now: Duration) {
        for &address in addresses {
            if self.entries.len() >= self.limit && !self.entries.contains_key(&address) {
                continue;
            }
            let new = Entry { state: State::Ready(now), chosen, failures: 0, id: None };
            self.entries.entry(address).or_insert(new).chosen |= chosen;
        }
    }

    /// Peers say that there are such. Each is told once, so a few are kept, of
    /// all alike.
    pub(crate) fn rumoured(&mut self, addresses: &[SocketAddr], chance: &mut Chance) {
        for &address in addresses {
            if self.entries.contains_key(&address) || self.rumours.contains(&address) {
                continue;
            }
            if self.rumours.len() < MAX_RUMOURS {
                self.rumours.push(address);
            } else {
                self.rumours[chance.index(MAX_RUMOURS)] = address;
            }
        }
    }

    /// There is nothing better than hearsay for so many.
    pub(crate) fn believe(&mut self, most: usize, now: Duration) {
        let rumours = self.rumours.split_off(self.rumours.len().saturating_sub(most));
        self.found(&rumours, false, now);
    }

    /// An address to dial now: a chosen one, else one by chance so that
    /// neighbours form a random graph; those whose owner is connected already
    /// are left out.
    pub(crate) fn dial(
        &mut self,
        now: Duration,
        room: Room,
        is_connected: impl Fn(&PeerId) -> bool,
        chance: &mut Chance,
    ) -> Option<SocketAddr> {
        let ready = |entry: &Entry| {
            entry.has_place(room)
                && matches!(entry.state, State::Ready(from) if from <= now)
                && !entry.id.as_ref().is_some_and(&is_connected)
        };
        let ready =
            self.entries.iter().filter(|(_, entry)| ready(entry)).map(|(address, entry)| (*address, entry.chosen));
        let (chosen, others): (Vec<_>, Vec<_>) = ready.partition(|(_, chosen)| *chosen);
        let ready = if chosen.is_empty() { others } else { chosen };
        let (address, _) = *ready.get(chance.index(ready.len()))?;
        self.entries.get_mut(&address)?.state = State::Dialling(now);
        self.dialling += 1;
        Some(address)
    }

    /// A dial succeeded: who is there.
    pub(crate) fn connected(&mut self, address: SocketAddr, id: PeerId) {
        if let Some(entry) = self.leave_dialling(address) {
            entry.state = State::Connected;
            entry.id = Some(id);
        }
    }

    /// Whoever listens there dialled us: while it is connected it is not dialled.
    pub(crate) fn met(&mut self, address: SocketAddr, id: PeerId) {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.id = Some(id);
        }
    }

    /// The peer proved useful: its address starts anew.
    pub(crate) fn praise(&mut self, address: SocketAddr) {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.failures = 0;
        }
    }

    /// A dial failed or the connection ended: try again later, each time
    /// twice as late, and a little apart from others who saw the same end.
    pub(crate) fn failed(&mut self, address: SocketAddr, now: Duration, chance: &mut Chance) {
        let (backoff, longest) = (self.backoff, self.backoff_max);
        let Some(entry) = self.leave_dialling(address) else { return };
        if entry.state == State::Barred {
            return;
        }
        let wait = backoff.saturating_mul(1 << entry.failures.min(16)).min(longest);
        let jitter = wait * chance.below(256) / 1024;
        entry.state = State::Ready(now + wait + jitter);
        entry.failures += 1;
        if entry.failures >= MAX_FAILURES {
            self.entries.remove(&address);
        }
    }

    /// It is not dialled again unless somebody names it anew.
    pub(crate) fn forget(&mut self, address: SocketAddr) {
        self.leave_dialling(address);
        self.entries.remove(&address);
    }

    pub(crate) fn bar(&mut self, address: SocketAddr) {
        if let Some(entry) = self.leave_dialling(address) {
            entry.state = State::Barred;
        }
    }

    fn leave_dialling(&mut self, address: SocketAddr) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&address)?;
        if matches!(entry.state, State::Dialling(_)) {
            self.dialling -= 1;
        }
        Some(entry)
    }

    /// Gives up dials that nobody answered.
    pub(crate) fn expire(&mut self, now: Duration, chance: &mut Chance) {
        let late = |entry: &Entry| matches!(entry.state, State::Dialling(since) if since + self.timeout <= now);
        let late: Vec<SocketAddr> =
            self.entries.iter().filter(|(_, entry)| late(entry)).map(|(address, _)| *address).collect();
        late.into_iter().for_each(|address| self.failed(address, now, chance));
    }

    /// When a dial times out, or an address that has a place becomes ready
    /// after `now`.
    pub(crate) fn deadline(&self, now: Duration, room: Room) -> Option<Duration> {
        let due = |entry: &Entry| match entry.state {
            State::Dialling(since) => Some(since + self.timeout),
            State::Ready(from) if entry.has_place(room) && from > now => Some(from),
            _ => None,
        };
        self.entries.values().filter_map(due).min()
    }
}

impl Entry {
    fn has_place(&self, room: Room) -> bool {
        match room {
            Room::Nobody => false,
            Room::Chosen => self.chosen,
            Room::Anybody => true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn dial(book: &mut Book, now: Duration) -> Option<SocketAddr> {
        book.dial(now, Room::Anybody, |_| false, &mut Chance::new(1, 1))
    }

    #[test]
    fn a_failing_address_is_tried_later_and_later_and_then_forgotten() {
        let mut book = Book::new(&Policy::default());
        let mut chance = Chance::new(1, 1);
        let mut now = at(0);
        book.found(&[address(1), address(1)], false, now);
        let mut waits = Vec::new();
        while dial(&mut book, now).is_some() {
            book.failed(address(1), now, &mut chance);
            let Some(next) = book.deadline(now, Room::Anybody) else { break };
            assert_eq!(dial(&mut book, now), None);
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits.len(), 9);
        assert!(waits.is_sorted() && waits[0] == 1 && (60..=75).contains(&waits[8]), "{waits:?}");
        assert_eq!(book.deadline(now, Room::Anybody), None);
        book.found(&[address(1)], false, now);
        assert_eq!(dial(&mut book, now), Some(address(1)));
    }

    #[test]
    fn unanswered_dials_expire() {
        let mut book = Book::new(&Policy::default());
        book.found(&[address(1)], false, at(0));
        dial(&mut book, at(0)).unwrap();
        assert_eq!((book.dialling(), book.deadline(at(0), Room::Nobody)), (1, Some(at(10))));
        book.expire(at(10), &mut Chance::new(1, 1));
        assert_eq!((book.dialling(), dial(&mut book, at(10))), (0, None));
        assert!(dial(&mut book, at(12)).is_some());
    }

    #[test]
    fn the_connected_and_the_barred_are_not_dialled() {
        let mut book = Book::new(&Policy::default());
        let id = PeerId([1; 20]);
        book.found(&[address(1), address(2)], false, at(0));
        for _ in 0..2 {
            dial(&mut book, at(0)).unwrap();
        }
        book.connected(address(1), id);
        book.bar(address(2));
        assert_eq!((book.dialling(), dial(&mut book, at(99))), (0, None));

        let mut chance = Chance::new(1, 1);
        book.failed(address(1), at(0), &mut chance);
        book.failed(address(2), at(0), &mut chance);
        assert_eq!(
            book.dial(at(99), Room::Anybody, |other| *other == id, &mut chance),
            None,
            "it dialled us meanwhile"
        );
        assert_eq!(book.dial(at(99), Room::Anybody, |_| false, &mut chance), Some(address(1)));
    }

    #[test]
    fn hearsay_is_dialled_when_there_is_nothing_better() {
        let mut book = Book::new(&Policy::default());
        let mut chance = Chance::new(1, 1);
        book.found(&[address(1)], false, at(0));
        assert_eq!(dial(&mut book, at(0)), Some(address(1)));
        book.rumoured(&(1..200).map(address).collect::<Vec<_>>(), &mut chance);
        assert_eq!((book.rumours.len(), dial(&mut book, at(0))), (MAX_RUMOURS, None));
        book.believe(3, at(1));
        assert_eq!(std::iter::from_fn(|| dial(&mut book, at(1))).count(), 3);
        book.believe(usize::MAX, at(1));
        let dialled: Vec<SocketAddr> = std::iter::from_fn(|| dial(&mut book, at(1))).collect();
        assert!(dialled.len() == MAX_RUMOURS - 3 && !dialled.contains(&address(1)), "{dialled:?}");
        assert!(dialled.iter().any(|address| address.port() > 100), "not the first ones only: {dialled:?}");
    }

    #[test]
    fn the_chosen_come_first_and_have_places_of_their_own() {
        let mut book = Book::new(&Policy::default());
        book.found(&(1..9).map(address).collect::<Vec<_>>(), false, at(0));
        book.found(&[address(5), address(20)], true, at(0));
        let mut dial = |room| book.dial(at(1), room, |_| false, &mut Chance::new(1, 1));
        let mut first = [dial(Room::Anybody), dial(Room::Chosen)];
        first.sort_unstable();
        assert_eq!(first, [Some(address(5)), Some(address(20))]);
        assert_eq!((dial(Room::Chosen), dial(Room::Nobody)), (None, None));
        assert!(dial(Room::Anybody).is_some());
    }

    #[test]
    fn who_came_to_us_is_not_dialled_while_it_is_here() {
        let mut book = Book::new(&Policy::default());
        let id = PeerId([1; 20]);
        book.found(&[address(1)], true, at(0));
        book.met(address(1), id);
        let mut dial =
            |here: bool| book.dial(at(0), Room::Anybody, |other| here && *other == id, &mut Chance::new(1, 1));
        assert_eq!((dial(true), dial(false)), (None, Some(address(1))));
    }

    #[test]
    fn the_book_is_bounded() {
        let mut book = Book::new(&Policy { max_addresses: 3, ..Policy::default() });
        book.found(&(1..10).map(address).collect::<Vec<_>>(), false, at(0));
        assert_eq!(book.entries.len(), 3);
    }
}
