//! `seed`, `fetch`, `torrent` and `track` over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use common::{PATIENCE, Ran, command, free_port, rackswarm, until};
use serde_json::Value;

const BYTES: usize = 5_000_000;
const PIECE: usize = 256 << 10;

/// A folder with a file, and everything that runs for a test.
struct Place {
    folder: tempfile::TempDir,
    content: Vec<u8>,
}

/// A process that prints `ready`, ended when dropped.
struct Running(Child);

/// Xorshift, begun with what no other process and no other test has.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let now = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        Self(now ^ (u64::from(std::process::id()) << 40) ^ (NEXT.fetch_add(1, Ordering::Relaxed) << 56) | 1)
    }
}

impl Iterator for Chance {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some((self.0 >> 32) as u8)
    }
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Pieces that differ, also from those of other tests, whose swarms would be found in the local network; some
        // zeros, and an end that is no whole piece.
        let mut content: Vec<u8> = Chance::new().take(BYTES).collect();
        content[3 * PIECE..5 * PIECE].fill(0);
        std::fs::write(folder.path().join("image"), &content).unwrap();
        Self { folder, content }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn seed(&self, words: &[&str]) -> Running {
        let mut seed = command();
        seed.arg("seed").arg(self.path("image")).arg("--torrent").arg(self.path("t"));
        seed.args(["--listen", &loopback(), "--tracker-listen", &loopback()])
            .args(["--piece-size", "256K"])
            .args(words);
        Running::start(seed, &self.path("seed.out"))
    }

    fn fetch(&self, words: &[&str]) -> Ran {
        let torrent = self.text("t");
        let usual = ["fetch", &torrent, "--listen", "127.0.0.1", "--linger", "0", "--limit", "60"];
        rackswarm(&[&usual, words].concat())
    }

    fn holds(&self, path: &Path) -> bool {
        std::fs::read(path).unwrap() == self.content
    }
}

impl Running {
    fn start(mut command: Command, out: &Path) -> Self {
        let file = File::create(out).unwrap();
        let mut running = Self(command.stdout(file).spawn().unwrap());
        until("it is ready", || {
            assert!(running.0.try_wait().unwrap().is_none(), "it ended at once");
            std::fs::read_to_string(out).unwrap().lines().any(|line| line.starts_with("ready"))
        });
        running
    }

    fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }

    fn code(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn loopback() -> String {
    format!("127.0.0.1:{}", free_port())
}

#[test]
fn a_file_arrives_and_is_told_in_one_line() {
    let place = Place::new();
    let mut seed = place.seed(&[]);
    let said = std::fs::read_to_string(place.path("seed.out")).unwrap();
    for word in ["info-hash", "256 KiB", "magnet:?xt=urn:btih:", "http://127.0.0.1:"] {
        assert!(said.contains(word), "{word} is not in\n{said}");
    }
    let ran = place.fetch(&[&place.text("copy")]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with(&format!("complete bytes={BYTES} seconds=")), "{}", ran.stdout);
    assert_eq!(ran.stdout.lines().count(), 1);
    assert!(place.holds(&place.path("copy")));
    seed.signal("TERM");
    assert_eq!(seed.code(), Some(0));
}

#[test]
fn every_version_of_torrent_arrives() {
    for version in ["v1", "v2", "hybrid"] {
        let place = Place::new();
        let _seed = place.seed(&["--version", version]);
        let ran = place.fetch(&[&place.text("copy")]);
        assert_eq!(ran.code, 0, "{version}: {}", ran.stderr);
        assert!(place.holds(&place.path("copy")), "{version}");
    }
}

#[test]
fn a_magnet_link_is_enough() {
    for version in ["v1", "v2", "hybrid"] {
        let place = Place::new();
        let _seed = place.seed(&["--version", version]);
        let said = std::fs::read_to_string(place.path("seed.out")).unwrap();
        let magnet = said.lines().find_map(|line| line.strip_prefix("magnet")).unwrap().trim();
        let copy = place.text("copy");
        let ran = rackswarm(&["fetch", magnet, &copy, "--listen", "127.0.0.1", "--linger", "0", "--limit", "60"]);
        assert_eq!(ran.code, 0, "{version}: {}", ran.stderr);
        assert!(place.holds(&place.path("copy")), "{version}");
    }
}

#[test]
fn a_folder_gets_a_file_of_the_images_name() {
    let place = Place::new();
    let _seed = place.seed(&[]);
    std::fs::create_dir(place.path("to")).unwrap();
    assert_eq!(place.fetch(&[&place.text("to")]).code, 0);
    assert!(place.holds(&place.path("to/image")));
}

#[test]
fn only_what_is_missing_is_fetched() {
    let place = Place::new();
    let _seed = place.seed(&[]);
    let copy = place.path("copy");
    std::fs::write(&copy, &place.content).unwrap();
    File::options().write(true).open(&copy).unwrap().write_all_at(b"other", 10 * PIECE as u64).unwrap();
    let ran = place.fetch(&[copy.to_str().unwrap(), "--json"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 1), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["payload_received"], PIECE, "{report}");
    assert_eq!(report["bytes_held"], BYTES - PIECE, "{report}");
    assert!(place.holds(&copy));
}

#[test]
fn the_report_accounts_for_every_byte() {
    let place = Place::new();
    let _seed = place.seed(&[]);
    let ran = place.fetch(&[&place.text("copy"), "--json", "--rack", "r1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let links = report["links"].as_array().unwrap();
    let received: u64 = links.iter().map(|link| link["received"].as_u64().unwrap()).sum();
    // Two pieces are zeros and need not come.
    assert_eq!(received, (BYTES - 2 * PIECE) as u64, "{report}");
    assert_eq!(report["payload_received"].as_u64(), Some(received), "{report}");
    assert!(report["wire_received"].as_u64() > Some(received), "{report}");
    assert_eq!((&report["complete"], &report["bytes"]), (&Value::Bool(true), &Value::from(BYTES)));
    assert!(report["cpu_seconds"].as_f64() > Some(0.0) && report["peak_memory_bytes"].as_u64() > Some(1 << 20));
}

#[test]
fn who_lingers_seeds() {
    let place = Place::new();
    let mut seed = place.seed(&[]);
    let address = loopback();
    let mut first = command();
    first
        .arg("fetch")
        .arg(place.path("t"))
        .arg(place.path("first"))
        .args(["--linger", "forever", "--listen", &address]);
    let out = File::create(place.path("first.out")).unwrap();
    let mut first = Running(first.stdout(out).spawn().unwrap());
    until("the first one is complete", || !std::fs::read(place.path("first.out")).unwrap().is_empty());
    seed.signal("INT");
    assert_eq!(seed.code(), Some(0));
    let ran = place.fetch(&[&place.text("second"), "--peer", &address]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(place.holds(&place.path("second")));
    first.signal("TERM");
    assert_eq!(first.code(), Some(0), "everything was there, so leaving is no failure");
}

#[test]
fn a_torrent_a_tracker_and_a_seed_apart() {
    let place = Place::new();
    let at = loopback();
    let announce = format!("http://{at}/announce");
    let (image, torrent) = (place.text("image"), place.text("t"));
    let ran = rackswarm(&["torrent", &image, "--out", &torrent, "--announce", &announce]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let mut track = command();
    track.args(["track", &torrent, "--listen", &at]);
    let _track = Running::start(track, &place.path("track.out"));
    let mut seed = command();
    seed.args(["seed", &image, "--listen", &loopback(), "--tracker-listen", "none", "--announce", &announce]);
    let _seed = Running::start(seed, &place.path("seed.out"));
    let ran = place.fetch(&[&place.text("copy")]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(place.holds(&place.path("copy")));
}

#[test]
fn a_signal_before_the_end_is_orderly_and_no_success() {
    let place = Place::new();
    let torrent = place.text("t");
    let nobody = format!("http://{}/announce", loopback());
    assert_eq!(rackswarm(&["torrent", &place.text("image"), "--out", &torrent, "--announce", &nobody]).code, 0);
    let mut fetch = command();
    fetch.args(["fetch", &torrent]).arg(place.path("copy")).args(["--listen", &loopback()]);
    let mut running = Running(fetch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    until("the file is there", || place.path("copy").exists());
    running.signal("TERM");
    assert_eq!(running.code(), Some(143));
    let (mut out, mut words) = (String::new(), String::new());
    running.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    running.0.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(out, "");
    assert!(words.contains("SIGTERM") && words.contains("next run"), "{words}");

    let ran = rackswarm(&["fetch", &torrent, &place.text("copy"), "--listen", &loopback(), "--limit", "1"]);
    assert_eq!(ran.code, 1);
    for word in ["--limit", "nobody is connected", "next run"] {
        assert!(ran.stderr.contains(word), "nothing of {word}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains('\u{1b}'), "colours in a pipe: {}", ran.stderr);
}

#[test]
fn one_file_is_the_destination_of_one_fetch() {
    let place = Place::new();
    let _seed = place.seed(&[]);
    let mut first = command();
    first.arg("fetch").arg(place.path("t")).arg(place.path("copy"));
    first.args(["--listen", &loopback(), "--linger", "forever"]);
    let out = File::create(place.path("first.out")).unwrap();
    let mut first = Running(first.stdout(out).spawn().unwrap());
    until("the first one is complete", || !std::fs::read(place.path("first.out")).unwrap().is_empty());
    let ran = place.fetch(&[&place.text("copy")]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("another fetch"), "{}", ran.stderr);
    first.signal("TERM");
    assert_eq!(first.code(), Some(0));
    assert_eq!(place.fetch(&[&place.text("copy")]).code, 0);
}

#[test]
fn a_signal_does_not_wait_for_a_file_to_be_read() {
    let place = Place::new();
    // Hashing this takes hours.
    File::create(place.path("image")).unwrap().set_len(4 << 40).unwrap();
    let tracker = loopback();
    let mut seed = command();
    seed.arg("seed").arg(place.path("image")).args(["--listen", &loopback(), "--tracker-listen", &tracker]);
    let mut seed = Running(seed.stdout(Stdio::null()).spawn().unwrap());
    until("it has begun", || TcpStream::connect(&tracker).is_ok());
    seed.signal("INT");
    assert_eq!(seed.code(), Some(130));
}

#[test]
fn what_cannot_be_written_is_said_before_the_file_is_read() {
    let place = Place::new();
    File::create(place.path("image")).unwrap().set_len(4 << 40).unwrap();
    File::create(place.path("empty")).unwrap();
    let pipe = place.text("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (image, empty, folder) = (place.text("image"), place.text("empty"), place.text(""));
    let scenario = place.text("scenario.toml");
    let text = "title = \"two\"\n[image]\nsize = \"1GiB\"\npiece = \"1MiB\"\n[fabric]\nnodes = 2\nrate = \"1kbit\"\n";
    std::fs::write(&scenario, text).unwrap();
    for (words, said) in [
        (&["torrent", &image, "--out", "/nonesuch/t"][..], &["the folder /nonesuch is not there"][..]),
        (&["torrent", &image, "--out", &folder], &["is a folder"]),
        (&["torrent", &empty, "--out", "t"], &["is empty"]),
        (&["torrent", &pipe, "--out", "t"], &["neither a file nor a block device"]),
        (&["seed", &pipe, "--listen", "127.0.0.1:0", "--tracker-listen", "127.0.0.1:0"], &["neither a file"]),
        (&["fetch", &pipe, &empty], &["is no file"]),
        (&["seed", &image, "--torrent", "/nonesuch/t", "--listen", "127.0.0.1:0"], &["the folder /nonesuch"]),
        (&["seed", &image, "--listen", "192.0.2.1:1"], &["192.0.2.1:1", "choose another address"]),
        (&["sim", &scenario, "--csv", "/nonesuch/run.csv"], &["the folder /nonesuch"]),
        (&["sim", "/nonesuch.toml"], &["cannot read /nonesuch.toml"]),
    ] {
        let ran = rackswarm(words);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{words:?}: {}", ran.stderr);
        for word in said {
            assert!(ran.stderr.contains(word), "{words:?} says nothing of {word}: {}", ran.stderr);
        }
        assert!(ran.stderr.matches("os error").count() < 2, "{words:?} says its cause twice: {}", ran.stderr);
    }
}

#[test]
fn what_cannot_be_is_said_before_anything_is_fetched() {
    let place = Place::new();
    let torrent = place.text("t");
    assert_eq!(rackswarm(&["torrent", &place.text("image"), "--out", &torrent]).code, 0);
    std::fs::write(place.path("other"), b"something else").unwrap();
    let (other, image) = (place.text("other"), place.text("image"));
    for (words, said) in [
        (&[torrent.as_str(), "/nonesuch/copy"][..], &["/nonesuch", "not there"][..]),
        (&[&torrent, "/dev/nonesuch"], &["/dev/nonesuch", "lsblk"]),
        (&[&torrent, "/dev/null"], &["neither a block device"]),
        (&[&torrent, &other], &["14 bytes", "5000000"]),
        (&["/nonesuch.torrent", &image], &["cannot open", "/nonesuch.torrent"]),
        (&[&other, &image], &["no .torrent"]),
        (&["https://a/b", &image], &["http://"]),
        (&["ftp://a/b", &image], &["ftp", "http://"]),
        (&[&torrent, "/proc/copy"], &["/proc has 0 MiB free"]),
        (&["magnet:?xt=urn:btih:short", &image], &["magnet", "between quotes"]),
        (&["magnet:?dn=nothing", &image], &["magnet", "names no torrent"]),
    ] {
        let ran = rackswarm(&[&["fetch"], words].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{words:?}: {}", ran.stderr);
        for word in said {
            assert!(ran.stderr.contains(word), "{words:?} says nothing of {word}: {}", ran.stderr);
        }
    }
    assert_eq!(std::fs::read(place.path("other")).unwrap(), b"something else");
    assert_eq!(rackswarm(&["fetch", &torrent, &image, "--linger", "long"]).code, 2);
}
