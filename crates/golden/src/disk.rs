//! A folder becomes a disk that boots by BIOS and by UEFI, Secure Boot included. Nothing is mounted, no loop device is used:
//! every file system is written at its byte offset, because build machines may lack both rights and kernel drivers.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bootenv::command::Run;
use gptman::{GPT, GPTPartitionEntry};
use uuid::{Uuid, uuid};

use crate::error::{Error, file};
use crate::ids::Ids;

pub(crate) const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// The BIOS boot partition holds GRUB's core image; 1 MiB is what every installer gives it.
const BIOS_BOOT_START: u64 = MIB;
const ESP_START: u64 = 2 * MIB;
/// Room behind the root partition for the backup partition table: 33 sectors, rounded up to keep the end aligned.
const TAIL: u64 = MIB;

const TYPE_BIOS_BOOT: Uuid = uuid!("21686148-6449-6e6f-744e-656564454649");
const TYPE_ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// "Linux root (x86-64)" of the Discoverable Partitions Specification.
const TYPE_ROOT: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");

/// What mke2fs may use, whatever the build machine's own configuration says: Debian 12's GRUB and kernel must read it.
pub(crate) const MKE2FS_CONF: &str = include_str!("../files/mke2fs.conf");

/// GRUB modules inside the BIOS core image: enough to find the root file system, read its configuration and start Linux.
pub(crate) const GRUB_MODULES: &[&str] = &[
    "biosdisk",
    "part_gpt",
    "ext2",
    "normal",
    "configfile",
    "search",
    "search_fs_uuid",
    "linux",
    "serial",
    "terminal",
    "echo",
    "test",
];

/// What goes where on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The whole disk, in bytes.
    pub(crate) disk_bytes: u64,
    /// The EFI system partition, in bytes.
    pub(crate) esp_bytes: u64,
    /// Sectors per cluster of its FAT16: 4085 to 65524 clusters are allowed.
    pub(crate) esp_cluster_sectors: u32,
}

impl Layout {
    /// Where the root partition starts, in bytes.
    pub(crate) fn root_start(&self) -> u64 {
        ESP_START + self.esp_bytes
    }

    /// The root partition's size, in bytes.
    pub(crate) fn root_bytes(&self) -> u64 {
        (self.disk_bytes - TAIL).saturating_sub(self.root_start())
    }
}

/// Where the boot loaders' files are.
#[derive(Debug)]
pub(crate) struct Loaders {
    /// `shimx64.efi.signed`.
    pub(crate) shim: PathBuf,
    /// `grubx64.efi.signed`.
    pub(crate) grub_efi: PathBuf,
    /// The folder `i386-pc` with GRUB's BIOS modules.
    pub(crate) grub_bios: PathBuf,
    /// A system that has `grub-mkimage` and `grub_bios` of one version; none to use the build machine's.
    pub(crate) chroot: Option<PathBuf>,
}

/// Writes the disk: partition table, root file system, EFI system partition, BIOS loader.
pub(crate) fn write(
    disk: &Path,
    root: &Path,
    loaders: &Loaders,
    layout: Layout,
    ids: &Ids,
    epoch: u32,
    progress: &dyn Fn(&str),
) -> Result<(), Error> {
    let work =
        tempfile::tempdir_in(disk.parent().unwrap_or(Path::new("."))).map_err(file("make a folder for", disk))?;
    let image = File::create_new(disk).map_err(file("create", disk))?;
    image.set_len(layout.disk_bytes).map_err(file("size", disk))?;

    partition(image, disk, layout, ids)?;
    progress("write the root file system");
    write_root(disk, root, work.path(), layout, ids, epoch)?;
    progress("write the EFI system partition and the boot loaders");
    write_esp(disk, loaders, work.path(), layout, ids, epoch)?;
    write_bios_loader(disk, loaders, work.path(), ids)
}

fn partition(mut image: File, disk: &Path, layout: Layout, ids: &Ids) -> Result<(), Error> {
    let entry = |kind: Uuid, id: Uuid, name: &str, start: u64, bytes: u64| GPTPartitionEntry {
        partition_type_guid: kind.to_bytes_le(),
        unique_partition_guid: id.to_bytes_le(),
        starting_lba: start / SECTOR,
        ending_lba: (start + bytes) / SECTOR - 1,
        attribute_bits: 0,
        partition_name: name.into(),
    };
    let mut table = GPT::new_from(&mut image, SECTOR, ids.disk.to_bytes_le())?;
    table[1] = entry(TYPE_BIOS_BOOT, ids.bios_boot, "bios-boot", BIOS_BOOT_START, ESP_START - BIOS_BOOT_START);
    table[2] = entry(TYPE_ESP, ids.esp, "esp", ESP_START, layout.esp_bytes);
    table[3] = entry(TYPE_ROOT, ids.root, "root", layout.root_start(), layout.root_bytes());
    GPT::write_protective_mbr_into(&mut image, SECTOR)?;
    table.write_into(&mut image)?;
    image.sync_all().map_err(file("write", disk))
}

/// mke2fs copies a folder into the file system; what it cannot be told, the times of access and change, is set afterwards.
fn write_root(disk: &Path, root: &Path, work: &Path, layout: Layout, ids: &Ids, epoch: u32) -> Result<(), Error> {
    let conf = work.join("mke2fs.conf");
    fs::write(&conf, MKE2FS_CONF).map_err(file("write", &conf))?;
    let offset = layout.root_start();
    // The file is sparse, so it reads as zeros already and inode tables need not be cleared.
    let extended =
        format!("offset={offset},root_owner=0:0,hash_seed={},assume_storage_prezeroed=1,nodiscard", ids.directory_hash);
    Run::new("mke2fs", "e2fsprogs")
        .env("MKE2FS_CONFIG", &conf)
        .env("E2FSPROGS_FAKE_TIME", epoch.to_string())
        .args(["-q", "-t", "ext4", "-b", "4096", "-L", "root", "-U", &ids.root_file_system.to_string()])
        .args(["-E", &extended, "-d"])
        .args([root, disk])
        .args([(layout.root_bytes() / 4096).to_string()])
        .to("make the root file system")
        .hint("; if it is full, choose a larger size")
        .output()?;

    let address = format!("{}?offset={offset}", disk.display());
    let script = work.join("times");
    fs::write(&script, time_script(inodes_used(&address)?, epoch)).map_err(file("write", &script))?;
    Run::new("debugfs", "e2fsprogs")
        .env("E2FSPROGS_FAKE_TIME", epoch.to_string())
        .args(["-w", "-f", &script.to_string_lossy(), &address])
        .to("set the times of the root file system")
        .output()?;
    Ok(())
}

/// mke2fs hands out inodes from the first on, so the used ones are 1 to this number.
fn inodes_used(address: &str) -> Result<u64, Error> {
    let header = Run::new("dumpe2fs", "e2fsprogs").args(["-h", address]).to("read the root file system").text()?;
    let field = |name: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.trim_start_matches(':').trim().parse::<u64>().ok());
        number.ok_or_else(|| Error::Recipe(format!("dumpe2fs shows no \"{name}\" of the new root file system")))
    };
    Ok(field("Inode count")?.saturating_sub(field("Free inodes")?))
}

fn time_script(inodes: u64, epoch: u32) -> String {
    // 2 is the root folder; 3 to 10 are the file system's own.
    let inodes = std::iter::once(2).chain(11..=inodes);
    inodes.map(|inode| format!("sif <{inode}> atime @{epoch}\nsif <{inode}> ctime @{epoch}\n")).collect()
}

fn write_esp(disk: &Path, loaders: &Loaders, work: &Path, layout: Layout, ids: &Ids, epoch: u32) -> Result<(), Error> {
    let esp = work.join("esp");
    let image = File::create(&esp).map_err(file("create", &esp))?;
    image.set_len(layout.esp_bytes).map_err(file("size", &esp))?;
    let esp_text = esp.to_string_lossy().into_owned();
    // Below 33 MiB FAT32 has too few clusters to be valid, and firmware reads FAT16 as well (UEFI 2.10, section 13.3).
    Run::new("mkfs.vfat", "dosfstools")
        .args(["--invariant", "-F", "16", "-n", "ESP", "-s", &layout.esp_cluster_sectors.to_string()])
        .args(["-i", &format!("{:08X}", ids.esp_volume), &esp_text])
        .to("make the EFI system partition")
        .output()?;
    let mtools = |program: &str| {
        Run::new(program, "mtools").env("SOURCE_DATE_EPOCH", epoch.to_string()).env("TZ", "UTC").args(["-i", &esp_text])
    };
    mtools("mmd").args(["::EFI", "::EFI/BOOT", "::EFI/debian"]).output()?;
    let config = work.join("grub.cfg");
    fs::write(&config, find_root_config(ids, true)).map_err(file("write", &config))?;
    // The signed GRUB looks for its configuration in EFI/debian, wherever it was started from.
    for (from, to) in [
        (&loaders.shim, "::EFI/BOOT/BOOTX64.EFI"),
        (&loaders.grub_efi, "::EFI/BOOT/grubx64.efi"),
        (&config, "::EFI/debian/grub.cfg"),
    ] {
        mtools("mcopy").args([from.as_os_str(), to.as_ref()]).to("fill the EFI system partition").output()?;
    }
    let bytes = fs::read(&esp).map_err(file("read", &esp))?;
    write_sparse(disk, ESP_START, &bytes)
}

/// What GRUB reads first: find the root file system, go on there.
fn find_root_config(ids: &Ids, jump: bool) -> String {
    let find =
        format!("search --no-floppy --fs-uuid --set=root {}\nset prefix=($root)/boot/grub\n", ids.root_file_system);
    if jump { find + "configfile $prefix/grub.cfg\n" } else { find }
}

/// Puts GRUB's core image into the BIOS boot partition and its boot sector's code in front of the protective MBR's table.
fn write_bios_loader(disk: &Path, loaders: &Loaders, work: &Path, ids: &Ids) -> Result<(), Error> {
    let mut core = make_core(loaders, work, ids)?;
    let boot_file = loaders.grub_bios.join("boot.img");
    let mut boot = fs::read(&boot_file).map_err(file("read", &boot_file))?;
    place_core(&mut core, &mut boot, BIOS_BOOT_START, ESP_START - BIOS_BOOT_START)?;
    write_sparse(disk, BIOS_BOOT_START, &core)?;
    write_sparse(disk, 0, boot.get(..MBR_CODE).unwrap_or(&boot))
}

/// The tool must fit the modules, so an installed system's own is preferred.
fn make_core(loaders: &Loaders, work: &Path, ids: &Ids) -> Result<Vec<u8>, Error> {
    let (folder, run) = match &loaders.chroot {
        Some(root) => {
            (root.join("tmp"), Run::new("chroot", "coreutils").args([root.as_os_str(), "grub-mkimage".as_ref()]))
        }
        None => (work.to_owned(), Run::new("grub-mkimage", "grub-common")),
    };
    let (config, core) = (folder.join("early.cfg"), folder.join("core.img"));
    fs::write(&config, find_root_config(ids, false)).map_err(file("write", &config))?;
    let seen = |path: &Path| match &loaders.chroot {
        Some(root) => Path::new("/").join(path.strip_prefix(root).unwrap_or(path)),
        None => path.to_owned(),
    };
    run.args(["-O", "i386-pc", "-p", "/boot/grub", "-d"])
        .args([seen(&loaders.grub_bios), "-c".into(), seen(&config), "-o".into(), seen(&core)])
        .args(GRUB_MODULES)
        .to("make GRUB's core image")
        .output()?;
    fs::read(&core).map_err(file("read", core))
}

/// The part of a master boot record that is code; disk signature and partition table follow.
pub(crate) const MBR_CODE: usize = 440;

/// Does what `grub-install` would do to the two images, with the core image at `start_bytes` of the disk.
///
/// Offsets as in GRUB's `include/grub/i386/pc/boot.h` and `grub-core/boot/i386/pc/diskboot.S`.
pub(crate) fn place_core(core: &mut [u8], boot: &mut [u8], start_bytes: u64, room_bytes: u64) -> Result<(), Error> {
    let room_bytes = usize::try_from(room_bytes).unwrap_or(usize::MAX);
    let sectors = core.len().div_ceil(usize::try_from(SECTOR).unwrap_or(512));
    let (true, Ok(rest)) = (core.len() <= room_bytes, u16::try_from(sectors.saturating_sub(1))) else {
        return Err(Error::LoaderTooLarge { size_bytes: core.len(), room_bytes });
    };
    let first = start_bytes / SECTOR;
    // The first sector of the core image lists where the others are: start, count, segment to load them at.
    put(core, 0x1f4, &(first + 1).to_le_bytes())?;
    put(core, 0x1fc, &rest.to_le_bytes())?;
    put(core, 0x1fe, &0x0820u16.to_le_bytes())?;
    // The boot sector knows the first sector of the core image, on the drive that the BIOS started.
    put(boot, 0x5c, &first.to_le_bytes())?;
    put(boot, 0x64, &[0xff])?;
    // Some BIOSes pass a wrong drive number for floppies; two no-ops keep the number for hard disks.
    put(boot, 0x66, &[0x90, 0x90])
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), Error> {
    let place = image.get_mut(at..at + bytes.len());
    let place = place.ok_or(Error::NotInstalled { path: "usable GRUB image".to_owned(), package: "grub-pc-bin" })?;
    place.copy_from_slice(bytes);
    Ok(())
}

/// Writes bytes at an offset and leaves blocks of zeros unwritten: the file is new, there they are zeros already.
pub(crate) fn write_sparse(disk: &Path, start: u64, bytes: &[u8]) -> Result<(), Error> {
    let mut image = File::options().write(true).open(disk).map_err(file("open", disk))?;
    for (number, block) in (0u64..).zip(bytes.chunks(4096)) {
        if block.iter().any(|byte| *byte != 0) {
            let at = SeekFrom::Start(start + number * 4096);
            image.seek(at).and_then(|_| image.write_all(block)).map_err(file("write", disk))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_and_leave_room_for_the_backup_table() {
        let layout = Layout { disk_bytes: 64 * MIB, esp_bytes: 8 * MIB, esp_cluster_sectors: 1 };
        assert_eq!(layout.root_start(), 10 * MIB);
        assert_eq!(layout.root_start() + layout.root_bytes(), 63 * MIB);
    }

    #[test]
    fn the_core_image_is_linked_to_the_boot_sector() {
        let (mut core, mut boot) = (vec![0; 1500], vec![0; 512]);
        place_core(&mut core, &mut boot, MIB, MIB).unwrap();
        assert_eq!(core[0x1f4..0x200], [0x01, 0x08, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
        assert_eq!(boot[0x5c..0x68], [0x00, 0x08, 0, 0, 0, 0, 0, 0, 0xff, 0, 0x90, 0x90]);
        assert!(matches!(place_core(&mut vec![0; 2 << 20], &mut boot, MIB, MIB), Err(Error::LoaderTooLarge { .. })));
    }

    #[test]
    fn the_partition_table_names_what_the_recipe_derives() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let image = File::options().create_new(true).read(true).write(true).open(&disk).unwrap();
        image.set_len(64 * MIB).unwrap();
        let ids = Ids::derive("test");
        let layout = Layout { disk_bytes: 64 * MIB, esp_bytes: 8 * MIB, esp_cluster_sectors: 1 };
        partition(image, &disk, layout, &ids).unwrap();
        let table = GPT::read_from(&mut File::open(&disk).unwrap(), SECTOR).unwrap();
        assert_eq!(table.header.disk_guid, ids.disk.to_bytes_le());
        assert_eq!(table[3].partition_type_guid, TYPE_ROOT.to_bytes_le());
        assert_eq!(table[3].starting_lba, layout.root_start() / SECTOR);
    }

    #[test]
    fn zeros_are_not_written() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        File::create(&disk).unwrap().set_len(16 * MIB).unwrap();
        let mut bytes = vec![0; 8 << 20];
        bytes[5 << 20] = 7;
        write_sparse(&disk, MIB, &bytes).unwrap();
        assert!(fs::metadata(&disk).unwrap().blocks() <= 64);
        assert_eq!(fs::read(&disk).unwrap()[6 << 20], 7);
    }
}
