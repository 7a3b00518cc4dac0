//! Datagrams of UDP trackers mean the same after a round trip.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rackswarm_wire::udp_tracker::{MAX_WRITTEN_BYTES, Request, Response};

/// Tries `data` as a request and as an answer of both families; says whether
/// it is one.
pub fn check(data: &[u8]) -> bool {
    let request = Request::decode(data);
    if let Ok(request) = &request {
        assert_eq!(Request::decode(&request.encode()).as_ref(), Ok(request));
    }
    let v4 = check_response(data, Ipv4Addr::LOCALHOST.into());
    let v6 = check_response(data, Ipv6Addr::LOCALHOST.into());
    request.is_ok() || v4 || v6
}

/// An answer larger than we write loses peers, but nothing else.
fn check_response(data: &[u8], from: IpAddr) -> bool {
    let Ok(response) = Response::decode(data, from) else { return false };
    let bytes = response.encode(from);
    assert!(bytes.len() <= MAX_WRITTEN_BYTES);
    let again = Response::decode(&bytes, from).expect("a written answer can be read");
    if data.len() <= MAX_WRITTEN_BYTES / 4 {
        assert_eq!(again, response);
    }
    true
}
