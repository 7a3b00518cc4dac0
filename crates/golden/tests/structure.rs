//! Makes both images from real packages and looks inside with the ordinary tools.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use bootenv::cache::sha256_of_file;
use rackswarm_golden::{Built, DEFAULT_CACHE, Debian, Options, Recipe, Small, build};

fn make(recipe: &Recipe, options: &Options) -> Built {
    build(recipe, options, &|line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"))
}

/// A cache without finished images that shares what was downloaded and installed.
fn fresh_cache(folder: &Path) -> PathBuf {
    let cache = folder.join("cache");
    fs::create_dir_all(cache.join("golden")).unwrap();
    for shared in ["packages", "unpacked", "apt"] {
        symlink(Path::new(DEFAULT_CACHE).join(shared), cache.join(shared)).unwrap();
    }
    for entry in fs::read_dir(Path::new(DEFAULT_CACHE).join("golden")).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "tar") {
            symlink(entry.path(), cache.join("golden").join(entry.file_name())).unwrap();
        }
    }
    cache
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|_| panic!("{program} is missing: run `cargo xtask test`, which installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The disk with the address of its root file system, for the tools of e2fsprogs.
struct Disk {
    path: String,
    root: String,
}

impl Disk {
    fn open(built: &Built) -> Self {
        let path = built.path.display().to_string();
        let info = run("sgdisk", &["-i", "3", &path]);
        let first = info.lines().find_map(|line| line.strip_prefix("First sector: ")).unwrap();
        let first: u64 = first.split(' ').next().unwrap().parse().unwrap();
        Disk { root: format!("{path}?offset={}", first * 512), path }
    }

    fn check(&self, built: &Built) {
        assert!(run("sgdisk", &["-v", &self.path]).contains("No problems found"));
        let table = run("sgdisk", &["-p", &self.path]);
        assert!(table.to_lowercase().contains(&built.description.disk_id), "{table}");
        run("e2fsck", &["-f", "-n", &self.root]);
        assert!(run("dumpe2fs", &["-h", &self.root]).contains(&built.description.root_id));
        let esp = format!("{}@@2M", self.path);
        for (folder, names) in [("::EFI/BOOT", ["BOOTX64  EFI", "grubx64  efi"]), ("::EFI/debian", ["grub     cfg"; 2])]
        {
            let list = run("mdir", &["-i", &esp, folder]).to_lowercase();
            assert!(names.iter().all(|name| list.contains(&name.to_lowercase())), "{list}");
        }
        assert!(run("mtype", &["-i", &esp, "::EFI/debian/grub.cfg"]).contains(&built.description.root_id));
        assert!(fs::read(&self.path).unwrap()[510..512] == [0x55, 0xaa]);
    }

    fn read(&self, path: &str) -> String {
        run("debugfs", &["-R", &format!("cat {path}"), &self.root])
    }

    fn list(&self, folder: &str) -> String {
        run("debugfs", &["-R", &format!("ls -p {folder}"), &self.root])
    }

    fn stat(&self, path: &str) -> String {
        run("debugfs", &["-R", &format!("stat {path}"), &self.root])
    }
}

#[test]
fn the_small_image_is_sound_small_and_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::Small(Small::default());
    let first = make(&recipe, &Options::new(folder.path().join("first.raw")));
    assert!(first.description.size_bytes <= 64 << 20 && first.used_bytes < 40 << 20, "{first:?}");
    let disk = Disk::open(&first);
    disk.check(&first);
    assert_eq!(disk.read("/etc/hostname").trim(), "small");
    assert!(disk.read("/boot/grub/grub.cfg").contains(&format!("root=UUID={}", first.description.root_id)));
    assert!(disk.stat("/etc/init.d/rcS").contains("Mode:  0755"));
    assert!(disk.list("/usr/local/sbin").lines().count() <= 3, "nothing is installed there yet");

    let options = Options { cache: fresh_cache(folder.path()), ..Options::new(folder.path().join("second.raw")) };
    let second = make(&recipe, &options);
    assert!(!second.from_cache);
    assert_eq!(first.description, second.description);
    assert_eq!(sha256_of_file(&first.path).unwrap(), sha256_of_file(&second.path).unwrap());
    let third = make(&recipe, &options);
    assert!(third.from_cache);
    assert_eq!(third.description, second.description);
}

#[test]
fn the_debian_image_is_sound_generic_and_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::Debian(Debian::default());
    let first = make(&recipe, &Options::new(folder.path().join("first.raw")));
    assert!(first.used_bytes < 450 << 20, "{} bytes", first.used_bytes);
    let disk = Disk::open(&first);
    disk.check(&first);

    let root = format!("UUID={}", first.description.root_id);
    assert!(disk.read("/etc/fstab").starts_with(&format!("{root} / ext4 ")));
    let version = &first.description.kernel_version;
    let grub = disk.read("/boot/grub/grub.cfg");
    assert!(grub.contains(&format!("linux /boot/vmlinuz-{version} root={root} ")), "{grub}");
    assert!(disk.list("/boot").contains(&format!("/initrd.img-{version}/")));
    assert!(disk.stat("/etc/machine-id").contains("Size: 0"));
    assert!(disk.read("/etc/shadow").lines().any(|line| line.starts_with("root:*:")));
    assert!(disk.stat("/etc/shadow").contains("Mode:  0640"));
    let ssh = disk.list("/etc/ssh");
    assert!(ssh.contains("/sshd_config/") && !ssh.contains("ssh_host_"), "{ssh}");
    let wants = disk.list("/etc/systemd/system/multi-user.target.wants");
    assert!(wants.contains("/systemd-networkd.service/") && wants.contains("/ssh.service/"), "{wants}");
    assert!(disk.list("/etc/systemd/system/ssh.service.wants").contains("/ssh-host-keys.service/"));
    for folder in ["/etc", "/usr/local/sbin", "/etc/systemd/system", "/opt", "/var/lib"] {
        assert!(!disk.list(folder).contains("rackswarm"), "{folder} holds something of ours");
    }
    // Ownership and special bits survive the way from tar to disk.
    assert!(disk.stat("/usr/bin/passwd").contains("Mode:  04755"));
    assert!(!disk.stat("/etc/shadow").contains("Group:     0"));
    for package in ["systemd-sysv", "openssh-server", "shim-signed", "linux-image-cloud-amd64"] {
        assert!(first.description.packages.contains_key(package), "{package}");
    }

    let options = Options { cache: fresh_cache(folder.path()), ..Options::new(folder.path().join("second.raw")) };
    let second = make(&recipe, &options);
    assert!(!second.from_cache);
    assert_eq!(sha256_of_file(&first.path).unwrap(), sha256_of_file(&second.path).unwrap());
}

#[test]
fn nothing_is_left_mounted_or_in_the_way() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(DEFAULT_CACHE), "{mounts}");
    let folder = tempfile::tempdir().unwrap();
    let wrong = Recipe::Small(Small { size_mib: 8, ..Small::default() });
    let out = folder.path().join("out.raw");
    let options = Options { cache: folder.path().join("cache"), ..Options::new(out.clone()) };
    let error = build(&wrong, &options, &|_| ()).unwrap_err();
    assert!(error.to_string().contains("40 MiB"), "{error}");
    assert!(!out.exists());
    assert_eq!(fs::read_dir(folder.path().join("cache/work")).unwrap().count(), 0);
}
