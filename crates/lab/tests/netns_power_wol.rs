//! A wake-up packet reaches the machines of a subnet by its directed broadcast. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use power::Outcome;
use rackswarm_lab::netns::{Namespace, Plan};
use rackswarm_lab::tool;

#[test]
fn a_directed_broadcast_wakes_machines_behind_another_link() {
    let namespace = Namespace::new(&Plan::default()).unwrap();
    // The sleeping machine's side of a cable to the switch.
    let batch = "link add port0 type veth peer name card0\nlink set port0 master br0 up\nlink set card0 up\n";
    tool::feed("ip", &["-n", namespace.name(), "-batch", "-"], batch).unwrap();
    let destination = namespace
        .inside(|| {
            let wire = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll).unwrap();
            let limit = TimeVal::seconds(10);
            setsockopt(&wire, sockopt::ReceiveTimeout, &limit).unwrap();
            let card = if_nametoindex("card0").unwrap() as usize;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let woken = runtime.block_on(async {
                power::open("wol:52:54:00:00:01:07?via=10.77.0.255&count=1").unwrap().on().await.unwrap()
            });
            assert!(matches!(woken, Outcome::AskOperator(_)));
            let magic = [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 1, 7]].concat();
            let mut frame = [0; 2048];
            loop {
                let (length, from) = recvfrom::<LinkAddr>(wire.as_raw_fd(), &mut frame).expect("nothing arrives");
                let came_in = from.is_some_and(|from| from.ifindex() == card);
                if came_in && frame[..length].windows(12).any(|window| window == magic) {
                    return frame[..6].to_vec();
                }
            }
        })
        .unwrap();
    assert_eq!(destination, [0xff; 6], "a broadcast on the wire");
    namespace.remove().unwrap();
}
