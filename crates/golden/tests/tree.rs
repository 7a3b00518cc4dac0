//! An image from a Debian tree and a layout unlike our own images': an MBR disk, xfs, `/boot` of its own, GRUB without
//! signatures. Ordinary tools look inside; then it boots by BIOS and by UEFI.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rackswarm_golden::{Assembled, Debian, Options, Platform, Recipe, Tree, build};

#[path = "../../bootenv/tests/support/vm.rs"]
#[allow(dead_code)]
mod vm;
use vm::Vm;

const OVMF: &str = "/usr/share/OVMF";
const LAYOUT: &str = r#"
table = "mbr"
[[disk]]
name = "sys"
partition = [
    { name = "esp", size = "64MiB", role = "esp" },
    { name = "boot", size = "160MiB" },
    { name = "swap", size = "32MiB" },
    { name = "root", size = "rest" },
]
[[mount]]
on = "sys.root"
kind = "xfs"
at = "/"
[[mount]]
on = "sys.boot"
kind = "ext4"
at = "/boot"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
[[mount]]
on = "sys.swap"
kind = "swap"
"#;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|_| panic!("{program} is missing: run `cargo xtask test`, which installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a script in a mount name space of its own, and with it goes what it mounts.
fn apart(script: &str, arguments: &[&str]) -> String {
    let mut all = vec!["--mount", "--propagation", "private", "sh", "-ec", script];
    all.extend(arguments);
    run("unshare", &all)
}

/// Our Debian image's files, as somebody has them who has only these. Without the signed loaders.
fn archive(folder: &Path) -> PathBuf {
    let built = build(&Recipe::Debian(Debian::default()), &Options::new(folder.join("debian.raw")), &|_| ());
    let disk = built.unwrap_or_else(|error| panic!("{error}")).path;
    let (archive, point) = (folder.join("tree.tar"), folder.join("point"));
    fs::create_dir(&point).unwrap();
    let script = "mount -t ext4 -o loop,ro,noload,offset=$((34 << 20)) \"$0\" \"$1\"; \
        tar --numeric-owner --xattrs --xattrs-include='*' --exclude=./usr/lib/shim -C \"$1\" -cf \"$2\" .";
    apart(script, &[disk.to_str().unwrap(), point.to_str().unwrap(), archive.to_str().unwrap()]);
    fs::remove_file(disk).unwrap();
    archive
}

fn tree(source: PathBuf, cache: PathBuf) -> Tree {
    Tree {
        source,
        layout: toml::from_str(LAYOUT).unwrap(),
        size_bytes: None,
        platform: Platform::own(),
        tag: None,
        kernel_line: None,
        cache,
    }
}

fn assemble(tree: &Tree) -> Assembled {
    tree.assemble(&|line| eprintln!("{line}")).unwrap_or_else(|error| panic!("{error}"))
}

/// Start and size in bytes of each partition.
fn places(image: &Path) -> Vec<(u64, u64)> {
    let table = run("sfdisk", &["--dump", image.to_str().unwrap()]);
    assert!(run("sfdisk", &["--verify", image.to_str().unwrap()]).contains("No errors detected"));
    let number = |line: &str, key: &str| -> Option<u64> {
        line.split_once(key)?.1.split(',').next()?.trim().parse().ok().map(|sectors: u64| sectors * 512)
    };
    table.lines().filter_map(|line| Some((number(line, "start=")?, number(line, "size=")?))).collect()
}

#[test]
fn a_tree_lies_on_its_layouts_file_systems_as_it_was_packed() {
    let folder = tempfile::tempdir().unwrap();
    let source = archive(folder.path());
    let cache = folder.path().join("cache");
    let made = assemble(&tree(source.clone(), cache.clone()));
    assert!(made.system.contains("Debian") && made.notes.is_empty(), "{made:?}");
    let image = made.path.to_str().unwrap();
    let places = places(&made.path);
    assert_eq!(places.len(), 4);
    let at = |number: usize| places[number].0.to_string();

    let esp = format!("{image}@@{}", at(0));
    assert!(run("mdir", &["-b", "-i", &esp, "::EFI/BOOT"]).contains("BOOTX64.EFI"));
    let boot = format!("{image}?offset={}", at(1));
    run("e2fsck", &["-f", "-n", &boot]);
    let menu = run("debugfs", &["-R", "cat /grub/grub.cfg", &boot]);
    let identity = |number: usize, tag: &str| {
        run(
            "blkid",
            &[
                "--probe",
                "--offset",
                &at(number),
                "--size",
                &places[number].1.to_string(),
                "-o",
                "value",
                "-s",
                tag,
                image,
            ],
        )
    };
    let (root_id, boot_id) = (identity(3, "UUID"), identity(1, "UUID"));
    assert_eq!((identity(3, "TYPE").trim(), identity(2, "TYPE").trim()), ("xfs", "swap"));
    assert!(menu.contains(&format!("--set=root {}", boot_id.trim())), "{menu}");
    assert!(menu.contains(&format!("linux /vmlinuz-{} root=UUID={}", made.kernel_version, root_id.trim())), "{menu}");

    // Both sides told by the same tool: names, kinds, modes, owners, sizes, link counts and targets.
    let point = folder.path().join("look");
    fs::create_dir(&point).unwrap();
    let script = "mount -t xfs -o loop,ro,norecovery,offset=\"$1\" \"$0\" \"$2\"; cat \"$2/etc/fstab\"; echo ---; \
        cd \"$2\"; find . -path ./boot -prune -o -type f -printf '%p %m %U %G %s %n %Ts\\n' -o -not -type d -printf '%p %y %m %U %G %l\\n' | sort";
    let seen = apart(script, &[image, &at(3), point.to_str().unwrap()]);
    let (table, found) = seen.split_once("---\n").unwrap();
    for (number, line) in [(3, " / xfs "), (1, " /boot ext4 "), (0, " /boot/efi vfat "), (2, " none swap ")] {
        assert!(table.contains(&format!("UUID={}{line}", identity(number, "UUID").trim())), "{table}");
    }
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run("tar", &["-C", unpacked.to_str().unwrap(), "--numeric-owner", "-xpf", source.to_str().unwrap()]);
    let script = "cd \"$0\"; find . -path ./boot -prune -o -type f -printf '%p %m %U %G %s %n %Ts\\n' -o -not -type d -printf '%p %y %m %U %G %l\\n' | sort";
    let wanted = run("sh", &["-ec", script, unpacked.to_str().unwrap()]);
    let others = |text: &str| {
        text.lines().filter(|line| !line.starts_with("./etc/fstab ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (wanted, found) = (others(&wanted), others(found));
    assert!(wanted.len() > 5000, "{}", wanted.len());
    let different = wanted.iter().zip(&found).find(|(wanted, found)| wanted != found);
    assert!(different.is_none() && wanted.len() == found.len(), "{different:?}, {} and {}", wanted.len(), found.len());

    drop(made);
    assert_eq!(fs::read_dir(cache.join("work")).unwrap().count(), 0, "nothing is left");
    // What does not fit is refused and leaves nothing either.
    let mut small = tree(source, cache.clone());
    small.size_bytes = Some(350 << 20);
    let sentence = small.assemble(&|_| ()).unwrap_err().to_string();
    assert!(sentence.contains("the tree needs") && sentence.contains("together have"), "{sentence}");
    assert_eq!(fs::read_dir(cache.join("work")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn vm_an_mbr_image_of_a_tree_starts_by_bios_and_by_uefi() {
    let folder = tempfile::tempdir().unwrap();
    let source = archive(folder.path());
    let made = assemble(&tree(source, folder.path().join("cache")));
    let drive = format!("file={},if=none,id=d0,format=raw,cache=unsafe,snapshot=on", made.path.display());
    let disk = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d0,bootindex=1"];
    let mut bios = vec!["-machine", "pc"];
    bios.extend(disk);
    Vm::start(512, &bios).wait_for("debian login:");

    let variables = folder.path().join("vars");
    fs::copy(Path::new(OVMF).join("OVMF_VARS_4M.fd"), &variables)
        .expect("ovmf is missing: run `cargo xtask test`, which installs it");
    let code = format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd");
    let store = format!("if=pflash,unit=1,format=raw,file={}", variables.display());
    let mut uefi = vec!["-machine", "q35", "-drive", &code, "-drive", &store];
    uefi.extend(disk);
    Vm::start(512, &uefi).wait_for("debian login:");
}
