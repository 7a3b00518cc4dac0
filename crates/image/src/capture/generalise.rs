//! Takes out of a captured system what belongs to one machine: its identity, its keys, its traces.
//!
//! It works on the registry's copy. ext4 is edited by debugfs, which needs no privileges and keeps a foreign file system
//! out of this server's kernel; xfs can only be mounted, which needs root. What was removed is looked for once more in the
//! end, so a tool that only says that it worked is found out.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::attach::{self, Device};
use super::survey::{Kind, survey};
use super::tool::Tool;
use crate::{Error, sparse};

/// A file system is copied in steps of this.
const STEP_BYTES: u64 = 1 << 20;
/// Checking the file system of a large disk takes minutes.
const CHECK_LIMIT: Duration = Duration::from_secs(3600);
/// One run of debugfs.
const EDIT_LIMIT: Duration = Duration::from_secs(600);
/// Folders that are gone through at most; a system has some dozens of logs.
const MOST_FOLDERS: usize = 20_000;

/// What is done with files that a rule finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The file stays, without content: what writes it needs its owner and mode.
    Empty,
    /// The file goes.
    Remove,
    /// The file or the folder goes with all that is in it.
    RemoveTree,
    /// Logs are emptied; journals and what was rotated go.
    Logs,
}

/// A folder, names in it with at most one `*`, and what happens to them.
type Rule = (&'static str, &'static str, Act);

/// What belongs to one machine.
const RULES: &[Rule] = &[
    // Identity. An empty machine-id is filled at the first boot (machine-id(5)).
    ("/etc", "machine-id", Act::Empty),
    ("/var/lib/dbus", "machine-id", Act::Remove),
    ("/etc/ssh", "ssh_host_*", Act::Remove),
    ("/etc/rackswarm", "agent.json", Act::Remove),
    ("/etc/udev/rules.d", "70-persistent-*", Act::Remove),
    ("/etc/udev/rules.d", "75-persistent-*", Act::Remove),
    ("/var/lib/cloud", "instance", Act::RemoveTree),
    ("/var/lib/cloud", "instances", Act::RemoveTree),
    ("/var/lib/cloud", "data", Act::RemoveTree),
    ("/var/lib/cloud", "sem", Act::RemoveTree),
    // Seeds and secrets that must not be the same twice.
    ("/var/lib/systemd", "random-seed", Act::Remove),
    ("/var/lib/systemd", "credential.secret", Act::Remove),
    ("/var/lib/urandom", "random-seed", Act::Remove),
    ("/var/lib/NetworkManager", "secret_key", Act::Remove),
    // Leases.
    ("/var/lib/dhcp", "*.leases", Act::Remove),
    ("/var/lib/dhclient", "*.leases", Act::Remove),
    ("/var/lib/dhcpcd", "*.lease*", Act::Remove),
    ("/var/lib/NetworkManager", "*.lease", Act::Remove),
    // Traces.
    ("/var/log", "*", Act::Logs),
    ("/var/lib/systemd/coredump", "*", Act::RemoveTree),
    ("/var/crash", "*", Act::RemoveTree),
    ("/var/tmp", "*", Act::RemoveTree),
    ("/tmp", "*", Act::RemoveTree),
    ("/root", ".bash_history", Act::Remove),
    ("/home/*", ".bash_history", Act::Remove),
];

/// What was done to a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generalised {
    /// Files that were removed.
    pub removed: usize,
    /// Files that were emptied.
    pub emptied: usize,
    /// Bytes that hold nothing any more.
    pub freed_bytes: u64,
}

/// Generalises the raw disk in a file, and gives back the space of what its file systems do not use.
///
/// # Errors
/// [`Error::NotGeneralised`] when it holds no system that can be edited here; when a program is missing or fails.
pub fn generalise(path: &Path) -> Result<Generalised, Error> {
    let mut file = File::options().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(Error::io("measure", path))?;
    let before = survey(&file, path, size_bytes, 512)?;
    let mut done = Generalised::default();
    let (mut system, mut refused) = (false, None);
    for part in &before.parts {
        let outcome = match part.kind {
            Kind::Ext => {
                if part.whole_because.is_some() {
                    put_right(&file, path, part.range.clone())?;
                }
                edit(&Debugfs::open(path, part.range.clone())?, &mut done)
            }
            Kind::Xfs => match Mounted::open(path, part.range.clone(), "xfs", "nouuid") {
                Ok(mounted) => edit(&mounted, &mut done),
                Err(why) => {
                    refused = Some(why);
                    continue;
                }
            },
            _ => continue,
        };
        system |= outcome?;
    }
    if !system {
        let why = refused.unwrap_or_else(|| "it has no ext4 or xfs file system with /etc in it".to_owned());
        return Err(Error::NotGeneralised(why));
    }
    // What was removed is free now, and its bytes must not travel.
    let after = survey(&file, path, size_bytes, 512)?;
    for free in after.used.outside(0..size_bytes).iter() {
        sparse::zero_range(&file, free.clone()).map_err(Error::device("zero", path, free.start))?;
    }
    done.freed_bytes = before.used.bytes().saturating_sub(after.used.bytes());
    Ok(done)
}

/// Plays back the journal of a file system that was not shut down cleanly. e2fsck opens it a second time in the middle and
/// forgets the offset then, so it gets the partition as a file of its own; what it changed is brought back, the superblock
/// last, so that all of it happens once more if this is interrupted.
fn put_right(file: &File, path: &Path, range: Range<u64>) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let size_bytes = range.end - range.start;
    let full = |error: Error| error.or_no_space(folder, size_bytes);
    let copy = tempfile::NamedTempFile::new_in(folder).map_err(Error::io("create a file in", folder)).map_err(full)?;
    let name = copy.path();
    copy.as_file().set_len(size_bytes).map_err(Error::io("set the size of", name))?;
    let steps: Vec<Range<u64>> = (0..size_bytes.div_ceil(STEP_BYTES))
        .map(|step| step * STEP_BYTES..size_bytes.min((step + 1) * STEP_BYTES))
        .collect();
    let read = |from: &File, what: &Path, at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        from.read_exact_at(&mut bytes, at).map_err(Error::device("read", what, at)).map(|()| bytes)
    };
    for step in &steps {
        let (at, length) = (range.start + step.start, step.end - step.start);
        if !sparse::in_hole(file, at, length) {
            let bytes = read(file, path, at, length)?;
            sparse::write_into_hole(copy.as_file(), step.start, &bytes)
                .map_err(Error::device("write", name, step.start))
                .map_err(full)?;
        }
    }
    check(&name.display().to_string())?;
    for step in steps.iter().rev() {
        let (at, length) = (range.start + step.start, step.end - step.start);
        if sparse::in_hole(copy.as_file(), step.start, length) && sparse::in_hole(file, at, length) {
            continue;
        }
        let bytes = read(copy.as_file(), name, step.start, length)?;
        if bytes != read(file, path, at, length)? {
            file.write_all_at(&bytes, at).map_err(Error::device("write", path, at)).map_err(full)?;
        }
        if step.start == STEP_BYTES {
            // All but the superblock.
            file.sync_data().map_err(Error::io("write", path))?;
        }
    }
    Ok(())
}

/// Applies the rules to one file system; whether it holds the system.
fn edit(tree: &dyn Tree, done: &mut Generalised) -> Result<bool, Error> {
    let Some(place) = place_of(tree)? else { return Ok(false) };
    let edits = plan(tree, place)?;
    tree.apply(&edits)?;
    if let Some(left) = plan(tree, place)?.first() {
        return Err(Error::NotGeneralised(format!("{} is still there after it was removed", left.path())));
    }
    let emptied = edits.iter().filter(|edit| matches!(edit, Edit::Empty(_))).count();
    let removed = edits.iter().filter(|edit| matches!(edit, Edit::Remove(_))).count();
    done.emptied += emptied;
    done.removed += removed;
    Ok(place.is_empty())
}

/// Where a file system belongs in the system's tree; nothing where that cannot be told.
fn place_of(tree: &dyn Tree) -> Result<Option<&'static str>, Error> {
    let items = tree.list("/")?;
    let has = |name: &str| items.iter().any(|item| item.name == name);
    Ok(if has("etc") {
        Some("")
    } else if has("lib") && has("log") {
        Some("/var")
    } else if has("journal") || has("wtmp") {
        Some("/var/log")
    } else {
        None
    })
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Edit {
    Empty(String),
    Remove(String),
    /// A folder that is empty by then.
    RemoveFolder(String),
}

impl Edit {
    fn path(&self) -> &str {
        match self {
            Self::Empty(path) | Self::Remove(path) | Self::RemoveFolder(path) => path,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ItemKind {
    File,
    Folder,
    /// Links, sockets and devices.
    Other,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    name: String,
    kind: ItemKind,
    size_bytes: u64,
}

/// A file system that can be looked at and edited.
trait Tree {
    /// What is in a folder, `.` and `..` apart; nothing where there is no such folder.
    fn list(&self, folder: &str) -> Result<Vec<Item>, Error>;
    /// Does these, in order.
    fn apply(&self, edits: &[Edit]) -> Result<(), Error>;
}

/// What the rules want done in a file system that is mounted at `place`.
fn plan(tree: &dyn Tree, place: &str) -> Result<Vec<Edit>, Error> {
    let mut walk = Walk { tree, edits: Vec::new(), folders: 0 };
    for (folder, names, act) in RULES {
        let Some(folder) = inside(folder, place) else { continue };
        let folders = match folder.strip_suffix("/*") {
            None => vec![folder],
            Some(above) => walk
                .list(above)?
                .into_iter()
                .filter(|item| item.kind == ItemKind::Folder)
                .map(|item| format!("{above}/{}", item.name))
                .collect(),
        };
        for folder in folders {
            for item in walk.list(&folder)?.into_iter().filter(|item| fits(names, &item.name)) {
                walk.take(&folder, &item, *act)?;
            }
        }
    }
    Ok(walk.edits)
}

/// A path of the system as it is called in a file system that is mounted at `place`.
fn inside(path: &str, place: &str) -> Option<String> {
    let rest = path.strip_prefix(place)?;
    match rest {
        "" => Some("/".to_owned()),
        _ if rest.starts_with('/') => Some(rest.to_owned()),
        _ => None,
    }
}

fn fits(names: &str, name: &str) -> bool {
    // lost+found belongs to the file system.
    match names.split_once('*') {
        None => names == name,
        Some((before, after)) => {
            let (after, open) = after.split_once('*').map_or((after, false), |(after, _)| (after, true));
            let rest = name.strip_prefix(before).filter(|_| name != "lost+found");
            rest.is_some_and(|rest| if open { rest.contains(after) } else { rest.ends_with(after) })
        }
    }
}

struct Walk<'a> {
    tree: &'a dyn Tree,
    edits: Vec<Edit>,
    folders: usize,
}

impl Walk<'_> {
    fn list(&mut self, folder: &str) -> Result<Vec<Item>, Error> {
        self.folders += 1;
        if self.folders > MOST_FOLDERS {
            return Err(Error::NotGeneralised(format!("more than {MOST_FOLDERS} folders are to be gone through")));
        }
        self.tree.list(folder)
    }

    fn take(&mut self, folder: &str, item: &Item, act: Act) -> Result<(), Error> {
        let path = format!("{}/{}", folder.trim_end_matches('/'), item.name);
        match (act, item.kind) {
            (Act::Logs, ItemKind::Folder) => {
                let act = if item.name == "journal" { Act::RemoveTree } else { Act::Logs };
                for inner in self.list(&path)? {
                    self.take(&path, &inner, act)?;
                }
            }
            (Act::Logs, ItemKind::File) if is_rotated(&item.name) => self.edits.push(Edit::Remove(path)),
            (Act::Empty | Act::Logs, ItemKind::File) => {
                if item.size_bytes > 0 {
                    self.edits.push(Edit::Empty(path));
                }
            }
            (Act::RemoveTree, ItemKind::Folder) => {
                for inner in self.list(&path)? {
                    self.take(&path, &inner, act)?;
                }
                self.edits.push(Edit::RemoveFolder(path));
            }
            (Act::Remove, ItemKind::File) | (Act::RemoveTree, _) => self.edits.push(Edit::Remove(path)),
            // A link such as /etc/machine-id -> /run/machine-id is no secret.
            (Act::Empty | Act::Remove | Act::Logs, _) => {}
        }
        Ok(())
    }
}

/// As logrotate, systemd and dpkg name what they have put aside.
fn is_rotated(name: &str) -> bool {
    let last = name.rsplit(['.', '-']).next().unwrap_or_default();
    let number = name.len() > last.len() && !last.is_empty() && last.chars().all(|c| c.is_ascii_digit());
    number || [".gz", ".xz", ".zst", ".bz2", ".old", ".journal", ".journal~"].iter().any(|end| name.ends_with(end))
}

/// ext2, ext3 and ext4 through e2fsprogs.
struct Debugfs {
    /// File and offset, as e2fsprogs take them.
    target: String,
}

impl Debugfs {
    /// Checks it first: an edit of a damaged file system would damage it more.
    fn open(path: &Path, range: Range<u64>) -> Result<Self, Error> {
        let tree = Self { target: format!("{}?offset={}", path.display(), range.start) };
        check(&tree.target)?;
        Ok(tree)
    }

    fn run(&self, write: bool, commands: &[String], each: &mut dyn FnMut(&str)) -> Result<String, Error> {
        let tool = Tool { program: "debugfs", package: "e2fsprogs", limit: EDIT_LIMIT, fine: &[0] };
        let script = tempfile::NamedTempFile::new().map_err(Error::io("create", "a list of commands"))?;
        std::fs::write(script.path(), commands.join("\n") + "\n").map_err(Error::io("write", script.path()))?;
        let mut arguments = vec!["-f".to_owned(), script.path().display().to_string(), self.target.clone()];
        if write {
            arguments.insert(0, "-w".to_owned());
        }
        let words = tool.run(arguments, each)?;
        // Its status is good whatever happens, so its words count.
        let complaints: Vec<&str> =
            words.lines().filter(|line| !line.starts_with("debugfs 1.") && !line.is_empty()).collect();
        Ok(complaints.join("; "))
    }
}

impl Tree for Debugfs {
    fn list(&self, folder: &str) -> Result<Vec<Item>, Error> {
        let mut items = Vec::new();
        let complaint =
            self.run(false, &[format!("ls -p {}", quoted(folder)?)], &mut |line| items.extend(listed(line)))?;
        match complaint.as_str() {
            "" => Ok(items),
            none if none.contains("File not found") || none.contains("not a directory") => Ok(Vec::new()),
            other => Err(Error::Tool { program: "debugfs", message: other.to_owned() }),
        }
    }

    fn apply(&self, edits: &[Edit]) -> Result<(), Error> {
        let mut commands = Vec::new();
        for edit in edits {
            let path = quoted(edit.path())?;
            match edit {
                Edit::Empty(_) => {
                    commands.extend([format!("punch {path} 0"), format!("set_inode_field {path} size 0")])
                }
                Edit::Remove(_) => commands.push(format!("rm {path}")),
                Edit::RemoveFolder(_) => commands.push(format!("rmdir {path}")),
            }
        }
        let complaint = self.run(true, &commands, &mut |_| ())?;
        if !complaint.is_empty() {
            return Err(Error::Tool { program: "debugfs", message: complaint });
        }
        check(&self.target)
    }
}

/// Checks an ext4 file system and puts right what is safe to.
fn check(target: &str) -> Result<(), Error> {
    // 1: put right; 2: put right, and a mounted one would have to be mounted anew (e2fsck(8)).
    let tool = Tool { program: "e2fsck", package: "e2fsprogs", limit: CHECK_LIMIT, fine: &[0, 1, 2] };
    let mut said = String::new();
    let outcome = tool.run(["-f", "-p", target], &mut |line| {
        if said.len() < 2000 {
            said.push_str(line);
            said.push(' ');
        }
    });
    match outcome {
        Err(Error::Tool { message, .. }) => Err(tool.failed(&format!("{said}{message}"))),
        outcome => outcome.map(drop),
    }
}

/// debugfs takes names in double quotes and knows no way to write one.
fn quoted(path: &str) -> Result<String, Error> {
    if path.contains(['"', '\n']) {
        let why = format!("the name {path:?} cannot be told to debugfs; rename it on the machine");
        return Err(Error::NotGeneralised(why));
    }
    Ok(format!("\"{path}\""))
}

/// A line of `ls -p`: `/inode/mode/user/group/name/size/`. Inode 0 is an unused entry.
fn listed(line: &str) -> Option<Item> {
    let fields: Vec<&str> = line.strip_prefix('/')?.split('/').collect();
    let [inode, mode, _, _, name, size, ..] = fields[..] else { return None };
    if inode == "0" || name == "." || name == ".." {
        return None;
    }
    let kind = match u32::from_str_radix(mode, 8).ok()? & 0o170_000 {
        0o040_000 => ItemKind::Folder,
        0o100_000 => ItemKind::File,
        _ => ItemKind::Other,
    };
    Some(Item { name: name.to_owned(), kind, size_bytes: size.parse().unwrap_or(0) })
}

/// A file system that the kernel mounts, gone when dropped. Paths are resolved as if it were the whole world: links of a
/// foreign system must not lead into this one.
struct Mounted {
    point: PathBuf,
    root: Option<File>,
    _folder: tempfile::TempDir,
    _device: Device,
}

impl Mounted {
    /// # Errors
    /// Why it cannot be mounted.
    fn open(path: &Path, range: Range<u64>, kind: &str, options: &str) -> Result<Self, String> {
        let refused =
            |why: String| format!("its {kind} file system cannot be mounted here, which only root may: {why}");
        let device = attach::attach(path, &range, false).map_err(refused)?;
        let folder =
            tempfile::Builder::new().prefix("rackswarm-capture").tempdir().map_err(|e| refused(e.to_string()))?;
        let point = folder.path().to_owned();
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = std::ffi::CString::new(options).unwrap_or_default();
        mount(device.path(), &point, kind, flags, Some(options.as_c_str())).map_err(|e| refused(e.to_string()))?;
        let mut mounted = Self { point, root: None, _folder: folder, _device: device };
        let root = rustix::fs::openat(CWD, &mounted.point, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        mounted.root = Some(root.map_err(|error| refused(error.to_string()))?.into());
        Ok(mounted)
    }

    fn inside(&self, path: &str, flags: OFlags) -> Result<File, rustix::io::Errno> {
        let root = self.root.as_ref().ok_or(rustix::io::Errno::BADF)?;
        let path = match path.trim_start_matches('/') {
            "" => ".",
            inside => inside,
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).map(File::from)
    }

    fn one(&self, edit: &Edit) -> Result<(), rustix::io::Errno> {
        let path = edit.path();
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = || self.inside(above, OFlags::RDONLY | OFlags::DIRECTORY);
        match edit {
            Edit::Empty(_) => rustix::fs::ftruncate(self.inside(path, OFlags::WRONLY | OFlags::NOFOLLOW)?, 0),
            Edit::Remove(_) => rustix::fs::unlinkat(folder()?, name, AtFlags::empty()),
            Edit::RemoveFolder(_) => rustix::fs::unlinkat(folder()?, name, AtFlags::REMOVEDIR),
        }
    }
}

impl Tree for Mounted {
    fn list(&self, folder: &str) -> Result<Vec<Item>, Error> {
        use rustix::io::Errno;
        let failed = |errno: Errno| Error::io("read", self.point.join(folder.trim_start_matches('/')))(errno.into());
        let open = match self.inside(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            open => open.map_err(failed)?,
        };
        let mut items = Vec::new();
        for entry in Dir::read_from(&open).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            let stat = rustix::fs::statat(&open, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => ItemKind::Folder,
                FileType::RegularFile => ItemKind::File,
                _ => ItemKind::Other,
            };
            items.push(Item { name, kind, size_bytes: u64::try_from(stat.st_size).unwrap_or(0) });
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }

    fn apply(&self, edits: &[Edit]) -> Result<(), Error> {
        for edit in edits {
            let path = self.point.join(edit.path().trim_start_matches('/'));
            self.one(edit).map_err(|errno| Error::io("edit", path)(errno.into()))?;
        }
        match &self.root {
            Some(root) => rustix::fs::syncfs(root).map_err(|errno| Error::io("write", &self.point)(errno.into())),
            None => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // An open folder would keep it mounted.
        self.root = None;
        if let Err(error) = unmount(&self.point, UnmountFlags::empty()) {
            tracing::warn!(folder = %self.point.display(), %error, "stays mounted");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Paths with sizes; folders end with a slash.
    struct Paths(BTreeMap<&'static str, u64>);

    impl Tree for Paths {
        fn list(&self, folder: &str) -> Result<Vec<Item>, Error> {
            let prefix = format!("{}/", folder.trim_end_matches('/'));
            let items = self.0.iter().filter_map(|(path, size)| {
                let rest = path.strip_prefix(&prefix)?;
                let (name, kind) = match rest.strip_suffix('/') {
                    Some(name) => (name, ItemKind::Folder),
                    None => (rest, ItemKind::File),
                };
                let is_here = !name.is_empty() && !name.contains('/');
                is_here.then(|| Item { name: name.to_owned(), kind, size_bytes: *size })
            });
            Ok(items.collect())
        }

        fn apply(&self, _: &[Edit]) -> Result<(), Error> {
            Ok(())
        }
    }

    #[test]
    fn the_rules_find_what_is_one_machines_and_nothing_else() {
        let tree = Paths(BTreeMap::from([
            ("/etc/", 0),
            ("/etc/machine-id", 33),
            ("/etc/fstab", 9),
            ("/etc/ssh/ssh_host_ed25519_key", 400),
            ("/etc/ssh/ssh_host_ed25519_key.pub", 100),
            ("/etc/ssh/sshd_config", 100),
            ("/var/lib/dhcp/dhclient.eth0.leases", 5),
            ("/var/lib/dhcp/dhcpd.conf", 5),
            ("/var/lib/cloud/instances/", 0),
            ("/var/lib/cloud/instances/i-1/", 0),
            ("/var/lib/cloud/instances/i-1/user-data.txt", 5),
            ("/var/lib/cloud/seed/", 0),
            ("/var/log/syslog", 7),
            ("/var/log/empty", 0),
            ("/var/log/syslog.1", 7),
            ("/var/log/apt/", 0),
            ("/var/log/apt/history.log", 7),
            ("/var/log/journal/", 0),
            ("/var/log/journal/0123/", 0),
            ("/var/log/journal/0123/system.journal", 8),
            ("/tmp/lost+found/", 0),
            ("/tmp/x", 1),
            ("/home/", 0),
            ("/home/ada/", 0),
            ("/home/ada/.bash_history", 4),
            ("/home/ada/.bashrc", 4),
        ]));
        assert_eq!(place_of(&tree).unwrap(), Some(""));
        let remove = |path: &str| Edit::Remove(path.to_owned());
        let empty = |path: &str| Edit::Empty(path.to_owned());
        let folder = |path: &str| Edit::RemoveFolder(path.to_owned());
        assert_eq!(
            plan(&tree, "").unwrap(),
            [
                empty("/etc/machine-id"),
                remove("/etc/ssh/ssh_host_ed25519_key"),
                remove("/etc/ssh/ssh_host_ed25519_key.pub"),
                remove("/var/lib/cloud/instances/i-1/user-data.txt"),
                folder("/var/lib/cloud/instances/i-1"),
                folder("/var/lib/cloud/instances"),
                remove("/var/lib/dhcp/dhclient.eth0.leases"),
                empty("/var/log/apt/history.log"),
                remove("/var/log/journal/0123/system.journal"),
                folder("/var/log/journal/0123"),
                empty("/var/log/syslog"),
                remove("/var/log/syslog.1"),
                remove("/tmp/x"),
                remove("/home/ada/.bash_history"),
            ]
        );
    }

    #[test]
    fn var_may_be_a_file_system_of_its_own() {
        let tree = Paths(BTreeMap::from([("/lib/", 0), ("/log/", 0), ("/log/syslog", 7), ("/lib/dhcp/x.leases", 1)]));
        assert_eq!(place_of(&tree).unwrap(), Some("/var"));
        assert_eq!(
            plan(&tree, "/var").unwrap(),
            [Edit::Remove("/lib/dhcp/x.leases".into()), Edit::Empty("/log/syslog".into())]
        );
        let logs = Paths(BTreeMap::from([("/wtmp", 384), ("/journal/", 0)]));
        assert_eq!(place_of(&logs).unwrap(), Some("/var/log"));
        assert_eq!(plan(&logs, "/var/log").unwrap(), [Edit::Empty("/wtmp".into())]);
        assert_eq!(place_of(&Paths(BTreeMap::from([("/photos/", 0)]))).unwrap(), None);
    }

    #[test]
    fn rotated_logs_are_known_by_their_names() {
        for name in ["syslog.1", "dpkg.log.2.gz", "maillog-20261101", "x.log.old", "system@1-2.journal~"] {
            assert!(is_rotated(name), "{name}");
        }
        for name in ["syslog", "wtmp", "dpkg.log", "2026", "auth.log", "fail2ban.log"] {
            assert!(!is_rotated(name), "{name}");
        }
    }

    #[test]
    fn what_debugfs_lists_is_understood() {
        let item = |name: &str, kind, size_bytes| Some(Item { name: name.to_owned(), kind, size_bytes });
        assert_eq!(listed("/13/100644/0/0/pass wd/1541/"), item("pass wd", ItemKind::File, 1541));
        assert_eq!(listed("/12/040755/0/0/log//"), item("log", ItemKind::Folder, 0));
        assert_eq!(listed("/12/120777/0/0/link/7/"), item("link", ItemKind::Other, 7));
        for none in ["/12/040755/0/0/.//", "/0/000000/0/0/gone/0/", "debugfs: ls", ""] {
            assert_eq!(listed(none), None, "{none}");
        }
        assert!(quoted("/a\"b").is_err());
    }
}
