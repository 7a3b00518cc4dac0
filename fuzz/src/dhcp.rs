//! Every request that is read can be answered within what its sender accepts.

use std::net::Ipv4Addr;

use rackswarm_wire::dhcp::{BootFile, LeaseTime, Network, REPLY_MIN_BYTES, Reply, ReplyKind, Request};

/// Reads `data` as a request and answers it; says whether it is one.
pub fn check(data: &[u8]) -> bool {
    let Ok(request) = Request::parse(data) else { return false };
    assert_eq!(request.mac[0] & 1, 0, "a group address is no station's");
    for reply in replies() {
        if let Ok(bytes) = reply.encode(&request) {
            assert!(bytes.len() >= REPLY_MIN_BYTES && bytes.len() <= request.reply_max_bytes());
            assert_eq!(bytes[4..8], request.xid.to_be_bytes());
            assert_eq!(bytes[240..242], [53, 1], "the message type comes first");
            assert!(Request::parse(&bytes).is_err(), "a reply is no request");
        }
    }
    true
}

fn replies() -> [Reply; 2] {
    let server_id = Ipv4Addr::new(10, 77, 0, 1);
    let refusal = Reply {
        kind: ReplyKind::Nak,
        server_id,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        lease: None,
        network: None,
        boot: None,
        message: Some("that address is not yours"),
    };
    let offer = Reply {
        kind: ReplyKind::Offer,
        yiaddr: Ipv4Addr::new(10, 77, 0, 100),
        lease: Some(LeaseTime(u32::MAX)),
        network: Some(Network {
            mask: Ipv4Addr::new(255, 255, 255, 0),
            broadcast: Ipv4Addr::new(10, 77, 0, 255),
            router: Some(server_id),
            dns: vec![server_id; 8],
            domain: Some("lab.example".to_owned()),
        }),
        boot: Some(BootFile {
            name: "boot/52-54-00-01-02-03/snponly.efi".to_owned(),
            tftp_server: Some(server_id),
            vendor_class: Some("PXEClient"),
            pxe_discovery_control: true,
            ipxe_no_proxy_wait: true,
        }),
        message: None,
        ..refusal.clone()
    };
    [offer, refusal]
}
