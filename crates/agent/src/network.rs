//! Brings the network up through the interface that the machine booted from.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fleet::ids::Mac;
use tokio::process::{Child, Command};
use tokio::time;

use crate::command::{Run, SEARCH_PATH, find};
use crate::{Error, Stop, inventory};

/// A driver may take this long to show its interface: firmware is loaded first.
const INTERFACE_LIMIT: Duration = Duration::from_secs(60);
/// Link negotiation; 10GBASE-T with a switch that probes takes over 30 s.
const CARRIER_LIMIT: Duration = Duration::from_secs(90);
/// A port in spanning tree's listening and learning states passes nothing for
/// 30 s (802.1D); a DHCP server with 200 machines at once also needs time.
const LEASE_LIMIT: Duration = Duration::from_secs(180);
/// Two looks at something that the kernel or udhcpc is to do.
const LOOK: Duration = Duration::from_millis(50);
/// `ip` only talks to the kernel.
const IP_LIMIT: Duration = Duration::from_secs(10);

const DHCP_SCRIPT: &str = "/etc/udhcpc/default.script";

/// The network, up. Dropping it ends the DHCP client, which renews the lease;
/// the address stays and is not given back: the deployed system wants it too.
#[derive(Debug)]
pub(crate) struct Network {
    /// Its hardware address.
    pub(crate) mac: Mac,
    /// Its name.
    pub(crate) interface: String,
    /// The leased address.
    pub(crate) address: Ipv4Addr,
    _client: Child,
}

/// Brings up the interface with `mac`, or the only one that has a link.
pub(crate) async fn up(mac: Option<Mac>) -> Result<Network, Error> {
    ip(&["link", "set", "dev", "lo", "up"]).await?;
    let (interface, mac) = match mac {
        Some(mac) => interface_of(mac).await?,
        None => first_with_link().await?,
    };
    ip(&["link", "set", "dev", &interface, "up"]).await?;
    if !within(CARRIER_LIMIT, || has_link(&interface)).await {
        return Err(Error::NoCarrier { interface, seconds: CARRIER_LIMIT.as_secs() });
    }
    let (client, address) = lease(&interface).await?;
    tracing::info!("{interface} ({mac}) has address {address}");
    Ok(Network { mac, interface, address, _client: client })
}

/// Names of all cards.
pub(crate) fn cards() -> Vec<String> {
    inventory::interfaces(Path::new("/sys")).into_iter().map(|(name, _)| name).collect()
}

async fn interface_of(mac: Mac) -> Result<(String, Mac), Error> {
    let find = || inventory::interfaces(Path::new("/sys")).into_iter().find(|(_, address)| *address == mac);
    if within(INTERFACE_LIMIT, || find().is_some()).await {
        return find().ok_or_else(|| no_interface(&mac.to_string()));
    }
    Err(no_interface(&mac.to_string()))
}

async fn first_with_link() -> Result<(String, Mac), Error> {
    let deadline = Instant::now() + INTERFACE_LIMIT;
    loop {
        let all = inventory::interfaces(Path::new("/sys"));
        if let Some(found) = all.iter().find(|(name, _)| has_link(name)) {
            return Ok(found.clone());
        }
        if Instant::now() >= deadline {
            return Err(no_interface("with a link"));
        }
        for (name, _) in all {
            ip(&["link", "set", "dev", &name, "up"]).await?;
        }
        time::sleep(LOOK).await;
    }
}

fn no_interface(wanted: &str) -> Error {
    let seen: Vec<String> =
        inventory::interfaces(Path::new("/sys")).into_iter().map(|(name, mac)| format!("{name} {mac}")).collect();
    let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
    Error::NoInterface { wanted: wanted.to_owned(), seen }
}

fn has_link(interface: &str) -> bool {
    // An interface that is down answers with an error.
    fs::read_to_string(format!("/sys/class/net/{interface}/carrier")).is_ok_and(|text| text.trim() == "1")
}

/// Starts the DHCP client and waits for its first lease. The client goes on
/// asking by itself; one that ends is started again.
async fn lease(interface: &str) -> Result<(Child, Ipv4Addr), Error> {
    let facts = PathBuf::from(format!("/run/dhcp-{interface}"));
    let deadline = Instant::now() + LEASE_LIMIT;
    while Instant::now() < deadline {
        let mut client = start_client(interface)?;
        loop {
            if let Some(address) = leased_address(&facts) {
                return Ok((client, address));
            }
            let ended = client.try_wait().map_err(Error::io("wait for", "udhcpc"))?.is_some();
            if ended || Instant::now() >= deadline {
                break;
            }
            time::sleep(LOOK).await;
        }
        time::sleep(LOOK).await;
    }
    Err(Error::NoLease { interface: interface.to_owned(), seconds: LEASE_LIMIT.as_secs() })
}

fn start_client(interface: &str) -> Result<Child, Error> {
    let program = find("udhcpc").unwrap_or_else(|| "udhcpc".into());
    Command::new(&program)
        // In the foreground; five requests 2 s apart, then a pause of 2 s, for ever.
        .args(["-f", "-i", interface, "-s", DHCP_SCRIPT, "-t", "5", "-T", "2", "-A", "2"])
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::io("run", program))
}

/// The script keeps the facts of the lease as `key=value` lines.
fn leased_address(facts: &Path) -> Option<Ipv4Addr> {
    let text = fs::read_to_string(facts).ok()?;
    text.lines().find_map(|line| line.strip_prefix("ip="))?.parse().ok()
}

async fn ip(args: &[&str]) -> Result<(), Error> {
    let run = Run::new("ip", IP_LIMIT).args(args);
    let done = tokio::task::spawn_blocking(move || run.text(&Stop::default())).await;
    done.map_err(|error| Error::Defect(error.to_string()))?.map(drop).map_err(Error::from)
}

async fn within(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let wait = async {
        while !condition() {
            time::sleep(LOOK).await;
        }
    };
    time::timeout(limit, wait).await.is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_is_read_from_the_scripts_file() {
        let folder = tempfile::tempdir().unwrap();
        let facts = folder.path().join("dhcp-eth0");
        assert_eq!(leased_address(&facts), None);
        fs::write(&facts, "ip=10.77.0.9\nprefix=24\nrouter=10.77.0.1\n").unwrap();
        assert_eq!(leased_address(&facts), Some(Ipv4Addr::new(10, 77, 0, 9)));
        fs::write(&facts, "ip=\n").unwrap();
        assert_eq!(leased_address(&facts), None);
    }
}
