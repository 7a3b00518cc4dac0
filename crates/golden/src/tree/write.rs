//! File systems of an image, each with its part of the tree. Nothing is mounted but xfs, which only a kernel can fill.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootenv::command::Run;
use fleet::layout::{Kind, Layout};
use rustix::io::Errno;

use super::place::{Need, Slot, inodes, points};
use crate::disk::MKE2FS_CONF;
use crate::error::{Error, file};

/// Filling and checking a file system of some hundred GiB.
const FILL: Duration = Duration::from_secs(3600);

/// The identity of a file system as `/etc/fstab` writes it.
pub(crate) fn new_identity(kind: Kind) -> String {
    let id = uuid::Uuid::new_v4();
    match kind {
        // A FAT volume number of zero means "none".
        Kind::Vfat => {
            let number = id.as_fields().0 | 1;
            format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
        }
        Kind::Ext4 | Kind::Xfs | Kind::Swap => id.to_string(),
    }
}

/// Moves what lies under each mount point into a folder of its own, the root's included.
pub(crate) fn split(root: &Path, layout: &Layout, work: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut parts = BTreeMap::new();
    for (number, at) in points(layout).into_iter().enumerate() {
        if at == "/" {
            parts.insert(at.to_owned(), root.to_owned());
            continue;
        }
        let (from, to) = (root.join(&at[1..]), work.join(format!("part{number}")));
        let found = fs::symlink_metadata(&from).map_err(file("look at", &from))?;
        fs::rename(&from, &to).map_err(file("move", &from))?;
        fs::create_dir(&from).map_err(file("make the folder", &from))?;
        std::os::unix::fs::chown(&from, Some(found.uid()), Some(found.gid()))
            .map_err(file("set the owner of", &from))?;
        fs::set_permissions(&from, fs::Permissions::from_mode(found.mode() & 0o7777))
            .map_err(file("set the mode of", &from))?;
        parts.insert(at.to_owned(), to);
    }
    Ok(parts)
}

/// Makes one file system in the image, fills it, and has its own tool check it.
pub(crate) fn file_system(
    image: &Path,
    slot: &Slot,
    part: Option<&Path>,
    identity: &str,
    need: Need,
    work: &Path,
) -> Result<(), Error> {
    let Some(mount) = &slot.mount else { return Ok(()) };
    let label = mount.label.as_deref();
    if let (Kind::Ext4, Some(part)) = (mount.kind, part) {
        return ext4(image, slot, part, identity, label, need, work);
    }
    let draft = work.join("draft");
    let made = File::create(&draft).map_err(file("create", &draft))?;
    made.set_len(slot.size_bytes).map_err(file("size", &draft))?;
    match (mount.kind, part) {
        (Kind::Xfs, Some(part)) => xfs(&draft, part, identity, label, work)?,
        (Kind::Vfat, Some(part)) => vfat(&draft, part, identity, label)?,
        _ => swap(&draft, identity, label)?,
    }
    copy_data(&draft, image, slot.start_bytes)?;
    fs::remove_file(&draft).map_err(file("remove", &draft))
}

/// mke2fs copies a folder with owners, attributes, links and devices; the root folder's own mode is set afterwards.
fn ext4(
    image: &Path,
    slot: &Slot,
    part: &Path,
    identity: &str,
    label: Option<&str>,
    need: Need,
    work: &Path,
) -> Result<(), Error> {
    let conf = work.join("mke2fs.conf");
    fs::write(&conf, MKE2FS_CONF).map_err(file("write", &conf))?;
    let top = fs::symlink_metadata(part).map_err(file("look at", part))?;
    let offset = slot.start_bytes;
    let extended =
        format!("offset={offset},root_owner={}:{},assume_storage_prezeroed=1,nodiscard", top.uid(), top.gid());
    Run::new("mke2fs", "e2fsprogs")
        .env("MKE2FS_CONFIG", &conf)
        .args([
            "-q",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-U",
            identity,
            "-N",
            &inodes(slot.size_bytes, need.files).to_string(),
        ])
        .args(label.iter().flat_map(|label| ["-L", label]))
        .args(["-E", &extended, "-d"])
        .args([part, image])
        .args([(slot.size_bytes / 4096).to_string()])
        .to(&format!("make and fill {}", slot.name))
        .hint("; if it is full, give the partition more room")
        .deadline(FILL)
        .output()?;
    let address = format!("{}?offset={offset}", image.display());
    let script = work.join("root-mode");
    fs::write(&script, format!("sif <2> mode 0{:o}\n", top.mode())).map_err(file("write", &script))?;
    Run::new("debugfs", "e2fsprogs")
        .args(["-w", "-f", &script.to_string_lossy(), &address])
        .to(&format!("set the mode of the root folder of {}", slot.name))
        .output()?;
    Run::new("e2fsck", "e2fsprogs")
        .args(["-f", "-n", &address])
        .to(&format!("check {}", slot.name))
        .deadline(FILL)
        .output()?;
    Ok(())
}

/// Mounted in a name space of its own, which the kernel clears when this process ends in any way.
fn xfs(draft: &Path, part: &Path, identity: &str, label: Option<&str>, work: &Path) -> Result<(), Error> {
    const FILL_IT: &str = "mount -t xfs -o loop,noatime \"$0\" \"$1\" && cp --archive --no-target-directory \"$2\" \"$1\" && umount \"$1\"";
    Run::new("mkfs.xfs", "xfsprogs")
        .args(["-q", "-f", "-m", &format!("uuid={identity}")])
        .args(label.iter().flat_map(|label| ["-L", label]))
        .args([draft])
        .to("make an xfs")
        .output()?;
    let point = work.join("point");
    fs::create_dir_all(&point).map_err(file("make the folder", &point))?;
    Run::new("setpriv", "util-linux")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", FILL_IT])
        .args([draft, &point, part])
        .to("fill an xfs")
        .hint("; it takes loop devices and a kernel with xfs: where they are not to be had, use ext4 in the layout")
        .deadline(FILL)
        .output()?;
    Run::new("xfs_repair", "xfsprogs").args(["-n", "-f"]).args([draft]).to("check an xfs").deadline(FILL).output()?;
    Ok(())
}

fn vfat(draft: &Path, part: &Path, identity: &str, label: Option<&str>) -> Result<(), Error> {
    expect_plain(part)?;
    Run::new("mkfs.vfat", "dosfstools")
        .args(["-F", "32", "-i", &identity.replace('-', "")])
        .args(label.iter().flat_map(|label| ["-n", label]))
        .args([draft])
        .to("make a FAT file system")
        .output()?;
    let mut entries = Vec::new();
    for entry in fs::read_dir(part).map_err(file("list", part))? {
        entries.push(entry.map_err(file("list", part))?.path());
    }
    if !entries.is_empty() {
        Run::new("mcopy", "mtools")
            .env("MTOOLS_SKIP_CHECK", "1")
            .args(["-s", "-m", "-Q", "-i"])
            .args([draft])
            .args(entries)
            .args(["::"])
            .to("fill a FAT file system")
            .deadline(FILL)
            .output()?;
    }
    Run::new("fsck.vfat", "dosfstools").args(["-n"]).args([draft]).to("check a FAT file system").output()?;
    Ok(())
}

/// FAT knows folders and files only.
fn expect_plain(part: &Path) -> Result<(), Error> {
    let mut left = vec![part.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).map_err(file("list", &folder))? {
            let entry = entry.map_err(file("list", &folder))?;
            let kind = entry.file_type().map_err(file("look at", entry.path()))?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if !kind.is_file() {
                let path = entry.path();
                let name = path.strip_prefix(part).unwrap_or(&path).display();
                return Err(Error::Tree(format!(
                    "{name} is a link or a device, and the layout has it on vfat, which knows none; use ext4 there"
                )));
            }
        }
    }
    Ok(())
}

fn swap(draft: &Path, identity: &str, label: Option<&str>) -> Result<(), Error> {
    // mkswap warns of modes that let others read what was swapped out.
    fs::set_permissions(draft, fs::Permissions::from_mode(0o600)).map_err(file("set the mode of", draft))?;
    Run::new("mkswap", "util-linux")
        .args(["--uuid", identity])
        .args(label.iter().flat_map(|label| ["--label", label]))
        .args([draft])
        .to("make swap")
        .output()?;
    Ok(())
}

/// Copies what is not a hole and not zero.
fn copy_data(from: &Path, image: &Path, start_bytes: u64) -> Result<(), Error> {
    let mut source = File::open(from).map_err(file("open", from))?;
    let target = File::options().write(true).open(image).map_err(file("open", image))?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = data,
            // No data after this place.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(file("read", from)(errno.into())),
        }
        source.seek(SeekFrom::Start(at)).map_err(file("read", from))?;
        let got = source.read(&mut buffer).map_err(file("read", from))?;
        if got == 0 {
            return Ok(());
        }
        for (block, bytes) in (0u64..).zip(buffer.get(..got).unwrap_or_default().chunks(4096)) {
            if bytes.iter().any(|byte| *byte != 0) {
                target.write_all_at(bytes, start_bytes + at + block * 4096).map_err(file("write", image))?;
            }
        }
        at += got as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn data_is_copied_to_its_place_and_holes_stay() {
        let work = tempfile::tempdir().unwrap();
        let (from, image) = (work.path().join("from"), work.path().join("image"));
        let source = File::create(&from).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"begin", 0).unwrap();
        source.write_all_at(b"middle", (33 << 20) + 7).unwrap();
        File::create(&image).unwrap().set_len(80 << 20).unwrap();
        copy_data(&from, &image, 1 << 20).unwrap();
        let found = fs::read(&image).unwrap();
        assert_eq!(&found[1 << 20..(1 << 20) + 5], b"begin");
        assert_eq!(&found[(34 << 20) + 7..(34 << 20) + 13], b"middle");
        assert!(fs::metadata(&image).unwrap().blocks() < 64);
    }

    #[test]
    fn fat_takes_no_links() {
        let part = tempfile::tempdir().unwrap();
        fs::create_dir(part.path().join("EFI")).unwrap();
        assert!(expect_plain(part.path()).is_ok());
        std::os::unix::fs::symlink("x", part.path().join("EFI/link")).unwrap();
        assert!(expect_plain(part.path()).unwrap_err().to_string().contains("EFI/link"));
    }

    #[test]
    fn identities_are_fresh_and_of_their_kind() {
        assert_ne!(new_identity(Kind::Ext4), new_identity(Kind::Ext4));
        assert_eq!(new_identity(Kind::Xfs).len(), 36);
        let fat = new_identity(Kind::Vfat);
        assert!(fat.len() == 9 && fat.as_bytes()[4] == b'-' && fat != "0000-0000", "{fat}");
    }
}
