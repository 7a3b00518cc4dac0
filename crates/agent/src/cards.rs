//! The machine's network cards, and the switches that they are plugged into, as far as those say so (LLDP).

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use fleet::discovery::{Card, SwitchPort};
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{self, Instant};
use wire::lldp::{ETHER_TYPE, MAX_LLDP_BYTES, Neighbour};

use crate::command::Run;
use crate::{Stop, inventory};

/// How often the listener looks whether it is to end.
const LOOK: Duration = Duration::from_secs(1);
/// `ip` only talks to the kernel.
const IP_LIMIT: Duration = Duration::from_secs(10);
/// Cards of one machine that are remembered; a frame from any other is passed over.
const CARDS: usize = 64;

/// What was heard, by the number of the interface.
type Heard = Arc<Mutex<BTreeMap<usize, Neighbour>>>;

/// Listens on a thread of its own until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    heard: Heard,
    ended: Arc<AtomicBool>,
}

impl Listener {
    /// Listens on `interfaces`, or on all cards, which are brought up for that. Where it cannot, nothing is heard: no
    /// machine is refused for that.
    pub(crate) fn start(interfaces: &[String]) -> Self {
        let listener = Self { heard: Heard::default(), ended: Arc::default() };
        for interface in interfaces {
            // Frames of LLDP go to a group that a card does not take in by itself.
            for words in [["up", ""], ["promisc", "on"]] {
                let words = words.into_iter().filter(|word| !word.is_empty());
                let run = Run::new("ip", IP_LIMIT).args(["link", "set", "dev", interface]).args(words);
                if let Err(error) = run.text(&Stop::default()) {
                    tracing::warn!("{interface} does not listen for its switch: {error}");
                }
            }
        }
        match open() {
            Ok(socket) => {
                let (heard, ended) = (Arc::clone(&listener.heard), Arc::clone(&listener.ended));
                thread::spawn(move || listen(&socket, &heard, &ended));
            }
            Err(error) => tracing::warn!("switches are not heard: {error}"),
        }
        listener
    }

    /// The machine's cards as they are now.
    pub(crate) fn cards(&self) -> Vec<Card> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        cards(Path::new("/sys"), &heard)
    }

    /// Waits until every card with a link has heard from its switch, but no longer than `limit`.
    pub(crate) async fn wait(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let cards = self.cards();
            let linked: Vec<&Card> = cards.iter().filter(|card| card.link).collect();
            if !linked.is_empty() && linked.iter().all(|card| card.switch.is_some()) {
                return;
            }
            time::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A socket that gets the content of LLDP frames from every card.
fn open() -> std::io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ETHER_TYPE.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn listen(socket: &Socket, heard: &Heard, ended: &AtomicBool) {
    let mut frame = [0; MAX_LLDP_BYTES];
    while !ended.load(Ordering::Relaxed) {
        // A time-out is the usual answer; other errors pass with the card that they come from.
        let Ok((size, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) else { continue };
        match Neighbour::decode(&frame[..size.min(MAX_LLDP_BYTES)]) {
            Ok(neighbour) if neighbour.ttl_seconds > 0 => {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if heard.len() < CARDS || heard.contains_key(&from.ifindex()) {
                    heard.insert(from.ifindex(), neighbour);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("{error}"),
        }
    }
}

fn cards(sysfs: &Path, heard: &BTreeMap<usize, Neighbour>) -> Vec<Card> {
    let found = inventory::interfaces(sysfs).into_iter().map(|(name, mac)| {
        let folder = sysfs.join("class/net").join(&name);
        // Of a card that is down or has no link the driver tells -1 or nothing.
        let number = |attribute: &str| fs::read_to_string(folder.join(attribute)).ok()?.trim().parse::<u32>().ok();
        let index = number("ifindex").and_then(|index| usize::try_from(index).ok());
        let switch = index.and_then(|index| heard.get(&index)).map(|neighbour| SwitchPort {
            name: neighbour.switch().to_owned(),
            port: neighbour.port.clone(),
            description: neighbour.port_description.clone(),
        });
        let rate_mbit = number("speed").filter(|rate| *rate > 0 && *rate < u32::MAX);
        Card { mac, name, link: number("carrier") == Some(1), rate_mbit, switch }
    });
    found.take(CARDS).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_with_link_rate_and_switch() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, facts: &[(&str, &str)]| {
            let card = folder.path().join("class/net").join(name);
            fs::create_dir_all(card.join("device")).unwrap();
            for (fact, text) in facts {
                fs::write(card.join(fact), text).unwrap();
            }
        };
        let mac = |last: u8| format!("52:54:00:00:00:0{last}\n");
        put(
            "eth0",
            &[("type", "1\n"), ("address", &mac(1)), ("ifindex", "2\n"), ("carrier", "1\n"), ("speed", "25000\n")],
        );
        put(
            "eth1",
            &[("type", "1\n"), ("address", &mac(2)), ("ifindex", "3\n"), ("carrier", "0\n"), ("speed", "-1\n")],
        );
        let neighbour = Neighbour {
            chassis: "52:54:00:00:00:99".into(),
            port: "Ethernet7".into(),
            ttl_seconds: 120,
            port_description: None,
            system_name: Some("leaf-r1".into()),
        };
        let found = cards(folder.path(), &BTreeMap::from([(2, neighbour)]));
        let switch = found[0].switch.as_ref().unwrap();
        assert_eq!((found[0].link, found[0].rate_mbit, switch.name.as_str()), (true, Some(25_000), "leaf-r1"));
        assert_eq!((found[1].link, found[1].rate_mbit, &found[1].switch), (false, None, &None));
    }
}
