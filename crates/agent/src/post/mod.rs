//! Post actions: what makes a written image this node's own, before it boots
//! for the first time.
//!
//! [`ACTIONS`] is their only list. Each is one file, takes a [`Context`], works
//! on a file tree only ([`Root`]), may be repeated, and has a time limit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::agent::PostPlan;
use fleet::ids::{Attempt, Digest, ImageName, Mac, NodeName};

use crate::command::{CommandError, Run};
use crate::{Error, Stop};

mod boot_order;
mod cloud_init;
mod grow;
mod hostname;
mod install;
mod kexec;
mod labels;
mod laid;
mod machine_id;
mod mount;
mod network;
mod partitions;
mod root;
mod script;
mod ssh;
mod variables;

pub use kexec::is_loaded as kernel_is_loaded;
pub use root::Root;

pub(crate) use laid::LaidRoot;

use mount::MountedRoot;
use partitions::WrittenDisk;

/// Whom the image is made into, and where it was written.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The written disk, or the file in its place.
    pub disk: PathBuf,
    /// The node.
    pub node: NodeName,
    /// The image's name.
    pub image: ImageName,
    /// The image's digest.
    pub digest: Digest,
    /// The attempt.
    pub attempt: Attempt,
    /// The interface that it was provisioned through.
    pub mac: Option<Mac>,
    /// Whether the machine is ours alone: its firmware may be set and another kernel started.
    pub own_machine: bool,
    /// What is to be done.
    pub plan: PostPlan,
}

/// What an action works with.
#[derive(Debug)]
pub struct Context<'a> {
    /// The written system's file tree.
    pub root: &'a Root,
    /// Whom it is made into.
    pub subject: &'a Subject,
    /// Says when everything is to stop.
    pub stop: &'a Stop,
    /// When the action must have ended.
    pub deadline: Instant,
}

impl Context<'_> {
    /// A program of the written system, run inside it until the action's deadline.
    fn inside(&self, program: &str) -> Run {
        Run::inside(self.root.path(), program, self.deadline.saturating_duration_since(Instant::now()))
    }
}

/// One post action.
#[derive(Debug, Clone, Copy)]
pub struct Action {
    /// Its name in reports.
    pub name: &'static str,
    /// Does it, and says what was done; nothing where it is not wanted.
    pub act: fn(&Context<'_>) -> Result<Option<String>, Error>,
}

/// All actions on the file tree, in their order. The operator's script comes
/// after everything of ours, so that it may change it.
pub const ACTIONS: &[Action] = &[
    Action { name: "host_name", act: hostname::act },
    Action { name: "machine_id", act: machine_id::act },
    Action { name: "ssh", act: ssh::act },
    Action { name: "network", act: network::act },
    Action { name: "cloud_init", act: cloud_init::act },
    Action { name: "agent", act: install::act },
    Action { name: "script", act: script::act },
    Action { name: "security_labels", act: labels::act },
];

/// Told about each action that ended well: name, time, and what it said.
pub type Done<'a> = dyn Fn(&str, Duration, String) + 'a;

/// Does everything on a disk that holds a verified image. Blocks. Nothing stays
/// mounted, whatever happens.
///
/// # Errors
/// [`Error::Post`] names the action; [`Error::AttemptOver`] when stopped.
pub fn run(subject: &Subject, stop: &Stop, done: &Done<'_>) -> Result<(), Error> {
    let limit = limit(subject);
    let mut disk = WrittenDisk::open(&subject.disk, limit, stop).map_err(|error| of_action("partitions", error))?;
    let mut system = disk.system().map_err(|error| of_action("partitions", error))?;
    if subject.plan.grow_root {
        timed("grow_root", stop, done, || grow::before_mount(&mut disk, &mut system).map(Some))?;
    }
    let mounted = MountedRoot::mount(&disk, &system).map_err(|error| of_action("mount", error))?;
    if subject.plan.grow_root {
        timed("grow_file_system", stop, done, || grow::mounted(&system, mounted.root(), limit, stop))?;
    }
    make_own(subject, mounted.root(), stop, done)?;
    mounted.unmount().map_err(|error| of_action("unmount", error))?;
    if subject.own_machine {
        timed("boot_order", stop, done, || boot_order::act(std::slice::from_ref(&disk), stop))?;
    }
    Ok(())
}

/// Does the same on a layout with an unpacked tree, which has its size already.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_laid(
    subject: &Subject,
    laid: LaidRoot,
    starting: &[PathBuf],
    stop: &Stop,
    done: &Done<'_>,
) -> Result<(), Error> {
    make_own(subject, laid.root(), stop, done)?;
    laid.close()?;
    timed("boot_order", stop, done, || {
        let open = |disk: &PathBuf| WrittenDisk::open(disk, limit(subject), stop);
        boot_order::act(&starting.iter().map(open).collect::<Result<Vec<_>, _>>()?, stop)
    })
}

/// All actions on the mounted system.
fn make_own(subject: &Subject, root: &Root, stop: &Stop, done: &Done<'_>) -> Result<(), Error> {
    for action in ACTIONS {
        let deadline = Instant::now() + limit(subject);
        let context = Context { root, subject, stop, deadline };
        timed(action.name, stop, done, || (action.act)(&context))?;
    }
    if subject.own_machine && subject.plan.kexec {
        timed("kexec", stop, done, || Ok(Some(kexec::act(root, stop))))?;
    }
    Ok(())
}

fn limit(subject: &Subject) -> Duration {
    Duration::from_secs(subject.plan.action_limit_seconds.max(1).into())
}

fn timed(
    name: &'static str,
    stop: &Stop,
    done: &Done<'_>,
    act: impl FnOnce() -> Result<Option<String>, Error>,
) -> Result<(), Error> {
    if let Some(reason) = stop.reason() {
        return Err(Error::AttemptOver(reason));
    }
    let began = Instant::now();
    if let Some(output) = act().map_err(|error| of_action(name, error))? {
        done(name, began.elapsed(), output);
    }
    Ok(())
}

fn of_action(action: &'static str, error: Error) -> Error {
    match error {
        Error::Post { .. } | Error::AttemptOver(_) => error,
        Error::Command(CommandError::Stopped { reason, .. }) => Error::AttemptOver(reason),
        other => Error::Post { action, why: other.to_string(), retry: true },
    }
}

/// Something in the plan or the image that another attempt would meet again.
fn wrong(action: &'static str, why: impl Into<String>) -> Error {
    Error::Post { action, why: why.into(), retry: false }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod fixture {
    //! A file tree and a plan for the actions' tests.

    use super::*;
    use api::agent::Token;
    use fleet::post::Network;

    /// A tree in a temporary folder, with the files of a small Debian.
    pub(crate) struct Tree {
        folder: tempfile::TempDir,
        pub(crate) subject: Subject,
    }

    impl Tree {
        pub(crate) fn new() -> Self {
            let plan = PostPlan {
                host_name: "node7.rack1".into(),
                authorized_keys: Vec::new(),
                network: Network::Dhcp,
                user_data: None,
                grow_root: false,
                script: None,
                kexec: false,
                action_limit_seconds: 60,
                controller_url: "http://10.0.0.1:8080".into(),
                node_token: Token("secret".into()),
                heartbeat_seconds: 10,
                watch_processes: vec!["sshd".into()],
            };
            let subject = Subject {
                disk: "/dev/vda".into(),
                node: "node7".parse().unwrap(),
                image: "debian".parse().unwrap(),
                digest: Digest([7; 32]),
                attempt: Attempt(3),
                mac: Some("52:54:00:00:00:07".parse().unwrap()),
                own_machine: false,
                plan,
            };
            let tree = Self { folder: tempfile::tempdir().unwrap(), subject };
            tree.file("etc/os-release", "ID=debian\n");
            tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
            tree
        }

        pub(crate) fn root(&self) -> Root {
            Root::at(self.folder.path()).unwrap()
        }

        pub(crate) fn file(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        pub(crate) fn link(&self, target: &str, path: &str) {
            let path = self.folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        }

        pub(crate) fn text(&self, path: &str) -> String {
            std::fs::read_to_string(self.folder.path().join(path)).unwrap()
        }

        pub(crate) fn path(&self) -> &std::path::Path {
            self.folder.path()
        }

        pub(crate) fn mode(&self, path: &str) -> u32 {
            use std::os::unix::fs::PermissionsExt;
            std::fs::symlink_metadata(self.folder.path().join(path)).unwrap().permissions().mode() & 0o7777
        }

        pub(crate) fn act(
            &self,
            act: fn(&Context<'_>) -> Result<Option<String>, Error>,
        ) -> Result<Option<String>, Error> {
            let root = self.root();
            let deadline = Instant::now() + Duration::from_secs(60);
            act(&Context { root: &root, subject: &self.subject, stop: &Stop::default(), deadline })
        }
    }
}
