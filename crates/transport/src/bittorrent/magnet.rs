//! From a magnet link to its torrent: peers give the info dictionary (BEP 9)
//! and, of version 2, the roots of the pieces (BEP 52).

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, coop};
use tokio::time::{Instant, interval_at, timeout};
use wire::announce::Event as AnnounceEvent;
use wire::magnet::Magnet;
use wire::metainfo::merkle::climb;
use wire::metainfo::{InfoHash, Metainfo};
use wire::peer::{
    Extended, ExtensionHandshake, ExtensionIds, Frame, FrameDecoder, HashRange, MAX_METADATA_BYTES,
    METADATA_PIECE_BYTES, Message, MetadataMessage, RackName,
};

use super::announcer::{Announcer, Speaker};
use super::connection;
use super::drive::Event;
use super::listener::{Listener, our_handshake};
use super::new_peer_id;
use super::reading::invalid;
use crate::Error;

/// Peers asked at once.
const PEERS_AT_ONCE: usize = 4;

/// Peers remembered for asking.
const MOST_PEERS: usize = 256;

/// What one peer may take altogether.
const PEER_DEADLINE: Duration = Duration::from_secs(30);

/// What looking up the name of one peer may take.
const NAME_DEADLINE: Duration = Duration::from_secs(5);

/// Trackers are asked again after this, and peers that failed tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Longest message of a peer that is taken in, besides the parts of the
/// dictionary: a bitfield of the largest torrent.
const FRAME_LIMIT_BYTES: u32 = 512 << 10;

/// Least room for each read.
const READ_BYTES: usize = 16 << 10;

/// A torrent is not known yet, so neither is how many pieces it has; this many
/// would fit into the largest bitfield.
const UNKNOWN_PIECES: u32 = 0;

/// Where to look for a torrent that only a magnet link names.
#[derive(Debug, Clone)]
pub struct MagnetJob {
    /// The link.
    pub magnet: Magnet,
    /// Peers that are known besides those of the link.
    pub peers: Vec<SocketAddr>,
    /// The rack of this node, for the tracker.
    pub rack: Option<RackName>,
    /// Call for the swarm in the local network when no tracker answers (BEP 14).
    pub local_discovery: bool,
}

impl MagnetJob {
    /// What the link itself says.
    #[must_use]
    pub fn new(magnet: Magnet) -> Self {
        Self { magnet, peers: Vec::new(), rack: None, local_discovery: false }
    }
}

/// Fetches the torrent that a magnet link names, from its trackers' peers. Its
/// hash is checked, so it does not matter whom it comes from. Tries for ever:
/// the caller sets a deadline.
///
/// # Errors
/// When the link names no torrent, a tracker's address cannot be used, or what
/// the hash stands for is no torrent that we can use.
pub async fn fetch_metainfo(listener: &Listener, job: MagnetJob) -> Result<Metainfo, Error> {
    let MagnetJob { magnet, peers, rack, local_discovery } = job;
    let names: Vec<InfoHash> = magnet.v1.into_iter().chain(magnet.v2.map(|v2| v2.truncated())).collect();
    if names.is_empty() {
        return Err(Error::NoInfoHash(magnet.name.unwrap_or_else(|| "of a magnet link".to_owned())));
    }
    let me = new_peer_id();
    let speaker = Speaker { names: names.clone(), me, listen: listener.address(), rack, local_discovery };
    let announcer = Announcer::new(&magnet.trackers, speaker)?;
    let (ask, asked) = mpsc::channel(1);
    let (events_in, mut events) = mpsc::channel(16);
    let named = look_up(magnet.peers.clone(), events_in.clone());
    let search = Search { listener: listener.clone(), me, magnet, names };
    let looking = search.run(peers, ask, &mut events);
    // A name server that is silent keeps nobody from asking the tracker.
    let meanwhile = async { tokio::join!(announcer.clone().run(asked, events_in), named) };
    let outcome = tokio::select! {
        outcome = looking => outcome,
        _ = meanwhile => Err(Error::Defect),
    };
    announcer.farewell(progress(Some(AnnounceEvent::Stopped))).await;
    outcome
}

fn progress(event: Option<AnnounceEvent>) -> swarm::Progress {
    swarm::Progress { event, uploaded: 0, downloaded: 0, left: 1, num_want: 50 }
}

/// Finds the peers that the link itself names.
async fn look_up(names: Vec<String>, events: mpsc::Sender<Event>) {
    for name in names {
        let found = timeout(NAME_DEADLINE, lookup_host(&name)).await;
        match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            // Nobody looks any more when it cannot be sent.
            Ok(addresses) => drop(events.send(Event::Found(addresses.collect())).await),
            Err(error) => tracing::warn!(name, %error, "a peer of the magnet link is unknown"),
        }
    }
}

#[derive(Clone)]
struct Search {
    listener: Listener,
    me: wire::peer::PeerId,
    magnet: Magnet,
    names: Vec<InfoHash>,
}

impl Search {
    async fn run(
        self,
        peers: Vec<SocketAddr>,
        ask: mpsc::Sender<swarm::Progress>,
        events: &mut mpsc::Receiver<Event>,
    ) -> Result<Metainfo, Error> {
        let mut known: BTreeSet<SocketAddr> = BTreeSet::new();
        let mut to_ask: VecDeque<SocketAddr> = VecDeque::new();
        let mut asking: JoinSet<(SocketAddr, io::Result<Metainfo>)> = JoinSet::new();
        let mut meet = |found: Vec<SocketAddr>, to_ask: &mut VecDeque<SocketAddr>| {
            for peer in found {
                if known.len() < MOST_PEERS && known.insert(peer) {
                    to_ask.push_back(peer);
                }
            }
        };
        meet(peers, &mut to_ask);
        // The queue has a place: nothing was asked yet.
        let _ = ask.try_send(progress(Some(AnnounceEvent::Started)));
        let mut failed: Vec<SocketAddr> = Vec::new();
        let mut again = interval_at(Instant::now() + AGAIN, AGAIN);
        loop {
            while asking.len() < PEERS_AT_ONCE
                && let Some(peer) = to_ask.pop_front()
            {
                let search = self.clone();
                asking.spawn(async move { (peer, search.ask(peer).await) });
            }
            tokio::select! {
                Some(done) = asking.join_next() => {
                    let Ok((peer, outcome)) = done else { return Err(Error::Defect) };
                    match outcome {
                        Ok(metainfo) => return Ok(metainfo),
                        Err(error) => {
                            tracing::debug!(%peer, %error, "a peer did not give the torrent");
                            failed.push(peer);
                        }
                    }
                }
                Some(event) = events.recv() => match event {
                    Event::Announced(Some(announced)) => meet(announced.peers, &mut to_ask),
                    Event::Found(peers) => meet(peers, &mut to_ask),
                    _ => {}
                },
                _ = again.tick() => {
                    to_ask.extend(failed.drain(..));
                    // When the tracker is still busy, it is being asked.
                    let _ = ask.try_send(progress(None));
                }
            }
        }
    }

    /// The torrent from one peer, checked against the link.
    async fn ask(&self, peer: SocketAddr) -> io::Result<Metainfo> {
        let asking = async {
            let place = self.listener.place().ok_or_else(|| io::Error::other("all connections are taken"))?;
            let v2 = self.magnet.v2.is_some();
            let ours = our_handshake(self.names[0], self.me, v2);
            let link = connection::dial(peer, self.listener.address(), ours, &self.names, place).await?;
            if !link.speaks.extended {
                return Err(io::Error::other("it does not speak the extension protocol"));
            }
            let mut talk = Talk::new(link.stream);
            let info = talk.info_dictionary().await?;
            let metainfo = Metainfo::from_info(&info, self.magnet.trackers.clone()).map_err(invalid)?;
            if !self.is_named(&metainfo) {
                return Err(invalid("what it gave is not what the link names"));
            }
            match (&metainfo.info().v2, link.speaks_v2) {
                (Some(v2), true) if v2.piece_roots.is_none() => {
                    let ranges = metainfo.info().tree().piece_root_ranges(v2.pieces_root).collect();
                    let roots = talk.piece_roots(ranges, metainfo.info().piece_count()).await?;
                    metainfo.with_piece_roots(roots).map_err(invalid)
                }
                _ => Ok(metainfo),
            }
        };
        timeout(PEER_DEADLINE, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn is_named(&self, found: &Metainfo) -> bool {
        let Magnet { v1, v2, .. } = &self.magnet;
        (v1.is_none() || *v1 == found.v1()) && (v2.is_none() || *v2 == found.v2())
    }
}

/// A conversation with one peer.
struct Talk {
    stream: TcpStream,
    decoder: FrameDecoder,
    /// Bytes read, of which those before `start` are used.
    buffer: Vec<u8>,
    start: usize,
    theirs: ExtensionIds,
}

impl Talk {
    fn new(stream: TcpStream) -> Self {
        let decoder = FrameDecoder::new(UNKNOWN_PIECES, FRAME_LIMIT_BYTES);
        Self { stream, decoder, buffer: Vec::new(), start: 0, theirs: ExtensionIds::NONE }
    }

    async fn info_dictionary(&mut self) -> io::Result<Vec<u8>> {
        let ids = ExtensionIds { metadata: ExtensionIds::OURS.metadata, ..ExtensionIds::NONE };
        self.say(&ExtensionHandshake { ids, ..ExtensionHandshake::default() }.into()).await?;
        let total_bytes = loop {
            if let Message::Extended(Extended::Handshake(theirs)) = self.hear().await? {
                self.theirs = theirs.ids;
                match theirs.metadata_bytes {
                    Some(bytes) if self.theirs.metadata.is_some() && (1..=MAX_METADATA_BYTES).contains(&bytes) => {
                        break bytes;
                    }
                    _ => return Err(io::Error::other("it does not give metadata")),
                }
            }
        };
        let mut info = Vec::new();
        for piece in 0..total_bytes.div_ceil(METADATA_PIECE_BYTES) {
            self.say(&MetadataMessage::Request { piece }.into()).await?;
            loop {
                let Message::Extended(Extended::Metadata(answer)) = self.hear().await? else { continue };
                match *answer {
                    MetadataMessage::Data { piece: found, total_bytes: total, bytes }
                        if found == piece && total == total_bytes =>
                    {
                        info.extend_from_slice(&bytes);
                        break;
                    }
                    MetadataMessage::Reject { .. } => return Err(io::Error::other("it refused to give metadata")),
                    _ => {}
                }
            }
        }
        Ok(info)
    }

    /// The caller proves them all together against the root of the file.
    async fn piece_roots(&mut self, ranges: Vec<HashRange>, pieces: u32) -> io::Result<Vec<[u8; 32]>> {
        let mut roots = Vec::new();
        for range in ranges {
            self.say(&Message::HashRequest(Box::new(range))).await?;
            let hashes = loop {
                match self.hear().await? {
                    Message::Hashes(found, hashes) if *found == range => break hashes,
                    Message::HashReject(found) if *found == range => {
                        return Err(io::Error::other("it refused to give hashes"));
                    }
                    _ => {}
                }
            };
            if climb(&range, &hashes).is_none_or(|(_, _, root)| root != range.pieces_root) {
                return Err(invalid("its hashes are not those of the file"));
            }
            roots.extend(hashes.into_iter().take(range.length as usize));
        }
        roots.truncate(pieces as usize);
        Ok(roots)
    }

    async fn say(&mut self, message: &Message) -> io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&self.theirs, &mut bytes);
        self.stream.write_all(&bytes).await
    }

    /// The next message; what cannot be understood without knowing the torrent
    /// is passed over.
    async fn hear(&mut self) -> io::Result<Message> {
        // A flood of messages must not keep this thread from others.
        coop::consume_budget().await;
        loop {
            if let Some((id, used)) = self.passed_over()? {
                self.start += used;
                return Ok(Message::Unknown { id });
            }
            match self.decoder.decode(&self.buffer[self.start..]).map_err(invalid)? {
                Some((Frame::Message(message), used)) => {
                    self.start += used;
                    return Ok(message);
                }
                Some((Frame::Piece(_) | Frame::Packed { .. }, _)) => {
                    return Err(invalid("it sent what was not asked for"));
                }
                None => self.fill().await?,
            }
        }
    }

    /// Reads more. Only now what was used goes, all of it at once.
    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..std::mem::take(&mut self.start));
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// A bitfield says how many pieces there are, which is not known yet.
    fn passed_over(&self) -> io::Result<Option<(u8, usize)>> {
        const BITFIELD: u8 = 5;
        let Some((prefix, rest)) = self.buffer[self.start..].split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix);
        if rest.first() != Some(&BITFIELD) {
            return Ok(None);
        }
        if length > FRAME_LIMIT_BYTES {
            return Err(invalid("its bitfield is longer than any"));
        }
        Ok((rest.len() >= length as usize).then_some((BITFIELD, 4 + length as usize)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::net::TcpListener;
    use wire::peer::Bitfield;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// What a conversation with a peer brings that says all this at once.
    async fn told(messages: &[Message]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&ExtensionIds::OURS, &mut bytes));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let peer = tokio::spawn(async move {
            let (mut stream, _) = socket.accept().await.unwrap();
            // The other side may have heard enough before the end.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let mut talk = Talk::new(TcpStream::connect(address).await.unwrap());
        let told = timeout(DEADLINE, talk.info_dictionary()).await.unwrap();
        drop(talk);
        peer.await.unwrap();
        told
    }

    fn hello(metadata_bytes: Option<u32>) -> Message {
        ExtensionHandshake { ids: ExtensionIds::OURS, metadata_bytes, ..ExtensionHandshake::default() }.into()
    }

    fn part(piece: u32, total_bytes: u32, bytes: Vec<u8>) -> Message {
        MetadataMessage::Data { piece, total_bytes, bytes: Bytes::from(bytes) }.into()
    }

    #[tokio::test]
    async fn the_dictionary_is_found_among_a_hundred_thousand_other_messages() {
        let info: Vec<u8> = (0..METADATA_PIECE_BYTES + 100).map(|at| (at / 100) as u8).collect();
        let total = info.len() as u32;
        let mut messages = vec![Message::Bitfield(Bitfield::empty(500)), hello(Some(total))];
        messages.extend((0..100_000).map(Message::Have));
        messages.push(part(0, total, info[..METADATA_PIECE_BYTES as usize].to_vec()));
        messages.push(Message::Unchoke);
        messages.push(part(1, total, info[METADATA_PIECE_BYTES as usize..].to_vec()));
        assert_eq!(told(&messages).await.unwrap(), info);
    }

    #[tokio::test]
    async fn sizes_that_no_dictionary_has_are_refused_before_anything_is_asked() {
        for bytes in [None, Some(0), Some(MAX_METADATA_BYTES + 1), Some(u32::MAX)] {
            let error = told(&[hello(bytes)]).await.unwrap_err();
            assert_eq!(error.to_string(), "it does not give metadata", "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn parts_of_another_size_than_was_said_are_not_taken() {
        let right = part(0, 100, vec![1; 100]);
        let told = told(&[hello(Some(100)), part(0, 99, vec![2; 99]), right]).await;
        assert_eq!(told.unwrap(), [1; 100]);
    }
}
