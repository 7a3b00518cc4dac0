//! The configuration: one TOML file, one typed struct for each section.
//!
//! Unknown keys are refused. Secrets are never in the file, only paths to them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use boot::decide::{self, BootDecision};
use boot::dhcp::{DhcpConfig, Mode};
use boot::tftp::TftpConfig;
use fleet::discovery::Discovery;
use fleet::ids::{Mac, RackName, SetName};
use fleet::plan::Policy;
use fleet::post::{Network, PostSettings};
use serde::Deserialize;

use crate::error::Error;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[database]`
    pub database: DatabaseConfig,
    /// `[dhcp]`
    pub dhcp: DhcpConfig,
    /// `[tftp]`
    pub tftp: TftpConfig,
    /// `[boot]`
    pub boot: BootConfig,
    /// `[swarm]`
    pub swarm: SwarmConfig,
    /// `[deploy]`: attempts, deadlines and pauses.
    pub deploy: Policy,
    /// `[discovery]`: machines that nobody has named.
    pub discovery: Discovery,
    /// `[post]`: post actions of all nodes; racks and nodes may say otherwise.
    pub post: PostSettings,
    /// `[node]`
    pub node: NodeConfig,
    /// `[[set]]`: sets of machines.
    pub set: Vec<SetConfig>,
}

/// `[server]`: where it keeps things and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Folder of everything that the controller keeps. Default `/var/lib/rackswarm`.
    pub data_dir: PathBuf,
    /// Address and port of HTTP: API, boot files, tracker. Default `0.0.0.0:8080`.
    pub listen: SocketAddr,
    /// IPv4 address under which nodes reach this machine. By default the
    /// address of `listen` if it names one, else the only one of `dhcp.interface`.
    pub advertise: Option<Ipv4Addr>,
    /// Account to work as once all ports are open. By default the account that
    /// started it.
    pub user: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/rackswarm"),
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            advertise: None,
            user: None,
        }
    }
}

/// `[database]`: where the state is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseConfig {
    /// `sqlite:///folder/file.db`, `postgres://user@host/name` or `memory:`. By
    /// default the file `rackswarm.db` in `server.data_dir`.
    pub url: Option<String>,
    /// File that holds the database's password.
    pub password_file: Option<PathBuf>,
}

/// `[boot]`: what machines boot over the network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootConfig {
    /// Folder with `vmlinuz` and `initramfs` as `rackswarm bootenv build`
    /// writes them. By default `bootenv` in `server.data_dir`.
    pub environment: Option<PathBuf>,
    /// Arguments for the kernel beside our own.
    pub kernel_arguments: Vec<String>,
}

/// `[swarm]`: how images travel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwarmConfig {
    /// Address and port of the controller's own seeder. Default `0.0.0.0:6881`.
    pub listen: SocketAddr,
    /// Address and port of the tracker for clients that ask over UDP. By
    /// default none: nodes ask over HTTP.
    pub udp_tracker: Option<SocketAddr>,
    /// Memory that a node may use for pieces in flight, in MiB, 4 to 4096.
    /// Default 16.
    pub node_memory_mib: u32,
    /// How long a node that has the whole image goes on seeding while others
    /// still fetch, in seconds, 0 to 3600. Default 5.
    pub linger_seconds: u32,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 6881)),
            udp_tracker: None,
            node_memory_mib: 16,
            linger_seconds: 5,
        }
    }
}

/// `[node]`: deployed systems.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Seconds between heartbeats, 1 to 3600. Default 30.
    pub heartbeat_seconds: u32,
    /// Names of processes that must run on every node.
    pub watch_processes: Vec<String>,
    /// Time limit of each built-in post action, in seconds, 1 to 3600. Default 300.
    pub action_limit_seconds: u32,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { heartbeat_seconds: 30, watch_processes: Vec::new(), action_limit_seconds: 300 }
    }
}

/// `[[set]]`: machines that one owner lists.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetConfig {
    /// Its name.
    pub name: SetName,
    /// Its address: the kind, where it is, and its options.
    pub address: String,
    /// File that holds its secret, where its kind has one.
    pub credentials_file: Option<PathBuf>,
    /// Rack of its machines where it does not tell one.
    pub rack: Option<RackName>,
}

impl SetConfig {
    /// The address with the file of the secret in it.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn whole_address(&self) -> Result<String, String> {
        power::set_address(&self.address, self.credentials_file.as_deref()).map_err(|error| error.to_string())
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, [`Error::Config`] with file and
    /// line when something in it is wrong.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|cause| Error::File {
            doing: "read the configuration",
            path: file.to_owned(),
            cause,
        })?;
        Self::parse(file, &text)
    }

    /// Reads and checks the text of a file; `file` is only named in errors.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let bad = |line: Option<usize>, why: String| Error::Config { file: file.to_owned(), line, why };
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            bad(line, with_suggestion(error.message()))
        })?;
        config.check().map_err(|why| bad(line_of(text, &why), why))?;
        Ok(config)
    }

    /// Checks what a parser cannot. A sentence begins with the key that it is about.
    ///
    /// # Errors
    /// The sentence.
    pub fn check(&self) -> Result<(), String> {
        self.dhcp.check().map_err(sentence)?;
        self.tftp.check().map_err(sentence)?;
        if !self.server.data_dir.is_absolute() {
            return Err("server.data_dir must be an absolute path".to_owned());
        }
        if self.server.advertise.is_some_and(|a| a.is_unspecified() || a.is_multicast() || a.is_broadcast()) {
            return Err("server.advertise must be an address that nodes can connect to".to_owned());
        }
        if self.database.url.as_ref().is_some_and(|url| has_password(url)) {
            return Err(
                "database.url holds a password: write it into a file and name that in database.password_file".into()
            );
        }
        check_arguments(&self.boot.kernel_arguments).map_err(|why| format!("boot.kernel_arguments: {why}"))?;
        self.check_ranges()?;
        self.check_sets()?;
        for (key, value, most) in [
            ("listen_seconds", self.discovery.listen_seconds, 120),
            ("sync_seconds", self.discovery.sync_seconds, 86_400),
        ] {
            if value > most {
                return Err(format!("discovery.{key} is {value}: write 0 to {most}"));
            }
        }
        for rule in &self.discovery.approve {
            rule.check().map_err(|why| format!("discovery.approve: {why}"))?;
        }
        check_post(&self.post).map_err(|why| format!("post.{why}"))
    }

    fn check_ranges(&self) -> Result<(), String> {
        let d = &self.deploy;
        let day = 86_400;
        for (key, value, low, high) in [
            ("swarm.node_memory_mib", self.swarm.node_memory_mib, 4, 4096),
            ("swarm.linger_seconds", self.swarm.linger_seconds, 0, 3600),
            ("node.heartbeat_seconds", self.node.heartbeat_seconds, 1, 3600),
            ("node.action_limit_seconds", self.node.action_limit_seconds, 1, 3600),
            ("deploy.attempts", d.attempts, 1, 10),
            ("deploy.pause_seconds", d.pause_seconds, 0, 3600),
            ("deploy.starts_per_second", d.starts_per_second, 1, 1000),
            ("deploy.starts_per_second_per_rack", d.starts_per_second_per_rack, 1, 1000),
            ("deploy.powering_on_seconds", d.powering_on_seconds, 1, day),
            ("deploy.leasing_seconds", d.leasing_seconds, 1, day),
            ("deploy.manual_leasing_seconds", d.manual_leasing_seconds, 1, 30 * day),
            ("deploy.loading_bootloader_seconds", d.loading_bootloader_seconds, 1, day),
            ("deploy.loading_kernel_seconds", d.loading_kernel_seconds, 1, day),
            ("deploy.silence_seconds", d.silence_seconds, 1, day),
            ("deploy.stall_seconds", d.stall_seconds, 1, day),
            ("deploy.post_actions_seconds", d.post_actions_seconds, 1, day),
            ("deploy.rebooting_seconds", d.rebooting_seconds, 1, day),
        ] {
            if !(low..=high).contains(&value) {
                return Err(format!("{key} is {value}, write {low} to {high}"));
            }
        }
        Ok(())
    }

    fn check_sets(&self) -> Result<(), String> {
        for (index, set) in self.set.iter().enumerate() {
            if self.set[..index].iter().any(|other| other.name == set.name) {
                return Err(format!("there are two sets `{}`; give each a name of its own", set.name));
            }
            set.whole_address().map_err(|why| format!("set `{}`: {why}", set.name))?;
        }
        Ok(())
    }

    /// What decides about nodes: attempts, deadlines and who is taken in.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy { discovery: self.discovery.clone(), ..self.deploy.clone() }
    }

    /// What is done about DHCP, in a word.
    #[must_use]
    pub fn dhcp_mode(&self) -> &'static str {
        match self.dhcp.mode {
            Mode::Off => "off",
            Mode::Proxy => "proxy",
            Mode::Full => "full",
        }
    }

    /// Folder with kernel and initramfs.
    #[must_use]
    pub fn environment(&self) -> PathBuf {
        self.boot.environment.clone().unwrap_or_else(|| self.server.data_dir.join("bootenv"))
    }
}

/// Writes a boot script with these arguments, as every machine would get it,
/// and with room for ours.
fn check_arguments(arguments: &[String]) -> Result<(), String> {
    let ours = format!("rackswarm.server=http://255.255.255.255:65535 {:200}", "").replace(' ', "x");
    let kernel_args = std::iter::once(ours).chain(arguments.iter().cloned()).collect();
    let decision = BootDecision::Deploy { kernel_args, note: String::new() };
    let anywhere = SocketAddrV4::new(Ipv4Addr::BROADCAST, u16::MAX);
    decide::script(Mac([0; 6]), decide::Platform::Bios, anywhere, &decision).map(drop).map_err(|e| e.to_string())
}

/// Checks post actions as an operator sets them. A sentence begins with the
/// field that it is about.
///
/// # Errors
/// The sentence.
pub fn check_post(post: &PostSettings) -> Result<(), String> {
    const TEXT_BYTES: usize = 256 << 10;
    for key in post.authorized_keys.iter().flatten() {
        if key.trim().is_empty() || key.contains(['\n', '\r', '\0']) {
            return Err("authorized_keys: each entry must be one line of an authorized_keys file".to_owned());
        }
    }
    if let Some(Network::Static { address, gateway, dns }) = &post.network {
        let parts = address.split_once('/').map(|(ip, prefix)| (ip.parse::<Ipv4Addr>(), prefix.parse::<u8>()));
        if !matches!(parts, Some((Ok(_), Ok(1..=32)))) {
            return Err(format!("network: `{address}` is not an address with prefix length; write it as 10.0.0.7/24"));
        }
        for ip in gateway.iter().chain(dns) {
            if ip.parse::<Ipv4Addr>().is_err() {
                return Err(format!("network: `{ip}` is not an IPv4 address"));
            }
        }
    }
    if let Some(script) = &post.script {
        if !script.text.starts_with("#!") {
            return Err("script: its first line must name the interpreter, as in #!/bin/sh".to_owned());
        }
        if !(1..=3600).contains(&script.time_limit_seconds) {
            return Err(format!("script: time_limit_seconds is {}, write 1 to 3600", script.time_limit_seconds));
        }
    }
    let texts = post.user_data.iter().chain(post.script.as_ref().map(|s| &s.text));
    if texts.into_iter().any(|text| text.len() > TEXT_BYTES) {
        return Err(format!("script and user_data may have {TEXT_BYTES} bytes each"));
    }
    Ok(())
}

/// The whole file with every default and what it means.
#[must_use]
pub fn print_config() -> String {
    [
        HEAD,
        SERVER,
        DATABASE,
        DhcpConfig::DEFAULT_TOML,
        TftpConfig::DEFAULT_TOML,
        BOOT,
        SWARM,
        Policy::DEFAULT_TOML,
        Discovery::DEFAULT_TOML,
        POST,
        NODE,
        SETS,
    ]
    .map(str::trim_end)
    .join("\n\n")
        + "\n"
}

const HEAD: &str = "\
# Configuration of `rackswarm serve`. Every line shows its default; lines that begin with # are examples.
# Unknown keys are refused. Secrets stay in files of their own, of which this one names the paths.
";

const SERVER: &str = "\
[server]
# Everything that the controller keeps: database, images, boot environment, operator token.
data_dir = \"/var/lib/rackswarm\"
# HTTP: API, boot files and tracker.
listen = \"0.0.0.0:8080\"
# IPv4 address under which nodes reach this machine. By default the address of listen if it names one,
# else the only address of dhcp.interface.
# advertise = \"10.77.0.1\"
# Account to work as once all ports are open; needs root at the start.
# user = \"rackswarm\"
";

const DATABASE: &str = "\
[database]
# By default SQLite in data_dir. PostgreSQL: postgres://rackswarm@db.example/rackswarm
# url = \"sqlite:///var/lib/rackswarm/rackswarm.db\"
# The database's password, in a file that only the controller can read.
# password_file = \"/etc/rackswarm/database-password\"
";

const BOOT: &str = "\
[boot]
# Folder with vmlinuz and initramfs, made by `rackswarm bootenv build`. By default bootenv in data_dir.
# environment = \"/var/lib/rackswarm/bootenv\"
# Arguments for the kernel beside our own, such as \"console=ttyS0,115200\".
kernel_arguments = []
";

const SWARM: &str = "\
[swarm]
# The controller's own seeder.
listen = \"0.0.0.0:6881\"
# The tracker for clients that ask over UDP; nodes ask over HTTP, at server.listen.
# udp_tracker = \"0.0.0.0:6969\"
# Memory that a node may use for pieces in flight, in MiB.
node_memory_mib = 16
# How long a node that has the whole image goes on seeding while others still fetch, in seconds.
# Short, because its own reboot waits for it and the controller seeds in any case.
linger_seconds = 5
";

const POST: &str = "\
[post]
# Post actions of all nodes. A rack's settings win over these, a node's over its rack's.
# authorized_keys = [\"ssh-ed25519 AAAA... operator@example\"]
# network = \"dhcp\", \"keep\", or an address of its own:
# network = { static = { address = \"10.0.0.7/24\", gateway = \"10.0.0.1\", dns = [\"10.0.0.1\"] } }
# user_data = \"#cloud-config\\n\"
# Grow the root partition and its file system to the disk.
# grow_root = true
# Start the deployed kernel without going through the firmware.
# kexec = false
# script = { text = \"#!/bin/sh\\necho hello\\n\", time_limit_seconds = 300 }
";

const NODE: &str = "\
[node]
# Seconds between the heartbeats of a deployed node.
heartbeat_seconds = 30
# Names of processes that must run on every node; a node that lacks one says so.
watch_processes = []
# Time limit of each built-in post action, in seconds.
action_limit_seconds = 300
";

const SETS: &str = "\
# Sets of machines that one owner lists; `rackswarm set sync NAME` makes nodes of them. Others are added with
# `rackswarm set add`. The kinds and their options stand in docs/generated/power.md.
# [[set]]
# name = \"chassis3\"
# address = \"redfish+http://admin@10.9.1.3\"
# The file of its secret: a controller's password, a cloud's access key.
# credentials_file = \"/etc/rackswarm/bmc-password\"
# Rack of its machines where the set does not tell one.
# rack = \"r3\"
# [[set]]
# name = \"hall1\"
# address = \"machines:/etc/rackswarm/machines.toml\"
";

/// Turns serde's list of known keys into a suggestion.
fn with_suggestion(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.trim_end().to_owned() };
    let mut quoted = rest.split('`').step_by(2);
    let Some(unknown) = quoted.next() else { return message.to_owned() };
    let known: Vec<&str> = quoted.filter(|key| !key.is_empty()).collect();
    let nearest = known
        .iter()
        .map(|key| (strsim::damerau_levenshtein(unknown, key), *key))
        .filter(|(distance, key)| *distance <= 2.max(key.len() / 3))
        .min();
    match nearest {
        Some((_, key)) => format!("unknown key `{unknown}`; did you mean `{key}`?"),
        None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}

/// The line of the key that a sentence begins with, as in `deploy.attempts is 0`.
fn line_of(text: &str, sentence: &str) -> Option<usize> {
    let path = sentence.split([' ', ':']).next()?;
    let (section, key) = path.split_once('.')?;
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_start_matches('[').split(']').next().unwrap_or("").trim();
            inside = header == section || header.starts_with(&format!("{section}."));
        } else if inside && line.split('=').next().is_some_and(|name| name.trim() == key) {
            return Some(index + 1);
        }
    }
    None
}

/// The boot sections' own words already name the key.
fn sentence(error: boot::Error) -> String {
    match error {
        boot::Error::Config(why) => why,
        other => other.to_string(),
    }
}

fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
    authority.and_then(|a| a.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(Path::new("rackswarm.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn the_printed_file_is_the_default() {
        let printed = Config::parse(Path::new("printed"), &print_config()).unwrap();
        assert_eq!(printed, Config::default());
        assert_eq!(Config::parse(Path::new("empty"), "").unwrap(), Config::default());
    }

    #[test]
    fn the_shipped_file_is_the_printed_one() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/rackswarm.toml");
        if std::env::var_os("RACKSWARM_WRITE_GENERATED").is_some() {
            std::fs::write(shipped, print_config()).unwrap();
        }
        let hint = "run this test with RACKSWARM_WRITE_GENERATED=1 to write it anew";
        assert_eq!(std::fs::read_to_string(shipped).unwrap(), print_config(), "{hint}");
    }

    #[test]
    fn every_commented_example_is_valid() {
        let text: String = print_config()
            .lines()
            .filter(|line| !line.contains("or an address of its own"))
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.starts_with("[[") || rest.split(' ').nth(1) == Some("=") => rest,
                _ => line,
            })
            .fold(String::new(), |all, line| all + line + "\n");
        let config = Config::parse(Path::new("examples"), &text).unwrap();
        assert_eq!(config.server.user.as_deref(), Some("rackswarm"));
        assert!(matches!(config.post.network, Some(Network::Static { .. })));
        assert_eq!((config.set.len(), config.discovery.approve.len()), (2, 1));
        assert!(config.post.script.is_some() && config.database.password_file.is_some());
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_nearest_one() {
        assert_eq!(
            refused("[server]\nlistn = \"0.0.0.0:80\"\n"),
            "rackswarm.toml, line 2: unknown key `listn`; did you mean `listen`?"
        );
        assert_eq!(
            refused("[deploy]\n\n\natempts = 2\n"),
            "rackswarm.toml, line 4: unknown key `atempts`; did you mean `attempts`?"
        );
        assert_eq!(refused("[sever]\n"), "rackswarm.toml, line 1: unknown key `sever`; did you mean `server`?");
        let far = refused("[database]\ncolour = 1\n");
        assert!(far.contains("line 2") && far.contains("known here: url, password_file"), "{far}");
    }

    #[test]
    fn wrong_values_are_refused_with_their_line() {
        for (text, expected) in [
            ("[server]\nlisten = 80\n", "line 2"),
            ("[server]\ndata_dir = \"x\"\n", "line 2: server.data_dir must be an absolute path"),
            ("[server]\nadvertise = \"0.0.0.0\"\n", "line 2: server.advertise"),
            ("[deploy]\npause_seconds = 1\nattempts = 0\n", "line 3: deploy.attempts is 0, write 1 to 10"),
            ("[dhcp]\nlease_seconds = 1\n", "line 2: dhcp.lease_seconds"),
            ("[boot]\nkernel_arguments = [\"a b\"]\n", "line 2: boot.kernel_arguments"),
            ("[database]\nurl = \"postgres://me:secret@db/x\"\n", "line 2: database.url holds a password"),
            ("[post]\nnetwork = { static = { address = \"10.0.0.7\" } }\n", "line 2: post.network"),
            ("[post]\nscript = { text = \"echo\" }\n", "line 2: post.script"),
            ("[swarm]\nlinger_seconds = -1\n", "line 2"),
            ("[[discovery.approve]]\nname = \"all\"\n", "approve every machine"),
            ("[[set]]\nname = \"S 1\"\naddress = \"fake:x\"\n", "line 2"),
            ("[[set]]\nname = \"s\"\naddress = \"pigeon:x\"\n", "set `s`: no kind of set"),
            ("[[set]]\nname = \"s\"\naddress = \"redfish+http://admin@bmc\"\n", "password_file"),
            ("[[set]]\nname = \"s\"\naddress = \"fake:x\"\ncredentials_file = \"/p\"\n", "takes no credentials file"),
            ("[[set]]\nname = \"s\"\naddress = \"fake:x\"\n[[set]]\nname = \"s\"\naddress = \"fake:y\"\n", "two sets"),
            ("[server\n", "line 1"),
            ("[server]\n[server]\n", "line 2"),
        ] {
            let sentence = refused(text);
            assert!(sentence.contains(expected), "{text:?}: {sentence}");
            assert!(!sentence.contains("secret"), "{sentence}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let sentence = Config::read(Path::new("/nonexistent/rackswarm.toml")).unwrap_err().to_string();
        assert!(sentence.contains("/nonexistent/rackswarm.toml"), "{sentence}");
    }
}
