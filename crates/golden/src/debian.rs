//! The Debian recipe: mmdebstrap installs packages into a tree, this file makes a server of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootenv::cache::{Cache, set_mode};
use bootenv::command::Run;
use serde::{Deserialize, Serialize};

use crate::disk::{Layout, Loaders};
use crate::error::{Error, file};
use crate::ids::Ids;
use crate::{Options, System, grub_config, put};

/// Raised when the same packages shall be installed in another way.
const ROOT_FORMAT: u32 = 1;
/// mmdebstrap takes one minute with a near mirror and two idle cores.
const INSTALL: Duration = Duration::from_secs(1800);

/// What every image has beyond Debian's required packages.
const PACKAGES: &[&str] = &[
    // init, devices, network
    "systemd-sysv",
    "udev",
    "dbus",
    "systemd-resolved",
    "iproute2",
    // the operator's way in, and the way to packages
    "openssh-server",
    "ca-certificates",
    // what boots it: zstd makes the initramfs unpack quickly
    "linux-image-cloud-amd64",
    "zstd",
    "e2fsprogs",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "grub-efi-amd64-signed",
    "shim-signed",
];

/// Left out when packages are unpacked. Copyright files stay: licences ask for them.
const EXCLUDED: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Interfaces are `eth0`, `eth1`... in the order of discovery, the same on every board; the console is on screen and serial
/// port; a crashed kernel starts again. `no_timer_check`: on a busy host an emulated timer may fail the kernel's test.
const KERNEL_LINE: &str = "quiet net.ifnames=0 console=tty0 console=ttyS0,115200 no_timer_check panic=10";

/// Files that make a server of the installed packages, with their permission bits.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/machine-id", 0o444, ""),
    ("etc/hosts", 0o644, include_str!("../files/debian/hosts")),
    ("etc/default/grub", 0o644, include_str!("../files/debian/default-grub")),
    ("etc/systemd/network/80-dhcp.network", 0o644, include_str!("../files/debian/80-dhcp.network")),
    (
        "etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf",
        0o644,
        include_str!("../files/debian/wait-online-any.conf"),
    ),
    ("etc/systemd/system/ssh-host-keys.service", 0o644, include_str!("../files/debian/ssh-host-keys.service")),
];

/// Units that packages leave off.
const ENABLED: &[&str] = &["systemd-networkd.service", "ssh-host-keys.service"];

/// A minimal Debian server: systemd, DHCP on every wired interface, OpenSSH, serial console, root locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Debian {
    /// The release.
    pub suite: String,
    /// The disk's size in MiB, at least 768.
    pub size_mib: u64,
    /// Packages beyond the recipe's own.
    pub packages: Vec<String>,
    /// Where packages come from: a mirror's address or a `sources.list` file. None: mmdebstrap's default for the release,
    /// security updates included.
    pub mirror: Option<String>,
    /// The host name until post actions set another.
    pub hostname: String,
}

impl Default for Debian {
    fn default() -> Self {
        Debian {
            suite: "bookworm".to_owned(),
            size_mib: 1536,
            packages: Vec::new(),
            mirror: None,
            hostname: "debian".to_owned(),
        }
    }
}

/// Puts the finished system into `root`.
pub(crate) fn install(
    recipe: &Debian,
    options: &Options,
    cache: &Cache,
    work: &Path,
    root: &Path,
    ids: &Ids,
    progress: &dyn Fn(&str),
) -> Result<System, Error> {
    check(recipe)?;
    let tar = root_tar(recipe, options, cache, work, progress)?;
    progress("unpack the installed system");
    fs::create_dir(root).map_err(file("make the folder", root))?;
    Run::new("tar", "tar")
        .args(["--extract", "--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*", "--file"])
        .args([&tar, Path::new("--directory"), root])
        .to("unpack the installed system")
        .output()?;

    progress("configure it");
    let kernel_version = configure(recipe, root, ids)?;
    let loaders = Loaders {
        shim: need(root, "usr/lib/shim/shimx64.efi.signed", "shim-signed")?,
        grub_efi: need(root, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "grub-efi-amd64-signed")?,
        grub_bios: root.join("usr/lib/grub/i386-pc"),
        chroot: Some(root.to_owned()),
    };
    let layout = Layout { disk_bytes: recipe.size_mib << 20, esp_bytes: 32 << 20, esp_cluster_sectors: 4 };
    Ok(System { loaders, layout, kernel_version, packages: installed(root)? })
}

/// The names go onto command lines and into configuration, so they must be what they claim to be.
fn check(recipe: &Debian) -> Result<(), Error> {
    let wrong = |what: &str, text: &str| Err(Error::Recipe(format!("{text:?} is no {what}")));
    if recipe.size_mib < 768 || recipe.size_mib > 1 << 20 {
        return Err(Error::Recipe(format!("{} MiB is not between 768 MiB and 1 TiB", recipe.size_mib)));
    }
    if !is_name(&recipe.suite, "-") {
        return wrong("Debian release", &recipe.suite);
    }
    if !is_name(&recipe.hostname, "-") {
        return wrong("host name", &recipe.hostname);
    }
    match recipe.packages.iter().find(|name| !is_name(name, "+-.")) {
        Some(name) => wrong("package name", name),
        None => Ok(()),
    }
}

fn is_name(text: &str, also: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
    text.len() <= 63 && text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The installed packages as a tar file, from the cache when the same ones were installed before.
fn root_tar(
    recipe: &Debian,
    options: &Options,
    cache: &Cache,
    work: &Path,
    progress: &dyn Fn(&str),
) -> Result<PathBuf, Error> {
    let mut packages: Vec<&str> = PACKAGES.iter().copied().chain(recipe.packages.iter().map(String::as_str)).collect();
    packages.sort_unstable();
    packages.dedup();
    let inputs = (ROOT_FORMAT, &recipe.suite, &packages, EXCLUDED, &recipe.mirror, options.source_date_epoch);
    let kept = cache.folder("golden")?.join(format!("debian-root-{}.tar", crate::key(&inputs)?));
    if kept.exists() && !options.refresh {
        progress(&format!("the cache has the installed packages: {}", kept.display()));
        return Ok(kept);
    }
    progress(&format!("install {} with mmdebstrap, which takes about two minutes", recipe.suite));
    let fresh = work.join("root.tar");
    let line = |text: &str| progress(text.trim_start_matches("I: "));
    // Mounts and processes live in name spaces of their own, which the kernel clears when this process ends in any way.
    let mut run = Run::new("setpriv", "util-linux")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"3\""])
        .args(EXCLUDED.iter().map(|option| format!("--dpkgopt={option}")))
        .args([format!("--include={}", packages.join(",")), recipe.suite.clone()])
        .args([&fresh]);
    if let Some(mirror) = &recipe.mirror {
        run = run.args([mirror]);
    }
    run.env("TMPDIR", work)
        .env("SOURCE_DATE_EPOCH", options.source_date_epoch.to_string())
        .to("install Debian with mmdebstrap")
        .hint("; check that mmdebstrap is installed, the release exists and the package registry can be reached")
        .deadline(INSTALL)
        .lines_to(&line)
        .output()?;
    fs::rename(&fresh, &kept).map_err(file("keep", &kept))?;
    Ok(kept)
}

/// Turns the installed packages into a server, and gives the kernel's version.
fn configure(recipe: &Debian, root: &Path, ids: &Ids) -> Result<String, Error> {
    for (path, mode, text) in FILES {
        put(root, path, *mode, &text.replace("@HOSTNAME@", &recipe.hostname).replace("@LINE@", KERNEL_LINE))?;
    }
    put(root, "etc/hostname", 0o644, &format!("{}\n", recipe.hostname))?;
    put(root, "etc/fstab", 0o644, &fstab(ids))?;
    fs::create_dir_all(root.join("boot/efi")).map_err(file("make the folder", root.join("boot/efi")))?;

    let units = Run::new("chroot", "coreutils").args([root.as_os_str(), "systemctl".as_ref(), "enable".as_ref()]);
    units.args(ENABLED).to("enable units").output()?;
    // A key or an identity in an image would be shared by every machine.
    remove_matching(&root.join("etc/ssh"), |name| name.starts_with("ssh_host_"))?;
    remove_matching(&root.join("var/lib/systemd"), |name| name == "random-seed")?;
    lock_root(root)?;

    let version = kernel_version(root)?;
    let modules = root.join("usr/lib/grub/i386-pc");
    for name in names(&modules)?.iter().filter(|name| name.ends_with(".mod") || name.ends_with(".lst")) {
        crate::copy(root, &format!("boot/grub/i386-pc/{name}"), 0o644, &modules.join(name))?;
    }
    let (kernel, initramfs) = (format!("/boot/vmlinuz-{version}"), format!("/boot/initrd.img-{version}"));
    need(root, initramfs.trim_start_matches('/'), "initramfs-tools")?;
    put(root, "boot/grub/grub.cfg", 0o644, &grub_config("Debian GNU/Linux", &kernel, &initramfs, ids, KERNEL_LINE))?;
    Ok(version)
}

fn fstab(ids: &Ids) -> String {
    format!(
        "UUID={} / ext4 defaults,errors=remount-ro 0 1\nUUID={} /boot/efi vfat umask=0077,noauto 0 0\n",
        ids.root_file_system,
        ids.esp_volume_text()
    )
}

/// Debian locks root when nobody gives a password; this holds whatever extra packages did.
fn lock_root(root: &Path) -> Result<(), Error> {
    let path = root.join("etc/shadow");
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    let lines = text.lines().map(|line| match line.strip_prefix("root:").and_then(|rest| rest.split_once(':')) {
        Some((_, rest)) => format!("root:*:{rest}\n"),
        None => format!("{line}\n"),
    });
    fs::write(&path, lines.collect::<String>()).map_err(file("write", &path))?;
    Ok(set_mode(&path, 0o640)?)
}

fn kernel_version(root: &Path) -> Result<String, Error> {
    let mut versions: Vec<String> =
        names(&root.join("boot"))?.iter().filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).collect();
    versions.sort();
    let missing = Error::NotInstalled { path: "boot/vmlinuz-*".to_owned(), package: "linux-image-cloud-amd64" };
    versions.pop().ok_or(missing)
}

fn need(root: &Path, path: &str, package: &'static str) -> Result<PathBuf, Error> {
    let found = root.join(path);
    if found.is_file() { Ok(found) } else { Err(Error::NotInstalled { path: path.to_owned(), package }) }
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(file("list", folder))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn remove_matching(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<(), Error> {
    for name in names(folder)?.into_iter().filter(|name| matches(name)) {
        fs::remove_file(folder.join(&name)).map_err(file("remove", folder.join(&name)))?;
    }
    Ok(())
}

/// Reads dpkg's own list.
fn installed(root: &Path) -> Result<BTreeMap<String, String>, Error> {
    let path = root.join("var/lib/dpkg/status");
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    Ok(text.split("\n\n").filter_map(name_and_version).collect())
}

fn name_and_version(paragraph: &str) -> Option<(String, String)> {
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    field("Status:").filter(|status| status.ends_with(" installed"))?;
    Some((field("Package:")?.to_owned(), field("Version:")?.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_they_reach_a_command_line() {
        assert!(check(&Debian::default()).is_ok());
        let wrong = |recipe: Debian| check(&recipe).unwrap_err().to_string();
        assert!(wrong(Debian { suite: "--help".to_owned(), ..Debian::default() }).contains("release"));
        assert!(wrong(Debian { packages: vec!["a b".to_owned()], ..Debian::default() }).contains("package"));
        assert!(wrong(Debian { hostname: "A".to_owned(), ..Debian::default() }).contains("host name"));
        assert!(wrong(Debian { size_mib: 100, ..Debian::default() }).contains("768"));
        assert!(check(&Debian { packages: vec!["libstdc++6".to_owned()], ..Debian::default() }).is_ok());
    }

    #[test]
    fn root_is_locked_whatever_stood_there() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/shadow"), "root::20089:0:99999:7:::\ndaemon:*:20089::::::\n").unwrap();
        lock_root(root.path()).unwrap();
        let text = fs::read_to_string(root.path().join("etc/shadow")).unwrap();
        assert_eq!(text, "root:*:20089:0:99999:7:::\ndaemon:*:20089::::::\n");
    }

    #[test]
    fn only_installed_packages_are_listed() {
        let text = "Package: a\nStatus: install ok installed\nVersion: 1-2\n";
        assert_eq!(name_and_version(text).unwrap(), ("a".to_owned(), "1-2".to_owned()));
        assert!(name_and_version("Package: b\nStatus: deinstall ok config-files\nVersion: 1\n").is_none());
    }
}
