//! What is to happen, in order of time, and of arrangement where times are
//! equal.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::units::Nanos;

/// Something that will happen. Small and plain: what belongs to it lies in
/// the slab that its numbers point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A node's engine asked to be woken.
    Tick(u32),
    /// A node begins, or begins again.
    Start(u32),
    /// A dial of this node, kept under the number, comes to its end.
    Dialled(u32, u32),
    /// An input kept under this number is due at the node.
    Input(u32, u32),
    /// A piece was hashed and written by the node in this life of it.
    Stored(u32, u32, u32),
    /// The other end of this connection closed it; this end hears.
    Closed(u32, u8),
    /// Fault number n begins, or goes on.
    Fault(u32),
    /// Fault number n ends.
    Mended(u32),
    /// Progress is to be sampled.
    Sample,
    /// Messages under way arrive.
    Messages(u32),
    /// A transfer or unit moves on in the network.
    Network(u8, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    at: Nanos,
    sequence: u64,
    event: Event,
}

impl Ord for Entry {
    /// Reversed, because the standard heap gives the greatest first.
    fn cmp(&self, other: &Entry) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Nanoseconds of one slot of the wheel, as a power of two: 16 microseconds.
const SLOT_BITS: u32 = 14;

/// Slots of the wheel, a power of two: what is less than 67 ms ahead.
const SLOTS: u64 = 1 << 12;

/// All events to come. Most are less than a piece's time ahead, and there are
/// several for each node: those wait unsorted in the slots of a wheel, and only
/// the slot that time has come to is sorted. A heap of all of them took a sixth
/// of a run with 10,000 nodes, mostly waiting for memory.
#[derive(Debug)]
pub(crate) struct Agenda {
    /// The events of the slot `reached`, the last first.
    slot: Vec<Entry>,
    /// What was arranged for that slot, or before, when it had been reached.
    late: BinaryHeap<Entry>,
    /// Nobody has asked yet what is in the slot.
    has_turned: bool,
    wheel: Vec<Vec<Entry>>,
    /// Events in the wheel.
    turning: usize,
    /// What lies beyond the wheel.
    far: BinaryHeap<Entry>,
    reached: u64,
    sequence: u64,
    now: Nanos,
}

impl Default for Agenda {
    fn default() -> Agenda {
        Agenda {
            slot: Vec::new(),
            late: BinaryHeap::new(),
            has_turned: false,
            wheel: vec![Vec::new(); SLOTS as usize],
            turning: 0,
            far: BinaryHeap::new(),
            reached: 0,
            sequence: 0,
            now: 0,
        }
    }
}

impl Agenda {
    /// Events in the past happen now.
    pub(crate) fn at(&mut self, at: Nanos, event: Event) {
        self.sequence += 1;
        let entry = Entry { at: at.max(self.now), sequence: self.sequence, event };
        self.put(entry);
    }

    fn put(&mut self, entry: Entry) {
        let slot = entry.at >> SLOT_BITS;
        if slot <= self.reached {
            self.late.push(entry);
        } else if slot < self.reached + SLOTS {
            self.wheel[(slot % SLOTS) as usize].push(entry);
            self.turning += 1;
        } else {
            self.far.push(entry);
        }
    }

    pub(crate) fn after(&mut self, wait: Nanos, event: Event) {
        self.at(self.now.saturating_add(wait), event);
    }

    pub(crate) fn now(&self) -> Nanos {
        self.now
    }

    /// When the next event is.
    pub(crate) fn peek(&mut self) -> Option<Nanos> {
        self.turn();
        self.slot.last().max(self.late.peek()).map(|entry| entry.at)
    }

    pub(crate) fn next(&mut self) -> Option<Event> {
        self.turn();
        let entry = if self.slot.last() >= self.late.peek() { self.slot.pop() } else { self.late.pop() }?;
        self.now = entry.at;
        Some(entry.event)
    }

    /// The events of a slot that was reached since this was asked last, if any:
    /// they happen next.
    pub(crate) fn turned(&mut self) -> impl Iterator<Item = Event> + '_ {
        let has_turned = std::mem::take(&mut self.has_turned);
        let slot = if has_turned { self.slot.as_slice() } else { &[] };
        slot.iter().rev().map(|entry| entry.event)
    }

    /// Turns the wheel to the next slot that has events, if none are left.
    fn turn(&mut self) {
        while self.slot.is_empty() && self.late.is_empty() {
            let far = self.far.peek().map(|entry| entry.at >> SLOT_BITS);
            self.reached = match far {
                Some(far) if self.turning == 0 => far,
                None if self.turning == 0 => return,
                _ => self.reached + 1,
            };
            let slot = &mut self.wheel[(self.reached % SLOTS) as usize];
            self.turning -= slot.len();
            self.slot.append(slot);
            self.slot.sort_unstable();
            self.has_turned = true;
            while self.far.peek().is_some_and(|entry| entry.at >> SLOT_BITS < self.reached + SLOTS) {
                if let Some(entry) = self.far.pop() {
                    self.put(entry);
                }
            }
        }
    }
}

/// Things under way, by number; a freed number is used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn put(&mut self, item: T) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.items[number as usize] = Some(item);
                number
            }
            None => {
                self.items.push(Some(item));
                (self.items.len() - 1) as u32
            }
        }
    }

    pub(crate) fn take(&mut self, number: u32) -> Option<T> {
        let item = self.items.get_mut(number as usize)?.take();
        if item.is_some() {
            self.free.push(number);
        }
        item
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.items.get_mut(number as usize)?.as_mut()
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.items.get(number as usize)?.as_ref()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn time_first_then_order_of_arrangement() {
        let mut agenda = Agenda::default();
        for (at, node) in [(5, 1), (3, 2), (5, 3), (3, 4), (4, 5)] {
            agenda.at(at, Event::Tick(node));
        }
        let order: Vec<Event> = std::iter::from_fn(|| agenda.next()).collect();
        assert_eq!(order, [2, 4, 5, 1, 3].map(Event::Tick));
        agenda.at(0, Event::Sample);
        assert_eq!(agenda.peek(), Some(5), "the past is now");
    }

    #[test]
    fn the_wheel_keeps_the_order_of_a_heap() {
        let mut agenda = Agenda::default();
        let mut waiting: Vec<(Nanos, u32)> = Vec::new();
        let (mut happened, mut number) = (0, 0);
        for round in 0..20_000_u64 {
            for wait in [round * 7 % 900, 1 << 13, round * 2_654_435_761 % (1 << 29), 3 << 26] {
                if waiting.len() < 500 {
                    number += 1;
                    agenda.after(wait, Event::Tick(number));
                    waiting.push((agenda.now() + wait, number));
                }
            }
            let first = waiting.iter().copied().min().unwrap();
            waiting.retain(|entry| *entry != first);
            assert_eq!(agenda.peek(), Some(first.0));
            assert_eq!((agenda.next(), agenda.now()), (Some(Event::Tick(first.1)), first.0));
            happened += 1;
        }
        assert_eq!(std::iter::from_fn(|| agenda.next()).count() + happened, number as usize);
    }

    #[test]
    fn numbers_are_used_again() {
        let mut slab = Slab::default();
        let (a, b) = (slab.put('a'), slab.put('b'));
        assert_eq!((slab.take(a), slab.take(a)), (Some('a'), None));
        assert_eq!((slab.put('c'), slab.get(b).copied()), (a, Some('b')));
    }
}
