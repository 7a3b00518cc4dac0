//! One TFTP read transfer, without sockets and without a clock: packets and
//! time go in, packets come out.
//!
//! RFC 1350 with option negotiation (2347), block size (2348), time-out and
//! transfer size (2349) and windows (7440).

use std::time::Duration;

use bytes::Bytes;
use wire::tftp::{BLOCK_DEFAULT_BYTES, FileRequest, Options, Packet};

/// Largest block that is agreed to, octets: an Ethernet frame without IP
/// fragments, which some firmware does not put together.
pub const BLOCK_LIMIT_BYTES: u16 = 1_468;

/// Largest window that is agreed to, blocks. 16 blocks are 23 kB, less than
/// the receive buffer of every network card's firmware that asks for windows.
pub const WINDOW_LIMIT_BLOCKS: u16 = 16;

/// First wait for an answer, when the client does not ask for another.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest wait for an answer, unless the client asks for a longer one.
const PATIENCE_MAX: Duration = Duration::from_secs(8);

/// Packets sent without any answer before the client is given up.
const UNANSWERED_MAX: u32 = 6;

/// Longest transfer altogether.
pub const TRANSFER_MAX: Duration = Duration::from_secs(600);

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The client has acknowledged the last block.
    Complete,
    /// The client said that it wants no more. Firmware does so on purpose,
    /// right after it has learned the file's size.
    Refused {
        /// Its error code.
        code: u16,
        /// Its sentence, often empty.
        text: String,
        /// Octets acknowledged until then.
        bytes: u64,
    },
    /// The client stopped answering, or took longer than [`TRANSFER_MAX`].
    Silent {
        /// Octets acknowledged until then.
        bytes: u64,
    },
}

/// What happened at the socket.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// A datagram from the client's port.
    Datagram(&'a [u8]),
    /// Nothing; time has passed.
    Tick,
}

/// A read transfer.
#[derive(Debug)]
pub struct Transfer {
    file: Bytes,
    accepted: Options,
    block_bytes: usize,
    window: u64,
    patience: Duration,
    /// Number of the last block, which is shorter than the others.
    last: u64,
    /// The options wait for their acknowledgement.
    negotiating: bool,
    /// Highest block that the client has, with everything before it.
    acked: u64,
    /// Highest block ever sent.
    sent: u64,
    /// Block after which a lost window was repeated without waiting.
    repeated: Option<u64>,
    unanswered: u32,
    retry_at: Duration,
    over_at: Duration,
}

impl Transfer {
    /// Begins at `now`, any clock that only goes forward. The first packets are
    /// put into `out`.
    pub fn begin(now: Duration, file: Bytes, request: &FileRequest, out: &mut Vec<Vec<u8>>) -> Self {
        let accepted = accept(&request.options, file.len() as u64);
        let block_bytes = usize::from(accepted.block_bytes.unwrap_or(BLOCK_DEFAULT_BYTES));
        let mut transfer = Self {
            last: file.len() as u64 / block_bytes as u64 + 1,
            file,
            block_bytes,
            window: u64::from(accepted.window_blocks.unwrap_or(1)),
            patience: accepted.timeout_seconds.map_or(PATIENCE, |seconds| Duration::from_secs(seconds.into())),
            negotiating: !accepted.is_empty(),
            accepted,
            acked: 0,
            sent: 0,
            repeated: None,
            unanswered: 0,
            retry_at: now,
            over_at: now + TRANSFER_MAX,
        };
        transfer.send(now, out);
        transfer
    }

    /// Takes what happened. Packets to send are put into `out`; `Some` means
    /// that the transfer is over.
    pub fn step(&mut self, now: Duration, input: Input<'_>, out: &mut Vec<Vec<u8>>) -> Option<End> {
        match input {
            Input::Datagram(datagram) => match Packet::parse(datagram) {
                Ok(Packet::Ack { block }) => self.acknowledged(now, block, out),
                Ok(Packet::Error { code, text }) => Some(End::Refused { code, text, bytes: self.acked_bytes() }),
                // Anything else on this port is a late or damaged packet.
                Ok(_) | Err(_) => None,
            },
            Input::Tick => self.waited(now, out),
        }
    }

    /// When [`Input::Tick`] is due if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.retry_at.min(self.over_at)
    }

    /// Size of the file, octets.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    fn acknowledged(&mut self, now: Duration, block: u16, out: &mut Vec<Vec<u8>>) -> Option<End> {
        if self.negotiating {
            if block == 0 {
                self.negotiating = false;
                self.progress(now, out);
            }
            return None;
        }
        // Block numbers wrap around; a window is far smaller than half of them.
        let ahead = u64::from(block.wrapping_sub(self.acked as u16));
        if ahead == 0 {
            self.repeat_window_once(now, out);
            return None;
        }
        if ahead > self.sent - self.acked {
            return None;
        }
        self.acked += ahead;
        if self.acked == self.last {
            return Some(End::Complete);
        }
        self.progress(now, out);
        None
    }

    /// The same acknowledgement again. With one block at a time it is never
    /// answered: two packets would be under way for each one from then on
    /// (RFC 1123 section 4.2.3.1, the Sorcerer's Apprentice). With windows it
    /// says that the first block of the window was lost (RFC 7440 section 4),
    /// and is believed once for each window.
    fn repeat_window_once(&mut self, now: Duration, out: &mut Vec<Vec<u8>>) {
        if self.window > 1 && self.sent > self.acked && self.repeated != Some(self.acked) {
            self.repeated = Some(self.acked);
            self.send(now, out);
        }
    }

    fn waited(&mut self, now: Duration, out: &mut Vec<Vec<u8>>) -> Option<End> {
        if now >= self.over_at || (now >= self.retry_at && self.unanswered >= UNANSWERED_MAX) {
            return Some(End::Silent { bytes: self.acked_bytes() });
        }
        if now >= self.retry_at {
            self.send(now, out);
        }
        None
    }

    fn progress(&mut self, now: Duration, out: &mut Vec<Vec<u8>>) {
        self.unanswered = 0;
        self.send(now, out);
    }

    /// Sends what the client is to answer next: the options, or a window from
    /// the first block that it does not have. Each wait is twice the one
    /// before.
    fn send(&mut self, now: Duration, out: &mut Vec<Vec<u8>>) {
        if self.negotiating {
            out.push(Packet::OptionAck(self.accepted).encode());
        } else {
            let end = (self.acked + self.window).min(self.last);
            out.extend((self.acked + 1..=end).map(|number| self.block(number)));
            self.sent = self.sent.max(end);
        }
        let wait = self.patience * 2u32.pow(self.unanswered.min(8));
        self.retry_at = now + wait.min(PATIENCE_MAX.max(self.patience));
        self.unanswered += 1;
    }

    fn block(&self, number: u64) -> Vec<u8> {
        let start = ((number - 1) as usize * self.block_bytes).min(self.file.len());
        let end = (start + self.block_bytes).min(self.file.len());
        Packet::Data { block: number as u16, payload: &self.file[start..end] }.encode()
    }

    fn acked_bytes(&self) -> u64 {
        (self.acked * self.block_bytes as u64).min(self.file.len() as u64)
    }
}

/// The options that are agreed to, each with the server's value.
fn accept(wanted: &Options, file_bytes: u64) -> Options {
    Options {
        block_bytes: wanted.block_bytes.map(|bytes| bytes.min(BLOCK_LIMIT_BYTES)),
        transfer_bytes: wanted.transfer_bytes.map(|_| file_bytes),
        timeout_seconds: wanted.timeout_seconds,
        window_blocks: wanted.window_blocks.map(|blocks| blocks.min(WINDOW_LIMIT_BLOCKS)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use wire::tftp::Mode;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn file(bytes: usize) -> Bytes {
        (0..bytes).map(|position| (position / 251 + position) as u8).collect()
    }

    fn request(options: Options) -> FileRequest {
        FileRequest { file: "loader".to_owned(), mode: Mode::Octet, options }
    }

    fn windowed(block_bytes: u16, window_blocks: u16) -> Options {
        Options { block_bytes: Some(block_bytes), window_blocks: Some(window_blocks), ..Options::default() }
    }

    fn begin(bytes: usize, options: Options) -> (Transfer, Vec<Vec<u8>>) {
        let mut out = Vec::new();
        let transfer = Transfer::begin(NOW, file(bytes), &request(options), &mut out);
        (transfer, out)
    }

    fn ack(transfer: &mut Transfer, now: Duration, block: u16) -> (Option<End>, Vec<Vec<u8>>) {
        let mut out = Vec::new();
        let bytes = Packet::Ack { block }.encode();
        let end = transfer.step(now, Input::Datagram(&bytes), &mut out);
        (end, out)
    }

    fn blocks(out: &[Vec<u8>]) -> Vec<u16> {
        out.iter()
            .map(|bytes| match Packet::parse(bytes).unwrap() {
                Packet::Data { block, .. } => block,
                other => panic!("not data: {other:?}"),
            })
            .collect()
    }

    /// A client that acknowledges as RFC 7440 asks.
    struct Client {
        content: Vec<u8>,
        block_bytes: usize,
        window: u64,
        got: u64,
        in_window: u64,
        done: bool,
    }

    impl Client {
        fn receive(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
            match Packet::parse(bytes).unwrap() {
                Packet::OptionAck(options) => {
                    self.block_bytes = usize::from(options.block_bytes.unwrap_or(512));
                    self.window = u64::from(options.window_blocks.unwrap_or(1));
                    Some(Packet::Ack { block: 0 }.encode())
                }
                Packet::Data { block, payload } if block == (self.got + 1) as u16 => {
                    self.content.extend_from_slice(payload);
                    self.got += 1;
                    self.in_window += 1;
                    self.done = payload.len() < self.block_bytes;
                    (self.done || self.in_window == self.window).then(|| self.answer())
                }
                Packet::Data { .. } => Some(self.answer()),
                other => panic!("server said {other:?}"),
            }
        }

        fn answer(&mut self) -> Vec<u8> {
            self.in_window = 0;
            Packet::Ack { block: self.got as u16 }.encode()
        }
    }

    /// Runs a whole transfer over a line that loses, in either direction, every
    /// packet for which `lost` says so, told how often the server has waited in
    /// vain since the last block came; gives back the end, the content and how
    /// many packets the server sent.
    fn run(bytes: usize, options: Options, mut lost: impl FnMut(u32) -> bool) -> (End, Vec<u8>, usize) {
        let (mut transfer, mut out) = begin(bytes, options);
        let mut client = Client { content: vec![], block_bytes: 512, window: 1, got: 0, in_window: 0, done: false };
        let (mut now, mut sent, mut waits) = (NOW, 0, 0);
        loop {
            let mut answers = Vec::new();
            for packet in out.drain(..) {
                sent += 1;
                if !lost(waits) {
                    let before = client.got;
                    answers.extend(client.receive(&packet));
                    if client.got > before {
                        waits = 0;
                    }
                }
            }
            for answer in answers {
                if !lost(waits)
                    && let Some(end) = transfer.step(now, Input::Datagram(&answer), &mut out)
                {
                    return (end, client.content, sent);
                }
            }
            if out.is_empty() {
                now = transfer.deadline();
                waits += 1;
                if let Some(end) = transfer.step(now, Input::Tick, &mut out) {
                    return (end, client.content, sent);
                }
            }
        }
    }

    #[test]
    fn plain_transfers_of_every_edge_size() {
        for bytes in [0, 1, 511, 512, 513, 1024, 100_000] {
            let (end, content, sent) = run(bytes, Options::default(), |_| false);
            assert_eq!((end, content), (End::Complete, file(bytes).to_vec()), "{bytes} octets");
            assert_eq!(sent, bytes / 512 + 1, "nothing is sent twice on a clean line");
        }
    }

    #[test]
    fn block_numbers_wrap_around() {
        let bytes = 8 * 70_000;
        let options = Options { block_bytes: Some(8), ..Options::default() };
        let (end, content, _) = run(bytes, options, |_| false);
        assert_eq!(end, End::Complete);
        assert_eq!(content, file(bytes).to_vec());
        let (end, content, _) = run(bytes, windowed(8, 16), |_| false);
        assert_eq!(end, End::Complete);
        assert_eq!(content, file(bytes).to_vec());
    }

    #[test]
    fn options_are_answered_with_the_servers_values() {
        let wanted = Options {
            block_bytes: Some(65_464),
            transfer_bytes: Some(0),
            timeout_seconds: Some(3),
            window_blocks: Some(64),
        };
        let (transfer, out) = begin(5_000, wanted);
        let Packet::OptionAck(options) = Packet::parse(&out[0]).unwrap() else { panic!("no option ack") };
        assert_eq!(
            options,
            Options {
                block_bytes: Some(BLOCK_LIMIT_BYTES),
                transfer_bytes: Some(5_000),
                timeout_seconds: Some(3),
                window_blocks: Some(WINDOW_LIMIT_BLOCKS)
            }
        );
        assert_eq!(transfer.deadline(), Duration::from_secs(3));
    }

    #[test]
    fn a_window_is_sent_at_once_and_goes_on_from_the_acknowledged_block() {
        let (mut transfer, _) = begin(512 * 20, windowed(512, 4));
        let (_, out) = ack(&mut transfer, NOW, 0);
        assert_eq!(blocks(&out), [1, 2, 3, 4]);
        let (_, out) = ack(&mut transfer, NOW, 4);
        assert_eq!(blocks(&out), [5, 6, 7, 8]);
        let (_, out) = ack(&mut transfer, NOW, 6);
        assert_eq!(blocks(&out), [7, 8, 9, 10], "7 was lost");
    }

    #[test]
    fn a_probe_for_the_size_ends_quietly() {
        let (mut transfer, _) = begin(5_000, Options { transfer_bytes: Some(0), ..Options::default() });
        let error = Packet::Error { code: 0, text: "TFTP Aborted".to_owned() }.encode();
        let mut out = Vec::new();
        let end = transfer.step(NOW, Input::Datagram(&error), &mut out);
        assert_eq!(end, Some(End::Refused { code: 0, text: "TFTP Aborted".to_owned(), bytes: 0 }));
        assert!(out.is_empty(), "an error is not answered");
    }

    #[test]
    fn duplicate_acknowledgements_do_not_double_the_packets() {
        let (mut transfer, _) = begin(5_000, Options::default());
        let (_, out) = ack(&mut transfer, NOW, 1);
        assert_eq!(blocks(&out), [2]);
        for _ in 0..3 {
            let (end, out) = ack(&mut transfer, NOW, 1);
            assert!(end.is_none() && out.is_empty());
        }
        let (_, out) = ack(&mut transfer, NOW, 9);
        assert!(out.is_empty(), "a block that was never sent");
        let (_, out) = ack(&mut transfer, NOW, 0);
        assert!(out.is_empty(), "an acknowledgement from the past");
    }

    #[test]
    fn a_line_that_loses_every_fifth_packet_lets_the_file_through() {
        for window in [1, 2, 4, 16] {
            let mut packets = 0;
            let lost = |_| {
                packets += 1;
                packets % 5 == 0
            };
            let (end, content, _) = run(100_000, windowed(1_024, window), lost);
            assert_eq!((end, content), (End::Complete, file(100_000).to_vec()), "windows of {window}");
        }
    }

    #[test]
    fn a_lost_window_is_repeated_once_without_waiting() {
        let (mut transfer, _) = begin(512 * 20, windowed(512, 4));
        ack(&mut transfer, NOW, 0);
        let (_, out) = ack(&mut transfer, NOW, 0);
        assert_eq!(blocks(&out), [1, 2, 3, 4]);
        let (_, out) = ack(&mut transfer, NOW, 0);
        assert!(out.is_empty());
    }

    #[test]
    fn waits_double_and_come_to_an_end() {
        let (mut transfer, _) = begin(5_000, Options::default());
        let mut waits = Vec::new();
        let mut now = NOW;
        let end = loop {
            let due = transfer.deadline();
            waits.push((due - now).as_secs());
            now = due;
            let mut out = Vec::new();
            if let Some(end) = transfer.step(now, Input::Tick, &mut out) {
                break end;
            }
            assert_eq!(blocks(&out), [1]);
        };
        assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
        assert_eq!(end, End::Silent { bytes: 0 });
    }

    #[test]
    fn progress_starts_the_waits_anew_but_not_the_whole_transfer() {
        let (mut transfer, _) = begin(512 * 5_000, Options::default());
        let mut now = NOW;
        let mut out = Vec::new();
        for block in 1u16.. {
            now = transfer.deadline();
            if let Some(end) = transfer.step(now, Input::Tick, &mut out) {
                assert_eq!(now, TRANSFER_MAX, "a client that needs two packets for each block ends here");
                assert!(matches!(end, End::Silent { .. }));
                return;
            }
            ack(&mut transfer, now, block);
        }
        panic!("never ended at {now:?}");
    }

    #[test]
    fn foreign_packets_change_nothing() {
        let (mut transfer, _) = begin(5_000, Options::default());
        for datagram in [&b""[..], b"\0", b"\0\x03\0\x01data", b"\0\x01f\0octet\0", b"\xff\xff\xff"] {
            let mut out = Vec::new();
            assert_eq!(transfer.step(NOW, Input::Datagram(datagram), &mut out), None);
            assert!(out.is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_line_that_loses_any_packet_twice_still_carries_the_whole_file(
            blocks in 0usize..30,
            rest in 0usize..1_500,
            block_bytes in 8u16..1_500,
            window in 1u16..20,
            seed in any::<u64>(),
        ) {
            let bytes = blocks * usize::from(block_bytes) + rest % usize::from(block_bytes);
            let mut state = seed;
            let lost = |waits| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                waits < 2 && (state >> 33).is_multiple_of(4)
            };
            let (end, content, _) = run(bytes, windowed(block_bytes, window), lost);
            prop_assert_eq!(end, End::Complete);
            prop_assert_eq!(content, file(bytes).to_vec());
        }

        #[test]
        fn no_datagram_makes_it_send_more_than_a_window(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..50)) {
            let (mut transfer, _) = begin(40_000, windowed(64, 4));
            for datagram in datagrams {
                let mut out = Vec::new();
                if transfer.step(NOW, Input::Datagram(&datagram), &mut out).is_some() {
                    break;
                }
                prop_assert!(out.len() <= 4);
            }
        }
    }
}
