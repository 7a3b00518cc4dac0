//! Asking trackers over HTTP (BEP 3, BEP 23) and UDP (BEP 15), and, when they
//! are silent, the neighbourhood (BEP 14). When to ask is the engine's
//! business; this only asks, one after the other, and reports.

mod udp;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use wire::announce::{AnnounceRequest, AnnounceResponse, Answer, Guidance, MAX_RESPONSE_BYTES};
use wire::metainfo::InfoHash;
use wire::peer::{PeerId, RackName};

use super::drive::Event;
use crate::Error;
use crate::lsd::Lsd;
use udp::UdpTracker;

/// How long one tracker may take.
const ASK_DEADLINE: Duration = Duration::from_secs(15);

/// How long a tracker's host may take to accept: it is in the same building.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

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

/// Who speaks, and about what.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    /// Names of the swarm; trackers are asked by the first.
    pub(super) names: Vec<InfoHash>,
    pub(super) me: PeerId,
    /// Where we listen.
    pub(super) listen: SocketAddr,
    pub(super) rack: Option<RackName>,
    /// Call for the swarm in the local network when no tracker answers.
    pub(super) local_discovery: bool,
}

/// The trackers of one swarm.
#[derive(Clone)]
pub(super) struct Announcer {
    client: reqwest::Client,
    /// In the order to try; one that answered moves to the front (BEP 12).
    trackers: Vec<Tracker>,
    speaker: Speaker,
}

#[derive(Debug, Clone)]
struct Tracker {
    url: String,
    /// None for HTTP.
    udp: Option<UdpTracker>,
}

impl Announcer {
    /// Asks from the address that the speaker listens on, so that the tracker
    /// tells others the right one.
    pub(super) fn new(trackers: &[String], speaker: Speaker) -> Result<Self, Error> {
        let parsed = |url: &String| {
            let udp = UdpTracker::parse(url);
            if udp.is_none() && !is_http(url) {
                return Err(Error::Tracker(url.clone()));
            }
            Ok(Tracker { url: url.clone(), udp })
        };
        let trackers = trackers.iter().map(parsed).collect::<Result<_, _>>()?;
        // A proxy from the environment would be the wrong way into the
        // provisioning network.
        let mut client = reqwest::Client::builder().no_proxy().timeout(ASK_DEADLINE).connect_timeout(CONNECT_DEADLINE);
        if !speaker.listen.ip().is_unspecified() {
            client = client.local_address(speaker.listen.ip());
        }
        Ok(Self { client: client.build()?, trackers, speaker })
    }

    /// Answers every request of the engine until the swarm ends, and tells of
    /// those who call in the neighbourhood.
    pub(super) async fn run(mut self, requests: mpsc::Receiver<swarm::Progress>, events: mpsc::Sender<Event>) {
        let lonely = Notify::new();
        let lsd = self.speaker.local_discovery.then(|| Lsd::open(self.speaker.listen, self.speaker.names.clone()));
        let lsd = lsd.and_then(|opened| {
            opened.inspect_err(|error| tracing::warn!(%error, "no discovery of peers in the local network")).ok()
        });
        let found = events.clone();
        let discovering = async {
            match lsd {
                Some(lsd) => lsd.run(&lonely, found, |address| Event::Found(vec![address])).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.serve(requests, &events, &lonely) => {}
            () = discovering => {}
        }
    }

    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<swarm::Progress>,
        events: &mpsc::Sender<Event>,
        lonely: &Notify,
    ) {
        while let Some(progress) = requests.recv().await {
            let answer = self.ask(&progress).await;
            if answer.is_none() || self.trackers.is_empty() {
                lonely.notify_one();
            }
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
            match self.ask_one(at, progress).await {
                Ok(response) => {
                    let url = &self.trackers[at].url;
                    if let Some(warning) = &response.warning {
                        tracing::warn!(tracker = url, warning, "a tracker warns");
                    }
                    self.trackers[..=at].rotate_right(1);
                    let peers = response.peers.iter().map(|peer| peer.address).collect();
                    let interval = Duration::from_secs(response.interval_seconds.into());
                    return Some(Announced { interval, peers, guidance: response.guidance });
                }
                Err(error) => tracing::warn!(tracker = self.trackers[at].url, %error, "a tracker gave no peers"),
            }
        }
        None
    }

    async fn ask_one(&mut self, at: usize, progress: &swarm::Progress) -> Result<AnnounceResponse, String> {
        let request = AnnounceRequest {
            info_hash: self.speaker.names[0],
            peer_id: self.speaker.me,
            port: self.speaker.listen.port(),
            uploaded: progress.uploaded,
            downloaded: progress.downloaded,
            left: progress.left,
            event: progress.event,
            num_want: Some(progress.num_want),
            compact: true,
            own_kind: true,
            rack: self.speaker.rack.clone(),
        };
        let Tracker { url, udp } = &mut self.trackers[at];
        if let Some(udp) = udp {
            let asked = timeout(ASK_DEADLINE, udp.ask(&request, self.speaker.listen.ip())).await;
            return asked.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        }
        let separator = if url.contains('?') { '&' } else { '?' };
        let body = self.client.get(format!("{url}{separator}{}", request.encode_query())).send();
        match Answer::decode(&whole(body).await?).map_err(|error| error.to_string())? {
            Answer::Failure(reason) => Err(format!("it refused: {reason}")),
            Answer::Peers(response) => Ok(response),
        }
    }
}

/// A body of bounded length.
async fn whole(sending: impl Future<Output = reqwest::Result<reqwest::Response>>) -> Result<Vec<u8>, String> {
    let response = sending.await.and_then(reqwest::Response::error_for_status);
    let mut response = response.map_err(|error| said(&error.without_url()))?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| said(&error.without_url()))? {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(format!("its answer exceeds {MAX_RESPONSE_BYTES} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// With the causes, of which the last says most.
fn said(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
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
        let speaker = Speaker {
            names: vec![InfoHash([1; 20])],
            me: PeerId([2; 20]),
            listen: "127.0.0.1:6881".parse().unwrap(),
            rack: None,
            local_discovery: false,
        };
        Announcer::new(trackers, speaker).unwrap()
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
            let order: Vec<&String> = announcer.trackers.iter().map(|tracker| &tracker.url).collect();
            assert_eq!(order, [&good, &bad]);
        }
    }

    #[tokio::test]
    async fn nobody_answering_is_told_and_nobody_to_ask_is_no_failure() {
        let closed = "http://127.0.0.1:9/announce".to_owned();
        assert!(announcer(&[closed]).ask(&progress()).await.is_none());
        assert!(announcer(&[]).ask(&progress()).await.unwrap().peers.is_empty());
    }
}
