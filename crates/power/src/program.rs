//! Running an outside program: bounded in time and output, and gone with whoever waits for it.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::{Error, Result};

/// A libvirt machine's definition has some 10 KiB; a list of a thousand machines some 100.
const OUTPUT_BYTES: u64 = 8 * 1024 * 1024;

/// How a program ended.
pub(crate) struct Ended {
    /// With exit status 0.
    pub(crate) well: bool,
    /// Its standard output.
    pub(crate) said: String,
    /// Its standard error.
    pub(crate) complaint: String,
}

/// Runs a program to its end with this text as its input; `None` when it had to be killed at the limit. `package` and
/// `target` are for the sentence when it cannot be run.
pub(crate) async fn run(
    mut command: Command,
    package: &str,
    target: &str,
    input: &str,
    limit: Duration,
) -> Result<Option<Ended>> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| {
        Error::refused(target, format!("{name} cannot be run ({error}); install the package {package}"))
    })?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let work = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // It may end before it has read everything; what it says then is the better reason.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), said, complaint) = tokio::join!(write, all(stdout), all(stderr));
        Ok(Ended { said: said?, complaint: complaint?, well: child.wait().await?.success() })
    };
    match timeout(limit, work).await {
        Ok(Ok(ended)) => Ok(Some(ended)),
        Ok(Err::<_, std::io::Error>(error)) => Err(Error::transient(target, format!("{name} broke off: {error}"))),
        Err(_) => Ok(None),
    }
}

async fn all(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_both_of_its_outputs_are_read() {
        let long = Duration::from_secs(20);
        let ended = run(shell("cat; echo no >&2; exit 3"), "dash", "host", "text", long).await.unwrap().unwrap();
        assert_eq!((ended.well, ended.said.as_str(), ended.complaint.as_str()), (false, "text", "no\n"));
        let input = "x".repeat(1 << 20);
        let ended = run(shell("exit 0"), "dash", "host", &input, long).await.unwrap().unwrap();
        assert!(ended.well, "what it does not read is no failure");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_given_up_and_one_that_is_missing_is_named() {
        assert!(run(shell("read line"), "dash", "host", "", Duration::from_secs(20)).await.unwrap().is_some());
        assert!(run(shell("exec sleep 60"), "dash", "host", "", Duration::from_millis(50)).await.unwrap().is_none());
        let error =
            run(Command::new("/nonesuch/tool"), "tools", "host", "", Duration::from_secs(1)).await.err().unwrap();
        assert!(error.to_string().contains("/nonesuch/tool") && error.to_string().contains("package tools"), "{error}");
    }
}
