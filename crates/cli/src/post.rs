//! Post actions on the command line, for racks and for nodes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fleet::post::{Network, PostSettings, Script};

use crate::parse;

/// Largest file that becomes part of a node's settings, in bytes; the controller's own limit.
const FILE_LIMIT_BYTES: u64 = 256 << 10;

/// What makes a written image a node's own. Options that are not given keep what is set.
#[derive(Debug, Args)]
#[group(id = "post")]
#[command(next_help_heading = "Post actions (what makes the written image a node's own)")]
pub(crate) struct Options {
    /// Lines for root's authorized_keys
    #[arg(long, value_name = "FILE")]
    authorized_keys: Option<PathBuf>,
    /// User-data of a cloud-init NoCloud seed
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Script that is run in the written system before it reboots; its first line names the interpreter
    #[arg(long, value_name = "FILE")]
    post_script: Option<PathBuf>,
    /// Time limit of that script
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=3600), requires = "post_script")]
    post_script_seconds: u32,
    /// Network of the deployed system: dhcp, keep, or static:ADDRESS/PREFIX,GATEWAY,DNS
    #[arg(long, value_parser = parse::network)]
    network: Option<Network>,
    /// Leave the root partition and its file system at the image's size
    #[arg(long, overrides_with = "grow")]
    no_grow: bool,
    /// Grow the root partition and its file system to the disk (the default)
    #[arg(long)]
    grow: bool,
    /// Start the deployed kernel without going through the firmware, which saves minutes on large machines
    #[arg(long, overrides_with = "no_kexec")]
    kexec: bool,
    /// Restart through the firmware (the default)
    #[arg(long)]
    no_kexec: bool,
    /// Forget all post actions that were set here before; wider settings apply again
    #[arg(long)]
    clear_post: bool,
}

impl Options {
    /// The settings after this command, or `None` where no option was given.
    pub(crate) fn settings(&self, before: &PostSettings) -> Result<Option<PostSettings>> {
        let given = self.given()?;
        if given == PostSettings::default() && !self.clear_post {
            return Ok(None);
        }
        Ok(Some(if self.clear_post { given } else { given.over(before) }))
    }

    /// True where what was set before matters for the result.
    pub(crate) fn needs_former(&self) -> bool {
        !self.clear_post
    }

    fn given(&self) -> Result<PostSettings> {
        let script = match &self.post_script {
            None => None,
            Some(path) => Some(Script { text: script(path)?, time_limit_seconds: self.post_script_seconds }),
        };
        Ok(PostSettings {
            authorized_keys: self.authorized_keys.as_deref().map(keys).transpose()?,
            network: self.network.clone(),
            user_data: self.user_data.as_deref().map(read).transpose()?,
            grow_root: if self.no_grow { Some(false) } else { self.grow.then_some(true) },
            script,
            kexec: if self.no_kexec { Some(false) } else { self.kexec.then_some(true) },
        })
    }
}

/// What is set, one line for each action.
pub(crate) fn describe(post: &PostSettings) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(keys) = &post.authorized_keys {
        lines.push(("authorized keys", keys.len().to_string()));
    }
    if let Some(network) = &post.network {
        lines.push(("network", describe_network(network)));
    }
    if let Some(text) = &post.user_data {
        lines.push(("user-data", format!("{} bytes", text.len())));
    }
    if let Some(grow) = post.grow_root {
        lines.push(("grow root", if grow { "yes" } else { "no" }.to_owned()));
    }
    if let Some(script) = &post.script {
        lines.push(("post script", format!("{} bytes, at most {} s", script.text.len(), script.time_limit_seconds)));
    }
    if let Some(kexec) = post.kexec {
        lines.push(("kexec", if kexec { "yes" } else { "no" }.to_owned()));
    }
    lines
}

fn describe_network(network: &Network) -> String {
    match network {
        Network::Dhcp => "dhcp".to_owned(),
        Network::Keep => "keep".to_owned(),
        Network::Static { address, gateway, dns } => {
            let gateway = gateway.as_ref().map(|gateway| format!(", gateway {gateway}")).unwrap_or_default();
            let dns = if dns.is_empty() { String::new() } else { format!(", dns {}", dns.join(" ")) };
            format!("{address}{gateway}{dns}")
        }
    }
}

fn keys(path: &Path) -> Result<Vec<String>> {
    let text = read(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(ToOwned::to_owned).collect();
    for key in &keys {
        // Kind and key, perhaps with options before and a comment behind (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
        ensure!(
            !key.contains("PRIVATE KEY"),
            "{} holds a private key: name the file that ends in .pub",
            path.display()
        );
        ensure!(
            key.split_whitespace().count() >= 2,
            "{} is no authorized_keys file: `{key}` is not a key",
            path.display()
        );
    }
    ensure!(!keys.is_empty(), "{} holds no key", path.display());
    Ok(keys)
}

fn script(path: &Path) -> Result<String> {
    let text = read(path)?;
    if !text.starts_with("#!") {
        bail!("{} does not begin with `#!` and its interpreter, as in `#!/bin/sh`", path.display());
    }
    Ok(text)
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    ensure!(bytes.len() as u64 <= FILE_LIMIT_BYTES, "{shown} is larger than 256 KiB");
    String::from_utf8(bytes).with_context(|| format!("{shown} is not text"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn settings(words: &[&str], before: &PostSettings) -> Result<Option<PostSettings>> {
        Line::try_parse_from(["x"].iter().chain(words)).unwrap().options.settings(before)
    }

    #[test]
    fn only_what_is_given_changes() {
        let before = PostSettings { user_data: Some("u".into()), ..PostSettings::default() };
        assert_eq!(settings(&[], &before).unwrap(), None);
        let after = settings(&["--no-grow"], &before).unwrap().unwrap();
        assert_eq!(after, PostSettings { grow_root: Some(false), ..before.clone() });
        assert_eq!(settings(&["--clear-post"], &before).unwrap(), Some(PostSettings::default()));
    }

    #[test]
    fn files_are_checked_before_they_are_sent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let given = |option: &str, text: &str| {
            std::fs::write(&path, text).unwrap();
            settings(&[option, path.to_str().unwrap()], &PostSettings::default())
        };
        let keys = given("--authorized-keys", "# mine\nssh-ed25519 AAAA me\n\n").unwrap().unwrap();
        assert_eq!(keys.authorized_keys.unwrap(), ["ssh-ed25519 AAAA me"]);
        assert!(given("--authorized-keys", "nonsense\n").is_err());
        assert!(given("--authorized-keys", "-----BEGIN OPENSSH PRIVATE KEY-----\n").is_err());
        assert!(given("--post-script", "echo hello\n").is_err());
        assert_eq!(given("--post-script", "#!/bin/sh\n").unwrap().unwrap().script.unwrap().time_limit_seconds, 300);
        assert!(given("--user-data", &"x".repeat(2 << 20)).is_err());
    }
}
