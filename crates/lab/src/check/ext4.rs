//! An ext4 file system, taken apart by e2fsprogs without mounting it.
//!
//! `debugfs rdump` gives the contents but drops the set-user-id bits and passes over special files, so modes and owners
//! come from its listings instead. A disk that was switched off while its system ran has changes in its journal; they
//! are played back on a copy, so that the evidence stays as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::partitions::Partition;
use crate::tool;

const KIND_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

#[derive(Debug)]
pub(super) struct Tree {
    folder: PathBuf,
    pub(super) entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Kind and permissions, as in `st_mode`.
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Link,
    /// Folders and special files: nothing to read in them.
    Other,
}

impl Entry {
    pub(super) fn kind(self) -> Kind {
        match self.mode & KIND_MASK {
            FILE => Kind::File,
            LINK => Kind::Link,
            _ => Kind::Other,
        }
    }
}

impl Tree {
    /// Takes the file system in `partition` of `disk` apart into `folder`, which is removed with the tree.
    pub(super) fn dump(disk: &Path, partition: &Partition, folder: &Path) -> Result<Tree> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut tree = Tree { folder: folder.to_owned(), entries: BTreeMap::new() };
        let copy = folder.join("root.ext4");
        copy_out(disk, partition, &copy)?;
        play_journal(&copy)?;
        let files = tree.files();
        std::fs::create_dir(&files).with_context(|| format!("cannot make {}", files.display()))?;
        debugfs(&copy, &format!("rdump / \"{}\"\n", files.display()))?;
        tree.list(&copy)?;
        std::fs::remove_file(&copy)?;
        Ok(tree)
    }

    /// Where the content of `path` (absolute within the file system) lies.
    pub(super) fn content(&self, path: &str) -> PathBuf {
        self.files().join(path.trim_start_matches('/'))
    }

    fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// Reads modes and owners, one level of folders after the other.
    fn list(&mut self, copy: &Path) -> Result<()> {
        let mut level = vec![String::new()];
        while !level.is_empty() {
            if let Some(odd) = level.iter().find(|path| path.contains(['"', '\n'])) {
                bail!("the name of the folder {odd} has a quote or a line end, which debugfs cannot read");
            }
            let commands: String = level.iter().map(|path| format!("ls -p \"{path}/\"\n")).collect();
            let mut below = Vec::new();
            let mut place = "";
            for line in debugfs(copy, &commands)?.lines() {
                if let Some(command) = line.strip_prefix("debugfs: ls -p \"") {
                    place = level
                        .iter()
                        .find(|path| command.strip_suffix("/\"") == Some(path.as_str()))
                        .map_or("", String::as_str);
                } else if let Some((name, entry)) = read_line(line)? {
                    let path = format!("{place}/{name}");
                    if entry.mode & KIND_MASK == FOLDER {
                        below.push(path.clone());
                    }
                    self.entries.insert(path, entry);
                }
            }
            level = below;
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn copy_out(disk: &Path, partition: &Partition, copy: &Path) -> Result<()> {
    let words = [
        format!("if={}", disk.display()),
        format!("of={}", copy.display()),
        format!("skip={}", partition.start_byte),
        format!("count={}", partition.length_bytes),
    ];
    let fixed = ["bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none"].map(str::to_owned);
    tool::run("dd", words.into_iter().chain(fixed)).map(drop)
}

fn play_journal(copy: &Path) -> Result<()> {
    let output = tool::output("e2fsck", [Path::new("-p"), Path::new("-E"), Path::new("journal_only"), copy])?;
    // 1 and 2: something was put right, which is what playing a journal back means (e2fsck(8)).
    match output.status.code() {
        Some(0..=2) => Ok(()),
        _ => bail!(
            "the journal of {} cannot be played back: {}",
            copy.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// Runs debugfs commands. It ends well whatever happens, so any complaint on its standard error counts.
fn debugfs(copy: &Path, commands: &str) -> Result<String> {
    let script = copy.with_extension("commands");
    std::fs::write(&script, commands)?;
    let output = tool::output("debugfs", [Path::new("-f"), &script, copy])?;
    std::fs::remove_file(&script)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint: Vec<&str> =
        complaint.lines().filter(|line| !line.starts_with("debugfs 1.") && !line.trim().is_empty()).collect();
    if !output.status.success() || !complaint.is_empty() {
        bail!("debugfs cannot read the file system: {}", complaint.join("; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line of `ls -p`: `/inode/mode/user/group/name/size/`.
fn read_line(line: &str) -> Result<Option<(String, Entry)>> {
    let Some(rest) = line.strip_prefix('/') else { return Ok(None) };
    let fields: Vec<&str> = rest.split('/').collect();
    let [inode, mode, user, group, name, ..] = fields[..] else {
        bail!("debugfs says `{line}`, which is not understood")
    };
    // Inode 0 is an unused entry of a folder, such as lost+found has.
    if inode == "0" || name == "." || name == ".." {
        return Ok(None);
    }
    let number = |text: &str, radix| u32::from_str_radix(text, radix).with_context(|| format!("debugfs says `{line}`"));
    let entry = Entry { mode: number(mode, 8)?, owner: (number(user, 10)?, number(group, 10)?) };
    Ok(Some((name.to_owned(), entry)))
}
