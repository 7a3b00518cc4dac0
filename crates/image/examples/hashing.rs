//! How fast torrents are made and disks are scanned, beside `sha256sum` and
//! `openssl` on the same file: `hashing [MIB] [FOLDER]`. Times are per core:
//! bytes over the CPU time of the process, so that other work on the machine
//! does not count.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::metainfo::{CreateOptions, Version, create};
use image::{DiskSink, Manifest, no_progress};
use nix::sys::resource::{UsageWho, getrusage};
use rackswarm_image as image;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mebibytes: usize = arguments.next().map_or(Ok(512), |text| text.parse()).expect("MiB");
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("hashing-{}", std::process::id()));
    noise(&path, mebibytes)?;
    let bytes = (mebibytes << 20) as f64;
    let show = |what: &str, (wall, cpu): (Duration, Duration)| {
        let rate = |time: Duration| bytes / 1e9 / time.as_secs_f64();
        println!("{what:30} {:6.2} GB/s, {:6.2} GB/s per core", rate(wall), rate(cpu));
    };
    println!("{mebibytes} MiB of noise in the page cache of {}", folder.display());
    for program in [["sha256sum", "-b"].as_slice(), &["openssl", "sha256"], &["sha1sum", "-b"]] {
        show(
            program[0],
            timed(UsageWho::RUSAGE_CHILDREN, || {
                let ran = Command::new(program[0]).args(&program[1..]).arg(&path).stdout(Stdio::null()).status();
                assert!(ran.is_ok_and(|status| status.success()), "{program:?}");
            }),
        );
    }
    for (name, version) in [("v1", Version::V1), ("v2", Version::V2), ("hybrid", Version::Hybrid)] {
        let options = CreateOptions { version, ..CreateOptions::default() };
        show(
            &format!("create {name}"),
            timed(UsageWho::RUSAGE_SELF, || {
                create(&path, &options, &mut no_progress).unwrap();
            }),
        );
    }
    let options = CreateOptions { version: Version::V2, ..CreateOptions::default() };
    let torrent = create(&path, &options, &mut no_progress).unwrap();
    let manifest = Arc::new(Manifest::from_metainfo(&torrent).unwrap());
    let sink = DiskSink::open(&path, Arc::clone(&manifest)).unwrap();
    show(
        "scan, all right",
        timed(UsageWho::RUSAGE_SELF, || {
            assert!(sink.scan(&mut no_progress).unwrap().is_full());
        }),
    );
    let peak = getrusage(UsageWho::RUSAGE_SELF).unwrap().max_rss();
    println!("pieces of {} KiB; peak memory {} MiB", manifest.piece_size_bytes() >> 10, peak >> 10);
    fs::remove_file(&path)
}

fn timed(who: UsageWho, work: impl FnOnce()) -> (Duration, Duration) {
    let cpu = || {
        let usage = getrusage(who).unwrap();
        let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()) as u64;
        Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
    };
    let (start, before) = (Instant::now(), cpu());
    work();
    (start.elapsed(), cpu() - before)
}

fn noise(path: &Path, mebibytes: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.rotate_left(29).to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}
