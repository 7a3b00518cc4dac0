//! `rackswarm lab bmc`: Redfish controllers to try things with, before machines in memory or QEMU's.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use power::virtual_bmc::{Front, Identity, Rules, VirtualBmc};
use tokio::net::TcpListener;

use crate::output::{self, WrongUsage, say};

const HELP: &str = "\
Examples:
  rackswarm lab bmc --password-file /tmp/bmc-password
      one controller with four machines in memory on 127.0.0.1:8800
  rackswarm lab bmc --password-file /tmp/bmc-password --machines 23 --each --write /tmp/machines.toml
      a rack: a controller for each machine, from port 8800 on, and the file for `set add rack machines:...`
  rackswarm lab bmc --password-file /tmp/bmc-password --rules 'latency_ms=200&loss=5&lie=power' qemu:/path/vm.toml

Rules, joined by &:
  sessions=1..64 lockout=0..100 lock_seconds=N basic=yes|no    how strict it is with logins
  etag=none|optional|required|strong settings=yes|no action_info=yes|no vendor=WORD task_ms=N
  latency_ms=N late_ms=N post_ms=N busy=N drop=N loss=PERCENT  slow, busy, and forgetful
  lie=power,state once=kept|continuous|ignored|forgotten       what it says and does not do";

/// Which machines, and how the controllers behave.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// The machines: power addresses such as fake:NAME or qemu:/path/vm.toml; without any, --machines in memory
    #[arg(value_name = "DRIVER")]
    drivers: Vec<String>,
    /// How many machines in memory
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000), conflicts_with = "drivers")]
    machines: u16,
    /// Where the controller listens; with --each, the first of them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8800")]
    listen: SocketAddr,
    /// A controller for each machine, on the ports from --listen on, instead of one for all
    #[arg(long)]
    each: bool,
    /// The account's name
    #[arg(long, default_value = "admin")]
    user: String,
    /// File whose first line is the password; written with a new one where it is missing
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// How they behave; below
    #[arg(long, default_value = "", hide_default_value = true, value_name = "RULES", value_parser = rules)]
    rules: Rules,
    /// Write the machines as a file for a set of kind `machines:`
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

fn rules(text: &str) -> Result<Rules, String> {
    Rules::parse(text).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        !arguments.user.is_empty() && arguments.user.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)),
        WrongUsage::error("--user takes letters, digits, `-`, `_` and `.`")
    );
    if let Some(file) = &arguments.write {
        output::check_file(file)?;
    }
    crate::wait(serve(arguments))
}

async fn serve(arguments: &Arguments) -> Result<ExitCode> {
    let password_file = std::path::absolute(&arguments.password_file).context("the password file has no path")?;
    let password = password(&password_file)?;
    let fronts = fronts(arguments)?;
    let groups: Vec<Vec<Front>> =
        if arguments.each { fronts.into_iter().map(|front| vec![front]).collect() } else { vec![fronts] };
    let mut controllers = Vec::new();
    let mut book = String::new();
    for (index, group) in groups.into_iter().enumerate() {
        let address = nth(arguments.listen, index)?;
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let at = listener.local_addr()?;
        for (id, _, identity) in &group {
            let system = format!("redfish+http://{}@{at}/redfish/v1/Systems/{id}", arguments.user);
            book.push_str(&entry(id, &format!("{system}?password_file={}", password_file.display()), identity)?);
        }
        let rules = arguments.rules.clone();
        controllers.push(VirtualBmc::start_known(listener, &arguments.user, &password, rules, group)?);
    }
    if let Some(file) = &arguments.write {
        std::fs::write(file, &book).with_context(|| format!("cannot write {}", file.display()))?;
    }
    tell(arguments, &controllers, &password_file)?;
    tokio::signal::ctrl_c().await?;
    for controller in &controllers {
        let seen = controller.seen();
        say(format_args!(
            "{}: {} requests, {} logins, {} refused, {} resets, {} sessions open, at most {}{}",
            controller.address(),
            seen.requests,
            seen.logins,
            seen.refused,
            seen.resets,
            seen.sessions,
            seen.most_sessions,
            if seen.locked { "; the account is locked" } else { "" }
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is served, and the next two commands.
fn tell(arguments: &Arguments, controllers: &[VirtualBmc], password_file: &Path) -> Result<()> {
    let (Some(first), Some(last)) = (controllers.first(), controllers.last()) else { bail!("there is no machine") };
    let (user, file) = (&arguments.user, password_file.display());
    if controllers.len() == 1 {
        say(format_args!("a Redfish controller is served on http://{}/redfish/v1/ until Ctrl-C", first.address()))?;
        say(format_args!(
            "  rackswarm set add lab 'redfish+http://{user}@{}' --credentials-file {file}",
            first.address()
        ))?;
    } else {
        say(format_args!(
            "{} Redfish controllers are served on {} to {} until Ctrl-C",
            controllers.len(),
            first.address(),
            last.address()
        ))?;
    }
    if let Some(written) = &arguments.write {
        say(format_args!("  rackswarm set add lab machines:{}", std::path::absolute(written)?.display()))?;
    }
    Ok(())
}

/// The machines behind the controllers. Whose identity is not known gets one that follows from its address.
fn fronts(arguments: &Arguments) -> Result<Vec<Front>> {
    let in_memory = (1..=arguments.machines).map(|number| format!("fake:lab-{number}"));
    let drivers = if arguments.drivers.is_empty() { in_memory.collect() } else { arguments.drivers.clone() };
    let front = |(index, address): (usize, &String)| -> Result<Front> {
        let driver = power::open(address)?;
        let id = match address.strip_prefix("fake:").map(|rest| rest.split('?').next().unwrap_or(rest)) {
            Some(name) if name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) => name.to_owned(),
            _ => (index + 1).to_string(),
        };
        Ok((id, driver, identity(address)?))
    };
    drivers.iter().enumerate().map(front).collect()
}

/// A QEMU machine has a MAC address and a UUID of its own, by which it is recognised when it boots.
fn identity(address: &str) -> Result<Identity> {
    let Some(file) = address.strip_prefix("qemu:").and_then(|rest| rest.split('?').next()) else {
        return Ok(Identity::of(address));
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let machine = power::qemu::Machine::from_toml(&text).map_err(|why| anyhow::anyhow!("{file}: {why}"))?;
    Ok(Identity { macs: vec![machine.mac.to_lowercase()], uuid: Some(machine.uuid.to_string()) })
}

fn nth(first: SocketAddr, index: usize) -> Result<SocketAddr> {
    let port =
        u16::try_from(usize::from(first.port()) + index).context("there are not so many ports from --listen on")?;
    // Port 0 is any free one, for each of them.
    Ok(SocketAddr::new(first.ip(), if first.port() == 0 { 0 } else { port }))
}

fn entry(name: &str, power: &str, identity: &Identity) -> Result<String> {
    let quoted = |text: &str| serde_json::to_string(text).context("a text cannot be quoted");
    let macs = identity.macs.iter().map(|mac| quoted(mac)).collect::<Result<Vec<_>>>()?.join(", ");
    let uuid = match &identity.uuid {
        Some(uuid) => format!("uuid = {}\n", quoted(uuid)?),
        None => String::new(),
    };
    Ok(format!("[[machine]]\nname = {}\npower = {}\nmac = [{macs}]\n{uuid}\n", quoted(name)?, quoted(power)?))
}

/// The file's first line; a new password in a new file where there is none.
fn password(file: &Path) -> Result<String> {
    match std::fs::read_to_string(file) {
        Ok(text) => {
            let first = text.lines().next().unwrap_or_default().to_owned();
            ensure!(!first.is_empty(), "{} has no password in its first line", file.display());
            Ok(first)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made: String = (0..16).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
            let mut options = OpenOptions::new();
            let opened = options.write(true).create_new(true).mode(0o600).open(file);
            opened
                .and_then(|mut open| writeln!(open, "{made}"))
                .with_context(|| format!("cannot write {}", file.display()))?;
            Ok(made)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_password_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let made = password(&file).unwrap();
        assert_eq!((made.len(), password(&file).unwrap()), (16, made.clone()));
        std::fs::write(&file, "\n").unwrap();
        assert!(password(&file).unwrap_err().to_string().contains("first line"));
    }

    #[test]
    fn the_written_file_is_a_set() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("machines.toml");
        let power = "redfish+http://admin@127.0.0.1:8800/redfish/v1/Systems/lab-1?password_file=/p";
        std::fs::write(&file, entry("lab-1", power, &Identity::of("fake:lab-1")).unwrap()).unwrap();
        let set = power::open_set(&format!("machines:{}", file.display())).unwrap();
        let listed =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(set.known()).unwrap();
        assert_eq!((listed[0].id.as_str(), listed[0].macs.len(), listed[0].power.as_str()), ("lab-1", 1, power));
    }

    #[test]
    fn ports_follow_each_other() {
        let first = "127.0.0.1:65534".parse().unwrap();
        assert_eq!(nth(first, 1).unwrap().port(), 65535);
        assert!(nth(first, 2).is_err());
        assert_eq!(nth("127.0.0.1:0".parse().unwrap(), 7).unwrap().port(), 0);
    }
}
