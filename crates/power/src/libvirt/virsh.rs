//! Running `virsh`, with its complaints as sentences.

use std::time::Duration;

use tokio::process::Command;

use crate::http::excerpt;
use crate::{Address, Error, Result, program};

pub(super) const DEFAULT_URI: &str = "qemu:///system";

#[derive(Debug, Clone)]
pub(super) struct Virsh {
    pub(super) uri: String,
    pub(super) call_limit: Duration,
}

impl Virsh {
    /// Takes `uri=` and `call_seconds=`.
    pub(super) fn take(address: &mut Address) -> Result<Virsh> {
        let uri = address.take("uri").unwrap_or_else(|| DEFAULT_URI.to_owned());
        if !crate::address::plain(&uri) || !uri.contains(':') {
            return Err(address.wrong(format!("`uri={uri}` is not a libvirt URI")));
        }
        let call_limit = Duration::from_secs(address.number("call_seconds", 1..=120)?.unwrap_or(60));
        Ok(Virsh { uri, call_limit })
    }

    /// Whether this is the libvirt of the host that we run on.
    pub(super) fn is_local(&self) -> bool {
        self.uri.contains(":///")
    }

    pub(super) async fn run(&self, words: &[&str]) -> Result<String> {
        self.feed(words, "").await
    }

    /// Runs virsh with this text as its input.
    pub(super) async fn feed(&self, words: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.uri]).args(words);
        let what = format!("virsh {}", words.first().copied().unwrap_or_default());
        let target = format!("libvirt host {}", self.uri);
        match program::run(command, "libvirt-clients", &target, input, self.call_limit).await? {
            Some(ended) if ended.well => Ok(ended.said),
            Some(ended) => Err(explain(&target, &what, &ended.complaint)),
            None => Err(Error::transient(
                &target,
                format!(
                    "`{what}` did not end within {} s; is libvirtd running and reachable?",
                    self.call_limit.as_secs()
                ),
            )),
        }
    }
}

fn explain(target: &str, what: &str, complaint: &str) -> Error {
    let lower = complaint.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("failed to connect") || has("cannot recv data") || has("end of file while reading") {
        return Error::transient(
            target,
            format!(
                "it cannot be reached ({}); start libvirtd there, and check `uri=` and your permissions",
                excerpt(complaint)
            ),
        );
    }
    if has("failed to get domain") || has("domain not found") {
        return Error::refused(
            target,
            format!("it has no such machine ({}); `virsh list --all` shows its names", excerpt(complaint)),
        );
    }
    if has("permission denied") && (has("could not open") || has("cannot access storage file")) {
        return Error::refused(
            target,
            format!(
                "its QEMU may not read a file of the machine ({}); make it and the folders above it readable to QEMU",
                excerpt(complaint)
            ),
        );
    }
    if has("permission denied") || has("authentication failed") || has("access denied") {
        return Error::refused(
            target,
            format!("it may not be used ({}); join the group libvirt or run as root", excerpt(complaint)),
        );
    }
    Error::transient(target, format!("`{what}` says: {}", excerpt(complaint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Advice;

    #[test]
    fn complaints_become_sentences() {
        for (complaint, part, advice) in [
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket",
                "start libvirtd",
                Advice::Retry,
            ),
            ("error: failed to get domain 'x'", "no such machine", Advice::Refuse),
            ("error: Failed to start domain 'x'\nerror: internal error: boom", "boom", Advice::Retry),
            (
                "error: Failed to start domain\nerror: Cannot access storage file: Permission denied",
                "may not read",
                Advice::Refuse,
            ),
            (
                "error: Failed to create domain\nerror: qemu: could not open kernel file '/b/vmlinuz': Permission denied",
                "/b/vmlinuz",
                Advice::Refuse,
            ),
            ("error: authentication failed: access denied by policy", "may not be used", Advice::Refuse),
        ] {
            let error = explain("libvirt host x", "virsh start", complaint);
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.advice(), advice);
        }
    }
}
