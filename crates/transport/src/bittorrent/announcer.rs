//! Asking trackers over HTTP (BEP 3, BEP 23). When to ask is the engine's
//! business; this only asks, one after the other, and reports.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::announce::{AnnounceRequest, Answer, Guidance, MAX_RESPONSE_BYTES};
use wire::metainfo::InfoHash;
use wire::peer::PeerId;

use super::drive::Event;
use crate::Error;

/// How long one tracker may take.
const ASK_DEADLINE: Duration = Duration::from_secs(15);

/// The last word need not wait for a dead tracker.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(3);

/// Without trackers there is nobody to ask again.
const NO_TRACKER_INTERVAL: Duration = Duration::from_secs(3600);

/// What a tracker answered.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) interval: Duration,
    pub(super) peers: Vec<SocketAddr>,
    pub(super) guidance: Option<Guidance>,
}

/// The trackers of one swarm.
#[derive(Clone)]
pub(super) struct Announcer {
    client: reqwest::Client,
    /// In the order to try; one that answered moves to the front (BEP 12).
    trackers: Vec<String>,
    info_hash: InfoHash,
    me: PeerId,
    port: u16,
}

impl Announcer {
    /// Asks from the address that `listen` has, so that the tracker tells
    /// others the right one.
    pub(super) fn new(trackers: &[String], info_hash: InfoHash, me: PeerId, listen: SocketAddr) -> Result<Self, Error> {
        if let Some(bad) = trackers.iter().find(|url| !is_http(url)) {
            return Err(Error::Tracker(bad.clone()));
        }
        // A proxy from the environment would be the wrong way into the
        // provisioning network.
        let mut client = reqwest::Client::builder().no_proxy().timeout(ASK_DEADLINE);
        if !listen.ip().is_unspecified() {
            client = client.local_address(listen.ip());
        }
        Ok(Self { client: client.build()?, trackers: trackers.to_vec(), info_hash, me, port: listen.port() })
    }

    /// Answers every request of the engine until the swarm ends, then says
    /// goodbye with the numbers it was given last.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<swarm::Progress>, events: mpsc::Sender<Event>) {
        while let Some(progress) = requests.recv().await {
            let answer = self.ask(&progress).await;
            if events.send(Event::Announced(answer)).await.is_err() {
                return;
            }
        }
    }

    /// Tells the first tracker that hears it that we leave.
    pub(super) async fn farewell(mut self, progress: swarm::Progress) {
        // Best effort: trackers forget silent peers by themselves.
        let _ = timeout(FAREWELL_DEADLINE, self.ask(&progress)).await;
    }

    async fn ask(&mut self, progress: &swarm::Progress) -> Option<Announced> {
        if self.trackers.is_empty() {
            return Some(Announced { interval: NO_TRACKER_INTERVAL, peers: Vec::new(), guidance: None });
        }
        for at in 0..self.trackers.len() {
            let url = self.trackers[at].clone();
            match self.ask_one(&url, progress).await {
                Ok(announced) => {
                    self.trackers[..=at].rotate_right(1);
                    return Some(announced);
                }
                Err(error) => tracing::warn!(tracker = url, %error, "a tracker gave no peers"),
            }
        }
        None
    }

    async fn ask_one(&self, url: &str, progress: &swarm::Progress) -> Result<Announced, String> {
        let request = AnnounceRequest {
            info_hash: self.info_hash,
            peer_id: self.me,
            port: self.port,
            uploaded: progress.uploaded,
            downloaded: progress.downloaded,
            left: progress.left,
            event: progress.event,
            num_want: Some(progress.num_want),
            compact: true,
            own_kind: true,
            rack: None,
        };
        let separator = if url.contains('?') { '&' } else { '?' };
        let body = self.get(&format!("{url}{separator}{}", request.encode_query())).await?;
        match Answer::decode(&body).map_err(|error| error.to_string())? {
            Answer::Failure(reason) => Err(format!("it refused: {reason}")),
            Answer::Peers(response) => {
                if let Some(warning) = &response.warning {
                    tracing::warn!(tracker = url, warning, "a tracker warns");
                }
                let interval = Duration::from_secs(response.interval_seconds.into());
                let peers = response.peers.iter().map(|peer| peer.address).collect();
                Ok(Announced { interval, peers, guidance: response.guidance })
            }
        }
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        let response = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut response = response.map_err(|error| error.without_url().to_string())?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| error.without_url().to_string())? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(format!("its answer exceeds {MAX_RESPONSE_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn is_http(url: &str) -> bool {
    url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const GOOD: &[u8] = b"d8:intervali7e5:peers6:\x0a\x01\x02\x03\x1a\xe1e";

    /// A server that gives every request this answer; its announce address.
    async fn server(head: &'static str, body: Vec<u8>) -> String {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/announce", socket.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
            }
        });
        url
    }

    fn announcer(trackers: &[String]) -> Announcer {
        let listen = "127.0.0.1:6881".parse().unwrap();
        Announcer::new(trackers, InfoHash([1; 20]), PeerId([2; 20]), listen).unwrap()
    }

    fn progress() -> swarm::Progress {
        swarm::Progress { event: None, uploaded: 0, downloaded: 0, left: 1, num_want: 50 }
    }

    #[tokio::test]
    async fn whatever_a_tracker_answers_the_next_one_is_asked_and_then_preferred() {
        let bad = [
            ("HTTP/1.0 500 no\r\n\r\n", GOOD.to_vec()),
            ("HTTP/1.0 200 OK\r\n\r\n", b"d14:failure reason6:retirede".to_vec()),
            ("HTTP/1.0 200 OK\r\n\r\n", b"<html>".to_vec()),
            ("HTTP/1.0 200 OK\r\n\r\n", vec![b'x'; MAX_RESPONSE_BYTES + 1]),
            ("", vec![]),
        ];
        for (head, body) in bad {
            let bad = server(head, body).await;
            let good = server("HTTP/1.0 200 OK\r\n\r\n", GOOD.to_vec()).await;
            let mut announcer = announcer(&[bad.clone(), good.clone()]);
            let announced = announcer.ask(&progress()).await.unwrap();
            assert_eq!(announced.interval, Duration::from_secs(7));
            assert_eq!(announced.peers, ["10.1.2.3:6881".parse().unwrap()]);
            assert_eq!(announcer.trackers, [good, bad]);
        }
    }

    #[tokio::test]
    async fn nobody_answering_is_told_and_nobody_to_ask_is_no_failure() {
        let closed = "http://127.0.0.1:9/announce".to_owned();
        assert!(announcer(&[closed]).ask(&progress()).await.is_none());
        assert!(announcer(&[]).ask(&progress()).await.unwrap().peers.is_empty());
    }
}
