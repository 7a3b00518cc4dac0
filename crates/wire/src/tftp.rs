//! TFTP: RFC 1350 with the options of RFC 2347, 2348 (block size), 2349
//! (time-out, transfer size) and 7440 (window size).

use std::fmt::Write as _;

use thiserror::Error;

/// Block size when nothing is negotiated, octets (RFC 1350 section 2).
pub const BLOCK_DEFAULT_BYTES: u16 = 512;
/// Smallest block size, octets (RFC 2348).
pub const BLOCK_MIN_BYTES: u16 = 8;
/// Largest block size, octets (RFC 2348).
pub const BLOCK_MAX_BYTES: u16 = 65_464;
/// Longest read or write request, octets. RFC 2347 section 2 limits it to 512.
pub const REQUEST_MAX_BYTES: usize = 512;

const OP_READ: u16 = 1;
const OP_WRITE: u16 = 2;
const OP_DATA: u16 = 3;
const OP_ACK: u16 = 4;
const OP_ERROR: u16 = 5;
const OP_OPTION_ACK: u16 = 6;
const ERROR_TEXT_MAX_BYTES: usize = 256;

/// Why a datagram is not TFTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadPacket {
    /// Ends before its fields do.
    #[error("TFTP packet is cut off")]
    Short,
    /// Longer than the packet type allows.
    #[error("TFTP packet is too long")]
    Long,
    /// Operation code outside 1 to 6.
    #[error("TFTP operation {0} does not exist")]
    Operation(u16),
    /// A text is not zero-terminated or not ASCII.
    #[error("TFTP request has a text that is not zero-terminated ASCII")]
    Text,
    /// Neither `octet` nor `netascii`.
    #[error("TFTP transfer mode is neither octet nor netascii")]
    Mode,
}

/// Transfer mode of a request (RFC 1350 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Text with converted line ends.
    Netascii,
}

/// Error codes (RFC 1350 section 5, RFC 2347 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// See the text.
    Undefined = 0,
    /// No such file.
    NotFound = 1,
    /// Not allowed.
    AccessViolation = 2,
    /// No room; also used when the server serves enough others.
    Full = 3,
    /// Operation that makes no sense here.
    IllegalOperation = 4,
    /// From a port that is not part of this transfer.
    UnknownTransfer = 5,
    /// The file is there already.
    Exists = 6,
    /// No such user.
    NoSuchUser = 7,
    /// An option was not acceptable.
    Option = 8,
}

/// Options of a request or of its acknowledgement. A value outside its range,
/// or an option that is not known, reads as absent: RFC 2347 lets a server
/// ignore both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// `blksize`, octets, [`BLOCK_MIN_BYTES`] to [`BLOCK_MAX_BYTES`].
    pub block_bytes: Option<u16>,
    /// `tsize`, octets; 0 in a read request.
    pub transfer_bytes: Option<u64>,
    /// `timeout`, seconds, 1 to 255.
    pub timeout_seconds: Option<u8>,
    /// `windowsize`, blocks, at least 1.
    pub window_blocks: Option<u16>,
}

impl Options {
    /// True when no option is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn take(&mut self, name: &str, value: &str) {
        match name.to_ascii_lowercase().as_str() {
            "blksize" => {
                self.block_bytes =
                    value.parse().ok().filter(|bytes| (BLOCK_MIN_BYTES..=BLOCK_MAX_BYTES).contains(bytes));
            }
            "tsize" => self.transfer_bytes = value.parse().ok(),
            "timeout" => self.timeout_seconds = value.parse().ok().filter(|seconds| *seconds > 0),
            "windowsize" => self.window_blocks = value.parse().ok().filter(|blocks| *blocks > 0),
            _ => {}
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        let mut text = String::new();
        for (name, value) in [
            ("blksize", self.block_bytes.map(u64::from)),
            ("tsize", self.transfer_bytes),
            ("timeout", self.timeout_seconds.map(u64::from)),
            ("windowsize", self.window_blocks.map(u64::from)),
        ] {
            if let Some(value) = value {
                let _ = write!(text, "{name}\0{value}\0");
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
}

/// A read or write request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRequest {
    /// File name as sent: printable ASCII, at most [`REQUEST_MAX_BYTES`].
    pub file: String,
    /// Transfer mode.
    pub mode: Mode,
    /// Options.
    pub options: Options,
}

/// One TFTP packet. Data borrows from the datagram or from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Read request.
    Read(FileRequest),
    /// Write request.
    Write(FileRequest),
    /// A block of the file; shorter than the block size at its end.
    Data {
        /// Block number modulo 65,536; the first is 1.
        block: u16,
        /// The bytes.
        payload: &'a [u8],
    },
    /// Everything up to this block has arrived.
    Ack {
        /// Block number modulo 65,536; 0 acknowledges the options.
        block: u16,
    },
    /// The transfer is over.
    Error {
        /// Code as sent; see [`ErrorCode`].
        code: u16,
        /// Sentence for a person, at most 256 octets are kept.
        text: String,
    },
    /// Options that the server accepts.
    OptionAck(Options),
}

impl<'a> Packet<'a> {
    /// An error packet with a sentence.
    #[must_use]
    pub fn error(code: ErrorCode, text: &str) -> Self {
        Self::Error { code: code as u16, text: text.to_owned() }
    }

    /// Reads one datagram.
    ///
    /// # Errors
    /// [`BadPacket`] when it is not TFTP.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, BadPacket> {
        let (operation, rest) = take_u16(datagram)?;
        match operation {
            OP_READ => Ok(Self::Read(file_request(rest)?)),
            OP_WRITE => Ok(Self::Write(file_request(rest)?)),
            OP_DATA => {
                let (block, payload) = take_u16(rest)?;
                if payload.len() > usize::from(BLOCK_MAX_BYTES) {
                    return Err(BadPacket::Long);
                }
                Ok(Self::Data { block, payload })
            }
            // Some ROMs pad an ACK; what follows the number is ignored.
            OP_ACK => Ok(Self::Ack { block: take_u16(rest)?.0 }),
            OP_ERROR => {
                let (code, text) = take_u16(rest)?;
                let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
                let text = &text[..end.min(ERROR_TEXT_MAX_BYTES)];
                Ok(Self::Error { code, text: String::from_utf8_lossy(text).into_owned() })
            }
            OP_OPTION_ACK => {
                if rest.len() > REQUEST_MAX_BYTES {
                    return Err(BadPacket::Long);
                }
                Ok(Self::OptionAck(options(rest)?))
            }
            other => Err(BadPacket::Operation(other)),
        }
    }

    /// The datagram for this packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Read(request) => request.put(OP_READ, &mut bytes),
            Self::Write(request) => request.put(OP_WRITE, &mut bytes),
            Self::Data { block, payload } => {
                bytes.reserve_exact(4 + payload.len());
                bytes.extend_from_slice(&OP_DATA.to_be_bytes());
                bytes.extend_from_slice(&block.to_be_bytes());
                bytes.extend_from_slice(payload);
            }
            Self::Ack { block } => {
                bytes.extend_from_slice(&OP_ACK.to_be_bytes());
                bytes.extend_from_slice(&block.to_be_bytes());
            }
            Self::Error { code, text } => {
                bytes.extend_from_slice(&OP_ERROR.to_be_bytes());
                bytes.extend_from_slice(&code.to_be_bytes());
                bytes.extend(text.bytes().filter(|byte| *byte != 0).take(ERROR_TEXT_MAX_BYTES));
                bytes.push(0);
            }
            Self::OptionAck(options) => {
                bytes.extend_from_slice(&OP_OPTION_ACK.to_be_bytes());
                options.put(&mut bytes);
            }
        }
        bytes
    }
}

impl FileRequest {
    fn put(&self, operation: u16, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&operation.to_be_bytes());
        bytes.extend_from_slice(self.file.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(match self.mode {
            Mode::Octet => b"octet\0",
            Mode::Netascii => b"netascii\0",
        });
        self.options.put(bytes);
    }
}

fn take_u16(bytes: &[u8]) -> Result<(u16, &[u8]), BadPacket> {
    let (number, rest) = bytes.split_first_chunk::<2>().ok_or(BadPacket::Short)?;
    Ok((u16::from_be_bytes(*number), rest))
}

fn file_request(bytes: &[u8]) -> Result<FileRequest, BadPacket> {
    if bytes.len() + 2 > REQUEST_MAX_BYTES {
        return Err(BadPacket::Long);
    }
    let (file, rest) = take_text(bytes)?;
    let (mode, rest) = take_text(rest)?;
    let mode = match mode.to_ascii_lowercase().as_str() {
        "octet" => Mode::Octet,
        "netascii" => Mode::Netascii,
        _ => return Err(BadPacket::Mode),
    };
    Ok(FileRequest { file: file.to_owned(), mode, options: options(rest)? })
}

/// Name and value pairs up to the end; a half pair ends the list, because some
/// ROMs leave rubbish behind the last one.
fn options(mut bytes: &[u8]) -> Result<Options, BadPacket> {
    let mut options = Options::default();
    while !bytes.is_empty() {
        let Ok((name, rest)) = take_text(bytes) else { break };
        let Ok((value, rest)) = take_text(rest) else { break };
        options.take(name, value);
        bytes = rest;
    }
    Ok(options)
}

fn take_text(bytes: &[u8]) -> Result<(&str, &[u8]), BadPacket> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(BadPacket::Text)?;
    let (text, rest) = bytes.split_at(end);
    if !text.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return Err(BadPacket::Text);
    }
    let text = std::str::from_utf8(text).map_err(|_| BadPacket::Text)?;
    Ok((text, &rest[1..]))
}

#[cfg(test)]
mod tests {
    // `\0` before a digit is the terminator of a name.
    #![allow(clippy::unwrap_used, clippy::octal_escapes)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_read_request_with_every_option() {
        let datagram = b"\0\x01boot/52-54-00-01-02-03/snponly.efi\0OCTET\0blksize\01468\0tsize\00\0timeout\03\0windowsize\016\0multicast\0\0";
        let Packet::Read(request) = Packet::parse(datagram).unwrap() else { panic!("not a read request") };
        assert_eq!(request.file, "boot/52-54-00-01-02-03/snponly.efi");
        assert_eq!(request.mode, Mode::Octet);
        assert_eq!(
            request.options,
            Options {
                block_bytes: Some(1468),
                transfer_bytes: Some(0),
                timeout_seconds: Some(3),
                window_blocks: Some(16)
            }
        );
    }

    #[test]
    fn option_values_out_of_range_read_as_absent() {
        for option in [
            "blksize\07\0",
            "blksize\065465\0",
            "blksize\0-1\0",
            "blksize\0\0",
            "tsize\0x\0",
            "timeout\00\0",
            "timeout\0256\0",
            "windowsize\00\0",
            "windowsize\065536\0",
            "blksize\01468",
            "blksize",
        ] {
            let datagram = [b"\0\x01f\0octet\0", option.as_bytes()].concat();
            let Packet::Read(request) = Packet::parse(&datagram).unwrap() else { panic!("not a read request") };
            assert!(request.options.is_empty(), "{option:?}");
        }
    }

    #[test]
    fn damaged_packets_are_refused_by_name() {
        for (datagram, why) in [
            (&b""[..], BadPacket::Short),
            (b"\0", BadPacket::Short),
            (b"\0\0", BadPacket::Operation(0)),
            (b"\0\x07", BadPacket::Operation(7)),
            (b"\0\x03\0", BadPacket::Short),
            (b"\0\x04\0", BadPacket::Short),
            (b"\0\x05", BadPacket::Short),
            (b"\0\x01file", BadPacket::Text),
            (b"\0\x01file\0octet", BadPacket::Text),
            (b"\0\x01fi\nle\0octet\0", BadPacket::Text),
            (b"\0\x01fi\xffle\0octet\0", BadPacket::Text),
            (b"\0\x01file\0mail\0", BadPacket::Mode),
        ] {
            assert_eq!(Packet::parse(datagram), Err(why), "{datagram:?}");
        }
        let long = [b"\0\x01", "x".repeat(600).as_bytes(), b"\0octet\0"].concat();
        assert_eq!(Packet::parse(&long), Err(BadPacket::Long));
    }

    #[test]
    fn errors_keep_their_text_bounded() {
        let long = "e".repeat(1_000);
        let bytes = Packet::error(ErrorCode::NotFound, &long).encode();
        assert_eq!(bytes.len(), 4 + 256 + 1);
        let Packet::Error { code, text } = Packet::parse(&bytes).unwrap() else { panic!("not an error") };
        assert_eq!((code, text.len()), (1, 256));
        assert!(matches!(Packet::parse(b"\0\x05\0\0no end"), Ok(Packet::Error { code: 0, .. })));
    }

    fn any_options() -> impl Strategy<Value = Options> {
        (
            prop::option::of(BLOCK_MIN_BYTES..=BLOCK_MAX_BYTES),
            prop::option::of(any::<u64>()),
            prop::option::of(1u8..),
            prop::option::of(1u16..),
        )
            .prop_map(|(block_bytes, transfer_bytes, timeout_seconds, window_blocks)| Options {
                block_bytes,
                transfer_bytes,
                timeout_seconds,
                window_blocks,
            })
    }

    proptest! {
        #[test]
        fn no_datagram_panics(datagram in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Packet::parse(&datagram);
        }

        #[test]
        fn requests_round_trip(file in "[a-zA-Z0-9./_-]{1,200}", options in any_options(), octet in any::<bool>()) {
            let mode = if octet { Mode::Octet } else { Mode::Netascii };
            let packet = Packet::Read(FileRequest { file, mode, options });
            let bytes = packet.encode();
            prop_assert_eq!(Packet::parse(&bytes).unwrap(), packet);
        }

        #[test]
        fn data_and_acks_round_trip(block in any::<u16>(), payload in prop::collection::vec(any::<u8>(), 0..2000)) {
            let data = Packet::Data { block, payload: &payload };
            let bytes = data.encode();
            prop_assert_eq!(Packet::parse(&bytes).unwrap(), data);
            let ack = Packet::Ack { block };
            let bytes = ack.encode();
            prop_assert_eq!(Packet::parse(&bytes).unwrap(), ack);
        }

        #[test]
        fn option_acks_round_trip(options in any_options()) {
            let packet = Packet::OptionAck(options);
            let bytes = packet.encode();
            prop_assert_eq!(Packet::parse(&bytes).unwrap(), packet);
        }
    }
}
