//! From root to an ordinary account, keeping what low ports and DHCP need.

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::error::Error;

/// Ports below 1024; raw sockets for DHCP replies and router advertisements.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::NET_RAW);

/// Looks an account up.
///
/// # Errors
/// When there is no such account, or this process may not become it.
pub fn account(name: &str) -> Result<User, Error> {
    let user = User::from_name(name)
        .map_err(|error| Error::Setup(format!("server.user: account `{name}` cannot be looked up: {error}")))?
        .ok_or_else(|| {
            Error::Setup(format!("server.user: there is no account `{name}`; make it with `useradd --system {name}`"))
        })?;
    if user.uid == Uid::effective() || Uid::effective().is_root() {
        Ok(user)
    } else {
        Err(Error::Setup(format!("server.user is `{name}`, which only root can become; start as root or leave it out")))
    }
}

/// Gives a folder to an account.
///
/// # Errors
/// When the system refuses.
pub fn give(folder: &std::path::Path, user: &User) -> Result<(), Error> {
    std::os::unix::fs::chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(|cause| Error::File {
        doing: "give to the account of server.user",
        path: folder.to_owned(),
        cause,
    })
}

/// Becomes `user` for good. Must be called before there are other threads,
/// which would keep root's capabilities.
///
/// # Errors
/// When the system refuses a step.
pub fn become_user(user: &User) -> Result<(), Error> {
    if user.uid == Uid::effective() {
        return Ok(());
    }
    let (uid, gid): (Uid, Gid) = (user.uid, user.gid);
    let step = |what: &str, outcome: nix::Result<()>| {
        outcome.map_err(|error| Error::Setup(format!("cannot work as account `{}`: {what}: {error}", user.name)))
    };
    step("keep capabilities", prctl::set_keepcaps(true))?;
    step("leave groups", setgroups(&[gid]))?;
    step("change group", setgid(gid))?;
    step("change user", setuid(uid))?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
        .map_err(|error| Error::Setup(format!("cannot work as account `{}`: set capabilities: {error}", user.name)))?;
    step("forbid new privileges", prctl::set_no_new_privs())
}
