//! A tracker's door for datagrams (BEP 15).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use swarm::tracker::Tracker;
use tokio::net::UdpSocket;
use tokio::time::sleep;
use wire::announce::{Answer, ScrapeEntry};
use wire::metainfo::InfoHash;
use wire::udp_tracker::{Request, Response};

use super::TrackerService;
use super::connection_ids::ConnectionIds;

/// Larger than any request that means something.
const DATAGRAM_BYTES: usize = 2048;

/// Requests answered in a second; what comes beyond is dropped, and clients
/// ask again.
const ANSWERS_PER_SECOND: u32 = 20_000;

/// Takes datagrams and answers some of them.
pub(super) struct UdpDesk {
    service: TrackerService,
    ids: ConnectionIds,
    /// Answers left of the present second.
    left: u32,
    second: Instant,
}

impl UdpDesk {
    pub(super) fn new(service: TrackerService) -> Self {
        Self { service, ids: ConnectionIds::default(), left: ANSWERS_PER_SECOND, second: Instant::now() }
    }

    pub(super) async fn serve(mut self, socket: &UdpSocket) {
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            match socket.recv_from(&mut datagram).await {
                Ok((bytes, from)) => {
                    let Some(answer) = self.answer(&datagram[..bytes], from) else { continue };
                    // Lost like any datagram; the client asks again.
                    if let Err(error) = socket.send_to(&answer, from).await {
                        tracing::debug!(%from, %error, "a tracker's answer was not sent");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the tracker cannot receive");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Nothing for what is no request, or not from whom it claims to be: an
    /// answer would be sent to somebody who did not ask.
    fn answer(&mut self, datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let request = Request::decode(datagram).ok()?;
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.left) = (Instant::now(), ANSWERS_PER_SECOND);
        }
        self.left = self.left.checked_sub(1)?;
        let (address, now) = (from.ip().to_canonical(), self.service.now());
        let response = match request {
            Request::Connect { transaction } => {
                Response::Connect { transaction, connection: self.ids.of(address, now) }
            }
            Request::Announce { connection, transaction, announce, .. } => {
                self.ids.is_valid(connection, address, now).then_some(())?;
                match self.service.take(&announce, address) {
                    Answer::Peers(response) => Response::Announce { transaction, response },
                    Answer::Failure(message) => Response::Error { transaction, message },
                }
            }
            Request::Scrape { connection, transaction, hashes } => {
                self.ids.is_valid(connection, address, now).then_some(())?;
                let mut tracker = self.service.tracker();
                Response::Scrape { transaction, entries: scrape(&mut tracker, now, &hashes) }
            }
        };
        Some(response.encode(address))
    }
}

/// BEP 15 has no word for "unknown" in a scrape: zeros.
fn scrape(tracker: &mut Tracker, now: Duration, hashes: &[InfoHash]) -> Vec<ScrapeEntry> {
    hashes.iter().map(|hash| tracker.scrape(now, hash).unwrap_or_default()).collect()
}
