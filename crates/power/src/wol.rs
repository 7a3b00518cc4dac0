//! `wol:MAC?via=10.1.255.255` wakes a machine by its network card. The packet goes one way: nobody confirms it, nothing can
//! be switched off by it, and no boot order be set. So the driver sends, and asks a person to look at what it cannot know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};
use tokio::net::UdpSocket;
use tokio::time::sleep;

use crate::secret::Secret;
use crate::{Address, BootDevice, Driver, Error, Outcome, PowerDriver, Result, State};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "wol",
    help: "Wake-on-LAN: can wake only, asks a person for the rest: via=ADDRESS (the machine's subnet's broadcast address; \
           default 255.255.255.255) port=1..65535 count=1..10 secureon_file=/path",
    example: "wol:52:54:00:00:01:07?via=10.1.255.255",
    limit: Duration::from_secs(10),
    controller: |address| address.place().to_owned(),
    at_once: 1,
    network_boot: true,
    by_hand: true,
    parse,
};

/// The discard port, where nothing listens.
const PORT: u16 = 9;
/// Switches drop broadcasts when they are busy, and nobody asks for a lost packet again.
const COUNT: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

struct Wol {
    mac: [u8; 6],
    shown: String,
    via: SocketAddr,
    count: u32,
    secureon_file: Option<PathBuf>,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let shown = address.place().to_lowercase();
    let mac = octets(&shown).ok_or_else(|| address.wrong(format!("`{shown}` is not a MAC address")))?;
    let via = match address.take("via") {
        None => IpAddr::V4(Ipv4Addr::BROADCAST),
        Some(text) => text.parse().map_err(|_| address.wrong(format!("`via={text}` is not an IP address")))?,
    };
    Ok(Box::new(Wol {
        mac,
        shown,
        via: SocketAddr::new(via, address.number("port", 1..=u16::MAX)?.unwrap_or(PORT)),
        count: address.number("count", 1..=10)?.unwrap_or(COUNT),
        secureon_file: address.file("secureon_file")?,
    }))
}

/// Six hexadecimal octets between colons or dashes.
fn octets(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let parts: Vec<&str> = text.split([':', '-']).collect();
    if parts.len() != mac.len() {
        return None;
    }
    for (octet, part) in mac.iter_mut().zip(parts) {
        if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    Some(mac)
}

/// Six octets of ones, sixteen times the address, and the SecureOn password if the card wants one (AMD, Magic Packet
/// Technology, publication 20213).
fn magic_packet(mac: [u8; 6], password: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(mac.repeat(16));
    packet.extend(password);
    packet
}

/// A SecureOn password has six octets, written like a MAC address, or four, written like an IP address.
fn secureon(text: &str) -> Option<Vec<u8>> {
    match octets(text) {
        Some(six) => Some(six.to_vec()),
        None => text.parse::<Ipv4Addr>().ok().map(|four| four.octets().to_vec()),
    }
}

impl Wol {
    fn target(&self) -> String {
        format!("machine {}", self.shown)
    }

    async fn password(&self) -> Result<Vec<u8>> {
        let Some(path) = &self.secureon_file else { return Ok(Vec::new()) };
        let secret = Secret::read(path, &self.target(), "SecureOn password").await?;
        secureon(secret.expose()).ok_or_else(|| {
            Error::refused(
                &self.target(),
                format!(
                    "the SecureOn password in {} is neither six octets like 00:11:22:33:44:55 nor four like 1.2.3.4",
                    path.display()
                ),
            )
        })
    }

    async fn wake(&self) -> Result<()> {
        let packet = magic_packet(self.mac, &self.password().await?);
        let trouble = |error: std::io::Error| {
            Error::transient(
                &self.target(),
                format!(
                    "the wake-up packet cannot be sent to {}: {error}; check `via=` and this server's routes",
                    self.via
                ),
            )
        };
        let local: IpAddr =
            if self.via.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((local, 0)).await.map_err(trouble)?;
        socket.set_broadcast(true).map_err(trouble)?;
        for sent in 0..self.count {
            if sent > 0 {
                sleep(PAUSE).await;
            }
            socket.send_to(&packet, self.via).await.map_err(trouble)?;
        }
        tracing::info!(mac = self.shown, via = %self.via, count = self.count, "wake-up packets sent");
        Ok(())
    }

    fn ask(&self, sentence: &str) -> BoxFuture<'static, Result<Outcome>> {
        Box::pin(ready(Ok(Outcome::AskOperator(format!("{} is driven by Wake-on-LAN: {sentence}", self.target())))))
    }
}

impl PowerDriver for Wol {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(ready(Ok(State::Unknown)))
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.wake().await?;
            Ok(Outcome::AskOperator(format!(
                "{} was sent {} wake-up packets to {}, which nobody confirms; if it does not start within a minute, please switch it on.",
                self.target(),
                self.count,
                self.via
            )))
        })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        self.ask("please switch it off by hand.")
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.wake().await?;
            Ok(Outcome::AskOperator(format!(
                "{} was sent {} wake-up packets to {}, which start it only if it was off; if it is on, please restart it.",
                self.target(),
                self.count,
                self.via
            )))
        })
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        self.ask(match device {
            BootDevice::Network => "please choose network boot in its firmware's boot menu at the next start, unless its disk is empty or its standing order is network first.",
            BootDevice::Disk => "please let it boot from its own disk at the next start.",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::open;

    #[tokio::test]
    async fn the_packet_is_as_the_card_wants_it_and_no_success_is_claimed() {
        let card = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("secureon");
        std::fs::write(&password, "01:02:03:04:05:06\n").unwrap();
        let address = format!(
            "wol:52-54-00-AA-bb-01?via=127.0.0.1&port={}&count=2&secureon_file={}",
            card.local_addr().unwrap().port(),
            password.display()
        );
        let driver = open(&address).unwrap();
        let Outcome::AskOperator(sentence) = driver.on().await.unwrap() else { panic!("nobody confirms it") };
        assert!(
            sentence.contains("2 wake-up packets to 127.0.0.1") && sentence.contains("nobody confirms"),
            "{sentence}"
        );
        let mut packet = [0; 200];
        for _ in 0..2 {
            let length = card.recv(&mut packet).await.unwrap();
            assert_eq!(length, 6 + 16 * 6 + 6);
            assert_eq!(packet[..6], [0xff; 6]);
            assert!(packet[6..102].chunks(6).all(|copy| copy == [0x52, 0x54, 0, 0xaa, 0xbb, 1]));
            assert_eq!(packet[102..108], [1, 2, 3, 4, 5, 6]);
        }
        assert_eq!(driver.state().await.unwrap(), State::Unknown);
        assert!(matches!(driver.off().await.unwrap(), Outcome::AskOperator(_)));
        std::fs::write(&password, "swordfish\n").unwrap();
        let error = driver.on().await.unwrap_err().to_string();
        assert!(error.contains("SecureOn") && !error.contains("swordfish"), "{error}");
    }

    #[test]
    fn passwords_have_four_or_six_octets() {
        assert_eq!(secureon("1.2.3.4").unwrap(), [1, 2, 3, 4]);
        assert_eq!(secureon("00-11-22-33-44-55").unwrap().len(), 6);
        assert_eq!(secureon("1.2.3"), None);
        assert_eq!(octets("+1:00:00:00:00:00"), None);
    }
}
