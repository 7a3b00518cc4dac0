//! The Debian packages that the demo, the tests and the bench need, and what each is for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run;

/// Who needs a package; each needs what stands before as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For {
    /// Whoever builds the program and uses it on machines of his own.
    Use,
    /// The demo.
    Demo,
    /// The tests.
    Tests,
    /// The bench.
    Bench,
}

/// Name, and what it is for.
type Package = (&'static str, &'static str);

/// Package, who needs it, what for.
const PACKAGES: &[(&str, For, &str)] = &[
    ("gcc", For::Use, "linker; compiles the embedded database"),
    ("libc6-dev", For::Use, "headers for the same"),
    ("musl-tools", For::Use, "linker of the static agent"),
    ("qemu-system-x86", For::Demo, "the virtual machines"),
    ("qemu-utils", For::Use, "reads qcow2 and other image formats"),
    ("ovmf", For::Demo, "UEFI firmware of the virtual machines"),
    ("ipxe", For::Use, "network boot loaders"),
    ("ipxe-qemu", For::Demo, "network ROMs of the virtual machines"),
    ("iproute2", For::Demo, "namespaces, bridges and taps"),
    ("mmdebstrap", For::Demo, "makes the golden image's file system"),
    ("e2fsprogs", For::Demo, "writes and checks ext4 without mounting"),
    ("dosfstools", For::Demo, "writes the EFI system partition"),
    ("mtools", For::Demo, "copies files into it without mounting"),
    ("gdisk", For::Demo, "looks at partition tables"),
    ("grub-pc-bin", For::Demo, "boot loader of the golden image for BIOS"),
    ("grub-efi-amd64-bin", For::Demo, "boot loader of the golden image for UEFI"),
    ("grub-common", For::Demo, "puts both together"),
    ("xz-utils", For::Use, "unpacks kernel modules"),
    ("zstd", For::Demo, "packs the golden image's file system"),
    ("cpio", For::Demo, "looks into the initramfs"),
    ("ca-certificates", For::Use, "package downloads"),
    ("g++", For::Tests, "the fuzzer's runtime"),
    ("dnsmasq-base", For::Tests, "a foreign DHCP server, and a foreign client of ours"),
    ("isc-dhcp-server", For::Tests, "judges the lines that we write for it"),
    ("kea-dhcp4-server", For::Tests, "judges the lines that we write for it"),
    ("fdisk", For::Tests, "sfdisk, which divides disks by MBR"),
    ("xfsprogs", For::Tests, "captures xfs, and judges what was captured"),
    ("skopeo", For::Tests, "writes container images, which trees are made of"),
    ("udhcpc", For::Tests, "a DHCP client"),
    ("isc-dhcp-client", For::Tests, "a DHCP client"),
    ("tftp-hpa", For::Tests, "a TFTP client"),
    ("atftp", For::Tests, "a TFTP client"),
    ("curl", For::Tests, "an HTTP and TFTP client"),
    ("aria2", For::Tests, "an ordinary BitTorrent client"),
    ("python3-venv", For::Tests, "holds libtorrent, moto and sushy-tools, which judge torrents and power drivers"),
    ("libvirt-daemon", For::Tests, "drives virtual machines"),
    ("libvirt-daemon-driver-qemu", For::Tests, "the same, with QEMU"),
    ("libvirt-clients", For::Tests, "virsh, through which the libvirt driver works"),
    ("python3-libvirt", For::Tests, "what sushy-tools reaches libvirt with"),
    ("transmission-daemon", For::Tests, "an ordinary BitTorrent client"),
    ("transmission-cli", For::Tests, "the same on the command line"),
    ("ctorrent", For::Bench, "an ordinary BitTorrent client that is small and cheap"),
    ("udpcast", For::Bench, "multicast"),
    ("uftp", For::Bench, "multicast"),
    ("socat", For::Bench, "the plain TCP chain"),
    ("nginx-light", For::Bench, "the web server that few nodes are compared with"),
    ("openipmi", For::Tests, "ipmi_sim, a simulated management controller"),
    ("ipmitool", For::Tests, "drives management controllers"),
    ("postgresql", For::Tests, "the database that several controllers will share"),
    ("busybox-static", For::Tests, "the small image's only program"),
    ("tcpdump", For::Tests, "looks at packets when a test fails"),
    ("mount", For::Tests, "loop devices that stand for disks"),
    ("git", For::Tests, "lists the tracked files"),
];

/// Installs what is missing, and only that.
///
/// A fresh machine has no package lists, so they are fetched first when anything is missing. Packages that come from
/// elsewhere than the machine's release may be removed by what depends on the release's (seen with `qemu-utils` from
/// the backports and `qemu-system-x86`), so what is missing then is installed in a second round.
pub(crate) fn install(what_for: For) -> Result<()> {
    let first = missing(what_for)?;
    if first.is_empty() {
        return Ok(());
    }
    if !run::is_root() {
        bail!("packages are missing and only root may install them: apt-get install {}", names(&first).join(" "));
    }
    run::must(apt_get().arg("update"))?;
    let _quiet = NoDaemons::begin()?;
    add(&first)?;
    let removed = missing(what_for)?;
    if !removed.is_empty() {
        add(&removed)?;
    }
    let still = missing(what_for)?;
    if !still.is_empty() {
        bail!("installed together, packages push each other out; still missing: {}", names(&still).join(" "));
    }
    Ok(())
}

fn add(packages: &[Package]) -> Result<()> {
    for (name, purpose) in packages {
        println!("    {name}: {purpose}");
    }
    run::must(apt_get().args(["install", "-y", "--no-install-recommends", "--"]).args(names(packages)))
}

fn names(packages: &[Package]) -> Vec<&'static str> {
    packages.iter().map(|(name, _)| *name).collect()
}

/// While it lives, packages do not start their daemons: nobody who runs tests wants a DHCP server on his network.
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    /// Debian asks this program before it starts a daemon; 101 is no (/usr/share/doc/init-system-helpers).
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        let ours = !Path::new(Self::POLICY).exists();
        if ours {
            fs::write(Self::POLICY, "#!/bin/sh\nexit 101\n")
                .with_context(|| format!("cannot write {}", Self::POLICY))?;
            fs::set_permissions(Self::POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(Self::POLICY);
        }
    }
}

fn missing(what_for: For) -> Result<Vec<Package>> {
    if !run::has_program("dpkg-query") || !run::has_program("apt-get") {
        let all: Vec<Package> = wanted(what_for).collect();
        bail!("this is not Debian, so nothing can be installed; its packages were: {}", names(&all).join(" "));
    }
    let mut missing = Vec::new();
    for (name, purpose) in wanted(what_for) {
        let state = Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}", name])
            .stderr(Stdio::null())
            .output()?;
        if state.stdout != b"installed" {
            missing.push((name, purpose));
        }
    }
    Ok(missing)
}

fn wanted(what_for: For) -> impl Iterator<Item = Package> {
    PACKAGES.iter().filter(move |(_, by, _)| *by <= what_for).map(|(name, _, why)| (*name, *why))
}

/// `apt-get` that asks nothing, prints little and waits for another one to end.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_named_once_and_each_needs_what_stands_before() {
        let names: std::collections::BTreeSet<&str> = PACKAGES.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names.len(), PACKAGES.len());
        assert_eq!(wanted(For::Bench).count(), PACKAGES.len());
        let counts = [For::Use, For::Demo, For::Tests, For::Bench].map(|what_for| wanted(what_for).count());
        assert!(counts.is_sorted_by(|fewer, more| fewer < more), "{counts:?}");
    }
}
