#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::plan::Input;
use super::*;

const PLAIN: &str = r#"
[[disk]]
name = "sys"
partition = [
    { name = "bios", size = "1MiB", role = "bios_boot" },
    { name = "esp", size = "100MiB", role = "esp" },
    { name = "root", size = "rest" },
]
[[mount]]
on = "sys.root"
kind = "ext4"
at = "/"
label = "root"
[[mount]]
on = "sys.esp"
kind = "vfat"
at = "/boot/efi"
"#;

const NESTED: &str = r#"
[[disk]]
name = "a"
partition = [
    { name = "esp", size = "100MiB", role = "esp" },
    { name = "boot", size = "512MiB" },
    { name = "raid", size = "rest" },
]
[[disk]]
name = "b"
rule = { serial = "second" }
partition = [
    { name = "spare", size = "612MiB" },
    { name = "raid", size = "rest" },
]
[[raid]]
name = "mirror"
level = 1
members = ["a.raid", "b.raid"]
[[luks]]
name = "secret"
on = "mirror"
key_file = "/etc/cryptsetup-keys.d/secret.key"
[[group]]
name = "my-vg"
members = ["secret"]
volume = [{ name = "root", size = "10GiB" }, { name = "swap", size = "1GiB" }, { name = "data", size = "rest" }]
[[mount]]
on = "my-vg/root"
kind = "xfs"
at = "/"
[[mount]]
on = "my-vg/data"
kind = "ext4"
at = "/srv"
[[mount]]
on = "my-vg/swap"
kind = "swap"
[[mount]]
on = "a.boot"
kind = "ext4"
at = "/boot"
[[mount]]
on = "a.esp"
kind = "vfat"
at = "/boot/efi"
"#;

fn layout(text: &str) -> Layout {
    toml::from_str(text).unwrap()
}

fn target(name: &str, path: &str, gib: u64) -> Target {
    Target { name: name.into(), path: path.into(), size_bytes: gib << 30 }
}

fn lines(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| format!("{} {}", step.program, step.arguments.join(" "))).collect()
}

#[test]
fn a_plain_disk_for_both_firmwares_is_divided_by_one_command() {
    let plain = layout(PLAIN);
    for uefi in [true, false] {
        assert_eq!(plain.check(uefi), Ok(()));
    }
    let plan = plan(&plain, &[target("sys", "/dev/nvme0n1", 8)], true).unwrap();
    assert_eq!(
        lines(&plan.steps),
        [
            "sgdisk --clear --new=1:1M:+1M --typecode=1:ef02 --change-name=1:bios \
             --new=2:2M:+100M --typecode=2:ef00 --change-name=2:esp --new=3:102M:0 --typecode=3:8300 \
             --change-name=3:root /dev/nvme0n1",
            "partx --update /dev/nvme0n1",
            "mkfs.ext4 -q -F -L root /dev/nvme0n1p3",
            "mkfs.vfat -F 32 /dev/nvme0n1p2",
        ]
    );
    assert!(plan.release.is_empty());
    let points: Vec<&str> = plan.mounts.iter().filter_map(|(mount, _)| mount.at.as_deref()).collect();
    assert_eq!(points, ["/", "/boot/efi"]);
    let root = plan.expected.iter().find(|e| e.device == "/dev/nvme0n1p3").unwrap();
    assert_eq!(
        (root.kind, root.label.as_deref(), root.part_name.as_deref()),
        (Some("ext4"), Some("root"), Some("root"))
    );
    assert!(plan.expected.iter().any(|e| e.device == "/dev/nvme0n1p1" && e.kind.is_none()));
}

#[test]
fn volumes_on_a_lock_on_a_mirror_are_built_from_below_and_closed_from_above() {
    let targets = [target("a", "/dev/sda", 32), target("b", "/dev/sdb", 32)];
    let plan = plan(&layout(NESTED), &targets, true).unwrap();
    let lines = lines(&plan.steps);
    let expected = [
        "mdadm --create /dev/md0 --run --metadata=1.2 --homehost=any --name=mirror --level=1 --raid-devices=2 /dev/sda3 /dev/sdb2",
        "cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --key-file - /dev/md0",
        "cryptsetup open --key-file - /dev/md0 secret",
        "lvm pvcreate --yes --force --force /dev/mapper/secret",
        "lvm vgcreate --yes my-vg /dev/mapper/secret",
        "lvm lvcreate --yes --name root --size 10240m my-vg",
        "lvm lvcreate --yes --name swap --size 1024m my-vg",
        "lvm lvcreate --yes --name data --extents 100%FREE my-vg",
        "mkfs.xfs -q -f /dev/mapper/my--vg-root",
        "mkfs.ext4 -q -F /dev/mapper/my--vg-data",
        "mkswap --force /dev/mapper/my--vg-swap",
    ];
    let at = lines.iter().position(|line| line == expected[0]).unwrap();
    assert_eq!(lines[at..at + expected.len()], expected);
    assert!(lines[0].contains("--typecode=3:fd00") && lines[2].contains("--typecode=2:fd00"), "{lines:?}");
    let keys: Vec<_> = plan.steps.iter().filter(|step| step.input == Input::Key("secret".into())).collect();
    assert_eq!(keys.len(), 2, "the key goes in by its own way");
    let release: Vec<&str> = plan.release.iter().map(|step| step.program).collect();
    assert_eq!(release, ["lvm", "cryptsetup", "mdadm"]);
    let points: Vec<Option<&str>> = plan.mounts.iter().map(|(mount, _)| mount.at.as_deref()).collect();
    assert_eq!(points, [Some("/"), Some("/srv"), Some("/boot"), Some("/boot/efi"), None]);
}

/// Both disks have an EFI system partition, and a mirror keeps them equal.
fn mirrored_esp() -> String {
    let second = "{ name = \"esp\", size = \"100MiB\", role = \"esp\" },\n    { name = \"spare\", size = \"512MiB\" },";
    let array = "[[raid]]\nname = \"efi\"\nlevel = 1\nmembers = [\"a.esp\", \"b.esp\"]\n[[luks]]";
    NESTED
        .replace("{ name = \"spare\", size = \"612MiB\" },", second)
        .replace("[[luks]]", array)
        .replace("on = \"a.esp\"", "on = \"efi\"")
}

#[test]
fn a_mirror_of_efi_system_partitions_is_one_that_firmware_reads_by_its_members() {
    let targets = [target("a", "/dev/sda", 32), target("b", "/dev/sdb", 32)];
    let mirrored = layout(&mirrored_esp());
    let plan = plan(&mirrored, &targets, true).unwrap();
    let lines = lines(&plan.steps);
    assert!(
        lines.iter().any(|line| line.contains("--metadata=1.0") && line.ends_with("/dev/sda1 /dev/sdb1")),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|line| line.contains("--metadata=1.2") && line.ends_with("/dev/sda3 /dev/sdb3")),
        "{lines:?}"
    );
    assert!(lines.contains(&"mkfs.vfat -F 32 /dev/md1".to_owned()), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("--typecode=1:ef00")).count(), 2, "firmware finds both");
    assert_eq!(mirrored.esp().map(|mount| mount.on.as_str()), Some("efi"));
    assert!(mirrored.firmware().uefi);
}

#[test]
fn an_mbr_disk_is_divided_by_a_script_and_marks_what_is_booted() {
    let text = r#"
table = "mbr"
[[disk]]
name = "sys"
partition = [{ name = "root", size = "4GiB" }, { name = "swap", size = "rest" }]
[[mount]]
on = "sys.root"
kind = "ext4"
at = "/"
[[mount]]
on = "sys.swap"
kind = "swap"
"#;
    let mbr = layout(text);
    let plan = plan(&mbr, &[target("sys", "/dev/vda", 8)], false).unwrap();
    let script = "label: dos\nstart=1MiB, size=4096MiB, type=83, bootable\nstart=4097MiB, type=82\n";
    assert_eq!(plan.steps[0].input, Input::Text(script.into()));
    assert!(mbr.check(true).unwrap_err().to_string().contains("role = \"esp\""));
    let large = super::plan(&mbr, &[target("sys", "/dev/vda", 4096)], false).unwrap_err();
    assert!(large.to_string().contains("2 TiB"), "{large}");
}

#[test]
fn what_does_not_fit_or_is_missing_is_said_before_anything_is_done() {
    let nested = layout(NESTED);
    let small = plan(
        &nested,
        &[target("a", "/dev/sda", 32), Target { size_bytes: 600 << 20, ..target("b", "/dev/sdb", 0) }],
        true,
    );
    assert!(small.unwrap_err().to_string().contains("disk `b` needs 615 MiB, and /dev/sdb has 600 MiB"));
    let missing = plan(&nested, &[target("a", "/dev/sda", 32)], true).unwrap_err();
    assert!(missing.to_string().contains("no disk was chosen for `b`"));
}

#[test]
fn each_mistake_has_its_sentence() {
    let change = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        layout(&text.replacen(from, to, 1)).check(true).unwrap_err().to_string()
    };
    for (text, from, to, word) in [
        (PLAIN, "on = \"sys.root\"", "on = \"sys.rot\"", "nothing is called `sys.rot`"),
        (PLAIN, "at = \"/\"", "at = \"/home\"", "nothing is mounted at /"),
        (PLAIN, "at = \"/boot/efi\"", "at = \"boot\"", "`boot` is not a path"),
        (PLAIN, "at = \"/boot/efi\"", "at = \"/a/../b\"", "is not a path"),
        (PLAIN, "at = \"/boot/efi\"", "at = \"/\"", "two file systems are mounted at /"),
        (PLAIN, "label = \"root\"", "label = \"a b\"", "a label has 1 to 16"),
        (PLAIN, "kind = \"ext4\"\nat = \"/\"", "kind = \"swap\"\nat = \"/\"", "leave `at` out"),
        (PLAIN, "size = \"100MiB\"", "size = \"rest\"", "only the last one"),
        (PLAIN, "size = \"100MiB\"", "size = \"20MiB\"", "needs at least 36 MiB"),
        (PLAIN, "name = \"esp\"", "name = \"e s p\"", "cannot be a name"),
        (PLAIN, "name = \"esp\"", "name = \"root\"", "two things are called `sys.root`"),
        (PLAIN, "on = \"sys.esp\"\nkind = \"vfat\"", "on = \"sys.esp\"\nkind = \"ext4\"", "has vfat"),
        (PLAIN, "on = \"sys.esp\"", "on = \"sys.bios\"", "has no file system"),
        (PLAIN, "size = \"1MiB\"", "size = \"100MiB\"", "1MiB to 64MiB"),
        (NESTED, "level = 1", "level = 5", "level 5 is not offered"),
        (NESTED, "level = 1", "level = 10", "cannot be made of 2 members"),
        (NESTED, "[\"a.raid\", \"b.raid\"]", "[\"a.raid\", \"a.raid\"]", "is used twice"),
        (NESTED, "[\"a.raid\", \"b.raid\"]", "[\"a.raid\", \"a.esp\"]", "which firmware or boot loader read"),
        (NESTED, "on = \"mirror\"", "on = \"my-vg/root\"", "nothing before it is called that"),
        (
            NESTED,
            "on = \"a.boot\"\nkind = \"ext4\"\nat = \"/boot\"",
            "on = \"a.boot\"\nkind = \"ext4\"\nat = \"/b\"",
            "no boot loader would get at it",
        ),
        (NESTED, "rule = { serial = \"second\" }", "", "2 disks have no rule"),
        (NESTED, "key_file = \"/etc/cryptsetup-keys.d/secret.key\"", "key_file = \"secret\"", "must be a path"),
    ] {
        let sentence = change(text, from, to);
        assert!(sentence.contains(word), "{to}: {sentence}");
    }
    let mirrored = mirrored_esp();
    for (from, to, word) in [
        (
            "members = [\"a.esp\", \"b.esp\"]",
            "members = [\"a.esp\", \"b.spare\"]",
            "which firmware or boot loader read",
        ),
        ("name = \"efi\"\nlevel = 1", "name = \"efi\"\nlevel = 0", "which firmware or boot loader read"),
        ("on = \"efi\"\nkind = \"vfat\"", "on = \"efi\"\nkind = \"ext4\"", "has vfat"),
        ("on = \"efi\"", "on = \"a.esp\"", "is used twice"),
        ("on = \"mirror\"", "on = \"efi\"", "which firmware or boot loader read"),
    ] {
        let sentence = change(&mirrored, from, to);
        assert!(sentence.contains(word), "{to}: {sentence}");
    }
    let no_esp = PLAIN.replace("role = \"esp\"", "role = \"data\"");
    assert!(layout(&no_esp).check(true).unwrap_err().to_string().contains("UEFI machines need"));
    let no_bios = PLAIN.replace("role = \"bios_boot\"", "role = \"data\"");
    assert!(layout(&no_bios).check(false).unwrap_err().to_string().contains("BIOS machines need"));
    assert_eq!(layout(&no_bios).check(true), Ok(()));
}

#[test]
fn sizes_are_read_and_written_alike_and_unknown_words_are_refused() {
    for text in ["1MiB", "512MiB", "20GiB", "rest"] {
        assert_eq!(text.parse::<Extent>().unwrap().to_string(), text);
    }
    assert_eq!("2TiB".parse::<Extent>().unwrap().to_string(), "2048GiB");
    for text in ["", "5", "5GB", "-1MiB", "0MiB", "1.5GiB", "all", "99999999999999TiB"] {
        assert!(text.parse::<Extent>().is_err(), "{text}");
    }
    assert!(toml::from_str::<Layout>(&PLAIN.replace("label", "lable")).is_err());
    let nested = layout(NESTED);
    assert_eq!(toml::from_str::<Layout>(&toml::to_string(&nested).unwrap()).unwrap(), nested);
}
