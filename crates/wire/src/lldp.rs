//! What a switch says of itself on a port (LLDP, IEEE 802.1AB-2016), as far as it tells where a machine is plugged in.

use std::fmt;

use thiserror::Error;

/// The Ethernet type of LLDP.
pub const ETHER_TYPE: u16 = 0x88cc;
/// The largest frame that is read, in bytes: what Ethernet carries, without its header.
pub const MAX_LLDP_BYTES: usize = 1500;
/// Characters that are kept of each text.
const TEXT_CHARACTERS: usize = 120;
/// A header and 511 bytes at most: seven bits of type, nine of length (8.4.1).
const LENGTH_BITS: u16 = 9;

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The switch's identity, readable: a name, or an address in its usual form.
    pub chassis: String,
    /// The port's identity, readable.
    pub port: String,
    /// For how many seconds this holds; 0 says that the port is going away.
    pub ttl_seconds: u16,
    /// What an operator wrote at the port.
    pub port_description: Option<String>,
    /// The switch's name.
    pub system_name: Option<String>,
}

/// Why a frame is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LldpError {
    /// The frame ends within an element.
    #[error("an LLDP frame ends in the middle of an element")]
    Short,
    /// Chassis, port and time to live must come first, in this order (8.2).
    #[error("an LLDP frame does not begin with chassis, port and time to live")]
    Order,
    /// A length that its kind does not allow.
    #[error("an element of an LLDP frame has a length that its kind does not allow")]
    Length,
}

impl Neighbour {
    /// Reads a frame's content behind its Ethernet header. Padding behind the end of the message is allowed, elements that
    /// nobody asks for are passed over, a text that comes twice counts once.
    ///
    /// # Errors
    /// [`LldpError`].
    pub fn decode(frame: &[u8]) -> Result<Self, LldpError> {
        let mut rest = frame.get(..frame.len().min(MAX_LLDP_BYTES)).unwrap_or_default();
        let chassis = identity(expected(&mut rest, 1)?, CHASSIS)?;
        let port = identity(expected(&mut rest, 2)?, PORT)?;
        let ttl = expected(&mut rest, 3)?.first_chunk::<2>().ok_or(LldpError::Length)?;
        let mut neighbour =
            Self { chassis, port, ttl_seconds: u16::from_be_bytes(*ttl), port_description: None, system_name: None };
        while !rest.is_empty() {
            match element(&mut rest)? {
                (0, _) => break,
                (4, text) if neighbour.port_description.is_none() => neighbour.port_description = readable(text),
                (5, text) if neighbour.system_name.is_none() => neighbour.system_name = readable(text),
                _ => {}
            }
        }
        Ok(neighbour)
    }

    /// How people call the switch.
    #[must_use]
    pub fn switch(&self) -> &str {
        self.system_name.as_deref().unwrap_or(&self.chassis)
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.switch(), self.port)
    }
}

/// Subtypes whose content is a MAC address, and a network address.
struct Kinds {
    mac: u8,
    network: u8,
}

/// Table 8-2 of the standard.
const CHASSIS: Kinds = Kinds { mac: 4, network: 5 };
/// Table 8-3.
const PORT: Kinds = Kinds { mac: 3, network: 4 };

fn expected<'a>(rest: &mut &'a [u8], kind: u8) -> Result<&'a [u8], LldpError> {
    match element(rest)? {
        (found, value) if found == kind => Ok(value),
        _ => Err(LldpError::Order),
    }
}

fn element<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8]), LldpError> {
    let (header, behind) = rest.split_first_chunk::<2>().ok_or(LldpError::Short)?;
    let header = u16::from_be_bytes(*header);
    let length = usize::from(header & ((1 << LENGTH_BITS) - 1));
    let (value, behind) = behind.split_at_checked(length).ok_or(LldpError::Short)?;
    *rest = behind;
    Ok(((header >> LENGTH_BITS) as u8, value))
}

fn identity(value: &[u8], kinds: Kinds) -> Result<String, LldpError> {
    let (subtype, id) = value.split_first().ok_or(LldpError::Length)?;
    if id.is_empty() || id.len() > 255 {
        return Err(LldpError::Length);
    }
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    Ok(match id {
        _ if *subtype == kinds.mac && id.len() == 6 => hexadecimal(id),
        // The first byte is the address family: 1 is IPv4.
        [1, a, b, c, d] if *subtype == kinds.network => format!("{a}.{b}.{c}.{d}"),
        _ => readable(id).unwrap_or_else(|| hexadecimal(&id[..id.len().min(TEXT_CHARACTERS / 3)])),
    })
}

/// Text without what could disturb a terminal; none where nothing is left.
fn readable(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text: String = text.chars().filter(|c| !c.is_control()).take(TEXT_CHARACTERS).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tlv(kind: u16, value: &[u8]) -> Vec<u8> {
        let header = (kind << LENGTH_BITS | u16::try_from(value.len()).unwrap()).to_be_bytes();
        [&header[..], value].concat()
    }

    fn frame() -> Vec<u8> {
        [
            tlv(1, &[4, 0x52, 0x54, 0, 0, 0, 1]),
            tlv(2, b"\x05Ethernet1/7"),
            tlv(3, &[0, 120]),
            tlv(127, &[0, 0x80, 0xc2, 1, 0, 1]),
            tlv(4, b"to node 7\x1b[2J"),
            tlv(5, b"leaf-r7-a"),
            tlv(0, &[]),
            vec![0; 9],
        ]
        .concat()
    }

    #[test]
    fn a_switchs_frame_is_read() {
        let found = Neighbour::decode(&frame()).unwrap();
        assert_eq!((found.chassis.as_str(), found.port.as_str()), ("52:54:00:00:00:01", "Ethernet1/7"));
        assert_eq!((found.ttl_seconds, found.port_description.as_deref()), (120, Some("to node 7[2J")));
        assert_eq!(found.to_string(), "leaf-r7-a port Ethernet1/7");
    }

    #[test]
    fn identities_take_their_usual_form() {
        let of =
            |chassis: &[u8], port: &[u8]| Neighbour::decode(&[tlv(1, chassis), tlv(2, port), tlv(3, &[0, 1])].concat());
        let found = of(&[5, 1, 10, 0, 0, 9], &[3, 2, 0, 0, 0, 0, 1]).unwrap();
        assert_eq!((found.switch(), found.port.as_str()), ("10.0.0.9", "02:00:00:00:00:01"));
        let found = of(b"\x07rack 3", &[7, 0xff, 0xfe]).unwrap();
        assert_eq!((found.switch(), found.port.as_str()), ("rack 3", "ff:fe"));
        assert_eq!(of(&[4], b"\x05p"), Err(LldpError::Length));
        assert_eq!(of(&[], b"\x05p"), Err(LldpError::Length));
    }

    #[test]
    fn frames_that_end_early_or_are_out_of_order_are_refused() {
        let whole = frame();
        for end in 0..20 {
            assert!(Neighbour::decode(&whole[..end]).is_err(), "{end}");
        }
        assert_eq!(Neighbour::decode(&tlv(2, b"\x05p")), Err(LldpError::Order));
        let short = [tlv(1, b"\x07c"), tlv(2, b"\x07p"), tlv(3, &[0])].concat();
        assert_eq!(Neighbour::decode(&short), Err(LldpError::Length));
        // A length that reaches beyond the frame.
        assert_eq!(Neighbour::decode(&[0x03, 0xff, 1, 2]), Err(LldpError::Short));
    }
}
