//! An ordinary client, as far as our nodes can tell: BEP 3 and nothing else.
//! It pulls rarest pieces in blocks of 16 KiB with a fixed pipeline, serves
//! four peers at a time of which one changes by chance, ignores what it does
//! not understand, and never closes a connection to another peer.

use std::collections::VecDeque;
use std::net::SocketAddr;

use swarm::{Input, Output, Peer, PieceSet, Progress, Shape, Verdict};
use wire::announce::Event;
use wire::peer::{Block, Message};

use crate::chance::{Stream, below};
use crate::units::{Nanos, SECOND};

/// Requests in flight to one peer.
const PIPELINE: usize = 16;
/// Peers served at once, one of them by chance.
const SLOTS: usize = 4;
/// How often slots are given anew.
const ROUND: Nanos = 10 * SECOND;
/// Connections wanted.
const PEERS: usize = 30;
/// A peer that owes for so long is not asked any more.
const PATIENCE: Nanos = 60 * SECOND;
/// A peer with so many is not asked any more; one that sent all of a corrupt
/// piece has them at once.
const STRIKES: u32 = 3;
/// Requests queued for one peer at most.
const QUEUE: usize = 250;

struct Link {
    peer: Peer,
    has: PieceSet,
    chokes_us: bool,
    we_choke: bool,
    wants_us: bool,
    we_want: bool,
    owed: VecDeque<Block>,
    owed_since: Nanos,
    queue: VecDeque<Block>,
    sending: bool,
    received: u64,
    /// It let us wait for too long and is not asked until it sends something.
    gave_up: bool,
    /// Pieces with bytes of it that turned out to be corrupt.
    strikes: u32,
}

/// A piece begun.
struct Begun {
    piece: u32,
    peer: Option<Peer>,
    /// Blocks not yet kept; the flag says that it was asked for.
    missing: Vec<(Block, bool)>,
    /// Who sent blocks of it.
    senders: Vec<Peer>,
}

/// The client.
pub(crate) struct Foreign {
    shape: Shape,
    have: PieceSet,
    links: Vec<Link>,
    begun: Vec<Begun>,
    addresses: VecDeque<SocketAddr>,
    dialling: usize,
    node: u32,
    seed: u64,
    drawn: u64,
    started: bool,
    next_announce: Nanos,
    next_round: Nanos,
    uploaded: u64,
    downloaded: u64,
}

impl Foreign {
    pub(crate) fn new(shape: Shape, have: PieceSet, node: u32, seed: u64) -> Foreign {
        Foreign {
            shape,
            have,
            links: Vec::new(),
            begun: Vec::new(),
            addresses: VecDeque::new(),
            dialling: 0,
            node,
            seed,
            drawn: 0,
            started: false,
            next_announce: 0,
            next_round: 0,
            uploaded: 0,
            downloaded: 0,
        }
    }

    pub(crate) fn have(&self) -> &PieceSet {
        &self.have
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        Some(self.next_announce.min(self.next_round))
    }

    pub(crate) fn step(&mut self, now: Nanos, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Announced { interval, peers, .. } => {
                self.next_announce = now + u64::try_from(interval.as_nanos()).unwrap_or(ROUND);
                self.addresses.extend(peers);
                self.dial(out);
            }
            Input::AnnounceFailed => self.next_announce = now + ROUND,
            Input::Found(peers) => self.addresses.extend(peers),
            Input::Connected { peer, side, .. } => {
                if side == swarm::Side::Outbound {
                    self.dialling = self.dialling.saturating_sub(1);
                }
                self.connected(peer, now, out);
            }
            Input::DialFailed(_) => {
                self.dialling = self.dialling.saturating_sub(1);
                self.dial(out);
            }
            Input::Said(peer, message) => self.said(peer, message, now, out),
            Input::Arrived(peer, block) => self.arrived(peer, block, now, out),
            Input::Sent(peer, block) => self.sent(peer, block, out),
            Input::Verified(piece, verdict) => self.verified(piece, verdict == Verdict::Good, now, out),
            Input::Gone(peer) => self.gone(peer, now, out),
            // Its disk is a part of the simulation, and keeps everything.
            Input::Lost(_) | Input::Tick => {}
        }
        self.upkeep(now, out);
    }

    fn upkeep(&mut self, now: Nanos, out: &mut Vec<Output>) {
        if self.next_announce <= now {
            let event = (!self.started).then_some(Event::Started);
            self.started = true;
            self.announce(event, out);
            self.next_announce = now + 30 * SECOND;
        }
        if self.next_round <= now {
            self.next_round = now + ROUND;
            self.round(out);
            for at in 0..self.links.len() {
                self.give_up(at, now, out);
            }
            for at in 0..self.links.len() {
                self.ask(at, now, out);
            }
        }
    }

    /// What a peer has owed for too long is asked of others.
    fn give_up(&mut self, at: usize, now: Nanos, out: &mut Vec<Output>) {
        let link = &self.links[at];
        if link.owed.is_empty() || link.owed_since + PATIENCE > now {
            return;
        }
        out.extend(link.owed.iter().map(|block| Output::Say(link.peer, Message::Cancel(*block))));
        self.release(at);
        self.links[at].gave_up = true;
    }

    fn announce(&self, event: Option<Event>, out: &mut Vec<Output>) {
        let missing = (0..self.shape.pieces()).filter(|piece| !self.have.contains(*piece));
        out.push(Output::Announce(Progress {
            event,
            uploaded: self.uploaded,
            downloaded: self.downloaded,
            left: missing.map(|piece| u64::from(self.shape.piece_bytes(piece))).sum(),
            num_want: PEERS as u32,
        }));
    }

    fn dial(&mut self, out: &mut Vec<Output>) {
        while !self.have.is_full() && self.links.len() + self.dialling < PEERS {
            let Some(address) = self.addresses.pop_front() else { return };
            self.dialling += 1;
            out.push(Output::Dial(address));
        }
    }

    fn chance(&mut self, bound: usize) -> usize {
        self.drawn += 1;
        below(self.seed, self.node, Stream::Conduct, self.drawn, bound as u64) as usize
    }

    fn at(&self, peer: Peer) -> Option<usize> {
        self.links.iter().position(|link| link.peer == peer)
    }

    fn connected(&mut self, peer: Peer, now: Nanos, out: &mut Vec<Output>) {
        self.links.push(Link {
            peer,
            has: PieceSet::empty(self.shape.pieces()),
            chokes_us: true,
            we_choke: true,
            wants_us: false,
            we_want: false,
            owed: VecDeque::new(),
            owed_since: now,
            queue: VecDeque::new(),
            sending: false,
            received: 0,
            gave_up: false,
            strikes: 0,
        });
        if !self.have.is_empty() {
            out.push(Output::Say(peer, Message::Bitfield(self.have.to_bitfield())));
        }
    }

    fn said(&mut self, peer: Peer, message: Message, now: Nanos, out: &mut Vec<Output>) {
        let Some(at) = self.at(peer) else { return };
        match message {
            Message::Choke => {
                self.links[at].chokes_us = true;
                self.release(at);
            }
            Message::Unchoke => self.links[at].chokes_us = false,
            Message::Interested => {
                self.links[at].wants_us = true;
                let served = self.links.iter().filter(|link| !link.we_choke).count();
                if served < SLOTS && self.links[at].we_choke {
                    self.links[at].we_choke = false;
                    out.push(Output::Say(peer, Message::Unchoke));
                }
            }
            Message::NotInterested => self.links[at].wants_us = false,
            Message::Have(piece) => {
                self.links[at].has.insert(piece);
            }
            Message::Bitfield(bitfield) => self.links[at].has = PieceSet::from(&bitfield),
            Message::HaveAll => self.links[at].has = PieceSet::full(self.shape.pieces()),
            Message::Request(block) => self.requested(at, block, out),
            Message::Cancel(block) => self.links[at].queue.retain(|queued| *queued != block),
            Message::Reject(block) => {
                self.links[at].owed.retain(|owed| *owed != block);
                self.unask(block);
            }
            _ => {}
        }
        self.want(at, out);
        self.ask(at, now, out);
    }

    fn want(&mut self, at: usize, out: &mut Vec<Output>) {
        let link = &mut self.links[at];
        if !link.we_want && link.has.iter().any(|piece| !self.have.contains(piece)) {
            link.we_want = true;
            out.push(Output::Say(link.peer, Message::Interested));
        }
    }

    fn requested(&mut self, at: usize, block: Block, out: &mut Vec<Output>) {
        let link = &mut self.links[at];
        if link.we_choke || !self.have.contains(block.piece) || link.queue.len() >= QUEUE {
            return;
        }
        link.queue.push_back(block);
        self.serve(at, out);
    }

    fn serve(&mut self, at: usize, out: &mut Vec<Output>) {
        let link = &mut self.links[at];
        if link.sending {
            return;
        }
        if let Some(block) = link.queue.pop_front() {
            link.sending = true;
            out.push(Output::Send(link.peer, block));
        }
    }

    fn sent(&mut self, peer: Peer, block: Block, out: &mut Vec<Output>) {
        self.uploaded += u64::from(block.length);
        if let Some(at) = self.at(peer) {
            self.links[at].sending = false;
            self.serve(at, out);
        }
    }

    /// Gives the slots to who sent most, and one to somebody by chance.
    fn round(&mut self, out: &mut Vec<Output>) {
        let mut order: Vec<usize> = (0..self.links.len()).filter(|&at| self.links[at].wants_us).collect();
        order.sort_by_key(|&at| (std::cmp::Reverse(self.links[at].received), self.links[at].peer));
        if order.len() > SLOTS {
            let lucky = SLOTS - 1 + self.chance(order.len() - SLOTS + 1);
            order.swap(SLOTS - 1, lucky);
        }
        order.truncate(SLOTS);
        for at in 0..self.links.len() {
            let choke = !order.contains(&at);
            let link = &mut self.links[at];
            link.received = 0;
            if choke != link.we_choke {
                link.we_choke = choke;
                if choke {
                    link.queue.clear();
                }
                out.push(Output::Say(link.peer, if choke { Message::Choke } else { Message::Unchoke }));
            }
        }
    }

    /// Keeps the pipeline to a peer full.
    fn ask(&mut self, at: usize, now: Nanos, out: &mut Vec<Output>) {
        let link = &self.links[at];
        if link.chokes_us || !link.we_want || link.gave_up || link.strikes >= STRIKES {
            return;
        }
        while self.links[at].owed.len() < PIPELINE {
            let Some(block) = self.next_block(at) else { return };
            let link = &mut self.links[at];
            if link.owed.is_empty() {
                link.owed_since = now;
            }
            link.owed.push_back(block);
            out.push(Output::Say(link.peer, Message::Request(block)));
        }
    }

    /// A block of a piece begun, else of the rarest piece not begun.
    fn next_block(&mut self, at: usize) -> Option<Block> {
        let (peer, has) = (self.links[at].peer, &self.links[at].has);
        let open = |begun: &Begun| has.contains(begun.piece) && begun.missing.iter().any(|(_, asked)| !asked);
        let mine = self.begun.iter().position(|begun| begun.peer == Some(peer) && open(begun));
        // Nothing of it is asked: whoever began it is choking us, or gone.
        let idle = |begun: &Begun| begun.peer.is_none() || begun.missing.iter().all(|(_, asked)| !asked);
        let any = mine.or_else(|| self.begun.iter().position(|begun| idle(begun) && open(begun)));
        let begun = match any {
            Some(begun) => begun,
            None => self.begin(at)?,
        };
        let begun = &mut self.begun[begun];
        begun.peer = Some(peer);
        let (block, asked) = begun.missing.iter_mut().find(|(_, asked)| !*asked)?;
        *asked = true;
        Some(*block)
    }

    fn begin(&mut self, at: usize) -> Option<usize> {
        let begun: Vec<u32> = self.begun.iter().map(|begun| begun.piece).collect();
        let has = &self.links[at].has;
        let fresh = has.iter().filter(|piece| !self.have.contains(*piece) && !begun.contains(piece));
        let count = |piece: u32| self.links.iter().filter(|link| link.has.contains(piece)).count();
        let ranked: Vec<(usize, u32)> = fresh.map(|piece| (count(piece), piece)).collect();
        let rarest = ranked.iter().map(|(count, _)| *count).min()?;
        let candidates: Vec<u32> =
            ranked.into_iter().filter(|(count, _)| *count == rarest).map(|(_, piece)| piece).collect();
        let piece = candidates[self.chance(candidates.len())];
        let missing = (0..self.shape.blocks(piece)).map(|index| (self.shape.block(piece, index), false)).collect();
        self.begun.push(Begun { piece, peer: None, missing, senders: Vec::new() });
        Some(self.begun.len() - 1)
    }

    fn unask(&mut self, block: Block) {
        let piece = self.begun.iter_mut().filter(|begun| begun.piece == block.piece);
        for begun in piece {
            begun.peer = None;
            begun.missing.iter_mut().filter(|(missing, _)| *missing == block).for_each(|(_, asked)| *asked = false);
        }
    }

    fn release(&mut self, at: usize) {
        for block in std::mem::take(&mut self.links[at].owed) {
            self.unask(block);
        }
    }

    fn arrived(&mut self, peer: Peer, block: Block, now: Nanos, out: &mut Vec<Output>) {
        self.downloaded += u64::from(block.length);
        let Some(at) = self.at(peer) else { return };
        let link = &mut self.links[at];
        link.owed.retain(|owed| *owed != block);
        link.owed_since = now;
        link.received += u64::from(block.length);
        link.gave_up = false;
        if let Some(begun) = self.begun.iter_mut().find(|begun| begun.piece == block.piece) {
            let before = begun.missing.len();
            begun.missing.retain(|(missing, _)| *missing != block);
            if begun.missing.len() < before {
                if !begun.senders.contains(&peer) {
                    begun.senders.push(peer);
                }
                out.push(Output::Keep(peer, block));
                if begun.missing.is_empty() {
                    out.push(Output::Verify(block.piece));
                }
            }
        }
        self.ask(at, now, out);
    }

    fn verified(&mut self, piece: u32, good: bool, now: Nanos, out: &mut Vec<Output>) {
        let at = self.begun.iter().position(|begun| begun.piece == piece);
        let senders = at.map_or_else(Vec::new, |at| self.begun.swap_remove(at).senders);
        if !good {
            let strikes = if senders.len() == 1 { STRIKES } else { 1 };
            let guilty = self.links.iter_mut().filter(|link| senders.contains(&link.peer));
            guilty.for_each(|link| link.strikes += strikes);
        }
        if good && self.have.insert(piece) {
            out.extend(self.links.iter().map(|link| Output::Say(link.peer, Message::Have(piece))));
            if self.have.is_full() {
                self.announce(Some(Event::Completed), out);
                out.push(Output::Complete);
            }
        }
        for at in 0..self.links.len() {
            self.ask(at, now, out);
        }
    }

    fn gone(&mut self, peer: Peer, now: Nanos, out: &mut Vec<Output>) {
        let Some(at) = self.at(peer) else { return };
        self.release(at);
        self.links.swap_remove(at);
        self.dial(out);
        for at in 0..self.links.len() {
            self.ask(at, now, out);
        }
    }
}
