//! The agent's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use api::agent::Token;
use fleet::ids::Mac;

use crate::Error;

/// What `--help` prints.
pub const HELP: &str = "\
rackswarm-agent: writes this machine's image, and watches over the written system

  rackswarm-agent monitor [--config FILE]
      Proves what this system was deployed with and sends heartbeats, for ever.
      FILE is /etc/rackswarm/agent.json unless given.
  rackswarm-agent run
      Provisions this machine as its kernel line says (rackswarm.server=URL
      rackswarm.token=T rackswarm.mac=MAC). Only in the boot environment.
  rackswarm-agent run --server URL --token T [--mac MAC] [--listen ADDRESS:PORT]
                      (--disk FILE | --disks FILE.json) [--no-post] [--booted FILE]
      Provisions into files on a system that runs, for trials. --disk takes a
      file for a disk and may be repeated; --disks reads a list of disks with
      all their facts. --no-post leaves the written image as it is. --booted
      writes what the booted system would prove itself with.
  rackswarm-agent --version | --help

Started as process 1 it does the same as `run`, and restarts the machine at the end.
";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Watch over a deployed system.
    Monitor {
        /// Its configuration.
        config: PathBuf,
    },
    /// Provision this machine as its kernel line says.
    Run,
    /// Provision into files.
    Trial(Trial),
}

/// Provisioning into files of a running system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Base URL of the controller.
    pub server: String,
    /// The attempt's boot token.
    pub token: Token,
    /// The address to register with.
    pub mac: Option<Mac>,
    /// Where peers connect to.
    pub listen: SocketAddr,
    /// Files that stand for disks.
    pub disk_files: Vec<PathBuf>,
    /// A JSON list of disks with their facts.
    pub disk_list: Option<PathBuf>,
    /// Whether post actions run.
    pub post: bool,
    /// Where to write what the booted system would read.
    pub booted: Option<PathBuf>,
}

/// Understands a command line without the program's name.
///
/// # Errors
/// A sentence that names the word.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Mode, Error> {
    let mut words = words.into_iter();
    match words.next().as_deref() {
        None | Some("--help" | "-h" | "help") => Ok(Mode::Help),
        Some("--version" | "-V") => Ok(Mode::Version),
        Some("monitor") => monitor(words),
        Some("run") => run(words),
        Some(other) => Err(Error::Usage(format!("there is no command `{other}`"))),
    }
}

fn monitor(mut words: impl Iterator<Item = String>) -> Result<Mode, Error> {
    let mut config = PathBuf::from(crate::monitor::CONFIG);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--config" => config = value(&word, words.next())?.into(),
            _ => return Err(unknown(&word)),
        }
    }
    Ok(Mode::Monitor { config })
}

fn run(words: impl Iterator<Item = String>) -> Result<Mode, Error> {
    let mut words = words.peekable();
    if words.peek().is_none() {
        return Ok(Mode::Run);
    }
    let (mut server, mut token) = (None, None);
    let mut trial = Trial {
        server: String::new(),
        token: Token(String::new()),
        mac: None,
        listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        disk_files: Vec::new(),
        disk_list: None,
        post: true,
        booted: None,
    };
    while let Some(word) = words.next() {
        let mut take = || value(&word, words.next());
        match word.as_str() {
            "--server" => server = Some(take()?),
            "--token" => token = Some(take()?),
            "--mac" => trial.mac = Some(parsed(&word, &take()?)?),
            "--listen" => trial.listen = parsed(&word, &take()?)?,
            "--disk" => trial.disk_files.push(take()?.into()),
            "--disks" => trial.disk_list = Some(take()?.into()),
            "--no-post" => trial.post = false,
            "--booted" => trial.booted = Some(take()?.into()),
            _ => return Err(unknown(&word)),
        }
    }
    trial.server = server.ok_or_else(|| Error::Usage("`run` with options needs --server URL".into()))?;
    trial.token = Token(token.ok_or_else(|| Error::Usage("`run` with options needs --token T".into()))?);
    if trial.disk_files.is_empty() == trial.disk_list.is_none() {
        return Err(Error::Usage("`run` with options needs either --disk or --disks".into()));
    }
    Ok(Mode::Trial(trial))
}

fn value(option: &str, next: Option<String>) -> Result<String, Error> {
    next.ok_or_else(|| Error::Usage(format!("{option} needs a value")))
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(option: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error| Error::Usage(format!("{option} `{text}`: {error}")))
}

fn unknown(word: &str) -> Error {
    Error::Usage(format!("`{word}` is not an option here"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Mode, Error> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn modes_are_told_apart() {
        assert_eq!(of("").unwrap(), Mode::Help);
        assert_eq!(of("--version").unwrap(), Mode::Version);
        assert_eq!(of("run").unwrap(), Mode::Run);
        assert_eq!(of("monitor").unwrap(), Mode::Monitor { config: "/etc/rackswarm/agent.json".into() });
        assert_eq!(of("monitor --config x").unwrap(), Mode::Monitor { config: "x".into() });
        let Mode::Trial(trial) =
            of("run --server http://h --token t --mac 52:54:00:00:00:01 --disk a --disk b").unwrap()
        else {
            panic!("a trial")
        };
        assert_eq!(trial.disk_files, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(trial.post && trial.mac.is_some() && trial.booted.is_none());
        let Mode::Trial(trial) = of("run --server http://h --token t --disk a --no-post --booted b").unwrap() else {
            panic!("a trial")
        };
        assert!(!trial.post && trial.booted == Some("b".into()));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("walk", "`walk`"),
            ("monitor --confg x", "`--confg`"),
            ("monitor --config", "--config needs a value"),
            ("run --token t --disk a", "--server"),
            ("run --server s --disk a", "--token"),
            ("run --server s --token t", "--disk"),
            ("run --server s --token t --disk a --disks b", "either"),
            ("run --server s --token t --disk a --mac 5", "`5`"),
        ] {
            let sentence = of(line).unwrap_err().to_string();
            assert!(sentence.contains(word), "{line}: {sentence}");
        }
    }
}
