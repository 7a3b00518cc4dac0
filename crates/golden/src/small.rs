//! The small recipe: Debian's cloud kernel, busybox and a few scripts. It starts in seconds even when it is emulated, so ten
//! machines fit a test. For virtual machines only: the cloud kernel has no drivers for metal.

use std::collections::BTreeMap;
use std::path::Path;

use bootenv::archive::{self, Tree};
use bootenv::cache::Cache;
use bootenv::modules::KernelModules;
use bootenv::packages::{self, PackageVersion, Unpacked};
use bootenv::tools::Busybox;
use bootenv::{Flavour, Kernel};
use serde::{Deserialize, Serialize};

use crate::disk::{Layout, Loaders};
use crate::error::Error;
use crate::ids::Ids;
use crate::{Options, System, grub_config};

const KERNEL_LINE: &str = "quiet net.ifnames=0 console=tty0 console=ttyS0,115200 no_timer_check panic=10";

/// What the initramfs loads before it looks for the root file system, in this order; it has no other modules.
const DISK_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "sd_mod",
    "ata_piix",
    "hv_storvsc",
    "vmw_pvscsi",
    "xen_blkfront",
    "ext4",
];

/// What the system loads by hardware alias.
const OTHER_MODULES: &[&str] = &[
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "vmxnet3",
    "hv_netvsc",
    "ena",
    "gve",
    "xen_netfront",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "efivarfs",
];

/// The system's text files, with their permission bits.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("../files/small/etc/inittab")),
    ("etc/init.d/rcS", 0o755, include_str!("../files/small/etc/init.d/rcS")),
    ("etc/init.d/rcK", 0o755, include_str!("../files/small/etc/init.d/rcK")),
    ("etc/udhcpc/default.script", 0o755, include_str!("../../../netboot/initramfs/etc/udhcpc/default.script")),
    ("etc/hosts", 0o644, include_str!("../files/small/etc/hosts")),
    ("etc/hostname", 0o644, "@HOSTNAME@\n"),
    ("etc/os-release", 0o644, include_str!("../files/small/etc/os-release")),
    ("etc/passwd", 0o644, include_str!("../files/small/etc/passwd")),
    ("etc/shadow", 0o640, include_str!("../files/small/etc/shadow")),
    ("etc/group", 0o644, include_str!("../files/small/etc/group")),
    ("etc/profile", 0o644, include_str!("../files/small/etc/profile")),
    ("etc/machine-id", 0o444, ""),
];

const FOLDERS: &[(&str, u32)] = &[
    ("boot/grub", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/local/bin", 0o755),
    ("usr/local/sbin", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
];

/// A busybox system: DHCP on every interface, login prompt on the serial console, root locked. At start it runs
/// `/etc/rackswarm/start` if post actions have put an executable there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Small {
    /// The disk's size in MiB, at least 40.
    pub size_mib: u64,
    /// The host name until post actions set another.
    pub hostname: String,
}

impl Default for Small {
    fn default() -> Self {
        Small { size_mib: 48, hostname: "small".to_owned() }
    }
}

/// Puts the finished system into `root`.
pub(crate) fn install(
    recipe: &Small,
    options: &Options,
    cache: &Cache,
    root: &Path,
    ids: &Ids,
    progress: &dyn Fn(&str),
) -> Result<System, Error> {
    if recipe.size_mib < 40 || recipe.size_mib > 1 << 20 {
        return Err(Error::Recipe(format!("{} MiB is not between 40 MiB and 1 TiB", recipe.size_mib)));
    }
    let kernel = Kernel::newest(cache, Flavour::Cloud, progress)?;
    let busybox = Busybox::get(cache, progress)?;
    let modules = KernelModules::open(&kernel.package.root, &kernel.version)?;
    let loader = |package: &str| -> Result<Unpacked, Error> {
        Ok(packages::unpack(cache, &packages::lookup(cache, package)?, progress)?)
    };
    let (shim, grub_efi, grub_bios) =
        (loader("shim-signed")?, loader("grub-efi-amd64-signed")?, loader("grub-pc-bin")?);

    progress("put the system together");
    let initramfs = archive::compress(&initramfs(&busybox, &modules, &kernel).to_cpio(options.source_date_epoch)?)?;
    let mut tree = Tree::default();
    fill(&mut tree, recipe, &kernel);
    busybox.add_to(&mut tree);
    modules.add_to(&mut tree, &modules.select(DISK_MODULES.iter().chain(OTHER_MODULES).copied()))?;
    tree.text("boot/vmlinuz", 0o644, &kernel.image()?);
    tree.text("boot/initramfs", 0o644, &initramfs);
    let config = grub_config("Small", "/boot/vmlinuz", "/boot/initramfs", ids, KERNEL_LINE);
    tree.text("boot/grub/grub.cfg", 0o644, &config);
    tree.write_to(root)?;

    let loaders = Loaders {
        shim: shim.file("usr/lib/shim/shimx64.efi.signed")?,
        grub_efi: grub_efi.file("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")?,
        grub_bios: grub_bios.root.join("usr/lib/grub/i386-pc"),
        chroot: None,
    };
    let used = [&kernel.package, &shim, &grub_efi, &grub_bios].map(|package| package.record.package.clone());
    let layout = Layout { disk_bytes: recipe.size_mib << 20, esp_bytes: 8 << 20, esp_cluster_sectors: 1 };
    let packages = used.into_iter().chain([busybox.package]).map(name_and_version).collect::<BTreeMap<_, _>>();
    Ok(System { loaders, layout, kernel_version: kernel.version, packages })
}

fn name_and_version(package: PackageVersion) -> (String, String) {
    (package.package, package.version)
}

fn fill(tree: &mut Tree, recipe: &Small, kernel: &Kernel) {
    for (path, mode) in FOLDERS {
        tree.folder(path, *mode);
    }
    for (path, target) in bootenv::LINKS {
        tree.link(path, target);
    }
    for (path, mode, text) in FILES {
        let text = text.replace("@HOSTNAME@", &recipe.hostname).replace("@KERNEL@", &kernel.version);
        tree.text(path, *mode, &text);
    }
}

fn initramfs(busybox: &Busybox, modules: &KernelModules, kernel: &Kernel) -> Tree {
    let mut tree = Tree::default();
    for path in ["dev", "proc", "sys", "root"] {
        tree.folder(path, 0o755);
    }
    tree.character("dev/console", 0o600, 5, 1);
    busybox.add_to(&mut tree);
    tree.text("init", 0o755, include_str!("../files/small/init"));
    let order = modules.load_order(DISK_MODULES.iter().copied());
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    for path in &order {
        tree.copy(&format!("lib/modules/{}", name(path)), 0o644, &modules.folder().join(path));
    }
    tree.text("etc/modules", 0o644, &order.iter().map(|path| name(path) + "\n").collect::<String>());
    tree.text("etc/os-release", 0o644, &format!("ID=rackswarm-small-initramfs\nVERSION_ID={}\n", kernel.version));
    tree
}
