//! What the boot script put on the kernel's command line for the agent.

use std::collections::BTreeMap;

use api::agent::Token;
use fleet::ids::Mac;

use crate::Error;

/// Switches speak every 30 seconds; one that has not spoken after four times that is silent.
const LISTEN_LIMIT_SECONDS: u32 = 120;

/// The agent's part of `/proc/cmdline`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelLine {
    /// `rackswarm.server=`: base URL of the controller.
    pub server: String,
    /// `rackswarm.token=`: the attempt's boot token.
    pub token: Token,
    /// `rackswarm.mac=`, else PXE's `BOOTIF=`: the interface that the machine
    /// booted through.
    pub mac: Option<Mac>,
    /// `rackswarm.listen=SECONDS`: how long to listen for switches before the machine shows itself, on all cards.
    pub listen_seconds: u32,
    /// `rackswarm.check=1`: the hardware is checked before the machine shows itself.
    pub check: bool,
    /// `rackswarm.debug=shell`: a shell on the console after a failure.
    pub debug_shell: bool,
}

impl KernelLine {
    /// Reads the agent's keys; of a repeated key the last one counts, as for
    /// the kernel's own.
    ///
    /// # Errors
    /// When the server or the token is missing, or a value is not what it should be.
    pub fn parse(line: &str) -> Result<Self, Error> {
        let values: BTreeMap<&str, &str> = line.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        let required = |key: &str| match values.get(key) {
            Some(value) if !value.is_empty() => Ok((*value).to_owned()),
            _ => Err(Error::KernelLine(format!("it has no {key}=; the boot script must set it"))),
        };
        let mac = match (values.get("rackswarm.mac"), values.get("BOOTIF")) {
            (Some(mac), _) => Some(parse_mac(mac)?),
            // PXELINUX puts the hardware type in front: 01 is Ethernet (RFC 1700).
            (None, Some(bootif)) => Some(parse_mac(bootif.strip_prefix("01-").unwrap_or(bootif))?),
            (None, None) => None,
        };
        Ok(Self {
            server: required("rackswarm.server")?,
            token: Token(required("rackswarm.token")?),
            mac,
            listen_seconds: seconds(values.get("rackswarm.listen")),
            check: values.get("rackswarm.check") == Some(&"1"),
            debug_shell: wants_shell(line),
        })
    }
}

fn seconds(text: Option<&&str>) -> u32 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0).min(LISTEN_LIMIT_SECONDS)
}

/// Whether a line asks for the shell, whatever else is wrong with it.
#[must_use]
pub fn wants_shell(line: &str) -> bool {
    line.split_whitespace().any(|word| word == "rackswarm.debug=shell")
}

fn parse_mac(text: &str) -> Result<Mac, Error> {
    text.parse().map_err(|error: fleet::ids::BadId| Error::KernelLine(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_found_among_others() {
        let line = "BOOT_IMAGE=x console=ttyS0 rackswarm.server=http://10.0.0.1:8080 rackswarm.token=abc= quiet \
                    rackswarm.mac=52:54:00:00:00:01 rackswarm.debug=shell rackswarm.listen=900 rackswarm.check=1 panic=1\n";
        let parsed = KernelLine::parse(line).unwrap();
        assert_eq!(parsed.server, "http://10.0.0.1:8080");
        assert_eq!(parsed.token, Token("abc=".into()));
        assert_eq!(parsed.mac.unwrap().to_string(), "52:54:00:00:00:01");
        assert!(parsed.debug_shell && parsed.check);
        assert_eq!(parsed.listen_seconds, LISTEN_LIMIT_SECONDS);
    }

    #[test]
    fn bootif_serves_where_our_key_is_missing() {
        let line = "rackswarm.server=u rackswarm.token=t BOOTIF=01-52-54-00-00-00-02";
        assert_eq!(KernelLine::parse(line).unwrap().mac.unwrap().to_string(), "52:54:00:00:00:02");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (line, word) in [
            ("", "rackswarm.server"),
            ("rackswarm.server=u", "rackswarm.token"),
            ("rackswarm.server= rackswarm.token=t", "rackswarm.server"),
            ("rackswarm.server=u rackswarm.token=t rackswarm.mac=5", "`5` is not a MAC"),
        ] {
            let sentence = KernelLine::parse(line).unwrap_err().to_string();
            assert!(sentence.contains(word), "{sentence}");
        }
    }
}
