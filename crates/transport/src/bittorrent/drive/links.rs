//! The swarm's end of its connections: who is there, what they are told, and
//! how they go.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm::{Input, Peer, Side, Why};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;
use wire::peer::{Extended, Message, PeerId, RackMessage};

use super::super::connection::{self, Link, ORDERS};
use super::super::listener::our_handshake;
use super::super::pool::Yard;
use super::super::progress::{Cause, Dropped};
use super::super::reading::{self, Reading};
use super::super::services::HashPlaces;
use super::super::writing::{self, Order, Writing};
use super::{Drive, Event};

/// Less is not worth a timer.
const SHORTEST_PATIENCE: Duration = Duration::from_micros(500);

/// Dropped peers that are remembered for the operator.
const REMEMBERED_DROPS: usize = 64;

/// The swarm's end of a connection; closes it when dropped.
pub(super) struct Connection {
    address: SocketAddr,
    id: PeerId,
    pub(super) speaks_v2: bool,
    orders: mpsc::Sender<Order>,
    /// Announcements that wait for company.
    waiting: Vec<Message>,
    pub(super) hash_places: HashPlaces,
    tasks: [AbortHandle; 2],
    /// Knows what was requested of this peer.
    yard: Arc<Yard>,
    peer: Peer,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.yard.gone(self.peer);
    }
}

impl Drive {
    pub(super) fn dial(&mut self, address: SocketAddr) {
        let Some(place) = self.listener.place() else {
            self.waiting.push_back(Input::DialFailed(address));
            return;
        };
        let (from, names) = (self.listener.address(), self.names.clone());
        let ours = our_handshake(names[0], self.me, self.v2);
        let events = self.events_in.clone();
        self.spawn(async move {
            let outcome = connection::dial(address, from, ours, &names, place).await;
            // A swarm that has ended does not care.
            let _ = events.send(Event::Dialled { address, outcome }).await;
        });
    }

    pub(super) fn connected(&mut self, address: SocketAddr, link: Link, side: Side) {
        let peer = Peer(self.next_peer);
        self.next_peer = self.next_peer.wrapping_add(1);
        let Link { stream, id, speaks, speaks_v2, place } = link;
        let (orders, queue) = mpsc::channel(ORDERS);
        let (read, write) = stream.into_split();
        let reading = Reading {
            peer,
            shape: self.shape,
            yard: Arc::clone(&self.yard),
            pool: Arc::clone(&self.pool),
            unpacker: Arc::clone(&self.unpacker),
            events: self.events_in.clone(),
            received: Arc::clone(&self.received),
        };
        let writing = Writing {
            peer,
            store: Arc::clone(&self.store),
            events: self.events_in.clone(),
            sent: Arc::clone(&self.sent),
        };
        let reading = hold(place, reading::read(read, reading));
        let tasks = [self.tasks.spawn(reading), self.tasks.spawn(writing::write(write, queue, writing))];
        let tasks = tasks.map(|task| task.abort_handle());
        let connection = Connection {
            address,
            id,
            speaks_v2,
            orders,
            waiting: Vec::new(),
            hash_places: HashPlaces::default(),
            tasks,
            yard: Arc::clone(&self.yard),
            peer,
        };
        self.connections.insert(peer, connection);
        self.step(Input::Connected { peer, side, address, id, speaks });
    }

    /// What the engine says, with what only the driver knows.
    pub(super) fn say(&mut self, peer: Peer, mut message: Message) {
        match &mut message {
            Message::Request(block) => self.yard.expect(peer, *block),
            Message::Extended(Extended::Handshake(handshake)) => {
                self.services.introduce(handshake, self.listener.address().port());
            }
            _ => {}
        }
        if self.patience > SHORTEST_PATIENCE && can_wait(&message) {
            if let Some(connection) = self.connections.get_mut(&peer) {
                connection.waiting.push(message);
                self.flush_at.get_or_insert_with(|| Instant::now() + self.patience);
            }
            return;
        }
        self.order(peer, Order::Say(message));
    }

    /// Announcements have waited enough.
    pub(super) fn flush_all(&mut self) {
        self.flush_at = None;
        let waiting = self.connections.iter().filter(|(_, connection)| !connection.waiting.is_empty());
        for peer in waiting.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.flush(peer);
        }
    }

    fn flush(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        for message in std::mem::take(&mut connection.waiting) {
            self.hand_over(peer, Order::Say(message));
        }
    }

    /// What waits goes along.
    pub(super) fn order(&mut self, peer: Peer, order: Order) {
        self.flush(peer);
        self.hand_over(peer, order);
    }

    fn hand_over(&mut self, peer: Peer, order: Order) {
        let Some(connection) = self.connections.get(&peer) else { return };
        match connection.orders.try_send(order) {
            // Its writing task ended and has reported so.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::info!(address = %connection.address, "closing a connection: the peer takes nothing");
                self.connections.remove(&peer);
                self.waiting.push_back(Input::Gone(peer));
            }
        }
    }

    /// The engine has forgotten this peer.
    pub(super) fn dropped(&mut self, peer: Peer, why: Why) {
        let Some(connection) = self.connections.remove(&peer) else { return };
        if is_ordinary(why) {
            tracing::debug!(address = %connection.address, %why, "closed a connection");
        } else {
            self.blame(&connection, Cause::Swarm(why));
        }
    }

    pub(super) fn closed(&mut self, peer: Peer, error: &io::Error) {
        let Some(connection) = self.connections.remove(&peer) else { return };
        match error.kind() {
            io::ErrorKind::InvalidData => self.blame(&connection, Cause::Protocol(error.to_string())),
            _ => tracing::debug!(address = %connection.address, %error, "a connection ended"),
        }
        self.step(Input::Gone(peer));
    }

    /// For the operator: who misbehaved, and how.
    fn blame(&mut self, connection: &Connection, cause: Cause) {
        let Connection { address, id, .. } = *connection;
        tracing::warn!(%address, peer = %id, %cause, "dropped a peer");
        if self.dropped.len() == REMEMBERED_DROPS {
            self.dropped.pop_front();
        }
        self.dropped.push_back(Dropped { address, id, cause });
    }
}

async fn hold(place: OwnedSemaphorePermit, task: impl Future<Output = ()>) {
    task.await;
    drop(place);
}

/// Announcements of pieces are many and not urgent.
fn can_wait(message: &Message) -> bool {
    matches!(message, Message::Have(_) | Message::Extended(Extended::Rack(RackMessage::Have { .. })))
}

/// Reasons that say nothing against the peer.
fn is_ordinary(why: Why) -> bool {
    matches!(why, Why::Ourselves | Why::Duplicate | Why::Full | Why::Displaced | Why::BothComplete | Why::Lost)
}
