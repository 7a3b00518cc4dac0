//! One engine among its own kind, scripted: each rule of cooperation by
//! itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod outputs;

use std::net::SocketAddr;
use std::time::Duration;

use outputs::drops;
use rackswarm_swarm::lanes::{LANES, claims};
use rackswarm_swarm::policy::ChokerKind;
use rackswarm_swarm::{Engine, Input, Output, Peer, PieceSet, Policy, Setup, Shape, Side, Speaks, Verdict, Why};
use wire::announce::Guidance;
use wire::peer::{
    Block, Extended, ExtensionHandshake, ExtensionIds, Message, PeerId, Pex, RackHello, RackMessage, RackName,
};

const PIECES: u32 = 40;
const BLOCKS: u32 = 16;
const BYTES: u32 = 16384;
const A: Peer = Peer(1);
const B: Peer = Peer(2);
const C: Peer = Peer(3);
const D: Peer = Peer(4);

struct Script {
    engine: Engine,
    now: Duration,
}

fn shape() -> Shape {
    Shape::new(u64::from(PIECES * BLOCKS * BYTES), BLOCKS * BYTES).unwrap()
}

fn id(number: u32) -> PeerId {
    let mut id = [0; 20];
    id[..4].copy_from_slice(&number.to_be_bytes());
    PeerId(id)
}

fn whole(piece: u32) -> Block {
    Block { piece, offset: 0, length: BLOCKS * BYTES }
}

fn part(piece: u32, first: u32, count: u32) -> Block {
    Block { piece, offset: first * BYTES, length: count * BYTES }
}

fn set(of: &[u32]) -> PieceSet {
    let mut set = PieceSet::empty(PIECES);
    of.iter().for_each(|&piece| assert!(set.insert(piece)));
    set
}

fn all_but(missing: &[u32]) -> Vec<u32> {
    (0..PIECES).filter(|piece| !missing.contains(piece)).collect()
}

fn hello(rack: Option<&str>, offers: bool) -> Message {
    let rack = rack.map(|name| RackName::new(name).unwrap());
    ExtensionHandshake {
        ids: ExtensionIds::OURS,
        rack: Some(RackHello { rack, max_request_bytes: 1 << 20, offers, zstd: false }),
        ..ExtensionHandshake::default()
    }
    .into()
}

fn cooperative() -> Policy {
    Policy { choker: ChokerKind::Cooperative, ..Policy::default() }
}

impl Script {
    fn new(setup: Setup, policy: Policy) -> Script {
        let engine = Engine::new(id(100), setup, policy, 1);
        let mut script = Script { engine, now: Duration::ZERO };
        script.step(Input::Tick);
        script.announced(None);
        script
    }

    fn with(have: PieceSet) -> Script {
        Script::new(Setup::new(shape(), have), cooperative())
    }

    fn announced(&mut self, guidance: Option<Guidance>) -> Vec<Output> {
        self.step(Input::Announced { interval: Duration::from_secs(3600), peers: Vec::new(), guidance })
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.engine.step(self.now, input, &mut out);
        out
    }

    fn say(&mut self, peer: Peer, message: impl Into<Message>) -> Vec<Output> {
        self.step(Input::Said(peer, message.into()))
    }

    fn connect(&mut self, peer: Peer) -> Vec<Output> {
        let address = SocketAddr::from(([10, 0, 0, peer.0 as u8], 6881));
        let speaks = Speaks { fast: true, extended: true };
        self.step(Input::Connected { peer, side: Side::Inbound, address, id: id(peer.0), speaks })
    }

    /// One of our own kind that has these pieces.
    fn kin(&mut self, peer: Peer, has: &[u32], rack: Option<&str>) -> Vec<Output> {
        self.connect(peer);
        let mut out = self.say(peer, Message::Bitfield(set(has).to_bitfield()));
        out.extend(self.say(peer, hello(rack, false)));
        out
    }

    /// A seed of our own kind.
    fn seed(&mut self, peer: Peer) -> Vec<Output> {
        self.connect(peer);
        let mut out = self.say(peer, Message::HaveAll);
        out.extend(self.say(peer, hello(None, true)));
        out
    }

    fn pass(&mut self, time: Duration) -> Vec<Output> {
        let until = self.now + time;
        let mut all = Vec::new();
        while let Some(due) = self.engine.deadline().filter(|due| *due <= until) {
            self.now = due;
            all.extend(self.step(Input::Tick));
        }
        self.now = until;
        all
    }

    fn deliver(&mut self, peer: Peer, piece: u32) -> Vec<Output> {
        (0..BLOCKS).flat_map(|index| self.step(Input::Arrived(peer, part(piece, index, 1)))).collect()
    }
}

fn suggested(outputs: &[Output]) -> Vec<(Peer, u32)> {
    let suggested = |output: &Output| match output {
        Output::Say(peer, Message::Suggest(piece)) => Some((*peer, *piece)),
        _ => None,
    };
    outputs.iter().filter_map(suggested).collect()
}

fn requested(outputs: &[Output]) -> Vec<(Peer, Block)> {
    let requested = |output: &Output| match output {
        Output::Say(peer, Message::Request(block)) => Some((*peer, *block)),
        _ => None,
    };
    outputs.iter().filter_map(requested).collect()
}

fn declined(outputs: &[Output]) -> Vec<(Peer, u32)> {
    let declined = |output: &Output| match output {
        Output::Say(peer, Message::Extended(Extended::Rack(RackMessage::Decline { piece, .. }))) => {
            Some((*peer, *piece))
        }
        _ => None,
    };
    outputs.iter().filter_map(declined).collect()
}

#[test]
fn what_we_have_is_said_first_then_what_we_are() {
    for (have, first) in [(PieceSet::full(PIECES), Message::HaveAll), (set(&[]), Message::HaveNone)] {
        let mut script = Script::with(have);
        let out = script.connect(A);
        assert_eq!(out[0], Output::Say(A, first));
        let Output::Say(A, Message::Extended(Extended::Handshake(ours))) = &out[1] else { panic!("{out:?}") };
        assert_eq!(ours.rack.as_ref().unwrap().max_request_bytes, 1 << 20);
        assert_eq!(out.len(), 2);
    }
}

#[test]
fn a_seed_suggests_serves_whole_and_then_suggests_another_piece() {
    let mut script = Script::with(PieceSet::full(PIECES));
    script.connect(A);
    script.say(A, Message::HaveNone);
    let out = script.say(A, hello(None, false));
    let [(A, first)] = suggested(&out)[..] else { panic!("{out:?}") };
    let out = script.say(A, Message::Request(whole(first)));
    assert!(out.contains(&Output::Send(A, whole(first))));
    let mut more = suggested(&out);
    script.now += Duration::from_millis(200);
    for index in 0..BLOCKS {
        script.now += Duration::from_millis(5);
        more.extend(suggested(&script.step(Input::Sent(A, part(first, index, 1)))));
    }
    assert!(!more.is_empty() && more.iter().all(|(_, piece)| *piece != first), "{more:?}");
    assert_eq!(script.engine.progress(None).uploaded, u64::from(BLOCKS * BYTES));
}

#[test]
fn what_was_declined_is_not_offered_again_at_once() {
    let mut script = Script::with(PieceSet::full(PIECES));
    let [(A, first)] = suggested(&script.kin(A, &all_but(&[7, 8]), None))[..] else { panic!() };
    let out = script.say(A, RackMessage::Decline { piece: first, needless: true, backlog: 0 });
    assert_eq!(suggested(&out), [], "it is left alone for a moment");
    let out = script.pass(Duration::from_millis(2));
    assert_eq!(suggested(&out), [(A, 15 - first)]);
    let mut out = script.say(A, RackMessage::Decline { piece: 15 - first, needless: true, backlog: 0 });
    out.extend(script.pass(Duration::from_millis(50)));
    assert_eq!(suggested(&out), []);
    assert!(!suggested(&script.pass(Duration::from_millis(500))).is_empty(), "there may be room now");
}

#[test]
fn who_was_served_least_lately_is_offered_the_next_piece_sent_least_often() {
    let policy = Policy { seed_uploads: 1, ..cooperative() };
    let mut script = Script::new(Setup::new(shape(), PieceSet::full(PIECES)), policy);
    let [(A, first)] = suggested(&script.kin(A, &[], None))[..] else { panic!() };
    script.kin(B, &[], None);
    let mut offered = vec![first];
    let mut next = (A, first);
    for turn in [B, A, B, A, B, A] {
        let mut out = script.say(next.0, Message::Request(whole(next.1)));
        out.extend((0..BLOCKS).flat_map(|index| script.step(Input::Sent(next.0, part(next.1, index, 1)))));
        let [offer] = suggested(&out)[..] else { panic!("{out:?}") };
        assert_eq!(offer.0, turn);
        offered.push(offer.1);
        next = offer;
    }
    offered.sort_unstable();
    offered.dedup();
    assert_eq!(offered.len(), 7, "no piece goes out twice before all went out once");
}

#[test]
fn an_offer_without_an_answer_frees_the_uplink() {
    let mut script = Script::with(PieceSet::full(PIECES));
    let mut out = script.kin(A, &[], None);
    out.extend(script.kin(B, &[], None));
    out.extend(script.pass(Duration::from_secs(3)));
    let offers = suggested(&out);
    assert!(offers.len() > 2 && [A, B].iter().all(|peer| offers.iter().any(|(to, _)| to == peer)), "{offers:?}");
}

#[test]
fn a_seed_is_not_asked_and_its_suggestions_are_taken_unless_they_are_on_their_way() {
    let mut script = Script::with(set(&[]));
    let out = script.seed(A);
    assert_eq!(requested(&out), []);
    assert_eq!(requested(&script.say(A, Message::Suggest(1))), [(A, whole(1))], "all of it in one request");
    assert_eq!(requested(&script.say(A, Message::Suggest(2))), [(A, whole(2))]);
    assert_eq!(declined(&script.say(A, Message::Suggest(1))), [(A, 1)], "it is on its way");
    script.deliver(A, 1);
    assert_eq!(declined(&script.say(A, Message::Suggest(1))), [(A, 1)], "it is being verified");
}

/// Longer than a request may be, and few.
#[test]
fn of_few_long_pieces_everybody_offers_and_takes_two_at_most() {
    let policy = Policy { max_request_bytes: BLOCKS * BYTES / 2, ..cooperative() };
    let mut script = Script::new(Setup::new(shape(), set(&[3])), policy);
    for (peer, has) in [(A, [1, 2]), (B, [4, 5])] {
        script.connect(peer);
        script.say(peer, Message::Bitfield(set(&has).to_bitfield()));
        let out = script.say(peer, hello(None, true));
        assert_eq!(requested(&out), [], "who offers is not asked");
        assert_eq!(suggested(&out).len(), usize::from(peer == A), "one after the other");
    }
    assert!(!requested(&script.say(A, Message::Suggest(1))).is_empty());
    assert_eq!(declined(&script.say(B, Message::Suggest(4))), [(B, 4)], "nothing of the first has come");
    (0..BLOCKS / 4).for_each(|index| drop(script.step(Input::Arrived(A, part(1, index, 1)))));
    assert!(!requested(&script.say(B, Message::Suggest(4))).is_empty());
    assert_eq!(declined(&script.say(A, Message::Suggest(2))), [(A, 2)]);
}

/// The uplink counts, not the piece; but a seed sends what it chose.
#[test]
fn of_few_long_pieces_another_of_the_same_neighbour_will_do() {
    let policy = Policy { max_request_bytes: BLOCKS * BYTES / 2, ..cooperative() };
    let mut script = Script::new(Setup::new(shape(), set(&[3])), policy);
    let all: Vec<u32> = (0..PIECES).collect();
    for (peer, has) in [(A, &[3, 4][..]), (B, &all)] {
        script.connect(peer);
        script.say(peer, Message::Bitfield(set(has).to_bitfield()));
        script.say(peer, hello(None, true));
    }
    let why = |out: &[Output]| match out {
        [Output::Say(_, Message::Extended(Extended::Rack(RackMessage::Decline { needless, backlog, .. })))] => {
            (*needless, *backlog)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(why(&script.say(B, Message::Suggest(3))), (true, 0));
    assert!(requested(&script.say(A, Message::Suggest(3))).iter().all(|(_, block)| block.piece == 4));
    assert_eq!(why(&script.say(A, Message::Suggest(3))), (true, 4), "nothing else is left");
    assert_eq!(why(&script.say(B, Message::Suggest(7))), (false, 4), "it would be, with room");
}

#[test]
fn a_seed_that_offers_nothing_is_asked_after_a_while() {
    let mut script = Script::with(set(&[]));
    script.seed(A);
    let mut out = Vec::new();
    for _ in 0..9 {
        out.extend(script.pass(Duration::from_secs(1)));
        script.say(A, Message::KeepAlive);
    }
    assert!(!requested(&out).is_empty());
}

#[test]
fn rack_mates_are_asked_for_other_pieces_side_by_side() {
    let policy = Policy { pull_pieces: 3, ..cooperative() };
    let mut script = Script::new(Setup::new(shape(), set(&[])), policy);
    let mut out: Vec<Output> =
        [A, B, C, D].into_iter().flat_map(|peer| script.kin(peer, &[1, 2, 3, 4, 5, 6], None)).collect();
    let asked = requested(&out);
    assert_eq!(asked.iter().map(|(_, block)| block.length).collect::<Vec<_>>(), [BLOCKS * BYTES; 3]);
    let pieces: Vec<u32> = asked.iter().map(|(_, block)| block.piece).collect();
    assert!(pieces[0] != pieces[1] && pieces[1] != pieces[2] && pieces[0] != pieces[2], "{pieces:?}");
    out = script.deliver(asked[0].0, pieces[0]);
    assert_eq!(requested(&out).len(), 1, "when one has come the next is asked");
}

#[test]
fn news_are_asked_for_at_once_by_who_looks_for_work() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[], None);
    script.kin(B, &[], None);
    let out = script.say(A, RackMessage::Have { piece: 9, backlog: 3 });
    assert_eq!(requested(&out), [(A, whole(9))]);
    assert_eq!(requested(&script.say(B, RackMessage::Have { piece: 9, backlog: 0 })), []);
}

#[test]
fn kin_who_miss_a_piece_are_told_and_seeds_in_any_case() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[1], None);
    script.kin(B, &[], None);
    script.seed(C);
    script.kin(D, &[1], None);
    let asked = [A, D].into_iter().find(|peer| !drops(&script.deliver(*peer, 1)).contains(&(*peer, Why::Silent)));
    assert!(asked.is_some());
    let mut out = script.step(Input::Verified(1, Verdict::Good));
    out.extend(script.pass(Duration::from_millis(300)));
    let told = |peer: Peer| {
        out.iter().any(|output| {
            matches!(output, Output::Say(to, Message::Extended(Extended::Rack(RackMessage::Have { piece: 1, .. })))
                if *to == peer)
        })
    };
    assert_eq!([A, B, C, D].map(told), [false, true, true, false], "{out:?}");
}

/// All that fits into memory waits for a slow disk, and nobody has any news:
/// what is written makes room for the next.
#[test]
fn room_that_a_written_piece_leaves_is_used_at_once() {
    let two_pieces = Policy { active_bytes: u64::from(2 * BLOCKS * BYTES), ..cooperative() };
    let mut script = Script::new(Setup::new(shape(), set(&[])), two_pieces);
    let asked = requested(&script.kin(A, &[1, 2, 3], None));
    let [(A, first), (A, second)] = asked[..] else { panic!("{asked:?}") };
    script.pass(Duration::from_millis(100));
    script.deliver(A, first.piece);
    let out = script.deliver(A, second.piece);
    assert_eq!(requested(&out), [], "two pieces are as much as there is memory for");
    assert_eq!(requested(&script.pass(Duration::from_millis(100))), []);
    let out = script.step(Input::Verified(first.piece, Verdict::Good));
    let third = 6 - first.piece - second.piece;
    assert_eq!(requested(&out), [(A, whole(third))]);
}

/// Before the first piece has come nobody knows how long one takes.
#[test]
fn silent_kin_lose_the_piece_to_others_in_eight_seconds_at_first() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[1], None);
    script.say(A, Message::Suggest(1));
    script.step(Input::Arrived(A, part(1, 0, 4)));
    script.kin(B, &[1], None);
    assert_eq!(requested(&script.pass(Duration::from_millis(7_900))), []);
    let out = script.pass(Duration::from_millis(200));
    assert!(out.contains(&Output::Say(A, Message::Cancel(part(1, 4, 12)))), "{out:?}");
    assert_eq!(requested(&out), [(B, part(1, 4, 12))], "and only what is missing");
    assert_eq!(drops(&out), []);
}

#[test]
fn what_was_taken_back_is_asked_of_the_same_again_only_after_its_answer() {
    let mut script = Script::with(set(&[]));
    assert_eq!(requested(&script.kin(A, &[1, 2], None)).len(), 2);
    script.step(Input::Arrived(A, part(1, 0, 4)));
    let (out, rest) = (script.pass(Duration::from_millis(8_100)), part(1, 4, 12));
    assert!([rest, whole(2)].iter().all(|block| out.contains(&Output::Say(A, Message::Cancel(*block)))), "{out:?}");
    // What crossed one cancellation came; the answer to the other is still to come.
    script.deliver(A, 2);
    let orphans_are_asked_for = |script: &mut Script| {
        let mut out = script.kin(B, &[], None);
        out.extend(script.step(Input::Gone(B)));
        requested(&out)
    };
    assert_eq!(orphans_are_asked_for(&mut script), [], "an answer could be to either request");
    script.say(A, Message::Reject(rest));
    assert_eq!(orphans_are_asked_for(&mut script), [(A, rest)]);
}

#[test]
fn silent_kin_lose_the_piece_to_others_in_two_seconds_once_one_has_come() {
    let mut script = Script::with(set(&[]));
    let out = script.kin(A, &[1, 2], None);
    let [(A, first), (A, _)] = requested(&out)[..] else { panic!("{out:?}") };
    script.pass(Duration::from_millis(10));
    script.deliver(A, first.piece);
    script.step(Input::Verified(first.piece, Verdict::Good));
    let other = 3 - first.piece;
    script.kin(B, &[other], None);
    assert_eq!(requested(&script.pass(Duration::from_millis(1_900))), []);
    assert_eq!(requested(&script.pass(Duration::from_millis(200))), [(B, whole(other))]);
}

/// Requests given up at first would all fall back on the seed, which then had
/// nothing new for anybody.
#[test]
fn what_mates_do_not_send_at_first_is_asked_of_a_seed_only_by_who_starves() {
    let mut script = Script::with(set(&[]));
    script.seed(C);
    script.kin(B, &[], None);
    let out = script.kin(A, &[1], None);
    assert_eq!(requested(&out), [(A, whole(1))]);
    let out = script.pass(Duration::from_millis(8_100));
    assert!(out.contains(&Output::Say(A, Message::Cancel(whole(1)))), "{out:?}");
    assert_eq!(requested(&out), []);
    assert!(requested(&script.pass(Duration::from_secs(9))).contains(&(C, whole(1))));
}

#[test]
fn kin_that_speak_and_do_not_send_are_named() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[1], None);
    let mut dropped = Vec::new();
    for _ in 0..4 {
        dropped.extend(drops(&script.say(A, Message::Suggest(1))));
        for _ in 0..17 {
            dropped.extend(drops(&script.pass(Duration::from_millis(500))));
            dropped.extend(drops(&script.say(A, Message::KeepAlive)));
        }
    }
    assert_eq!(dropped, [(A, Why::NeverAnswers(1))]);
}

#[test]
fn kin_that_refuse_what_they_claim_are_named() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[1], None);
    let mut dropped = Vec::new();
    for _ in 0..3 {
        script.say(A, Message::Suggest(1));
        dropped.extend(drops(&script.say(A, Message::Reject(whole(1)))));
    }
    assert_eq!(dropped, [(A, Why::Refuses(1))]);
}

#[test]
fn of_wrong_blocks_the_sender_is_named_and_only_they_come_again() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[1], None);
    script.say(A, Message::Suggest(1));
    (0..6).for_each(|index| drop(script.step(Input::Arrived(A, part(1, index, 1)))));
    script.kin(B, &[1], None);
    let out = script.step(Input::Gone(A));
    assert_eq!(requested(&out), [(B, part(1, 6, 10))]);
    script.kin(C, &[1], None);
    (6..BLOCKS).for_each(|index| drop(script.step(Input::Arrived(B, part(1, index, 1)))));
    let out = script.step(Input::Verified(1, Verdict::CorruptBlocks(vec![9])));
    assert_eq!(drops(&out), [(B, Why::CorruptBlock(part(1, 9, 1)))]);
    assert_eq!(requested(&out), [(C, part(1, 9, 1))]);
    assert_eq!(script.step(Input::Arrived(C, part(1, 9, 1))).last(), Some(&Output::Verify(1)));
}

#[test]
fn the_only_source_of_a_corrupt_piece_is_named_as_such() {
    let mut script = Script::with(set(&[]));
    script.kin(A, &[1], None);
    script.say(A, Message::Suggest(1));
    script.deliver(A, 1);
    assert_eq!(drops(&script.step(Input::Verified(1, Verdict::Corrupt))), [(A, Why::CorruptSource(1))]);
}

#[test]
fn a_cancel_is_answered_with_a_refusal() {
    let mut script = Script::with(PieceSet::full(PIECES));
    script.kin(A, &[], None);
    script.kin(B, &[], None);
    script.say(A, Message::Request(whole(1)));
    script.say(A, Message::Request(whole(2)));
    script.say(B, Message::Request(whole(3)));
    script.say(B, Message::Request(whole(4)));
    let out = script.say(B, Message::Cancel(whole(4)));
    assert!(out.contains(&Output::Say(B, Message::Reject(whole(4)))), "{out:?}");
}

#[test]
fn twins_are_neither_asked_for_nor_offered_among_kin() {
    let setup = Setup { twins: set(&[3]), ..Setup::new(shape(), set(&[])) };
    let mut script = Script::new(setup, cooperative());
    script.kin(A, &[1, 3], None);
    assert_eq!(declined(&script.say(A, Message::Suggest(3))).len(), 1);
    let out = script.pass(Duration::from_secs(30));
    assert!(requested(&out).iter().all(|(_, block)| block.piece == 1), "{out:?}");
    let setup = Setup { twins: set(&[3]), ..Setup::new(shape(), PieceSet::full(PIECES)) };
    let mut script = Script::new(setup, cooperative());
    script.kin(A, &all_but(&[3]), None);
    assert_eq!(suggested(&script.pass(Duration::from_secs(3))), []);
}

/// A piece enters a rack only through whoever claims its lane.
#[test]
fn pieces_cross_into_a_rack_by_their_lane_and_once() {
    let mut script = Script::with(PieceSet::full(PIECES));
    script.kin(C, &[], Some("r2"));
    let out = script.kin(A, &[], Some("r1"));
    assert_eq!(suggested(&out), [], "it claims nothing yet");
    let out = script.say(A, RackMessage::Lanes { claimed: 1 << 5 | 1 << 6 });
    let [(A, piece)] = suggested(&out)[..] else { panic!("{out:?}") };
    assert!([5, 6].contains(&piece));
    script.kin(B, &[11 - piece], Some("r1"));
    script.say(A, RackMessage::Decline { piece, needless: true, backlog: 0 });
    assert_eq!(suggested(&script.pass(Duration::from_millis(50))), [], "a mate has the other piece of these lanes");
}

#[test]
fn into_the_only_rack_pieces_enter_anywhere() {
    let mut script = Script::with(PieceSet::full(PIECES));
    assert_eq!(suggested(&script.kin(A, &[], Some("r1"))).len(), 1);
}

/// Both ends dial at once: the connection of the larger id stays. Later dials
/// tear nothing.
#[test]
fn an_old_connection_outlives_a_dial_that_crosses_it() {
    for (later, stays) in [(Duration::from_secs(1), B), (Duration::from_secs(10), A)] {
        let mut script = Script::with(set(&[]));
        script.kin(A, &[0], None);
        script.pass(later);
        let (address, speaks) = (SocketAddr::from(([10, 0, 0, 1], 7000)), Speaks { fast: true, extended: true });
        let crossing = Input::Connected { peer: B, side: Side::Outbound, address, id: id(A.0), speaks };
        let out = script.step(crossing);
        let gone = if stays == A { B } else { A };
        assert_eq!(drops(&out), [(gone, Why::Duplicate)]);
    }
}

/// Who was told that we have this piece.
fn told(outputs: &[Output], piece: u32) -> Vec<Peer> {
    let is_news = |message: &Message| match message {
        Message::Have(told) => *told == piece,
        Message::Extended(Extended::Rack(RackMessage::Have { piece: told, .. })) => *told == piece,
        _ => false,
    };
    let said = |output: &Output| match output {
        Output::Say(peer, message) if is_news(message) => Some(*peer),
        _ => None,
    };
    outputs.iter().filter_map(said).collect()
}

#[test]
fn other_racks_hear_of_their_lanes_only_until_we_are_complete() {
    let setup = Setup { rack: Some(RackName::new("r1").unwrap()), ..Setup::new(shape(), set(&all_but(&[3, 5]))) };
    let mut script = Script::new(setup, cooperative());
    script.kin(A, &[3, 5], Some("r1"));
    script.kin(B, &[], Some("r1"));
    script.kin(C, &[], Some("r2"));
    script.kin(D, &[], Some("r3"));
    let anew = script.say(C, RackMessage::Lanes { claimed: 1 << 3 | 1 << 9 });
    assert_eq!((told(&anew, 9), told(&anew, 4)), (vec![C], vec![]), "what we had of a lane newly claimed");

    script.deliver(A, 3);
    let mut out = script.step(Input::Verified(3, Verdict::Good));
    out.extend(script.pass(Duration::from_secs(1)));
    assert_eq!(told(&out, 3), [B, C]);
    script.deliver(A, 5);
    let out = script.step(Input::Verified(5, Verdict::Good));
    assert_eq!(told(&out, 5), [B]);
    let all = |output: &Output| matches!(output, Output::Say(C | D, Message::HaveAll));
    assert_eq!(out.iter().filter(|output| all(output)).count(), 2, "one word for the rest");
}

/// While a rack fills its lanes move; who was dialled for one that another
/// mate has now would take the place of somebody needed.
#[test]
fn connections_that_serve_no_lane_any_more_end_when_there_are_many() {
    let setup = Setup { rack: Some(RackName::new("r1").unwrap()), ..Setup::new(shape(), set(&[])) };
    let mut script = Script::new(setup, Policy { dial_peers: 8, ..cooperative() });
    let mates: Vec<u32> = (2..10).collect();
    mates.iter().for_each(|mate| drop(script.kin(Peer(*mate), &[], Some("r1"))));
    let ids: Vec<PeerId> = mates.iter().map(|mate| id(*mate)).collect();
    let ours = claims(&ids, id(100));
    script.pass(Duration::from_secs(1));
    let address = SocketAddr::from(([10, 0, 0, 61], 6881));
    let guidance = Some(Guidance { rack: RackName::new("r1").ok(), cooperative: true });
    let interval = Duration::from_secs(3600);
    let out = script.step(Input::Announced { interval, peers: vec![address], guidance });
    assert!(out.contains(&Output::Dial(address)), "{out:?}");
    let (peer, speaks) = (Peer(61), Speaks { fast: true, extended: true });
    script.step(Input::Connected { peer, side: Side::Outbound, address, id: id(61), speaks });
    script.say(peer, hello(Some("r2"), false));
    script.kin(Peer(60), &[], Some("r2"));
    assert_eq!(drops(&script.say(Peer(60), RackMessage::Lanes { claimed: ours })), []);
    assert_eq!(drops(&script.say(peer, RackMessage::Lanes { claimed: !ours })), [(peer, Why::Displaced)]);
    let later = script.pass(Duration::from_secs(600));
    assert!(!later.contains(&Output::Dial(address)), "nobody named it anew");
}

#[test]
fn who_starves_asks_other_racks_for_more_than_its_lanes() {
    let setup = Setup { rack: Some(RackName::new("r1").unwrap()), ..Setup::new(shape(), set(&all_but(&[3]))) };
    let mut script = Script::new(setup, cooperative());
    let mates: Vec<u32> = (2..32).collect();
    mates.iter().for_each(|mate| drop(script.kin(Peer(*mate), &[], Some("r1"))));
    script.kin(Peer(60), &[], Some("r2"));
    let lanes = |outputs: &[Output]| {
        let mut claims = outputs.iter().filter_map(|output| match output {
            Output::Say(Peer(60), Message::Extended(Extended::Rack(RackMessage::Lanes { claimed }))) => Some(*claimed),
            _ => None,
        });
        claims.next_back()
    };
    let ids: Vec<PeerId> = mates.iter().map(|mate| id(*mate)).collect();
    let ours = claims(&ids, id(100));
    assert_eq!(ours & 1 << 3, 0, "another mate's lane, or this shows nothing");
    assert_eq!(lanes(&script.pass(Duration::from_secs(1))), Some(ours));
    assert_eq!(lanes(&script.pass(Duration::from_secs(9))), Some(ours | 1 << 3));
    script.say(Peer(60), RackMessage::Have { piece: 3, backlog: 0 });
    let asked = requested(&script.pass(Duration::from_secs(9)));
    assert_eq!(asked, [(Peer(60), whole(3))]);
    script.deliver(Peer(60), 3);
    assert_eq!(lanes(&script.step(Input::Verified(3, Verdict::Good))), Some(ours), "no more than needed");
}

#[test]
fn of_other_racks_only_our_lanes_are_asked_and_what_no_mate_has() {
    let setup = Setup { rack: Some(RackName::new("r1").unwrap()), ..Setup::new(shape(), set(&[])) };
    let mut script = Script::new(setup, cooperative());
    let mut mates: Vec<Peer> = (10..73).map(Peer).collect();
    mates.iter().for_each(|mate| drop(script.kin(*mate, &[], Some("r1"))));
    let ids: Vec<PeerId> = mates.drain(..).map(|mate| id(mate.0)).collect();
    let ours: Vec<u32> = (0..PIECES).filter(|piece| claims(&ids, id(100)) & 1 << (piece % LANES) != 0).collect();
    script.pass(Duration::from_millis(50));
    let asked = requested(&script.kin(A, &all_but(&[]), Some("r2")));
    assert_eq!(asked.iter().map(|(_, block)| block.piece).collect::<Vec<_>>(), ours, "64 members, one lane each");
}

#[test]
fn auto_cooperates_when_the_tracker_says_so() {
    let setup = Setup::new(shape(), PieceSet::full(PIECES));
    let mut script = Script::new(setup, Policy::default());
    assert_eq!(suggested(&script.kin(A, &[], None)), []);
    assert!(!script.engine.view().cooperative);
    script.pass(Duration::from_secs(3600));
    let mut script = Script::new(Setup::new(shape(), PieceSet::full(PIECES)), Policy::default());
    script.kin(A, &[], None);
    let rack = Some(RackName::new("r9").unwrap());
    let out = script.announced(Some(Guidance { cooperative: true, rack: None }));
    assert_eq!(suggested(&out).len(), 1, "{out:?}");
    script.announced(Some(Guidance { cooperative: true, rack }));
    let setup = Setup { private: true, ours: true, ..Setup::new(shape(), set(&[])) };
    assert!(Script::new(setup, Policy::default()).engine.view().cooperative);
    let explicit = Policy { choker: ChokerKind::TitForTat, ..Policy::default() };
    let mut script = Script::new(Setup::new(shape(), set(&[])), explicit);
    script.announced(Some(Guidance { cooperative: true, rack: None }));
    assert!(!script.engine.view().cooperative, "an explicit choice wins");
}

#[test]
fn a_choke_refuses_what_foreign_clients_wait_for() {
    let policy = Policy { upload_slots: 1, ..cooperative() };
    let mut script = Script::new(Setup::new(shape(), PieceSet::full(PIECES)), policy);
    for peer in [A, B, C, D] {
        script.connect(peer);
        script.say(peer, Message::HaveNone);
        script.say(peer, ExtensionHandshake::default());
    }
    script.say(A, Message::Interested);
    (0..8).for_each(|index| drop(script.say(A, Message::Request(part(9, index, 1)))));
    [B, C, D].into_iter().for_each(|peer| drop(script.say(peer, Message::Interested)));
    let mut refused = Vec::new();
    for _ in 0..30 {
        refused.extend(script.pass(Duration::from_secs(4)));
        [A, B, C, D].into_iter().for_each(|peer| drop(script.say(peer, Message::KeepAlive)));
    }
    let choked = refused.contains(&Output::Say(A, Message::Choke));
    let rejects = refused.iter().filter(|output| matches!(output, Output::Say(A, Message::Reject(_)))).count();
    assert!(choked && rejects == 4, "four are with the driver, four are refused: {rejects}");
    let out = script.say(A, Message::Request(part(8, 0, 1)));
    let answered = out.iter().any(|o| matches!(o, Output::Say(A, Message::Reject(_)) | Output::Send(A, _)));
    assert!(answered || !script.engine.view().peers[0].we_choke, "{out:?}");
}

#[test]
fn newcomers_may_have_a_few_pieces_while_choked() {
    let mut script = Script::with(PieceSet::full(PIECES));
    script.connect(A);
    script.say(A, Message::HaveNone);
    let out = script.say(A, ExtensionHandshake::default());
    let allowed: Vec<u32> = out
        .iter()
        .filter_map(|output| match output {
            Output::Say(A, Message::AllowedFast(piece)) => Some(*piece),
            _ => None,
        })
        .collect();
    assert_eq!(allowed.len(), 10);
    let out = script.say(A, Message::Request(part(allowed[0], 0, 1)));
    assert!(out.contains(&Output::Send(A, part(allowed[0], 0, 1))));
    let other = (0..PIECES).find(|piece| !allowed.contains(piece)).unwrap();
    let out = script.say(A, Message::Request(part(other, 0, 1)));
    assert_eq!(out, [Output::Say(A, Message::Reject(part(other, 0, 1)))]);
}

#[test]
fn peers_hear_of_each_other_but_strangers_nothing_of_a_private_swarm() {
    for private in [false, true] {
        let setup = Setup { private, ..Setup::new(shape(), set(&[])) };
        let mut script = Script::new(setup, cooperative());
        script.kin(A, &[], None);
        script.connect(B);
        let listens = ExtensionHandshake {
            ids: ExtensionIds { pex: Some(1), ..ExtensionIds::NONE },
            listen_port: Some(7000),
            ..ExtensionHandshake::default()
        };
        script.say(B, listens);
        let mut told = Vec::new();
        for _ in 0..20 {
            told.extend(script.pass(Duration::from_secs(4)));
            [A, B].into_iter().for_each(|peer| drop(script.say(peer, Message::KeepAlive)));
        }
        let pex = |peer: Peer| {
            told.iter().find_map(|output| match output {
                Output::Say(to, Message::Extended(Extended::Pex(pex))) if *to == peer => Some(pex.clone()),
                _ => None,
            })
        };
        let names: Vec<u16> = pex(A).map(|pex| pex.added.iter().map(|peer| peer.address.port()).collect()).unwrap();
        assert_eq!(names, [7000]);
        assert!(!private || pex(B).is_none());
        let news = Pex { added: Vec::new(), dropped: Vec::new() };
        assert_eq!(drops(&script.say(B, news)), []);
    }
}

#[test]
fn each_peer_is_told_of_others_soon_and_at_most_once_a_minute() {
    let mut script = Script::with(set(&[]));
    let listens = |port| ExtensionHandshake { listen_port: Some(port), ..ExtensionHandshake::default() };
    let mut told: Vec<(Peer, Duration, Pex)> = Vec::new();
    for second in 0..300 {
        // A stays, and one more comes every ten seconds and stays for a minute.
        if second % 10 == 0 {
            let newcomer = Peer(1 + second / 10);
            script.kin(newcomer, &[], None);
            script.say(newcomer, listens(7000 + newcomer.0 as u16));
        }
        if second % 10 == 5 && second > 70 {
            script.step(Input::Gone(Peer(1 + second / 10 - 6)));
        }
        let out = script.pass(Duration::from_secs(1));
        told.extend(out.iter().filter_map(|output| match output {
            Output::Say(peer, Message::Extended(Extended::Pex(pex))) => Some((*peer, script.now, (**pex).clone())),
            _ => None,
        }));
        (1..40).for_each(|peer| drop(script.say(Peer(peer), Message::KeepAlive)));
    }
    for newcomer in 2..30 {
        let peer = Peer(newcomer);
        let came = Duration::from_secs(u64::from(newcomer - 1) * 10);
        let times: Vec<Duration> = told.iter().filter(|(to, ..)| *to == peer).map(|(_, at, _)| *at).collect();
        assert!(times[0] <= came + Duration::from_secs(3), "{peer:?} came at {came:?} and was told at {times:?}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(60)), "{peer:?}: {times:?}");
    }
    let to_a = || told.iter().filter(|(to, ..)| *to == A);
    assert!(to_a().count() <= 6, "one a minute");
    let named: Vec<u16> = to_a().flat_map(|(.., pex)| pex.added.iter().map(|peer| peer.address.port())).collect();
    assert!(named.is_sorted() && named.len() >= 20, "each once: {named:?}");
    let lost: usize = to_a().map(|(.., pex)| pex.dropped.len()).sum();
    assert!(lost > 10, "{lost}");
}

#[test]
fn hearsay_waits_while_a_tracker_of_ours_answers() {
    let said = |peer: u8| wire::peer::PexPeer { address: SocketAddr::from(([10, 0, 1, peer], 6881)), flags: 0 };
    let news = Pex { added: (1..10).map(said).collect(), dropped: Vec::new() };
    let dials = |out: &[Output]| out.iter().filter(|output| matches!(output, Output::Dial(_))).count();
    for guided in [false, true] {
        let mut script = Script::with(set(&[]));
        if guided {
            script.announced(Some(Guidance { cooperative: true, rack: None }));
        }
        (1..=5).for_each(|peer| drop(script.kin(Peer(peer), &[], None)));
        let out = script.say(A, news.clone());
        assert_eq!(dials(&out), if guided { 0 } else { 9 });
        if guided {
            let lonely = script.step(Input::Gone(B));
            assert_eq!(dials(&lonely), 1, "too few neighbours: what was heard is tried");
        }
    }
}
