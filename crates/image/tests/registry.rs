//! Imports of every kind, judged by foreign tools: qemu-img and coreutils.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Bench, run};
use rackswarm_image::{Error, Format, ImportOptions, Manifest, Registry, no_progress};

impl Bench {
    /// A sparse disk of 24 MiB: data at the front, in the middle and in the
    /// last sector; written zeros too.
    fn raw_disk(&self) -> PathBuf {
        let path = self.path("source.raw");
        let file = fs::File::create(&path).unwrap();
        file.set_len(24 << 20).unwrap();
        let noise: Vec<u8> = (0u32..3 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        file.write_all_at(&noise, 0).unwrap();
        file.write_all_at(&vec![0; 2 << 20], 6 << 20).unwrap();
        file.write_all_at(&noise[..70_000], (12 << 20) + 4096).unwrap();
        file.write_all_at(&[0x55; 512], (24 << 20) - 512).unwrap();
        path
    }

    /// Nothing but whole images in the registry's folder.
    fn assert_only(&self, names: &[&str]) {
        let mut found: Vec<String> = fs::read_dir(self.path("images"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names);
    }
}

fn options(name: &str) -> ImportOptions {
    ImportOptions::named(name.parse().unwrap())
}

fn sha256sum(path: &Path) -> String {
    format!("sha256:{}", run("sha256sum", &[path.to_str().unwrap()]).split(' ').next().unwrap())
}

#[test]
fn a_raw_disk_is_imported_sparse_and_its_digest_is_coreutils() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let mut last = (0, 0);
    let image = bench
        .registry
        .import(&source, &options("debian"), &mut |done, all| {
            assert!(done >= last.0 && done <= all);
            last = (done, all);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(last, (24 << 20, 24 << 20));
    assert_eq!(image.manifest.digest().unwrap().to_string(), sha256sum(&source));
    assert_eq!(fs::read(image.disk_path()).unwrap(), fs::read(&source).unwrap());
    assert!(image.stored_bytes().unwrap() < 4 << 20, "{} bytes stored", image.stored_bytes().unwrap());
    assert!(fs::metadata(image.disk_path()).unwrap().mode() & 0o222 == 0, "never written again");
    // 1536 pieces of 16 KiB; data in 192 + 5 + 1 of them.
    assert_eq!(image.manifest.piece_count(), 1536);
    assert_eq!(image.manifest.zero_pieces().count_ones(..), 1338);
    bench.assert_only(&["debian"]);

    let again = bench.registry.get(&"debian".parse().unwrap()).unwrap();
    assert_eq!(again.manifest, image.manifest);
    bench.registry.verify(&"debian".parse().unwrap(), &mut no_progress).unwrap();
}

#[test]
fn every_format_gives_the_same_image() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let expected = sha256sum(&source);
    for format in Format::ALL.into_iter().filter(|format| *format != Format::Raw) {
        let name = format.name();
        let path = bench.path(name);
        run("qemu-img", &["convert", "-f", "raw", "-O", name, source.to_str().unwrap(), path.to_str().unwrap()]);
        let image = bench.registry.import(&path, &options(name), &mut no_progress).unwrap();
        let content = fs::read(image.disk_path()).unwrap();
        let raw = fs::read(&source).unwrap();
        // VPC rounds up to its own geometry.
        assert!(content[..raw.len()] == raw[..] && content[raw.len()..].iter().all(|&byte| byte == 0), "{name}");
        if content.len() == raw.len() {
            assert_eq!(image.manifest.digest().unwrap().to_string(), expected, "{name}");
        }
        assert!(image.stored_bytes().unwrap() < 4 << 20, "{name}");
        let files: Vec<_> = fs::read_dir(image.disk_path().parent().unwrap()).unwrap().collect();
        assert_eq!(files.len(), 3, "{name}");
    }
    let entries = bench.registry.list().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["qcow2", "vdi", "vhdx", "vmdk", "vpc"]);
}

#[test]
fn uploads_are_imported_with_and_without_their_length() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let expected = sha256sum(&source);
    let content = fs::read(&source).unwrap();
    let qcow2 = bench.path("upload.qcow2");
    run("qemu-img", &["convert", "-O", "qcow2", source.to_str().unwrap(), qcow2.to_str().unwrap()]);
    let packed = fs::read(&qcow2).unwrap();
    for (name, body, length) in [
        ("raw-known", &content, Some(content.len() as u64)),
        ("raw-unknown", &content, None),
        ("qcow2-known", &packed, Some(packed.len() as u64)),
        ("qcow2-unknown", &packed, None),
    ] {
        let mut stream = body.as_slice();
        let image = bench.registry.import_stream(&mut stream, length, &options(name), &mut no_progress).unwrap();
        assert_eq!(image.manifest.digest().unwrap().to_string(), expected, "{name}");
        assert!(image.stored_bytes().unwrap() < 4 << 20, "{name}");
    }
    for length in [content.len() as u64 - 512, content.len() as u64 + 512] {
        let mut stream = content.as_slice();
        let error = bench.registry.import_stream(&mut stream, Some(length), &options("bad"), &mut no_progress);
        assert!(matches!(error, Err(Error::StreamLength { .. })), "{length}");
    }
    bench.assert_only(&["qcow2-known", "qcow2-unknown", "raw-known", "raw-unknown"]);
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection reset"));
            }
            let step = buffer.len().min(self.0);
            buffer[..step].fill(0xab);
            self.0 -= step;
            Ok(step)
        }
    }
    let bench = Bench::new();
    for length in [None, Some(10 << 20)] {
        let error = bench
            .registry
            .import_stream(&mut Broken(3 << 20), length, &options("x"), &mut no_progress)
            .unwrap_err()
            .to_string();
        assert!(error.contains("connection reset"), "{error}");
    }
    bench.assert_only(&[]);
}

#[test]
fn what_leads_to_other_files_or_is_encrypted_is_refused() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (backed, encrypted, outside) = (bench.path("backed"), bench.path("encrypted"), bench.path("outside"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&source), &text(&backed)]);
    // Not LUKS: qemu-img measures how long deriving a key takes, and refuses where the clock of processes is coarse.
    let (secret, method) = ("secret,id=s,data=secret", "encrypt.format=aes,encrypt.key-secret=s");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "--object", secret, "-o", method, &text(&encrypted), "4M"]);
    let data = format!("data_file={}", text(&bench.path("outside.data")));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data, &text(&outside), "4M"]);
    let flat = bench.path("flat.vmdk");
    run("qemu-img", &["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", &text(&source), &text(&flat)]);
    for (path, word) in [
        (&backed, "based on another file"),
        (&encrypted, "encrypted"),
        (&outside, "based on another file"),
        (&flat, "only describes other files"),
    ] {
        let error = bench.registry.import(path, &options("x"), &mut no_progress).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    bench.assert_only(&[]);
}

#[test]
fn a_raw_disk_that_looks_like_qcow2_can_be_forced_raw_and_is_never_followed() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let mut content = fs::read(&source).unwrap();
    content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let path = bench.path("trap.raw");
    fs::write(&path, &content).unwrap();
    assert!(matches!(
        bench.registry.import(&path, &options("trap"), &mut no_progress),
        Err(Error::Refused { .. } | Error::QemuImg { .. })
    ));
    let forced = ImportOptions { format: Some(Format::Raw), ..options("trap") };
    let image = bench.registry.import(&path, &forced, &mut no_progress).unwrap();
    assert_eq!(fs::read(image.disk_path()).unwrap(), content);
}

#[test]
fn bad_sources_are_refused_with_a_sentence_and_leave_nothing() {
    let bench = Bench::new();
    let refuse = |content: &[u8], word: &str| {
        let path = bench.path("bad");
        fs::write(&path, content).unwrap();
        let error = bench.registry.import(&path, &options("bad"), &mut no_progress).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("bad"), "{error}");
    };
    refuse(b"", "is empty");
    refuse(&[1; 1000], "truncate -s %512");
    refuse(b"\x1f\x8b\x08 and so on", "gunzip");
    refuse(b"QFI\xfb\0\0\0\x03", "cut off");
    let mut torn = vec![0; 4096];
    torn[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    refuse(&torn, "qemu-img could not read");
    let error = bench.registry.import(Path::new("/dev/null"), &options("x"), &mut no_progress).unwrap_err();
    assert!(matches!(error, Error::NotADisk(_)));
    let error = bench.registry.import(&bench.path("absent"), &options("x"), &mut no_progress).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    let odd = ImportOptions { piece_size_bytes: Some(100_000), ..options("x") };
    assert!(matches!(bench.registry.import(&bench.raw_disk(), &odd, &mut no_progress), Err(Error::BadPieceSize(_))));
    bench.assert_only(&[]);
}

#[test]
fn names_are_taken_once_and_freed_by_removal() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let name = "debian".parse().unwrap();
    bench.registry.import(&source, &options("debian"), &mut no_progress).unwrap();
    let again = bench.registry.import(&source, &options("debian"), &mut no_progress);
    assert!(matches!(again, Err(Error::NameTaken(_))));
    bench.registry.remove(&name).unwrap();
    bench.assert_only(&[]);
    assert!(matches!(bench.registry.remove(&name), Err(Error::NotFound(_))));
    assert!(matches!(bench.registry.get(&name), Err(Error::NotFound(_))));
    bench.registry.import(&source, &options("debian"), &mut no_progress).unwrap();
}

#[test]
fn two_imports_of_one_name_at_once_give_one_image() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let import = || bench.registry.import(&source, &options("one"), &mut no_progress);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(import)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(Error::NameTaken(_)))));
    bench.assert_only(&["one"]);
    bench.registry.verify(&"one".parse().unwrap(), &mut no_progress).unwrap();
}

#[test]
fn what_a_killed_import_left_is_removed_but_a_living_one_is_not() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    bench.registry.import(&source, &options("whole"), &mut no_progress).unwrap();
    let dead = bench.path("images/.incoming-1-7");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("disk.raw"), b"half").unwrap();
    let removed = bench.path("images/.removed-1-8");
    fs::create_dir(&removed).unwrap();
    // Reopening while an import is running must not take its folder away.
    let mut reopened = false;
    bench
        .registry
        .import(&source, &options("living"), &mut |_, _| {
            if !reopened {
                Registry::open(bench.path("images")).unwrap();
                reopened = true;
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(reopened);
    bench.assert_only(&["living", "whole"]);
}

#[test]
fn cancelling_leaves_nothing() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let qcow2 = bench.path("q");
    run("qemu-img", &["convert", "-O", "qcow2", source.to_str().unwrap(), qcow2.to_str().unwrap()]);
    for path in [&source, &qcow2] {
        let outcome = bench.registry.import(path, &options("x"), &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(outcome, Err(Error::Cancelled)));
    }
    bench.assert_only(&[]);
}

#[test]
fn damage_is_found_and_listed_not_hidden() {
    let bench = Bench::new();
    let source = bench.raw_disk();
    let name = "debian".parse().unwrap();
    let image = bench.registry.import(&source, &options("debian"), &mut no_progress).unwrap();
    let disk = image.disk_path();
    let mut permissions = fs::metadata(&disk).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(&disk, permissions).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0x77], 5 << 20).unwrap();
    let outcome = bench.registry.verify(&name, &mut no_progress);
    assert!(matches!(outcome, Err(Error::CorruptPieces { count: 1, first: 320, .. })), "{outcome:?}");

    file.set_len(1 << 20).unwrap();
    let entries = bench.registry.list().unwrap();
    assert!(entries[0].image.as_ref().unwrap_err().to_string().contains("1048576 bytes"));
    fs::write(disk.with_file_name("manifest.json"), "{}").unwrap();
    assert!(bench.registry.get(&name).unwrap_err().to_string().contains("version"));
}

#[test]
fn the_torrent_names_the_same_swarm_with_and_without_trackers() {
    let bench = Bench::new();
    let image = bench.registry.import(&bench.raw_disk(), &options("debian"), &mut no_progress).unwrap();
    let urls = ["http://10.0.0.1:8080/announce".to_owned(), "http://10.0.0.2/announce".to_owned()];
    let served = wire::metainfo::Metainfo::decode(&image.torrent(&urls).unwrap()).unwrap();
    assert_eq!(served.announce(), urls);
    assert!(served.info().private);
    assert_eq!(Some(served.info_hash()), image.manifest.infohash());
    assert!(image.metainfo().unwrap().announce().is_empty());

    let from_torrent = Manifest::from_metainfo(&served).unwrap();
    assert_eq!(from_torrent.zero_pieces(), image.manifest.zero_pieces());
    assert_eq!(from_torrent.size_bytes(), image.manifest.size_bytes());
    assert_eq!(from_torrent.digest(), None);
    assert_eq!(from_torrent.pieces(), image.manifest.pieces());
    assert_eq!(from_torrent.infohash_v2(), served.v2());
    let piece = fs::read(image.disk_path()).unwrap()[..16 << 10].to_vec();
    assert_eq!(from_torrent.verify(0, piece.clone()).unwrap().bytes(), piece);
}

/// The manifest that version 0.1 wrote for an image: a plain SHA-256 of each piece.
fn old_manifest(image: &rackswarm_image::Image) -> String {
    let manifest = &image.manifest;
    let hashes = "AAAA".repeat(32 * manifest.piece_count() as usize / 3);
    format!(
        r#"{{ "version": 1, "name": "{}", "size_bytes": {}, "piece_size_bytes": {}, "digest": "{}", "infohash": "{}",
            "pieces": {{ "sha256": "{hashes}" }} }}"#,
        manifest.name(),
        manifest.size_bytes(),
        manifest.piece_size_bytes(),
        manifest.digest().unwrap(),
        "00".repeat(20),
    )
}

#[test]
fn an_image_of_an_older_version_is_sealed_anew_unless_it_changed() {
    let bench = Bench::new();
    let image = bench.registry.import(&bench.raw_disk(), &options("debian"), &mut no_progress).unwrap();
    let manifest = image.disk_path().with_file_name("manifest.json");
    fs::write(&manifest, old_manifest(&image)).unwrap();
    fs::write(manifest.with_file_name("image.torrent"), "an old torrent").unwrap();
    let error = bench.registry.get(&"debian".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("version 1") && error.contains("seals the image anew"), "{error}");

    let registry = Registry::open(bench.path("images")).unwrap();
    let renewed = registry.get(&"debian".parse().unwrap()).unwrap();
    assert_eq!(renewed.manifest, image.manifest);
    assert_eq!(renewed.metainfo().unwrap().v2(), image.manifest.infohash_v2());
    registry.verify(&"debian".parse().unwrap(), &mut no_progress).unwrap();

    let digest = image.manifest.digest().unwrap().to_string();
    let other = format!("sha256:{}", "0".repeat(64));
    fs::write(&manifest, old_manifest(&image).replace(&digest, &other)).unwrap();
    let registry = Registry::open(bench.path("images")).unwrap();
    let entry = registry.list().unwrap().remove(0);
    assert!(matches!(entry.image, Err(Error::OldManifest { found: 1, .. })), "not lost, and not trusted");
    assert_eq!(fs::read(image.disk_path()).unwrap().len(), 24 << 20);
}

/// Not a test by itself: what [`an_import_killed_at_any_instant_leaves_nothing_or_a_whole_image`]
/// starts and kills.
#[test]
#[ignore = "imports until it is killed; started by the test beside it"]
fn import_until_killed() {
    let folder = PathBuf::from(std::env::var_os("RACKSWARM_KILL_FOLDER").unwrap());
    let registry = Registry::open(folder.join("images")).unwrap();
    for number in 0.. {
        let name = format!("image-{number}");
        match registry.import(&folder.join("source.raw"), &options(&name), &mut no_progress) {
            Ok(_) if number > 0 => registry.remove(&format!("image-{}", number - 1).parse().unwrap()).unwrap(),
            Ok(_) | Err(Error::NameTaken(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn an_import_killed_at_any_instant_leaves_nothing_or_a_whole_image() {
    let bench = Bench::new();
    bench.raw_disk();
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "import_until_killed"])
            .env("RACKSWARM_KILL_FOLDER", bench.folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The instant of the fault, spread over start, copy, sealing, renaming and removal.
        std::thread::sleep(std::time::Duration::from_millis(20 + round * 17 % 251));
        child.kill().unwrap();
        child.wait().unwrap();
        let registry = Registry::open(bench.path("images")).unwrap();
        for entry in registry.list().unwrap() {
            entry.image.unwrap_or_else(|error| panic!("round {round}, {}: {error}", entry.name));
            registry.verify(&entry.name, &mut no_progress).unwrap();
            registry.remove(&entry.name).unwrap();
        }
        bench.assert_only(&[]);
    }
}
