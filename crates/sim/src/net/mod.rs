//! The network between engines. One trait, two models: [`transfers`] counts
//! a transfer once at every port, [`blocks`] lets blocks of 16 KiB wait in
//! queues.

pub(crate) mod blocks;
pub(crate) mod ports;
pub(crate) mod transfers;

use swarm::Shape;
use wire::peer::{Block, Extended, ExtensionIds, Message};

use crate::agenda::Agenda;
use crate::scenario::Scenario;
use crate::units::Nanos;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// The connection.
    pub(crate) link: u32,
    /// Which of its ends sends: 0 or 1.
    pub(crate) end: u8,
    /// The node at that end.
    pub(crate) from: u32,
    /// The node at the other.
    pub(crate) to: u32,
}

/// Whom of a route something concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Sender,
    Receiver,
}

/// What comes out of the network.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// A message reached the receiver.
    Said(Route, Message),
    /// This part of a range was taken from the sender's driver.
    Sent(Route, Block),
    /// This part of a range reached the receiver.
    Arrived(Route, Block),
}

/// Bytes that passed, by what they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) messages: u64,
    pub(crate) message_bytes: u64,
}

/// A model of links, ports and queues.
pub(crate) trait Network {
    fn new(scenario: &Scenario, shape: Shape) -> Self;

    /// A message leaves the sender's engine.
    fn say(&mut self, route: Route, message: Message, agenda: &mut Agenda);

    /// A range of a piece is to be sent.
    fn send(&mut self, route: Route, block: Block, agenda: &mut Agenda);

    /// The connection is closed: what of it is under way is lost.
    fn cut(&mut self, link: u32);

    /// Something arranged by `say` or `send` has come.
    fn happen(&mut self, event: crate::agenda::Event, agenda: &mut Agenda, out: &mut Vec<Delivery>);

    /// Whom an event that was arranged by `say` or `send` concerns, for a look
    /// ahead that costs nothing where it names nobody.
    fn concerns(&self, event: crate::agenda::Event, concerned: &mut Vec<(Route, Party)>);

    /// The ports, for faults.
    fn ports(&mut self) -> &mut ports::Ports;

    /// The time that a closing takes to be seen at the other end.
    fn farewell(&mut self, route: Route, now: Nanos) -> Nanos;

    fn passed(&self) -> Passed;
}

/// Bytes of a message on the wire, without headers.
pub(crate) fn message_bytes(message: &Message, pieces: u32) -> u32 {
    match message {
        Message::KeepAlive => 4,
        Message::Choke | Message::Unchoke | Message::Interested | Message::NotInterested => 5,
        Message::Have(_) | Message::Suggest(_) => 9,
        Message::Bitfield(_) => 5 + pieces.div_ceil(8),
        Message::Request(_) | Message::Cancel(_) | Message::Reject(_) => 17,
        Message::Extended(Extended::Rack(_)) => 12,
        rare => {
            let mut bytes = Vec::new();
            rare.encode(&ExtensionIds::OURS, &mut bytes);
            u32::try_from(bytes.len()).unwrap_or(u32::MAX)
        }
    }
}
