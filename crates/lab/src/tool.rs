//! Running the tools of the operating system, with their complaint in the error.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `program` and returns what it printed.
///
/// # Errors
/// When it cannot be run or does not succeed; the error holds its last words.
pub fn run<I, S>(program: &str, arguments: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    checked(program, finish(program, command, None)?)
}

/// As [`run`], with `input` on its standard input.
///
/// # Errors
/// As [`run`].
pub fn feed(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    checked(program, finish(program, command, Some(input))?)
}

/// As [`run`], but any end of the program is an answer.
///
/// # Errors
/// When it cannot be run.
pub fn output<I, S>(program: &str, arguments: I) -> Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    finish(program, command, None)
}

fn finish(program: &str, mut command: Command, input: Option<&str>) -> Result<Output> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| {
        format!("cannot run `{program}`; is it installed? `cargo xtask test` and `cargo xtask demo` install it")
    })?;
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
        pipe.write_all(text.as_bytes()).with_context(|| format!("`{program}` does not read its input"))?;
    }
    child.wait_with_output().with_context(|| format!("`{program}` cannot be waited for"))
}

fn checked(program: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("`{program}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fails with a sentence unless this process is root.
///
/// # Errors
/// When it is not.
pub fn need_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("network namespaces and taps need root; run this with sudo")
}

/// Fails with a sentence that names every program of `programs` that is not installed.
///
/// # Errors
/// When one is missing.
pub fn need(programs: &[&str]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| !std::env::split_paths(&path).any(|folder| folder.join(program).exists()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("not installed: {}; `cargo xtask demo` and `cargo xtask test` install what they need", missing.join(", "))
}
