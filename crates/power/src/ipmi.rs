//! `ipmi://USER@HOST[:PORT]?password_file=/path` drives a management controller over the network with `ipmitool -I lanplus`.
//!
//! Controllers say "done" before it is so, drop packets when busy and run out of sessions. So what was asked is read back
//! until it is so, passing troubles have a budget of attempts, and a wrong password is tried once only: many controllers
//! lock an account after three to five. One ipmitool at a time talks to a controller, and 32 at a time in all. The
//! password never appears on a command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::address::Server;
use crate::gate::{Budget, Gate};
use crate::secret::Secret;
use crate::{
    Address, Advice, BootDevice, Driver, Error, NextBoot, Outcome, PowerDriver, Result, State, program, settle,
};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "ipmi",
    help: "a management controller, through ipmitool: password_file=/path (needed) attempts=1..10 call_seconds=1..60 \
           settle_seconds=1..120 cipher=0..17 privilege=OPERATOR|ADMINISTRATOR efi=yes|no \
           login_attempts=1..5 login_window_seconds=1..86400",
    example: "ipmi://admin@bmc7.example:623?password_file=/etc/rackswarm/bmc-password",
    limit: Duration::from_secs(120),
    controller: |address| address.controller(PORT),
    at_once: 1,
    network_boot: true,
    by_hand: false,
    parse,
};

const PORT: u16 = 623;
const POLL: Duration = Duration::from_millis(500);
/// Processes at work at the same time, for all controllers together.
static PROCESSES: Semaphore = Semaphore::const_new(32);

struct Ipmi {
    user: String,
    server: Server,
    password_file: PathBuf,
    privilege: String,
    cipher: Option<u8>,
    efi: bool,
    attempts: u32,
    call_limit: Duration,
    settle_limit: Duration,
    budget: Budget,
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let server = address.server(PORT)?;
    if !server.path.trim_matches('/').is_empty() {
        return Err(address.wrong("a controller has no path behind its host"));
    }
    let user = server.user.clone().ok_or_else(|| address.wrong("the user is missing: `ipmi://user@host`"))?;
    let password_file = address.file("password_file")?.ok_or_else(|| {
        address.wrong("`password_file=` is missing: the file whose first line is the controller's password")
    })?;
    let privilege = address.take("privilege").unwrap_or_else(|| "ADMINISTRATOR".to_owned());
    if !["OPERATOR", "ADMINISTRATOR"].contains(&privilege.as_str()) {
        return Err(address.wrong(format!("`privilege={privilege}` is neither OPERATOR nor ADMINISTRATOR")));
    }
    Ok(Box::new(Ipmi {
        user,
        server,
        password_file,
        privilege,
        cipher: address.number("cipher", 0..=17)?,
        efi: address.flag("efi")?,
        attempts: address.number("attempts", 1..=10)?.unwrap_or(3),
        call_limit: Duration::from_secs(address.number("call_seconds", 1..=60)?.unwrap_or(10)),
        settle_limit: Duration::from_secs(address.number("settle_seconds", 1..=120)?.unwrap_or(30)),
        budget: Budget::take(address)?,
    }))
}

impl Ipmi {
    fn target(&self) -> String {
        format!("controller {}", self.server)
    }

    async fn power_state(&self) -> Result<State> {
        let answer = self.ask(&["chassis", "power", "status"]).await?;
        read_state(&answer).ok_or_else(|| {
            Error::transient(&self.target(), format!("its power status is not understood: `{}`", answer.trim()))
        })
    }

    fn gate(&self) -> Arc<Gate> {
        Gate::of(&format!("ipmi {}@{}", self.user, self.server))
    }

    async fn switch(&self, word: &str, wanted: State) -> Result<()> {
        let command = ["chassis", "power", word];
        if settle::switch(wanted, self.ask(&command), || self.power_state(), self.settle_limit, POLL).await? {
            return Ok(());
        }
        Err(Error::transient(
            &self.target(),
            format!(
                "it accepted `power {word}`, but {} s later it does not report it; look at the machine, or raise `settle_seconds=`",
                self.settle_limit.as_secs()
            ),
        ))
    }

    /// Off and on as two steps, each read back: `chassis power cycle` cannot be told from a command that did nothing,
    /// and some controllers refuse it while the machine is off.
    async fn restart(&self) -> Result<()> {
        self.switch("off", State::Off).await?;
        self.switch("on", State::On).await
    }

    async fn reset(&self) -> Result<()> {
        if self.power_state().await? != State::On {
            return self.restart().await;
        }
        self.ask(&["chassis", "power", "reset"]).await?;
        self.switch("on", State::On).await
    }

    /// Sets the device of the next start and reads it back.
    async fn order(&self, device: BootDevice) -> Result<()> {
        // The controller forgets the order 60 s after it was given unless told not to (IPMI 2.0, table 28-14, parameter 3),
        // and a slow machine is not through its self-test by then (https://github.com/kinvolk/racker/pull/36). Those that
        // do not know the parameter refuse it, and keep the order.
        if let Err(error) = self.ask(&["raw", "0x00", "0x08", "0x03", "0x08"]).await
            && error.advice() == Advice::Refuse
        {
            return Err(error);
        }
        let word = match device {
            BootDevice::Network => "pxe",
            BootDevice::Disk => "disk",
        };
        let mut words = vec!["chassis", "bootdev", word];
        if self.efi {
            words.push("options=efiboot");
        }
        self.ask(&words).await?;
        let flags = self.flags().await?;
        if flags.next() == NextBoot::Once(device) {
            return Ok(());
        }
        if !flags.valid && flags.device() == Some(device) {
            // ipmi_sim 2.0.33 keeps the device and drops the flags beside it.
            tracing::debug!(controller = %self.server, "the boot order is kept without its valid bit");
            return Ok(());
        }
        Err(Error::transient(
            &self.target(),
            format!(
                "it accepted the boot order `{word}`, but reports {flags:?}; look at the firmware's boot settings, or update the controller"
            ),
        ))
    }

    async fn flags(&self) -> Result<BootFlags> {
        let answer = self.ask(&["chassis", "bootparam", "get", "5"]).await?;
        BootFlags::read(&answer).ok_or_else(|| {
            Error::transient(
                &self.target(),
                format!("its boot flags are not understood: `{}`", crate::http::excerpt(&answer)),
            )
        })
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
        let gate = self.gate();
        let password = Secret::read(&self.password_file, &self.target(), "password").await?;
        gate.may_log_in(&self.target(), &password, self.budget)?;
        self.check_route().await?;
        // Closed only with the process.
        let _slot = PROCESSES.acquire().await;
        let mut command = Command::new("ipmitool");
        command.args(self.options()).args(words);
        let Some(ended) = program::run(command, "ipmitool", &self.target(), "", self.call_limit).await? else {
            return Err(Error::transient(
                &self.target(),
                no_answer(&format!("within {} s", self.call_limit.as_secs())),
            ));
        };
        if ended.well {
            gate.login_worked();
            return Ok(ended.said);
        }
        if is_wrong_password(&ended.complaint) {
            gate.login_refused(&password);
        }
        Err(explain(&self.target(), &ended.complaint))
    }

    fn options(&self) -> Vec<String> {
        // -v makes ipmitool say why a session was refused; -N and -R are seconds between and count of its retransmissions.
        let mut options: Vec<String> = ["-v", "-I", "lanplus", "-N", "1", "-R", "3", "-H"].map(str::to_owned).into();
        options.extend([
            self.server.host.clone(),
            "-p".into(),
            self.server.port.to_string(),
            "-U".into(),
            self.user.clone(),
        ]);
        options.extend(["-f".into(), self.password_file.display().to_string(), "-L".into(), self.privilege.clone()]);
        if let Some(cipher) = self.cipher {
            options.extend(["-C".into(), cipher.to_string()]);
        }
        options
    }

    /// ipmitool cannot tell a missing route from a silent controller; the kernel can, without a packet.
    async fn check_route(&self) -> Result<()> {
        let trouble = |error: std::io::Error| {
            Error::transient(
                &self.target(),
                format!("no route to it: {error}; check the host name and this server's network"),
            )
        };
        let mut found =
            tokio::net::lookup_host((self.server.host.as_str(), self.server.port)).await.map_err(trouble)?;
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

/// The boot flags, parameter 5 of the boot options (IPMI 2.0, table 28-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BootFlags {
    valid: bool,
    lasting: bool,
    selector: u8,
}

impl BootFlags {
    /// Reads the raw bytes that ipmitool prints, which its words below do not always match
    /// (https://github.com/ipmitool/ipmitool/issues/236).
    fn read(answer: &str) -> Option<BootFlags> {
        let data = answer.lines().find_map(|line| line.trim().strip_prefix("Boot parameter data:"))?.trim();
        let byte = |at: usize| u8::from_str_radix(data.get(at..at + 2)?, 16).ok();
        let (first, second) = (byte(0)?, byte(2)?);
        Some(BootFlags { valid: first & 0x80 != 0, lasting: first & 0x40 != 0, selector: (second >> 2) & 0x0f })
    }

    fn device(self) -> Option<BootDevice> {
        match self.selector {
            1 => Some(BootDevice::Network),
            2 => Some(BootDevice::Disk),
            _ => None,
        }
    }

    fn next(self) -> NextBoot {
        match self.device() {
            _ if !self.valid || self.selector == 0 => NextBoot::Standing,
            Some(device) if self.lasting => NextBoot::Always(device),
            Some(device) => NextBoot::Once(device),
            None => NextBoot::Unknown,
        }
    }
}

fn is_wrong_password(complaint: &str) -> bool {
    complaint.to_lowercase().contains("rakp 2 hmac is invalid")
}

/// Turns ipmitool's complaint into a sentence that says what to do.
fn explain(target: &str, complaint: &str) -> Error {
    let lower = complaint.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if is_wrong_password(complaint) {
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
        Box::pin(async {
            let gate = self.gate();
            let _turn = gate.turn().await;
            self.power_state().await
        })
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.switch("on", State::On)).await })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.switch("off", State::Off)).await })
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.restart()).await })
    }

    fn reset(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async { self.gate().done(self.reset()).await })
    }

    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move { self.gate().done(self.order(device)).await })
    }

    fn next_boot(&self) -> BoxFuture<'_, Result<NextBoot>> {
        Box::pin(async {
            let gate = self.gate();
            let _turn = gate.turn().await;
            Ok(self.flags().await?.next())
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
    fn boot_flags_are_read_from_their_bytes() {
        let flags = |data: &str| {
            BootFlags::read(&format!("Boot parameter version: 1\nBoot parameter data: {data}\n Boot Flags :\n"))
        };
        assert_eq!(flags("a004000000").unwrap().next(), NextBoot::Once(BootDevice::Network));
        assert_eq!(flags("8008000000").unwrap().next(), NextBoot::Once(BootDevice::Disk));
        assert_eq!(flags("e004000000").unwrap().next(), NextBoot::Always(BootDevice::Network));
        assert_eq!(flags("0004000000").unwrap().next(), NextBoot::Standing);
        assert_eq!(flags("8000000000").unwrap().next(), NextBoot::Standing);
        assert_eq!(flags("803c000000").unwrap().next(), NextBoot::Unknown);
        assert_eq!(flags("80"), None);
        assert_eq!(BootFlags::read(""), None);
    }
}
