//! Asking a tracker over UDP (BEP 15).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;
use wire::announce::{AnnounceRequest, AnnounceResponse};
use wire::udp_tracker::{Request, Response};

use super::Trouble;

/// How long the first answer may take; each time twice as long after that.
/// BEP 15 says 15 s, which is for the Internet.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Times that a request is sent: 15.5 s in all.
const TRIES: u32 = 5;

/// How long a connection id may be used (BEP 15).
const ID_LIFE: Duration = Duration::from_secs(60);

/// Larger than any answer that we take.
const DATAGRAM_BYTES: usize = 16 << 10;

/// A tracker and the id that it gave us.
#[derive(Debug, Clone)]
pub(super) struct UdpTracker {
    /// Host and port.
    host: String,
    /// Path and query.
    url: String,
    key: u32,
    connection: Option<(u64, Instant)>,
}

impl UdpTracker {
    /// The tracker of a `udp://host:port/path` URL.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_at_checked(6)?;
        scheme.eq_ignore_ascii_case("udp://").then_some(())?;
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (name, port) = host.rsplit_once(':')?;
        port.parse::<u16>().ok().filter(|port| *port > 0 && !name.is_empty())?;
        Some(Self { host: host.to_owned(), url: path.to_owned(), key: rand::random(), connection: None })
    }

    /// Announces; the caller sets the deadline. `from` is the address that
    /// others shall be told of.
    pub(super) async fn ask(&mut self, announce: &AnnounceRequest, from: IpAddr) -> Result<AnnounceResponse, Trouble> {
        let socket = self.connect(from).await?;
        let known = self.connection.take().filter(|(_, since)| since.elapsed() < ID_LIFE);
        if let Some((connection, since)) = known {
            // No answer: it was restarted, or the datagram was lost.
            if let Some(answer) = exchange(&socket, &self.request(connection, announce), 1).await? {
                self.connection = Some((connection, since));
                return announced(answer);
            }
        }
        let since = Instant::now();
        let connection = match exchange(&socket, &Request::Connect { transaction: rand::random() }, TRIES).await? {
            Some(Response::Connect { connection, .. }) => connection,
            Some(other) => return announced(other),
            None => return Err("it does not answer".into()),
        };
        let answer = exchange(&socket, &self.request(connection, announce), TRIES).await?;
        self.connection = Some((connection, since));
        answer.map_or_else(|| Err("it answered once and then no more".into()), announced)
    }

    /// Only datagrams from the tracker come through a connected socket.
    async fn connect(&self, from: IpAddr) -> Result<UdpSocket, String> {
        let addresses = lookup_host(&self.host).await.map_err(|error| format!("unknown host: {error}"))?;
        let fits = |to: &SocketAddr| from.is_unspecified() || to.is_ipv4() == from.is_ipv4();
        let to = addresses.into_iter().find(fits).ok_or("it has no address of our family")?;
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let from = if from.is_unspecified() { any } else { from };
        let socket = UdpSocket::bind((from, 0)).await.map_err(|error| error.to_string())?;
        socket.connect(to).await.map_err(|error| error.to_string())?;
        Ok(socket)
    }

    fn request(&self, connection: u64, announce: &AnnounceRequest) -> Request {
        let (announce, url) = (Box::new(announce.clone()), self.url.clone());
        Request::Announce { connection, transaction: rand::random(), key: self.key, announce, url }
    }
}

/// Sends until the answer with the same transaction comes. An error of the
/// socket is the tracker's host saying that nobody listens.
async fn exchange(socket: &UdpSocket, request: &Request, tries: u32) -> Result<Option<Response>, String> {
    let from = socket.peer_addr().map_err(|error| error.to_string())?.ip();
    let mut datagram = vec![0; DATAGRAM_BYTES];
    for wait in (0..tries).map(|turn| FIRST_WAIT * 2u32.pow(turn)) {
        socket.send(&request.encode()).await.map_err(|error| error.to_string())?;
        let answer = async {
            loop {
                let bytes = socket.recv(&mut datagram).await.map_err(|error| error.to_string())?;
                // Late answers to something else, or nonsense.
                let Ok(response) = Response::decode(&datagram[..bytes], from) else { continue };
                if response.transaction() == request.transaction() {
                    return Ok(Some(response));
                }
            }
        };
        if let Ok(answered) = timeout(wait, answer).await {
            return answered;
        }
    }
    Ok(None)
}

fn announced(answer: Response) -> Result<AnnounceResponse, Trouble> {
    match answer {
        Response::Announce { response, .. } => Ok(response),
        Response::Error { message, .. } => Err(Trouble::refusal(format!("it refused: {message}"))),
        Response::Connect { .. } | Response::Scrape { .. } => Err("it answered something else".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_host_and_port() {
        let parsed = |url| UdpTracker::parse(url).map(|tracker| (tracker.host, tracker.url));
        let is = |host: &str, url: &str| Some((host.to_owned(), url.to_owned()));
        assert_eq!(parsed("udp://10.0.0.1:6969/announce?x=1"), is("10.0.0.1:6969", "/announce?x=1"));
        assert_eq!(parsed("UDP://tracker:80"), is("tracker:80", ""));
        assert_eq!(parsed("udp://[fd00::1]:80?key"), is("[fd00::1]:80", "?key"));
        for bad in [
            "udp://",
            "udp://host",
            "udp://host:",
            "udp://host:0",
            "udp://:80",
            "udp://h:99999",
            "http://a:1",
            "üdp://a:1",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
