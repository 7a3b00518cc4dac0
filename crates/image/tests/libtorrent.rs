//! Torrents of every version, judged by libtorrent 2: what it makes we read,
//! what we make it reads and finds in the file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rackswarm_image::metainfo::{CreateOptions, Version, create};
use rackswarm_image::{Manifest, no_progress};
use serde_json::{Value, json};
use wire::metainfo::Metainfo;

/// libtorrent behind a pipe, ended when dropped.
struct Judge {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Judge {
    fn start() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let python = target.join("libtorrent-venv/bin/python");
        let mut child = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/judge.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask test`, which installs it", python.display()));
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, questions, answers }
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.questions, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).expect("an answer of judge.py");
        assert_eq!(answer.get("error"), None, "{question}");
        answer
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const VERSIONS: [(&str, Version); 3] = [("v1", Version::V1), ("v2", Version::V2), ("hybrid", Version::Hybrid)];

/// Every edge of the tree: less than a block, one block, one piece, a byte
/// more, numbers of pieces that are no power of two; the last piece of zeros.
const SHAPES: [(usize, u64); 10] = [
    (1, 16 << 10),
    (16 << 10, 16 << 10),
    ((16 << 10) + 1, 16 << 10),
    (5 << 14, 16 << 10),
    (40_000, 64 << 10),
    (64 << 10, 64 << 10),
    ((64 << 10) + 1, 64 << 10),
    (700_001, 64 << 10),
    (3 << 20, 256 << 10),
    ((3 << 20) + 20_000, 1 << 20),
];

/// Noise, then a quarter of zeros.
fn file(folder: &Path, length: usize) -> PathBuf {
    let mut content: Vec<u8> = (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    content[length - length / 4..].fill(0);
    let path = folder.join("disk image.raw");
    fs::write(&path, content).unwrap();
    path
}

/// What libtorrent says of a torrent is what we say.
fn assert_agreed(metainfo: &Metainfo, judged: &Value) {
    let info = metainfo.info();
    assert_eq!(judged["v1"].as_str(), metainfo.v1().map(|hash| hash.to_string()).as_deref());
    assert_eq!(judged["v2"].as_str(), metainfo.v2().map(|hash| hash.to_string()).as_deref());
    assert_eq!(judged["name"], info.name);
    assert_eq!(judged["length"], info.length);
    assert_eq!(judged["piece_length"], info.piece_length);
    assert_eq!(judged["pieces"], info.piece_count());
    assert_eq!(judged["private"], info.private);
    assert_eq!(judged["trackers"], json!(metainfo.announce()));
}

#[test]
fn what_libtorrent_makes_is_read_verified_and_written_again() {
    let mut judge = Judge::start();
    for (length, piece_length) in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), length);
        let content = fs::read(&path).unwrap();
        for (name, version) in VERSIONS {
            let torrent = folder.path().join(format!("{name}.torrent"));
            let made = judge.ask(&json!({
                "command": "make", "path": path, "torrent": torrent, "piece_length": piece_length, "version": name,
                "private": version == Version::Hybrid,
            }));
            let metainfo = Metainfo::decode(&fs::read(&torrent).unwrap()).unwrap();
            assert_agreed(&metainfo, &made);

            let manifest = Manifest::from_metainfo(&metainfo).unwrap();
            for (index, piece) in (0u32..).zip(content.chunks(piece_length as usize)) {
                manifest.verify(index, piece.to_vec()).unwrap();
                let mut damaged = piece.to_vec();
                damaged[piece.len() / 2] ^= 1;
                manifest.verify(index, damaged).unwrap_err();
                let zeros = piece.iter().all(|&byte| byte == 0);
                assert_eq!(manifest.zero_pieces().contains(index as usize), zeros);
            }
            let options = CreateOptions { version, piece_length: Some(piece_length), ..CreateOptions::default() };
            let ours = create(&path, &options, &mut no_progress).unwrap();
            assert_eq!((&ours.info().pieces, &ours.info().v2), (&metainfo.info().pieces, &metainfo.info().v2));

            fs::write(&torrent, metainfo.encode().unwrap()).unwrap();
            assert_agreed(&metainfo, &judge.ask(&json!({ "command": "read", "torrent": torrent })));
        }
    }
}

#[test]
fn what_we_make_libtorrent_reads_and_finds_in_the_file() {
    let mut judge = Judge::start();
    for (length, piece_length) in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), length);
        for (name, version) in VERSIONS {
            let options = CreateOptions {
                version,
                piece_length: Some(piece_length),
                private: version != Version::V2,
                trackers: vec!["http://10.0.0.1:6969/announce".to_owned(), "udp://10.0.0.2:6969".to_owned()],
                name: None,
            };
            let metainfo = create(&path, &options, &mut no_progress).unwrap();
            let torrent = folder.path().join(format!("{name}.torrent"));
            fs::write(&torrent, metainfo.encode().unwrap()).unwrap();
            assert_agreed(&metainfo, &judge.ask(&json!({ "command": "read", "torrent": torrent })));
            let found = judge.ask(&json!({ "command": "check", "torrent": torrent, "folder": folder.path() }));
            assert_eq!(found["pieces"], metainfo.info().piece_count(), "{name} of {length} in {piece_length}");
        }
    }
}
