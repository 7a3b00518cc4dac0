//! Ways to deliver the file, ours and others', each with the settings that were best here.

mod aria2;
mod chain;
mod ctorrent;
mod http;
mod multicast;
mod ours;
mod transmission;

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Result, bail};

use super::fabric::Place;
use super::stage::{Line, Stage};
use crate::tool;

pub use ours::Ours;

/// One way. A value serves one run after the other.
pub trait Method {
    /// Its name in tables.
    fn name(&self) -> String;

    /// Programs that must be installed.
    fn needs(&self) -> &'static [&'static str];

    /// What exactly ran.
    fn version(&self) -> String;

    /// Starts the server's side, not timed; returns when it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    fn serve(&self, stage: &mut Stage<'_>) -> Result<()>;

    /// What a node runs once the gate is open.
    fn line(&self, stage: &Stage<'_>, node: usize) -> Line;

    /// What happens at the server when the gate has opened.
    ///
    /// # Errors
    /// When it cannot be started.
    fn released(&self, _stage: &mut Stage<'_>) -> Result<()> {
        Ok(())
    }

    /// When a node had the whole file, if it has.
    ///
    /// # Errors
    /// When its process ended without it.
    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>>;

    /// Ends the tracker and nothing else; false where there is none that could be ended alone.
    fn end_tracker(&self, _stage: &mut Stage<'_>) -> bool {
        false
    }
}

/// Other clients and multicast.
#[must_use]
pub fn peers() -> Vec<Box<dyn Method>> {
    vec![
        Box::new(aria2::Aria2),
        Box::new(ctorrent::Ctorrent),
        Box::new(multicast::Udpcast),
        Box::new(multicast::Uftp),
        Box::new(transmission::Transmission),
    ]
}

/// A plain TCP chain through all nodes.
#[must_use]
pub fn chain() -> Box<dyn Method> {
    Box::new(chain::Chain)
}

/// nginx and curl.
#[must_use]
pub fn http() -> Box<dyn Method> {
    Box::new(http::Http)
}

/// aria2 in one swarm with ours.
#[must_use]
pub fn aria2_node(stage: &Stage<'_>, torrent: &Path, node: usize) -> Line {
    aria2::line(stage, Place::Node(node), torrent, aria2::Role::Node)
}

/// Done when the process ends well.
fn done_when_ended(stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
    match stage.ended(Place::Node(node)) {
        None => Ok(None),
        Some(status) if status.success() => Ok(Some(SystemTime::now())),
        Some(status) => bail!("node {node} ended with {status}: {}", stage.last_words(Place::Node(node))),
    }
}

/// Done when a hook has written this file in the node's folder.
const FLAG: &str = "done";

fn done_when_flagged(stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
    done_when_written(stage, node, FLAG)
}

/// Done when this file in the node's folder is there.
fn done_when_written(stage: &mut Stage<'_>, node: usize, name: &str) -> Result<Option<SystemTime>> {
    if let Some(written) = stage.written(&stage.home(Place::Node(node)).join(name)) {
        return Ok(Some(written));
    }
    match stage.ended(Place::Node(node)) {
        None => Ok(None),
        Some(status) => bail!("node {node} ended with {status}: {}", stage.last_words(Place::Node(node))),
    }
}

/// A program that clients run when they are complete.
fn hook(stage: &Stage<'_>, place: Place) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let path = stage.home(place).join("hook");
    std::fs::write(&path, format!("#!/bin/sh\necho done >{}\n", stage.home(place).join(FLAG).display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

/// The first line that a program prints about itself.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let printed = tool::output(program, arguments);
    let text = printed.map(|printed| [printed.stdout, printed.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// A Debian package with its version.
fn package(name: &str) -> String {
    let version = tool::run("dpkg-query", ["-W", "-f=${Version}", name]).unwrap_or_default();
    format!("{name} {version}")
}
