//! Addresses in their compact form (BEP 23, BEP 7): the bytes of the IP
//! address, then the port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of an address and port of version 4.
pub(crate) const V4_BYTES: usize = 6;
/// Bytes of an address and port of version 6.
pub(crate) const V6_BYTES: usize = 18;

/// Those of version 4, in their order.
pub(crate) fn encode_v4(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in addresses {
        if let SocketAddr::V4(address) = address {
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
    }
    bytes
}

/// Those of version 6, in their order.
pub(crate) fn encode_v6(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in addresses {
        if let SocketAddr::V6(address) = address {
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
    }
    bytes
}

/// `None` when the bytes end within an address.
pub(crate) fn decode_v4(bytes: &[u8]) -> Option<impl Iterator<Item = SocketAddr> + use<'_>> {
    let (chunks, rest) = bytes.as_chunks::<V4_BYTES>();
    let address = |at: &[u8; V4_BYTES]| {
        SocketAddr::from((Ipv4Addr::new(at[0], at[1], at[2], at[3]), u16::from_be_bytes([at[4], at[5]])))
    };
    rest.is_empty().then(|| chunks.iter().map(address))
}

/// `None` when the bytes end within an address.
pub(crate) fn decode_v6(bytes: &[u8]) -> Option<impl Iterator<Item = SocketAddr> + use<'_>> {
    let (chunks, rest) = bytes.as_chunks::<V6_BYTES>();
    let address = |at: &[u8; V6_BYTES]| {
        let mut ip = [0; 16];
        ip.copy_from_slice(&at[..16]);
        SocketAddr::from((Ipv6Addr::from(ip), u16::from_be_bytes([at[16], at[17]])))
    };
    rest.is_empty().then(|| chunks.iter().map(address))
}
