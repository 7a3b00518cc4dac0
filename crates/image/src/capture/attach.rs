//! A block device for one partition, for programs that know no offsets.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tool::Tool;

/// `losetup` only talks to the kernel.
const LIMIT: Duration = Duration::from_secs(30);

/// A partition's device; one that was made for it goes when this is dropped.
#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    made: bool,
}

impl Device {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The kernel's device for a partition of a disk; a read-only loop device for one of a file.
///
/// # Errors
/// Why there is none.
pub(super) fn device_of(file: &File, disk: &Path, number: Option<u32>, range: &Range<u64>) -> Result<Device, String> {
    let is_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    if is_device && number.is_none() {
        return Ok(Device { path: disk.to_owned(), made: false });
    }
    if let Some(path) = number.filter(|_| is_device).map(|number| name_of(disk, number)).filter(|path| path.exists()) {
        return Ok(Device { path, made: false });
    }
    attach(disk, range, true)
}

/// A loop device for a part of a file or disk.
///
/// # Errors
/// Why there is none.
pub(super) fn attach(disk: &Path, range: &Range<u64>, read_only: bool) -> Result<Device, String> {
    let tool = Tool { program: "losetup", package: "mount", limit: LIMIT, fine: &[0] };
    let mut arguments = vec!["--find".to_owned(), "--show".to_owned()];
    if read_only {
        arguments.push("--read-only".to_owned());
    }
    arguments.extend(["--offset".to_owned(), range.start.to_string()]);
    arguments.extend(["--sizelimit".to_owned(), (range.end - range.start).to_string()]);
    arguments.push(disk.display().to_string());
    let mut path = String::new();
    tool.run(arguments, &mut |line| path = line.to_owned()).map_err(|error| error.to_string())?;
    Ok(Device { path: path.into(), made: true })
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.made {
            let tool = Tool { program: "losetup", package: "mount", limit: LIMIT, fine: &[0] };
            if let Err(error) = tool.run([Path::new("--detach"), &self.path], &mut |_| ()) {
                tracing::warn!(device = %self.path.display(), %error, "stays attached");
            }
        }
    }
}

/// As the kernel names partitions: a `p` between where the disk's name ends with a digit.
fn name_of(disk: &Path, number: u32) -> PathBuf {
    let name = disk.display().to_string();
    let between = if name.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    format!("{name}{between}{number}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        assert_eq!(name_of(Path::new("/dev/sda"), 3), Path::new("/dev/sda3"));
        assert_eq!(name_of(Path::new("/dev/nvme0n1"), 12), Path::new("/dev/nvme0n1p12"));
    }
}
