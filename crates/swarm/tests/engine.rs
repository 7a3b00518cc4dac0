//! One engine against a scripted world: each rule of its conduct by itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod outputs;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use outputs::drops;
use proptest::prelude::*;
use rackswarm_swarm::policy::ChokerKind;
use rackswarm_swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Setup, Shape, Side, Speaks, Verdict, Why};
use wire::announce::Event;
use wire::peer::{Bitfield, Block, Extended, Message, PeerId};

const PIECES: u32 = 4;
const BLOCKS: u32 = 4;
const BYTES: u32 = 16384;
const A: Peer = Peer(1);
const B: Peer = Peer(2);
const C: Peer = Peer(3);

struct Script {
    engine: Engine,
    now: Duration,
    out: Vec<Output>,
}

fn shape() -> Shape {
    Shape::new(u64::from(PIECES * BLOCKS * BYTES), BLOCKS * BYTES).unwrap()
}

fn id(number: u32) -> PeerId {
    let mut id = [0; 20];
    id[..4].copy_from_slice(&number.to_be_bytes());
    PeerId(id)
}

fn address(number: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number as u8], 6881))
}

fn block(piece: u32, index: u32) -> Block {
    Block { piece, offset: index * BYTES, length: BYTES }
}

fn set(of: &[u32]) -> PieceSet {
    let mut set = PieceSet::empty(PIECES);
    of.iter().for_each(|&piece| assert!(set.insert(piece)));
    set
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

impl Script {
    /// We are number 100; the opening announce has been answered.
    fn new(have: PieceSet, policy: Policy) -> Script {
        let engine = Engine::new(id(100), Setup::new(shape(), have), policy, 1);
        let mut script = Script { engine, now: seconds(0), out: Vec::new() };
        let opening = script.step(Input::Tick);
        assert!(matches!(opening[..], [Output::Announce(progress)] if progress.event == Some(Event::Started)));
        assert_eq!(script.step(Input::Announced { interval: seconds(3600), peers: Vec::new(), guidance: None }), []);
        script
    }

    fn leecher() -> Script {
        Script::new(PieceSet::empty(PIECES), Policy::default())
    }

    fn seed() -> Script {
        Script::new(PieceSet::full(PIECES), Policy::default())
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        self.engine.step(self.now, input, &mut self.out);
        self.out.drain(..).collect()
    }

    fn say(&mut self, peer: Peer, message: Message) -> Vec<Output> {
        self.step(Input::Said(peer, message))
    }

    fn connect(&mut self, peer: Peer) -> Vec<Output> {
        self.connect_as(peer, Side::Inbound, id(peer.0))
    }

    fn connect_as(&mut self, peer: Peer, side: Side, id: PeerId) -> Vec<Output> {
        self.step(Input::Connected { peer, side, address: address(peer.0), id, speaks: Speaks::default() })
    }

    /// A peer that has `pieces` and serves us; returns what we request.
    fn connect_source(&mut self, peer: Peer, pieces: &[u32]) -> Vec<Block> {
        self.connect(peer);
        self.say(peer, Message::Bitfield(set(pieces).to_bitfield()));
        requests(&self.say(peer, Message::Unchoke))
    }

    /// A peer that we serve.
    fn connect_sink(&mut self, peer: Peer) {
        self.connect(peer);
        assert_eq!(self.say(peer, Message::Interested), [Output::Say(peer, Message::Unchoke)]);
    }

    fn pass(&mut self, time: Duration) -> Vec<Output> {
        let until = self.now + time;
        let mut all = Vec::new();
        while let Some(due) = self.engine.deadline().filter(|due| *due <= until) {
            assert!(due > self.now || self.out.is_empty());
            self.now = due;
            all.extend(self.step(Input::Tick));
        }
        self.now = until;
        all
    }

    fn deliver(&mut self, peer: Peer, blocks: &[Block]) -> Vec<Output> {
        blocks.iter().flat_map(|&block| self.step(Input::Arrived(peer, block))).collect()
    }
}

fn requests(outputs: &[Output]) -> Vec<Block> {
    let requested = |output: &Output| match output {
        Output::Say(_, Message::Request(block)) => Some(*block),
        _ => None,
    };
    outputs.iter().filter_map(requested).collect()
}

#[test]
fn a_download_from_first_word_to_complete() {
    let mut script = Script::leecher();
    assert_eq!(script.connect(A), []);
    let bitfield = Message::Bitfield(PieceSet::full(PIECES).to_bitfield());
    assert_eq!(script.say(A, bitfield), [Output::Say(A, Message::Interested)]);
    let asked = requests(&script.say(A, Message::Unchoke));
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), 16);
    for (number, blocks) in asked.chunks(4).enumerate() {
        let piece = blocks[0].piece;
        assert!(blocks.iter().all(|block| block.piece == piece), "piece by piece");
        let out = script.deliver(A, blocks);
        assert_eq!(out.iter().filter(|output| matches!(output, Output::Keep(A, _))).count(), 4);
        assert_eq!(out.last(), Some(&Output::Verify(piece)));
        let out = script.step(Input::Verified(piece, Verdict::Good));
        if number < 3 {
            assert_eq!(out, []);
            continue;
        }
        assert_eq!(out[..2], [Output::Say(A, Message::NotInterested), Output::Complete]);
        assert_eq!(drops(&out), [(A, Why::BothComplete)]);
        let Some(Output::Announce(progress)) = out.last() else { panic!("{out:?}") };
        assert_eq!((progress.event, progress.left, progress.downloaded), (Some(Event::Completed), 0, 16 * 16384));
    }
    assert_eq!(script.engine.view().pieces, PIECES);
}

#[test]
fn nothing_is_asked_of_a_peer_that_chokes_or_has_nothing_new() {
    let mut script = Script::new(set(&[0, 1]), Policy::default());
    assert_eq!(script.connect(A), [Output::Say(A, Message::Bitfield(set(&[0, 1]).to_bitfield()))]);
    assert_eq!(script.say(A, Message::Bitfield(set(&[0]).to_bitfield())), []);
    assert_eq!(script.say(A, Message::Have(1)), []);
    assert_eq!(script.say(A, Message::Unchoke), []);
    let out = script.say(A, Message::Have(3));
    assert_eq!(out[0], Output::Say(A, Message::Interested));
    assert_eq!(requests(&out), [block(3, 0), block(3, 1), block(3, 2), block(3, 3)]);
    assert_eq!(script.say(A, Message::Have(3)), [], "a second time is no news");
}

#[test]
fn a_verified_piece_is_told_to_those_who_miss_it() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[2]);
    script.connect(B);
    script.deliver(A, &asked);
    let out = script.step(Input::Verified(2, Verdict::Good));
    assert_eq!(out, [Output::Say(B, Message::Have(2)), Output::Say(A, Message::NotInterested)]);
}

#[test]
fn a_choke_gives_the_requests_to_others_and_late_blocks_still_count() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[0]);
    assert_eq!(script.connect_source(B, &[0]), [], "all of it is asked of the first");
    let out = script.say(A, Message::Choke);
    assert_eq!(requests(&out), asked);
    let out = script.deliver(A, &asked[..1]);
    assert_eq!(out[0], Output::Keep(A, asked[0]));
    assert!(out.contains(&Output::Say(B, Message::Cancel(asked[0]))), "the other need not send it");
    let out = script.deliver(B, &asked[..1]);
    assert_eq!(drops(&out), [], "what was cancelled may still come");
    assert_eq!(script.engine.ledger().total().wasted, 16384);
    assert_eq!(drops(&script.deliver(B, &asked[..1])), [(B, Why::Unsolicited(asked[0]))], "but once");
}

#[test]
fn a_gone_peers_blocks_are_asked_of_others() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[1]);
    script.connect_source(B, &[1]);
    script.deliver(A, &asked[..2]);
    let out = script.step(Input::Gone(A));
    assert_eq!(requests(&out), asked[2..]);
}

#[test]
fn a_peer_that_does_not_answer_is_snubbed_and_the_work_moves() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[0, 1]);
    assert_eq!(asked.len(), 8);
    let out = script.pass(Duration::from_millis(9_999));
    assert_eq!(out, []);
    let out = script.pass(Duration::from_millis(1));
    assert_eq!(out.iter().filter(|o| matches!(o, Output::Say(A, Message::Cancel(_)))).count(), 8);
    assert_eq!(requests(&out).len(), 1, "one request to see whether it answers at all");
    assert!(script.engine.view().peers[0].snubbed);
    let out = script.deliver(A, &requests(&out));
    assert!(!script.engine.view().peers[0].snubbed);
    assert_eq!(requests(&out).len(), 7);
}

#[test]
fn the_end_game_cancels_the_other_copy() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[0, 1, 2, 3]);
    let copies = script.connect_source(B, &[0, 1, 2, 3]);
    assert_eq!((asked.len(), copies.len()), (16, 1));
    let out = script.deliver(B, &copies);
    assert_eq!(out[0], Output::Keep(B, copies[0]));
    assert_eq!(out[1], Output::Say(A, Message::Cancel(copies[0])));
    assert_eq!(requests(&out).len(), 1, "and the idle peer gets the next copy");
}

#[test]
fn a_piece_that_came_another_way_is_called_off() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[0]);
    script.deliver(A, &asked[..1]);
    let out = script.step(Input::Verified(0, Verdict::Good));
    let cancelled: Vec<Output> = asked[1..].iter().map(|b| Output::Say(A, Message::Cancel(*b))).collect();
    assert_eq!(out[..3], cancelled);
    assert_eq!(out[3..], [Output::Say(A, Message::NotInterested)]);
    assert_eq!(script.step(Input::Verified(0, Verdict::Good)), [], "once");
}

#[test]
fn the_sole_supplier_of_a_bad_piece_is_dropped_and_barred() {
    let mut script = Script::leecher();
    script.step(Input::Found(vec![address(1)]));
    script.connect_as(A, Side::Outbound, id(1));
    script.say(A, Message::Bitfield(set(&[2]).to_bitfield()));
    let asked = requests(&script.say(A, Message::Unchoke));
    script.deliver(A, &asked);
    let out = script.step(Input::Verified(2, Verdict::Corrupt));
    assert_eq!(drops(&out), [(A, Why::CorruptSource(2))], "nobody else has it");
    let total = script.engine.ledger().total();
    assert_eq!((total.received, total.wasted), (0, 4 * 16384));
    assert_eq!(script.engine.view().failed_pieces, 1);
    assert_eq!(drops(&script.connect_as(B, Side::Inbound, id(1))), [(B, Why::Banned)]);
    let dials = script.pass(seconds(500));
    assert!(!dials.iter().any(|output| matches!(output, Output::Dial(_))), "{dials:?}");
}

/// A and B supply a bad piece together; then each supplies one alone.
#[test]
fn of_several_suppliers_the_liar_is_found_and_the_honest_acquitted() {
    let mut script = Script::leecher();
    let asked = script.connect_source(A, &[0]);
    script.connect_source(B, &[0]);
    script.deliver(A, &asked[..2]);
    let out = script.say(A, Message::Choke);
    assert_eq!(requests(&out), asked[2..]);
    script.deliver(B, &asked[2..]);
    let out = script.step(Input::Verified(0, Verdict::Corrupt));
    assert_eq!(drops(&out), [], "nobody can be blamed yet");
    let again = requests(&out);
    assert_eq!(again.len(), 4, "the whole piece from one");
    script.say(A, Message::Unchoke);
    script.deliver(B, &again);
    assert_eq!(drops(&script.step(Input::Verified(0, Verdict::Corrupt))), [(B, Why::CorruptPiece(0))]);
    let peers = script.engine.view().peers;
    assert_eq!((peers.len(), peers[0].outstanding), (1, 4), "now it comes from the other alone");
    let last: Vec<Block> = (0..4).map(|index| block(0, index)).collect();
    script.deliver(A, &last);
    assert_eq!(drops(&script.step(Input::Verified(0, Verdict::Good))), []);
}

#[test]
fn requests_are_served_and_reported() {
    let mut script = Script::seed();
    script.connect_sink(A);
    assert_eq!(script.say(A, Message::Request(block(1, 0))), [Output::Send(A, block(1, 0))]);
    assert_eq!(script.step(Input::Sent(A, block(1, 0))), []);
    assert_eq!(script.engine.progress(None).uploaded, 16384);
    for index in 0..4 {
        assert_eq!(script.say(A, Message::Request(block(2, index))).len(), 1);
    }
    assert_eq!(script.say(A, Message::Request(block(3, 0))), [], "four blocks are under way");
    assert_eq!(script.say(A, Message::Request(block(3, 1))), []);
    assert_eq!(script.say(A, Message::Cancel(block(3, 0))), []);
    assert_eq!(script.step(Input::Sent(A, block(2, 0))), [Output::Send(A, block(3, 1))]);
}

#[test]
fn what_was_sent_counts_though_the_peer_closes_first() {
    let mut script = Script::seed();
    script.connect_sink(A);
    script.say(A, Message::Request(block(1, 0)));
    script.step(Input::Gone(A));
    assert_eq!(script.step(Input::Sent(A, block(1, 0))), []);
    assert_eq!(script.engine.ledger().total().sent, 16384);
    script.step(Input::Sent(B, block(1, 0)));
    assert_eq!(script.engine.ledger().total().sent, 16384, "nobody ever met this one");
}

#[test]
fn bad_requests_are_named() {
    let table = [
        (block(4, 0), Why::BadRequest(block(4, 0))),
        (Block { length: BYTES + 1, ..block(1, 0) }, Why::BadRequest(Block { length: BYTES + 1, ..block(1, 0) })),
        (Block { length: 0, ..block(1, 0) }, Why::BadRequest(Block { length: 0, ..block(1, 0) })),
        (Block { offset: u32::MAX, ..block(1, 0) }, Why::BadRequest(Block { offset: u32::MAX, ..block(1, 0) })),
        (block(3, 0), Why::NotOffered(3)),
    ];
    for (bad, why) in table {
        let mut script = Script::new(set(&[0, 1, 2]), Policy::default());
        script.connect_sink(A);
        assert_eq!(drops(&script.say(A, Message::Request(bad))), [(A, why)]);
        assert_eq!(script.say(A, Message::Request(block(0, 0))), [], "it is forgotten");
    }
    let mut script = Script::new(set(&[0, 1, 2]), Policy { max_queued_requests: 3, ..Policy::default() });
    script.connect_sink(A);
    let all = (0..2).flat_map(|piece| (0..4).map(move |index| block(piece, index)));
    let dropped: Vec<(Peer, Why)> = all.flat_map(|b| drops(&script.say(A, Message::Request(b)))).collect();
    assert_eq!(dropped, [(A, Why::TooManyRequests)]);
}

#[test]
fn a_request_while_choked_is_passed_over() {
    let mut script = Script::seed();
    script.connect(A);
    assert_eq!(script.say(A, Message::Request(block(0, 0))), []);
    assert_eq!(script.engine.view().peers[0].queued, 0);
}

#[test]
fn blocks_nobody_asked_for_are_named() {
    for odd in [block(1, 0), block(9, 0), Block { offset: 5, ..block(0, 0) }, Block { length: 5, ..block(0, 0) }] {
        let mut script = Script::leecher();
        assert_eq!(script.connect_source(A, &[0]).len(), 4);
        assert_eq!(drops(&script.deliver(A, &[odd])), [(A, Why::Unsolicited(odd))]);
    }
}

#[test]
fn piece_maps_that_do_not_fit_are_named() {
    let mut wide = Bitfield::empty(PIECES + 1);
    wide.insert(4);
    for message in [Message::Have(PIECES), Message::Bitfield(wide)] {
        let mut script = Script::leecher();
        script.connect(A);
        assert_eq!(drops(&script.say(A, message)), [(A, Why::BadPieceMap)]);
    }
    let mut script = Script::leecher();
    script.connect_source(A, &[0]);
    let again = Message::Bitfield(set(&[1]).to_bitfield());
    assert_eq!(drops(&script.say(A, again)), [(A, Why::BadPieceMap)]);
}

#[test]
fn extensions_are_passed_over() {
    let mut script = Script::leecher();
    script.connect(A);
    let extended = Message::Extended(Extended::Unknown { id: 9 });
    assert_eq!(script.say(A, extended), []);
    assert_eq!(script.say(A, Message::Unknown { id: 77 }), []);
    assert_eq!(script.say(Peer(99), Message::Unchoke), [], "and so are strangers");
}

#[test]
fn we_are_no_peer_of_ourselves() {
    let mut script = Script::leecher();
    script.step(Input::Found(vec![address(9)]));
    let out = script.step(Input::Connected {
        peer: A,
        side: Side::Outbound,
        address: address(9),
        id: id(100),
        speaks: Speaks::default(),
    });
    assert_eq!(drops(&out), [(A, Why::Ourselves)]);
    assert!(!script.pass(seconds(300)).contains(&Output::Dial(address(9))));
}

/// Both ends must keep the same of two connections: that of the larger id.
#[test]
fn of_two_connections_to_one_peer_both_sides_keep_the_same() {
    for (other, kept) in [(50, Side::Outbound), (150, Side::Inbound)] {
        for first in [Side::Outbound, Side::Inbound] {
            let second = if first == Side::Outbound { Side::Inbound } else { Side::Outbound };
            let mut script = Script::leecher();
            script.connect_as(A, first, id(other));
            let loser = if first == kept { B } else { A };
            assert_eq!(drops(&script.connect_as(B, second, id(other))), [(loser, Why::Duplicate)]);
            assert_eq!(script.engine.view().peers[0].side, kept);
        }
    }
    let mut script = Script::leecher();
    script.connect_as(A, Side::Inbound, id(150));
    assert_eq!(drops(&script.connect_as(B, Side::Inbound, id(150))), [(B, Why::Duplicate)]);
}

#[test]
fn the_connection_budget_makes_room_only_by_parting_with_the_useless() {
    let mut script = Script::new(set(&[0]), Policy { max_peers: 2, ..Policy::default() });
    script.connect(A);
    script.connect_sink(B);
    assert_eq!(drops(&script.connect(C)), [(C, Why::Full)], "both are too young to judge");
    script.pass(seconds(10));
    assert_eq!(drops(&script.connect(C)), [(A, Why::Displaced)]);
    script.say(C, Message::Interested);
    script.pass(seconds(10));
    assert_eq!(drops(&script.connect(Peer(4))), [(Peer(4), Why::Full)]);
}

#[test]
fn addresses_are_dialled_up_to_the_budget_and_again_after_failure() {
    let mut script = Script::new(PieceSet::empty(PIECES), Policy { dial_peers: 2, ..Policy::default() });
    let dials = |out: &[Output]| out.iter().filter(|output| matches!(output, Output::Dial(_))).count();
    let out = script.step(Input::Found((1..6).map(address).collect()));
    assert_eq!(dials(&out), 2);
    let Output::Dial(first) = out[0] else { panic!("{out:?}") };
    assert_eq!(dials(&script.step(Input::DialFailed(first))), 1);
    assert_eq!(dials(&script.pass(seconds(10))), 2, "two never answered");

    let mut seed = Script::seed();
    assert_eq!(seed.step(Input::Found(vec![address(1)])), [], "a seed is found by others");
}

#[test]
fn we_keep_alive_and_drop_the_silent() {
    let mut script = Script::seed();
    script.connect(A);
    let alive = Output::Say(A, Message::KeepAlive);
    assert_eq!(script.pass(seconds(119)), []);
    assert_eq!(script.pass(seconds(1)), [alive]);
    script.say(A, Message::KeepAlive);
    assert_eq!(drops(&script.pass(seconds(179))), []);
    assert_eq!(drops(&script.pass(seconds(1))), [(A, Why::Silent)]);
}

#[test]
fn two_seeds_have_nothing_to_say() {
    let mut script = Script::seed();
    script.connect(A);
    let full = Message::Bitfield(PieceSet::full(PIECES).to_bitfield());
    assert_eq!(drops(&script.say(A, full)), [(A, Why::BothComplete)]);
}

#[test]
fn tit_for_tat_gives_four_slots() {
    let mut script = Script::new(PieceSet::full(PIECES), Policy { choker: ChokerKind::TitForTat, ..Policy::default() });
    for number in 1..=6 {
        script.connect(Peer(number));
        script.say(Peer(number), Message::Interested);
    }
    let unchoked = |script: &Script| -> BTreeSet<Peer> {
        script.engine.view().peers.iter().filter(|peer| !peer.we_choke).map(|peer| peer.peer).collect()
    };
    assert_eq!(unchoked(&script), (1..=4).map(Peer).collect());
    let mut ever = unchoked(&script);
    for _ in 0..60 {
        script.pass(seconds(10));
        (1..=6).for_each(|number| assert_eq!(script.say(Peer(number), Message::KeepAlive), []));
        assert_eq!(unchoked(&script).len(), 4);
        ever.extend(unchoked(&script));
    }
    assert_eq!(ever.len(), 6, "everybody has been lucky once");
}

/// Anything the world may say, sensible or not.
fn any_input() -> impl Strategy<Value = Input> {
    let peer = (0u32..4).prop_map(Peer);
    let place = (0..PIECES + 1, 0u32..5, prop_oneof![8 => Just(BYTES), 1 => 0u32..40_000])
        .prop_map(|(piece, index, length)| Block { piece, offset: index * BYTES, length });
    let bitfield = proptest::collection::btree_set(0..PIECES, 0..4).prop_map(|pieces| {
        let mut bitfield = Bitfield::empty(PIECES);
        pieces.into_iter().for_each(|piece| bitfield.insert(piece));
        bitfield
    });
    let message = prop_oneof![
        1 => Just(Message::KeepAlive),
        1 => Just(Message::Choke),
        4 => Just(Message::Unchoke),
        2 => Just(Message::Interested),
        1 => Just(Message::NotInterested),
        4 => (0..PIECES + 1).prop_map(Message::Have),
        2 => bitfield.prop_map(Message::Bitfield),
        4 => place.clone().prop_map(Message::Request),
        1 => place.clone().prop_map(Message::Cancel),
    ];
    prop_oneof![
        2 => (0u64..40, proptest::collection::vec(0u32..6, 0..3)).prop_map(|(interval, peers)| Input::Announced {
            interval: seconds(interval),
            peers: peers.into_iter().map(address).collect(),
            guidance: None,
        }),
        1 => Just(Input::AnnounceFailed),
        4 => (0u32..4, any::<bool>(), 0u32..5).prop_map(|(peer, inbound, number)| Input::Connected {
            peer: Peer(peer),
            side: if inbound { Side::Inbound } else { Side::Outbound },
            address: address(number),
            id: id(if number == 4 { 100 } else { number }),
            speaks: Speaks::default(),
        }),
        1 => (0u32..6).prop_map(|number| Input::DialFailed(address(number))),
        16 => (peer.clone(), message).prop_map(|(peer, message)| Input::Said(peer, message)),
        16 => (peer.clone(), place.clone()).prop_map(|(peer, place)| Input::Arrived(peer, place)),
        4 => (peer.clone(), place).prop_map(|(peer, place)| Input::Sent(peer, place)),
        4 => (0..PIECES, any::<bool>()).prop_map(|(piece, good)| Input::Verified(piece, if good { Verdict::Good } else { Verdict::Corrupt })),
        1 => peer.prop_map(Input::Gone),
        1 => (0..PIECES + 1).prop_map(|piece| Input::Lost(vec![piece])),
        4 => Just(Input::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever comes, the engine does not panic, speaks only to the living,
    /// asks only for what it misses, and its deadline lies ahead.
    #[test]
    fn any_world_is_survived(
        tit_for_tat: bool,
        inputs in proptest::collection::vec((any_input(), 0u64..20_000), 1..200),
    ) {
        let choker = if tit_for_tat { ChokerKind::TitForTat } else { ChokerKind::Cooperative };
        let policy = Policy { choker, max_peers: 3, dial_peers: 2, pipeline_blocks: 6, ..Policy::default() };
        let mut engine = Engine::new(id(100), Setup::new(shape(), PieceSet::empty(PIECES)), policy, 5);
        let mut alive: BTreeSet<Peer> = BTreeSet::new();
        let mut used: BTreeSet<Peer> = BTreeSet::new();
        let mut now = Duration::ZERO;
        let mut completions = 0;
        let mut loses = false;
        let mut out = Vec::new();
        for (at, (input, wait)) in inputs.into_iter().enumerate() {
            now += Duration::from_millis(wait);
            let input = match input {
                // Keys are never used again: that much a driver promises.
                Input::Connected { side, address, id, speaks, .. } => {
                    let peer = Peer(used.len() as u32);
                    used.insert(peer);
                    alive.insert(peer);
                    Input::Connected { peer, side, address, id, speaks }
                }
                other => other,
            };
            if let Input::Gone(peer) = &input {
                alive.remove(peer);
            }
            loses |= matches!(input, Input::Lost(_));
            engine.step(now, input, &mut out);
            for output in out.drain(..) {
                match output {
                    Output::Say(peer, message) => {
                        prop_assert!(alive.contains(&peer), "step {}", at);
                        if let Message::Request(block) = message {
                            prop_assert!(shape().contains(block) && !engine.have().contains(block.piece));
                        }
                    }
                    Output::Send(peer, block) => {
                        prop_assert!(alive.contains(&peer) && engine.have().contains(block.piece));
                    }
                    Output::Keep(_, block) => prop_assert!(shape().contains(block)),
                    Output::Drop(peer, _) => prop_assert!(alive.remove(&peer)),
                    Output::Complete => completions += 1,
                    Output::Verify(piece) | Output::Forget(piece) => prop_assert!(piece < PIECES),
                    Output::Dial(_) | Output::Announce(_) => {}
                }
            }
            prop_assert!(engine.deadline().is_none_or(|due| due > now));
            let view = engine.view();
            let keys: BTreeSet<Peer> = view.peers.iter().map(|peer| peer.peer).collect();
            prop_assert_eq!(&keys, &alive);
            prop_assert!(alive.len() <= 3);
            prop_assert_eq!(view.pieces, engine.have().count());
            prop_assert!(loses || completions == u32::from(engine.have().is_full()));
        }
    }
}

#[test]
fn a_seed_that_loses_pieces_gives_the_rest_and_fetches_nothing() {
    let mut script = Script::seed();
    script.connect_sink(A);
    let out = script.step(Input::Lost(vec![1, 3]));
    assert_eq!(drops(&out), [(A, Why::Lost)], "what A was told is no longer true");
    assert_eq!((script.engine.have().count(), script.engine.progress(None).left), (2, u64::from(2 * BLOCKS * BYTES)));
    assert_eq!(script.step(Input::Lost(vec![1, 3, 77])), [], "once");

    let out = script.connect(A);
    let told = out.iter().find_map(|output| match output {
        Output::Say(A, Message::Bitfield(bitfield)) => Some(bitfield.clone()),
        _ => None,
    });
    assert_eq!(told, Some(set(&[0, 2]).to_bitfield()));
    script.say(A, Message::Interested);
    let out = script.say(A, Message::Request(block(2, 0)));
    assert!(out.contains(&Output::Send(A, block(2, 0))), "{out:?}");
    // Somebody else has all: nothing is asked of it.
    script.connect(B);
    let mut out = script.say(B, Message::Bitfield(PieceSet::full(PIECES).to_bitfield()));
    out.extend(script.say(B, Message::Unchoke));
    assert!(!out.iter().any(|output| matches!(output, Output::Say(B, Message::Request(_) | Message::Interested))));
    let out = script.say(A, Message::Request(block(1, 0)));
    assert!(!out.iter().any(|output| matches!(output, Output::Send(..))), "{out:?}");
}
