//! `ipmi://USER@HOST[:PORT]?password_file=/path` drives a management controller over the network with `ipmitool -I lanplus`.
//!
//! Controllers say "done" before it is so, drop packets when busy and run out of sessions. So what was asked is read back
//! until it is so, passing troubles have a budget of attempts, and a wrong password is tried once only: many controllers
//! lock an account after three to five. The password never appears on a command line.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::{Address, Advice, BootDevice, Driver, Error, Outcome, PowerDriver, Result, State};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "ipmi",
    help: "a management controller, through ipmitool: password_file=/path (needed) attempts=1..10 call_seconds=1..60 \
           settle_seconds=1..120 cipher=0..17 privilege=OPERATOR|ADMINISTRATOR efi=yes|no",
    example: "ipmi://admin@bmc7.example:623?password_file=/etc/rackswarm/bmc-password",
    limit: Duration::from_secs(120),
    parse,
};

const PORT: u16 = 623;
const POLL: Duration = Duration::from_millis(500);

struct Ipmi {
    user: String,
    host: String,
    port: u16,
    password_file: PathBuf,
    privilege: String,
    cipher: Option<u8>,
    efi: bool,
    attempts: u32,
    call_limit: Duration,
    settle_limit: Duration,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let (user, host, port) = login(address)?;
    let password_file = address.file("password_file")?.ok_or_else(|| {
        address.wrong("`password_file=` is missing: the file whose first line is the controller's password")
    })?;
    let privilege = address.take("privilege").unwrap_or_else(|| "ADMINISTRATOR".to_owned());
    if !["OPERATOR", "ADMINISTRATOR"].contains(&privilege.as_str()) {
        return Err(address.wrong(format!("`privilege={privilege}` is neither OPERATOR nor ADMINISTRATOR")));
    }
    Ok(Box::new(Ipmi {
        user,
        host,
        port,
        password_file,
        privilege,
        cipher: address.number("cipher", 0..=17)?,
        efi: address.flag("efi")?,
        attempts: address.number("attempts", 1..=10)?.unwrap_or(3),
        call_limit: Duration::from_secs(address.number("call_seconds", 1..=60)?.unwrap_or(10)),
        settle_limit: Duration::from_secs(address.number("settle_seconds", 1..=120)?.unwrap_or(30)),
    }))
}

/// Splits `//user@host:port`; IPv6 addresses stand in brackets.
fn login(address: &Address) -> Result<(String, String, u16)> {
    let place = address.place().trim_start_matches('/').trim_end_matches('/');
    let (user, server) =
        place.rsplit_once('@').ok_or_else(|| address.wrong("the user is missing: `ipmi://user@host`"))?;
    if user.contains(':') {
        return Err(
            address.wrong("a password does not belong into an address; write it to a file and say `password_file=`")
        );
    }
    let (host, port) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => server.rsplit_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => PORT,
        Some(text) => text.parse().map_err(|_| address.wrong(format!("`{text}` is not a port")))?,
    };
    let plain = |text: &str| !text.is_empty() && !text.starts_with('-') && text.chars().all(|c| c.is_ascii_graphic());
    if !plain(user) {
        return Err(address.wrong("the user is empty or starts with a dash"));
    }
    if !plain(host) {
        return Err(address.wrong("the host is empty or starts with a dash"));
    }
    Ok((user.to_owned(), host.to_owned(), port))
}

impl Ipmi {
    fn target(&self) -> String {
        format!("controller {}:{}", self.host, self.port)
    }

    async fn power_state(&self) -> Result<State> {
        let answer = self.ask(&["chassis", "power", "status"]).await?;
        read_state(&answer).ok_or_else(|| {
            Error::transient(&self.target(), format!("its power status is not understood: `{}`", answer.trim()))
        })
    }

    /// Asks for power on or off unless it is so already, and waits until the controller reports it.
    async fn switch(&self, word: &str, wanted: State) -> Result<()> {
        if self.power_state().await? == wanted {
            return Ok(());
        }
        self.ask(&["chassis", "power", word]).await?;
        let deadline = Instant::now() + self.settle_limit;
        while self.power_state().await? != wanted {
            if Instant::now() >= deadline {
                let seconds = self.settle_limit.as_secs();
                return Err(Error::transient(
                    &self.target(),
                    format!(
                        "it accepted `power {word}`, but {seconds} s later it does not report it; look at the machine, or raise `settle_seconds=`"
                    ),
                ));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// One command, tried again within its budget when the trouble may pass.
    async fn ask(&self, words: &[&str]) -> Result<String> {
        let mut attempt = 1;
        loop {
            match self.try_once(words).await {
                Err(error) if error.advice() == Advice::Retry && attempt < self.attempts => {
                    tracing::debug!(%error, attempt, "ipmitool is tried again");
                    sleep(POLL * attempt).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn try_once(&self, words: &[&str]) -> Result<String> {
        self.check_password_file().await?;
        self.check_route().await?;
        let mut command = Command::new("ipmitool");
        command.args(self.options()).args(words).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(self.call_limit, command.output())
            .await
            .map_err(|_| {
                Error::transient(&self.target(), no_answer(&format!("within {} s", self.call_limit.as_secs())))
            })?
            .map_err(|error| {
                Error::refused(
                    &self.target(),
                    format!("ipmitool cannot be run ({error}); install the package ipmitool"),
                )
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(explain(&self.target(), &String::from_utf8_lossy(&output.stderr)))
    }

    fn options(&self) -> Vec<String> {
        // -v makes ipmitool say why a session was refused; -N and -R are seconds between and count of its retransmissions.
        let mut options: Vec<String> = ["-v", "-I", "lanplus", "-N", "1", "-R", "3", "-H"].map(str::to_owned).into();
        options.extend([self.host.clone(), "-p".into(), self.port.to_string(), "-U".into(), self.user.clone()]);
        options.extend(["-f".into(), self.password_file.display().to_string(), "-L".into(), self.privilege.clone()]);
        if let Some(cipher) = self.cipher {
            options.extend(["-C".into(), cipher.to_string()]);
        }
        options
    }

    async fn check_password_file(&self) -> Result<()> {
        let trouble = |why: String| {
            Error::refused(&self.target(), format!("password file {}: {why}", self.password_file.display()))
        };
        match tokio::fs::metadata(&self.password_file).await {
            Err(error) => Err(trouble(format!("{error}; write the controller's password into it"))),
            Ok(about) if about.len() == 0 => {
                Err(trouble("it is empty; write the controller's password into it".to_owned()))
            }
            Ok(_) => Ok(()),
        }
    }

    /// ipmitool cannot tell a missing route from a silent controller; the kernel can, without a packet.
    async fn check_route(&self) -> Result<()> {
        let trouble = |error: std::io::Error| {
            Error::transient(
                &self.target(),
                format!("no route to it: {error}; check the host name and this server's network"),
            )
        };
        let mut found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(trouble)?;
        let Some(address) = found.next() else { return Err(trouble(std::io::ErrorKind::NotFound.into())) };
        let local = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = tokio::net::UdpSocket::bind(local).await.map_err(trouble)?;
        socket.connect(address).await.map_err(trouble)
    }
}

fn read_state(answer: &str) -> Option<State> {
    answer.lines().find_map(|line| match line.trim().strip_prefix("Chassis Power is ")? {
        "on" => Some(State::On),
        "off" => Some(State::Off),
        _ => Some(State::Unknown),
    })
}

/// Turns ipmitool's complaint into a sentence that says what to do.
fn explain(target: &str, complaint: &str) -> Error {
    let lower = complaint.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("rakp 2 hmac is invalid") {
        return Error::refused(
            target,
            "the password is wrong; correct the password file (it is not tried again, so as not to lock the account)",
        );
    }
    if has("unauthorized name") {
        return Error::refused(
            target,
            "it does not know this user; correct the user in the address or create it on the controller",
        );
    }
    if has("insufficient privilege") || has("unauthorized role") || has("invalid role") || has("exceeds limit") {
        return Error::refused(
            target,
            "the user may not do this; give it the privilege on the controller, or say `privilege=OPERATOR` in the address",
        );
    }
    if has("invalid authentication algorithm") || has("invalid integrity algorithm") || has("no cipher suite match") {
        return Error::refused(
            target,
            "it refuses the cipher suite; say `cipher=17` or, for old controllers, `cipher=3` in the address",
        );
    }
    if has("insufficient resources") {
        return Error::transient(
            target,
            "it refuses the session because all of its sessions are taken; close other IPMI users or restart the controller",
        );
    }
    if has("get auth capabilities error")
        || has("channel authentication capabilities")
        || has("unable to get channel cipher suites")
    {
        return Error::transient(target, no_answer("to several packets"));
    }
    let last =
        complaint.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("ipmitool failed without a word");
    Error::transient(target, format!("ipmitool says: {last}"))
}

fn no_answer(how_long: &str) -> String {
    format!(
        "it gave no answer {how_long}; check that it has power and network, that UDP to its port passes the firewalls, and that IPMI over LAN is enabled"
    )
}

impl PowerDriver for Ipmi {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(self.power_state())
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.switch("on", State::On).await?;
            Ok(Outcome::Done)
        })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.switch("off", State::Off).await?;
            Ok(Outcome::Done)
        })
    }

    /// Off and on as two steps, each read back: `chassis power cycle` cannot be told from a command that did nothing,
    /// and some controllers refuse it while the machine is off.
    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            self.switch("off", State::Off).await?;
            self.switch("on", State::On).await?;
            Ok(Outcome::Done)
        })
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            let word = match device {
                BootDevice::Network => "pxe",
                BootDevice::Disk => "disk",
            };
            let mut words = vec!["chassis", "bootdev", word];
            if self.efi {
                words.push("options=efiboot");
            }
            self.ask(&words).await?;
            Ok(Outcome::Done)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn each_complaint_has_a_sentence_and_only_passing_troubles_are_tried_again() {
        // Texts as ipmitool 1.8.19 -v prints them.
        for (complaint, part, advice) in [
            (
                "> RAKP 2 HMAC is invalid\nError: Unable to establish IPMI v2 / RMCP+ session\n",
                "password",
                Advice::Refuse,
            ),
            ("RAKP 2 message indicates an error : unauthorized name\nError: Unable", "user", Advice::Refuse),
            ("Set Chassis Power Control to Up/On failed: Insufficient privilege level", "privilege", Advice::Refuse),
            ("Error in open session response message : invalid authentication algorithm\n", "cipher", Advice::Refuse),
            (
                "Error in open session response message : insufficient resources for session\n",
                "sessions",
                Advice::Retry,
            ),
            (
                "Get Auth Capabilities error\nError issuing Get Channel Authentication Capabilities request\n",
                "firewalls",
                Advice::Retry,
            ),
            ("Something else\n\n", "Something else", Advice::Retry),
        ] {
            let error = explain("controller bmc7:623", complaint);
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.advice(), advice, "{error}");
        }
    }

    #[test]
    fn the_power_status_is_found_among_other_lines() {
        assert_eq!(read_state("Discovered IPMB address 0x0\nChassis Power is on\n"), Some(State::On));
        assert_eq!(read_state("Chassis Power is off\n"), Some(State::Off));
        assert_eq!(read_state("Chassis Power is undergoing repair\n"), Some(State::Unknown));
        assert_eq!(read_state(""), None);
    }

    #[test]
    fn hosts_may_be_names_and_both_kinds_of_addresses() {
        for (place, host, port) in [
            ("bmc7", "bmc7", 623),
            ("10.0.0.7:6230", "10.0.0.7", 6230),
            ("[fd00::7]:624", "fd00::7", 624),
            ("[fd00::7]", "fd00::7", 623),
        ] {
            let address = Address::parse(&format!("ipmi://admin@{place}?password_file=/p")).unwrap();
            assert_eq!(login(&address).unwrap(), ("admin".to_owned(), host.to_owned(), port));
        }
    }
}
