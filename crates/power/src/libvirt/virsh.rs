//! Running `virsh` and `qemu-img`: bounded in time and output, with their complaints as sentences.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::http::excerpt;
use crate::{Address, Error, Result};

/// A definition has some 10 KiB; a list of a thousand machines some 100.
const OUTPUT_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Virsh {
    pub(super) uri: String,
    pub(super) call_limit: Duration,
}

impl Virsh {
    /// Takes `uri=` and `call_seconds=`.
    pub(super) fn take(address: &mut Address) -> Result<Virsh> {
        let uri = address.take("uri").unwrap_or_else(|| "qemu:///system".to_owned());
        if !crate::address::plain(&uri) || !uri.contains(':') {
            return Err(address.wrong(format!("`uri={uri}` is not a libvirt URI")));
        }
        let call_limit = Duration::from_secs(address.number("call_seconds", 1..=120)?.unwrap_or(60));
        Ok(Virsh { uri, call_limit })
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
        run(command, &what, &target, "libvirt-clients", self.call_limit, input).await
    }
}

/// Runs a program to its end.
pub(super) async fn run(
    mut command: Command,
    what: &str,
    target: &str,
    package: &str,
    limit: Duration,
    input: &str,
) -> Result<String> {
    command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let cannot = |error: std::io::Error| {
        Error::refused(target, format!("`{what}` cannot be run ({error}); install the package {package}"))
    };
    let mut child = command.spawn().map_err(cannot)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let work = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // It may end before it has read everything; what it says then is the better reason.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let (mut said, mut complaint) = (Vec::new(), Vec::new());
        let read_out = async {
            match stdout {
                Some(stdout) => stdout.take(OUTPUT_BYTES).read_to_end(&mut said).await.map(drop),
                None => Ok(()),
            }
        };
        let read_err = async {
            match stderr {
                Some(stderr) => stderr.take(OUTPUT_BYTES).read_to_end(&mut complaint).await.map(drop),
                None => Ok(()),
            }
        };
        let ((), out, err) = tokio::join!(write, read_out, read_err);
        out?;
        err?;
        let status = child.wait().await?;
        Ok::<_, std::io::Error>((status, said, complaint))
    };
    let (status, said, complaint) = timeout(limit, work)
        .await
        .map_err(|_| {
            Error::transient(
                target,
                format!("`{what}` did not end within {} s; is libvirtd running and reachable?", limit.as_secs()),
            )
        })?
        .map_err(|error| Error::transient(target, format!("`{what}` broke off: {error}")))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&said).into_owned());
    }
    Err(explain(target, what, &String::from_utf8_lossy(&complaint)))
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
                "may not be used",
                Advice::Refuse,
            ),
        ] {
            let error = explain("libvirt host x", "virsh start", complaint);
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.advice(), advice);
        }
    }
}
