//! What makes a tree a system that starts: kernel, initramfs, boot loader, file system table. The loader is the tree's own:
//! a foreign GRUB would read neither its modules nor its signatures.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bootenv::command::Run;
use fleet::layout::{Firmware, Layout, Mount, Role};

use super::inside::Inside;
use crate::disk::GRUB_MODULES;
use crate::error::{Error, file};

/// Modules beyond those of our own images: other file systems and partition tables.
const MORE_MODULES: &[&str] = &["part_msdos", "xfs", "fat"];
/// Where the packages of all distributions put GRUB's modules.
const MODULES: &str = "usr/lib/grub";
const SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
const SIGNED: &str = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";
const MAKE_IMAGE: [&str; 4] =
    ["usr/bin/grub-mkimage", "usr/bin/grub2-mkimage", "usr/sbin/grub-mkimage", "usr/sbin/grub2-mkimage"];
/// Where nothing else is said: screen and serial port.
const KERNEL_LINE: &str = "console=tty0 console=ttyS0,115200";
/// Nobody: the tree's programs are foreign.
const NOBODY: u32 = 65534;
/// Where they may write.
const PLACE: &str = ".rackswarm-loader";
/// x86-64 in an ELF header (System V ABI, `e_machine`).
const X86_64: u16 = 62;
const SPECIAL: [(&str, u32); 7] =
    [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777), ("root", 0o700), ("mnt", 0o755)];

/// A tree that would start.
#[derive(Debug)]
pub(crate) struct System<'a> {
    tree: &'a Inside,
    layout: &'a Layout,
    /// By mount point; swap by its partition.
    identities: &'a BTreeMap<String, String>,
    /// The distribution's name and version.
    pub(crate) name: String,
    id: String,
    /// The kernel's version, as its file's name has it.
    pub(crate) kernel_version: String,
    initramfs: String,
    kernel_line: String,
    /// `grub`, or `grub2` with Fedora and its kin.
    grub: &'static str,
    firmware: Firmware,
}

/// GRUB for BIOS: the boot sector's code and the core image.
#[derive(Debug)]
pub(crate) struct BiosLoader {
    pub(crate) boot: Vec<u8>,
    pub(crate) core: Vec<u8>,
}

impl<'a> System<'a> {
    /// Looks whether the tree would start, and says all that is missing at once.
    pub(crate) fn find(
        tree: &'a Inside,
        layout: &'a Layout,
        identities: &'a BTreeMap<String, String>,
        firmware: Firmware,
        kernel_line: Option<&str>,
    ) -> Result<Self, Error> {
        let mut missing = Vec::new();
        let mut need = |is_there: bool, what: &'static str| {
            if !is_there {
                missing.push(what);
            }
        };
        let release = release(tree);
        need(!release.is_empty(), "/etc/os-release (every distribution's base packages have it)");
        need(tree.has_file("sbin/init"), "/sbin/init (Debian: systemd-sysv; Fedora: systemd)");
        let kernel = kernel(tree);
        need(kernel.is_some(), "kernel /boot/vmlinuz-VERSION (Debian: linux-image-amd64; Fedora: kernel)");
        let initramfs = kernel.as_ref().map(|version| initramfs(tree, version));
        need(
            initramfs.as_ref().is_none_or(Option::is_some),
            "initramfs for that kernel (Debian: initramfs-tools; Fedora: dracut, with --no-hostonly)",
        );
        let modules = |target: &str| tree.has_file(&format!("{MODULES}/{target}/normal.mod"));
        let can_make = MAKE_IMAGE.iter().any(|path| tree.has_file(path));
        if firmware.bios {
            need(modules("i386-pc"), "GRUB for BIOS (Debian: grub-pc-bin; Fedora: grub2-pc-modules)");
        }
        let is_signed = tree.has_file(SIGNED) && tree.has_file(SHIM);
        let needs_efi = firmware.uefi && !is_signed && vendor_folder(tree, layout).is_none();
        if needs_efi {
            need(
                modules("x86_64-efi"),
                "GRUB for UEFI (Debian: grub-efi-amd64-bin, or shim-signed and grub-efi-amd64-signed for Secure Boot; Fedora: grub2-efi-x64 and shim-x64)",
            );
        }
        need(can_make || !(firmware.bios || needs_efi), "grub-mkimage (Debian: grub-common; Fedora: grub2-tools)");
        if !missing.is_empty() {
            return Err(would_not_start(&missing));
        }
        expect_architecture(tree)?;
        Ok(System {
            tree,
            layout,
            identities,
            name: name(&release),
            id: release.get("ID").cloned().unwrap_or_default(),
            kernel_version: kernel.unwrap_or_default(),
            initramfs: initramfs.flatten().unwrap_or_default(),
            kernel_line: kernel_line.map_or_else(|| own_kernel_line(tree), str::to_owned),
            grub: if tree.has_file(MAKE_IMAGE[0]) || tree.has_file(MAKE_IMAGE[2]) { "grub" } else { "grub2" },
            firmware,
        })
    }

    /// Writes into the tree what starts it from the layout's file systems; gives what must lie outside of them.
    pub(crate) fn install(&self) -> Result<Option<BiosLoader>, Error> {
        complete(self.tree)?;
        self.tree.write("etc/fstab", 0o644, self.fstab().as_bytes())?;
        self.tree.write(&format!("boot/{}/grub.cfg", self.grub), 0o600, self.menu().as_bytes())?;
        if self.firmware.uefi {
            self.uefi_loader()?;
        }
        if !self.firmware.bios {
            return Ok(None);
        }
        self.copy_modules("i386-pc")?;
        let core = self.make_core("i386-pc")?;
        Ok(Some(BiosLoader { boot: self.bytes(&format!("{MODULES}/i386-pc/boot.img"))?, core }))
    }

    fn mount_at(&self, at: &str) -> Option<&Mount> {
        self.layout.mounts.iter().find(|mount| mount.at.as_deref() == Some(at))
    }

    fn identity(&self, at: &str) -> &str {
        self.identities.get(at).map_or("", String::as_str)
    }

    /// The identity of the file system with the kernel, and the path of `/boot` in it.
    fn boot(&self) -> (&str, &'static str) {
        if self.mount_at("/boot").is_some() { (self.identity("/boot"), "") } else { (self.identity("/"), "/boot") }
    }

    fn fstab(&self) -> String {
        let identity = |mount: &Mount| self.identity(mount.at.as_deref().unwrap_or(&mount.on)).to_owned();
        self.layout.table_of_mounts(&identity, &self.tree.text("etc/fstab"))
    }

    fn menu(&self) -> String {
        let (boot_id, folder) = self.boot();
        let title: String = self.name.chars().filter(|c| c.is_ascii_alphanumeric() || " .-/()".contains(*c)).collect();
        let root = self.identity("/");
        crate::menu(
            &title,
            &format!("{folder}/vmlinuz-{}", self.kernel_version),
            &format!("{folder}/{}", self.initramfs),
            boot_id,
            root,
            &self.kernel_line,
        )
    }

    /// What GRUB reads first: where the rest of it is. `jump` for one that has no place for its modules built in.
    fn early(&self, jump: bool) -> String {
        let (id, folder) = self.boot();
        let find = format!("search --no-floppy --fs-uuid --set=root {id}\nset prefix=($root){folder}/{}\n", self.grub);
        if jump { find + "configfile $prefix/grub.cfg\n" } else { find }
    }

    /// Firmware without an entry of its own starts `EFI/BOOT/BOOTX64.EFI` (UEFI 2.10, section 3.5.1.1).
    fn uefi_loader(&self) -> Result<(), Error> {
        let esp =
            esp(self.layout).ok_or_else(|| Error::Tree("the layout mounts no EFI system partition".to_owned()))?;
        let put = |path: &str, bytes: &[u8]| self.tree.write(&format!("{esp}/EFI/{path}"), 0o644, bytes);
        if self.tree.has_file(SIGNED) && self.tree.has_file(SHIM) {
            let grub = self.bytes(SIGNED)?;
            let folder = built_in_folder(&grub).unwrap_or_else(|| self.id.clone());
            put("BOOT/BOOTX64.EFI", &self.bytes(SHIM)?)?;
            put("BOOT/grubx64.efi", &grub)?;
            return put(&format!("{folder}/grub.cfg"), self.early(true).as_bytes());
        }
        if let Some(folder) = vendor_folder(self.tree, self.layout) {
            let own = |name: &str| self.bytes(&format!("{esp}/EFI/{folder}/{name}"));
            put("BOOT/BOOTX64.EFI", &own("shimx64.efi")?)?;
            put("BOOT/grubx64.efi", &own("grubx64.efi")?)?;
            return put(&format!("{folder}/grub.cfg"), self.early(true).as_bytes());
        }
        self.copy_modules("x86_64-efi")?;
        put("BOOT/BOOTX64.EFI", &self.make_core("x86_64-efi")?)
    }

    fn copy_modules(&self, target: &str) -> Result<(), Error> {
        let from = format!("{MODULES}/{target}");
        for name in self.tree.names(&from).iter().filter(|name| name.ends_with(".mod") || name.ends_with(".lst")) {
            let bytes = self.bytes(&format!("{from}/{name}"))?;
            self.tree.write(&format!("boot/{}/{target}/{name}", self.grub), 0o644, &bytes)?;
        }
        Ok(())
    }

    /// The tree's own tool makes GRUB's image, because it must fit the modules; without rights, processes or network.
    fn make_core(&self, target: &str) -> Result<Vec<u8>, Error> {
        let tool = MAKE_IMAGE.iter().find(|path| self.tree.has_file(path)).copied().unwrap_or_default();
        let (_, folder) = self.boot();
        // Made new at the top of the tree, so no link of the tree can stand in its place.
        let place = self.tree.path().join(PLACE);
        fs::create_dir(&place).map_err(file("make the folder", &place))?;
        std::os::unix::fs::chown(&place, Some(NOBODY), Some(NOBODY)).map_err(file("set the owner of", &place))?;
        self.tree.write(&format!("{PLACE}/early.cfg"), 0o644, self.early(false).as_bytes())?;
        // It syncs what it writes, which a pipe does not do.
        Run::new("setpriv", "util-linux")
            .args(["--pdeathsig", "KILL", "--no-new-privs", "unshare", "--mount", "--propagation", "private"])
            .args(["--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["chroot", &format!("--userspec={NOBODY}:{NOBODY}"), "--groups="])
            .args([self.tree.path()])
            .args([&format!("/{tool}"), "-O", target, "-d", &format!("/{MODULES}/{target}")])
            .args(["-c", &format!("/{PLACE}/early.cfg"), "-o", &format!("/{PLACE}/core.img")])
            .args(["-p", &format!("{folder}/{}", self.grub)])
            .args(GRUB_MODULES.iter().chain(MORE_MODULES).filter(|name| target == "i386-pc" || **name != "biosdisk"))
            .to("make GRUB's image with the tree's own tool")
            .output()?;
        let core = self.bytes(&format!("{PLACE}/core.img"))?;
        fs::remove_dir_all(&place).map_err(file("remove", &place))?;
        Ok(core)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let source = self.tree.read_file(Path::new(path))?;
        // No loader or module is larger.
        std::io::Read::read_to_end(&mut std::io::Read::take(source, 64 << 20), &mut bytes)
            .map_err(file("read", path))?;
        Ok(bytes)
    }
}

/// What every system needs and archives may lack.
pub(crate) fn complete(tree: &Inside) -> Result<(), Error> {
    for (path, mode) in SPECIAL {
        if !tree.has_folder(path) {
            let made = tree.folder(path)?;
            rustix::fs::fchmod(&made, rustix::fs::Mode::from_raw_mode(mode))
                .map_err(|e| file("make", path)(e.into()))?;
        }
    }
    // A container's mark would make programs believe that they run in one.
    let _ = fs::remove_file(tree.path().join(".dockerenv"));
    if needs_labels(tree) {
        // systemd then labels everything at the first start, which takes one start more.
        tree.write(".autorelabel", 0o644, b"")?;
    }
    Ok(())
}

/// Whether a tree would start from a layout that its node builds, and all that is missing at once. Gives the distribution's
/// name and the kernel's version.
pub(crate) fn expect_for_nodes(tree: &Inside, layout: &Layout) -> Result<(String, String), Error> {
    let firmware = layout.firmware();
    let program = |name: &str| ["usr/sbin", "sbin", "usr/bin"].iter().any(|at| tree.has_file(&format!("{at}/{name}")));
    let modules = |target: &str| tree.has_file(&format!("{MODULES}/{target}/normal.mod"));
    let release = release(tree);
    let kernel = kernel(tree);
    let needs = [
        (!release.is_empty(), "/etc/os-release (every distribution's base packages have it)"),
        (tree.has_file("sbin/init"), "/sbin/init (Debian: systemd-sysv)"),
        (kernel.is_some(), "kernel /boot/vmlinuz-VERSION (Debian: linux-image-amd64)"),
        (program("update-initramfs"), "update-initramfs (Debian: initramfs-tools); dracut is not run on nodes yet"),
        (program("grub-install") && program("grub-mkconfig"), "grub-install (Debian: grub2-common)"),
        (!firmware.bios || modules("i386-pc"), "GRUB for BIOS (Debian: grub-pc-bin)"),
        (!firmware.uefi || modules("x86_64-efi"), "GRUB for UEFI (Debian: grub-efi-amd64-bin)"),
        (layout.arrays.is_empty() || program("mdadm"), "mdadm for its arrays (Debian: mdadm)"),
        (layout.groups.is_empty() || program("lvm"), "lvm for its volume groups (Debian: lvm2)"),
        (
            layout.locked.is_empty() || program("cryptsetup"),
            "cryptsetup for its encrypted devices (Debian: cryptsetup)",
        ),
    ];
    let missing: Vec<&str> = needs.into_iter().filter(|(is_there, _)| !is_there).map(|(_, what)| what).collect();
    if !missing.is_empty() {
        return Err(would_not_start(&missing));
    }
    expect_architecture(tree)?;
    Ok((name(&release), kernel.unwrap_or_default()))
}

/// What the distribution calls itself.
fn name(release: &BTreeMap<String, String>) -> String {
    release.get("PRETTY_NAME").or(release.get("NAME")).cloned().unwrap_or_else(|| "Linux".to_owned())
}

fn would_not_start(missing: &[&str]) -> Error {
    Error::Tree(format!(
        "the tree would not start: it has no {}; install what is missing where it was made, and make the archive again",
        missing.join(", no ")
    ))
}

/// A kernel line that GRUB's configuration takes as it is.
pub(crate) fn is_kernel_line(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || " =,._:/+%@-".contains(c))
}

fn release(tree: &Inside) -> BTreeMap<String, String> {
    let text = tree.text("etc/os-release");
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        Some((key.to_owned(), value.trim().trim_matches(['"', '\'']).to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// The version of the newest kernel.
fn kernel(tree: &Inside) -> Option<String> {
    let names = tree.names("boot");
    let versions = names.iter().filter_map(|name| name.strip_prefix("vmlinuz-"));
    // Fedora's rescue kernels are called by the machine they were made on.
    let usual =
        versions.filter(|version| !version.contains("rescue") && is_kernel_line(version) && !version.contains(' '));
    usual.max_by_key(|version| by_number(version)).map(str::to_owned)
}

fn initramfs(tree: &Inside, version: &str) -> Option<String> {
    let names = [format!("initrd.img-{version}"), format!("initramfs-{version}.img"), format!("initrd-{version}")];
    names.into_iter().find(|name| tree.has_file(&format!("boot/{name}")))
}

/// Splits a version so that 6.1.0-9 comes before 6.1.0-37.
fn by_number(version: &str) -> Vec<(u64, String)> {
    let parts = version.split(|c: char| !c.is_ascii_alphanumeric());
    parts.map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
}

fn own_kernel_line(tree: &Inside) -> String {
    let text = tree.text("etc/default/grub");
    let value = |key: &str| {
        let value = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    };
    let found: Vec<String> =
        ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"].into_iter().filter_map(value).collect();
    let words = found.iter().flat_map(|line| line.split_whitespace());
    let line: Vec<&str> = words.filter(|word| !word.starts_with("root=") && is_kernel_line(word)).collect();
    if line.is_empty() { KERNEL_LINE.to_owned() } else { line.join(" ") }
}

/// Whether the system would use SELinux, and its archive was made without labels.
fn needs_labels(tree: &Inside) -> bool {
    let text = tree.text("etc/selinux/config");
    let mode = text.lines().find_map(|line| line.trim().strip_prefix("SELINUX="));
    mode.is_some_and(|mode| mode.trim() != "disabled") && !tree.is_labelled("etc")
}

/// Where the tree has its EFI system partition, without a leading slash.
fn esp(layout: &Layout) -> Option<String> {
    let on = |name: &str| {
        let parts = layout.disks.iter().flat_map(|disk| disk.partitions.iter().map(move |part| (disk, part)));
        parts.into_iter().any(|(disk, part)| part.role == Role::Esp && format!("{}.{}", disk.name, part.name) == name)
    };
    let mount = layout.mounts.iter().find(|mount| on(&mount.on))?;
    Some(mount.at.as_deref()?.trim_start_matches('/').to_owned())
}

/// Fedora's packages and those of its kin put the loaders onto the EFI system partition themselves.
fn vendor_folder(tree: &Inside, layout: &Layout) -> Option<String> {
    let efi = format!("{}/EFI", esp(layout)?);
    let has = |folder: &&String| {
        ["shimx64.efi", "grubx64.efi"].iter().all(|name| tree.has_file(&format!("{efi}/{folder}/{name}")))
    };
    tree.names(&efi).iter().filter(|name| *name != "BOOT").find(has).cloned()
}

/// The folder that a signed GRUB was told to look for its configuration in.
fn built_in_folder(grub: &[u8]) -> Option<String> {
    const START: &[u8] = b"/EFI/";
    let names = grub.windows(START.len()).enumerate().filter(|(_, window)| *window == START);
    let mut names = names.filter_map(|(at, _)| {
        let rest = grub.get(at + START.len()..)?;
        let end = rest.iter().take(32).position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(rest.get(..end)?).ok()?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        is_name.then(|| name.to_owned())
    });
    names.next()
}

/// Boot loaders are installed for x86-64 only.
fn expect_architecture(tree: &Inside) -> Result<(), Error> {
    let init = tree.read_file(Path::new("sbin/init"))?;
    let mut head = [0; 20];
    let is_whole = init.read_exact_at(&mut head, 0).is_ok();
    let machine = u16::from_le_bytes([head[18], head[19]]);
    if is_whole && head.starts_with(b"\x7fELF") && machine != X86_64 {
        return Err(Error::Tree(format!(
            "the tree's programs are for another processor than x86-64 (ELF machine {machine}); images are built for x86-64 only"
        )));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const LAYOUT: &str = r#"
[[disk]]
name = "sys"
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "swap", size = "64MiB" },
    { name = "boot", size = "300MiB" },
    { name = "root", size = "rest" },
]
[[mount]]
on = "sys.swap"
kind = "swap"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
[[mount]]
on = "sys.boot"
kind = "ext4"
at = "/boot"
options = "noatime"
[[mount]]
on = "sys.root"
kind = "xfs"
at = "/"
"#;

    struct Fixture {
        _folder: tempfile::TempDir,
        tree: Inside,
        layout: Layout,
        identities: BTreeMap<String, String>,
    }

    impl Fixture {
        fn new(layout: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let tree = Inside::at(folder.path()).unwrap();
            let names = [("/", "R"), ("/boot", "B"), ("/boot/efi", "E"), ("sys.swap", "S")];
            let identities = names.map(|(at, id)| (at.to_owned(), id.to_owned())).into();
            Fixture { _folder: folder, tree, layout: toml::from_str(layout).unwrap(), identities }
        }

        fn put(&self, path: &str, text: &str) {
            self.tree.write(path, 0o644, text.as_bytes()).unwrap();
        }

        fn whole(self) -> Self {
            self.put("etc/os-release", "NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n");
            self.put("sbin/init", "#!/bin/sh\n");
            for version in ["6.1.0-9-amd64", "6.1.0-37-amd64", "0-rescue-0123"] {
                self.put(&format!("boot/vmlinuz-{version}"), "kernel");
            }
            self.put("boot/initrd.img-6.1.0-37-amd64", "initramfs");
            self.put("usr/lib/grub/i386-pc/normal.mod", "");
            self.put("usr/bin/grub-mkimage", "");
            self.put(SHIM, "shim");
            self.put(SIGNED, "grub\0/EFI/debian\0\0");
            self
        }

        fn find(&self, uefi: bool) -> Result<System<'_>, Error> {
            System::find(&self.tree, &self.layout, &self.identities, Firmware { bios: true, uefi }, None)
        }
    }

    #[test]
    fn all_that_is_missing_is_said_at_once_with_its_packages() {
        let empty = Fixture::new(LAYOUT);
        let sentence = empty.find(true).unwrap_err().to_string();
        for word in
            ["os-release", "systemd-sysv", "linux-image-amd64", "grub-pc-bin", "grub-efi-amd64-bin", "grub-common"]
        {
            assert!(sentence.contains(word), "{word}: {sentence}");
        }
        let whole = Fixture::new(LAYOUT).whole();
        assert_eq!(whole.find(true).unwrap().kernel_version, "6.1.0-37-amd64");
        std::fs::remove_file(whole.tree.path().join("boot/initrd.img-6.1.0-37-amd64")).unwrap();
        let sentence = whole.find(true).unwrap_err().to_string();
        assert!(sentence.contains("initramfs-tools") && !sentence.contains("grub"), "{sentence}");
    }

    #[test]
    fn another_processors_system_is_refused() {
        let whole = Fixture::new(LAYOUT).whole();
        let mut elf = [0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[18] = 183;
        whole.tree.write("sbin/init", 0o755, &elf).unwrap();
        assert!(whole.find(true).unwrap_err().to_string().contains("x86-64"));
    }

    #[test]
    fn the_table_names_the_layouts_file_systems_and_keeps_others() {
        let whole = Fixture::new(LAYOUT).whole();
        whole.put("etc/fstab", "# old\n/dev/sda1 / ext4 defaults 0 1\nUUID=7 /home ext4 defaults 0 2\ntmpfs /tmp tmpfs nosuid 0 0\nfiler:/x /srv nfs rw 0 0\n\n");
        let table = whole.find(true).unwrap().fstab();
        assert_eq!(
            table,
            "UUID=R / xfs defaults 0 0\nUUID=B /boot ext4 noatime 0 2\nUUID=E /boot/efi vfat umask=0077 0 0\nUUID=S none swap sw 0 0\n\
             tmpfs /tmp tmpfs nosuid 0 0\nfiler:/x /srv nfs rw 0 0\n"
        );
    }

    #[test]
    fn loaders_look_where_the_kernel_is() {
        let whole = Fixture::new(LAYOUT).whole();
        whole.put("etc/default/grub", "GRUB_CMDLINE_LINUX=\"net.ifnames=0 root=/dev/sda1\"\n#GRUB_CMDLINE_LINUX=x\nGRUB_CMDLINE_LINUX_DEFAULT='quiet $(evil)'\n");
        let system = whole.find(true).unwrap();
        let menu = system.menu();
        assert!(menu.contains("linux /vmlinuz-6.1.0-37-amd64 root=UUID=R ro net.ifnames=0 quiet\n"), "{menu}");
        assert!(menu.contains("initrd /initrd.img-6.1.0-37-amd64\n") && menu.contains("--set=root B\n"), "{menu}");
        system.uefi_loader().unwrap();
        assert_eq!(whole.tree.text("boot/efi/EFI/BOOT/BOOTX64.EFI"), "shim");
        let early = whole.tree.text("boot/efi/EFI/debian/grub.cfg");
        assert!(early.contains("--set=root B\nset prefix=($root)/grub\nconfigfile"), "{early}");

        let one = LAYOUT.replace("{ name = \"boot\", size = \"300MiB\" },", "");
        let one =
            one.replace("[[mount]]\non = \"sys.boot\"\nkind = \"ext4\"\nat = \"/boot\"\noptions = \"noatime\"\n", "");
        let whole = Fixture::new(&one).whole();
        let menu = whole.find(true).unwrap().menu();
        assert!(menu.contains("linux /boot/vmlinuz-6.1.0-37-amd64 root=UUID=R ro console=tty0"), "{menu}");
    }

    #[test]
    fn only_an_unlabelled_system_with_a_policy_in_use_is_labelled_at_its_first_start() {
        let fixture = Fixture::new(LAYOUT);
        assert!(!needs_labels(&fixture.tree));
        fixture.put("etc/selinux/config", "# SELINUX=enforcing\nSELINUX=disabled\n");
        assert!(!needs_labels(&fixture.tree));
        fixture.put("etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=targeted\n");
        assert!(needs_labels(&fixture.tree));
    }

    #[test]
    fn loaders_that_lie_on_the_esp_already_are_used() {
        let fixture = Fixture::new(LAYOUT);
        fixture.put("boot/efi/EFI/rocky/shimx64.efi", "shim");
        assert_eq!(vendor_folder(&fixture.tree, &fixture.layout), None);
        fixture.put("boot/efi/EFI/rocky/grubx64.efi", "grub");
        assert_eq!(vendor_folder(&fixture.tree, &fixture.layout).as_deref(), Some("rocky"));
    }

    #[test]
    fn what_could_say_more_to_grub_is_no_kernel_line() {
        assert!(is_kernel_line("console=ttyS0,115200 quiet a.b=c:d"));
        for wrong in ["a; reboot", "a\nb", "$x", "\"", "a{b"] {
            assert!(!is_kernel_line(wrong), "{wrong}");
        }
    }
}
