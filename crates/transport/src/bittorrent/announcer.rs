//! Asking trackers over HTTP (BEP 3, BEP 23) and UDP (BEP 15), and, when they
//! are silent, the neighbourhood (BEP 14). When to ask is the engine's
//! business; this only asks, one after the other, and reports.

mod udp;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use wire::announce::{AnnounceRequest, AnnounceResponse, Answer, Event as AnnounceEvent, Guidance, MAX_RESPONSE_BYTES};
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

/// What a tracker says again and again is logged again after this.
const SAID_AGAIN: Duration = Duration::from_secs(300);

/// Who refuses is asked again after this, and after twice as long each time: it
/// may not know the torrent yet.
const REFUSAL_RESTS: Duration = Duration::from_secs(2);

/// Most that it becomes.
const MOST_REST: Duration = Duration::from_secs(300);

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
    patience: Patience,
}

/// Why a tracker gave no peers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    what: String,
    /// It heard us and does not want to. Asking again soon helps nobody.
    refused: bool,
}

impl Trouble {
    pub(super) fn refusal(what: String) -> Self {
        Self { what, refused: true }
    }
}

impl<T: Into<String>> From<T> for Trouble {
    fn from(what: T) -> Self {
        Self { what: what.into(), refused: false }
    }
}

/// What is remembered of a tracker that gives no peers, or warns.
#[derive(Debug, Clone, Default)]
struct Patience {
    /// What was logged of it last, and when.
    said: Option<(String, Instant)>,
    refusals: u32,
    rests_until: Option<Instant>,
}

impl Patience {
    /// Whether this is worth a line in the log.
    fn is_news(&mut self, what: &str, now: Instant) -> bool {
        let known = self.said.as_ref().is_some_and(|(said, at)| said == what && now < *at + SAID_AGAIN);
        if !known {
            self.said = Some((what.to_owned(), now));
        }
        !known
    }

    fn refused(&mut self, now: Instant) {
        let rest = REFUSAL_RESTS.saturating_mul(1 << self.refusals.min(16)).min(MOST_REST);
        self.rests_until = Some(now + rest);
        self.refusals += 1;
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// It gave peers.
    fn helped(&mut self, warns: bool) {
        (self.refusals, self.rests_until) = (0, None);
        if !warns {
            self.said = None;
        }
    }
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
            Ok(Tracker { url: url.clone(), udp, patience: Patience::default() })
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
            if self.trackers[at].patience.rests(Instant::now()) {
                continue;
            }
            match self.ask_one(at, progress).await {
                Ok(response) => return Some(self.take(at, response)),
                Err(trouble) => self.trackers[at].failed(trouble, progress.event),
            }
        }
        None
    }

    /// Peers of a tracker, which is preferred from now on (BEP 12).
    fn take(&mut self, at: usize, response: AnnounceResponse) -> Announced {
        let Tracker { url, patience, .. } = &mut self.trackers[at];
        if let Some(warning) = &response.warning
            && patience.is_news(warning, Instant::now())
        {
            tracing::warn!(tracker = url, warning, "a tracker warns");
        }
        patience.helped(response.warning.is_some());
        self.trackers[..=at].rotate_right(1);
        let peers = response.peers.iter().map(|peer| peer.address).collect();
        let interval = Duration::from_secs(response.interval_seconds.into());
        Announced { interval, peers, guidance: response.guidance }
    }

    async fn ask_one(&mut self, at: usize, progress: &swarm::Progress) -> Result<AnnounceResponse, Trouble> {
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
        let Tracker { url, udp, .. } = &mut self.trackers[at];
        if let Some(udp) = udp {
            let asked = timeout(ASK_DEADLINE, udp.ask(&request, self.speaker.listen.ip())).await;
            return asked.unwrap_or_else(|_| Err("it did not answer in time".into()));
        }
        let separator = if url.contains('?') { '&' } else { '?' };
        let body = self.client.get(format!("{url}{separator}{}", request.encode_query())).send();
        match Answer::decode(&whole(body).await?).map_err(|error| error.to_string())? {
            Answer::Failure(reason) => Err(Trouble::refusal(format!("it refused: {reason}"))),
            Answer::Peers(response) => Ok(response),
        }
    }
}

impl Tracker {
    /// Says so when that is new. A tracker that is silent at the end of the
    /// swarm forgets us by itself.
    fn failed(&mut self, trouble: Trouble, event: Option<AnnounceEvent>) {
        let (now, Trouble { what, refused }) = (Instant::now(), trouble);
        if refused {
            self.patience.refused(now);
        }
        if event != Some(AnnounceEvent::Stopped) && self.patience.is_news(&what, now) {
            tracing::warn!(tracker = self.url, error = what, "a tracker gave no peers");
        } else {
            tracing::debug!(tracker = self.url, error = what, "a tracker gave no peers");
        }
    }
}

/// A body of bounded length.
async fn whole(sending: impl Future<Output = reqwest::Result<reqwest::Response>>) -> Result<Vec<u8>, Trouble> {
    let mut response = sending.await.map_err(|error| said(&error.without_url()))?;
    if let Err(error) = response.error_for_status_ref() {
        let what = said(&error.without_url());
        return Err(if response.status().is_client_error() { Trouble::refusal(what) } else { what.into() });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| said(&error.without_url()))? {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(format!("its answer exceeds {MAX_RESPONSE_BYTES} bytes").into());
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
    async fn who_refuses_is_left_alone_for_a_while_and_who_is_broken_is_not() {
        let refusal = b"d14:failure reason20:unregistered torrente".to_vec();
        let cases = [
            ("HTTP/1.0 200 OK\r\n\r\n", refusal, true),
            ("HTTP/1.0 403 no\r\n\r\n", vec![], true),
            ("HTTP/1.0 503 later\r\n\r\n", vec![], false),
            ("HTTP/1.0 200 OK\r\n\r\n", b"<html>".to_vec(), false),
        ];
        for (head, body, rests) in cases {
            let mut announcer = announcer(&[server(head, body).await]);
            assert!(announcer.ask(&progress()).await.is_none());
            let patience = &announcer.trackers[0].patience;
            assert_eq!(patience.rests(Instant::now()), rests, "{head}");
            assert!(patience.said.is_some(), "{head}");
            assert!(announcer.ask(&progress()).await.is_none(), "the swarm goes on without");
            assert_eq!(announcer.trackers[0].patience.refusals, u32::from(rests), "{head}: it was not asked again");
        }
    }

    #[test]
    fn a_reason_is_logged_once_and_again_when_it_changes_or_after_minutes() {
        let (mut patience, began) = (Patience::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let lines = (0..3600).step_by(5).filter(|now| patience.is_news("unregistered torrent", at(*now))).count();
        assert_eq!(lines, 12);
        assert!(patience.is_news("maintenance", at(3601)) && !patience.is_news("maintenance", at(3602)));
        patience.helped(false);
        assert!(patience.is_news("maintenance", at(3603)), "it had helped meanwhile");
    }

    #[test]
    fn refusals_in_a_row_are_answered_with_longer_rests() {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..9 {
            patience.refused(now);
            let until = patience.rests_until.unwrap();
            rests.push((until - now).as_secs());
            assert!(patience.rests(now) && !patience.rests(until));
            now = until;
        }
        assert_eq!(rests, [2, 4, 8, 16, 32, 64, 128, 256, 300]);
        patience.helped(false);
        assert!(!patience.rests(now));
    }

    #[tokio::test]
    async fn nobody_answering_is_told_and_nobody_to_ask_is_no_failure() {
        let closed = "http://127.0.0.1:9/announce".to_owned();
        assert!(announcer(&[closed]).ask(&progress()).await.is_none());
        assert!(announcer(&[]).ask(&progress()).await.unwrap().peers.is_empty());
    }
}
