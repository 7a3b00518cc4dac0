//! What writing an image to a target costs: `writing TARGET [MIB]`, TARGET a
//! block device (its content is lost) or a file to be made. Says wall and CPU
//! time of this process, and how many pages of the machine were dirty at most.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::metainfo::{CreateOptions, Version, create};
use image::{DiskSink, Manifest, PieceSink, no_progress};
use nix::sys::resource::{UsageWho, getrusage};
use rackswarm_image as image;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let target = PathBuf::from(arguments.next().expect("TARGET"));
    let mebibytes: usize = arguments.next().map_or(256, |text| text.parse().expect("MiB"));
    let piece = 1 << 20;
    let source = tempfile::NamedTempFile::new().unwrap();
    let mut state = 1u64;
    let content: Vec<u8> = (0..mebibytes * piece / 8)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.rotate_left(29).to_le_bytes()
        })
        .collect();
    fs::write(source.path(), &content).unwrap();
    let options = CreateOptions { version: Version::V2, piece_length: Some(piece as u64), ..CreateOptions::default() };
    let torrent = create(source.path(), &options, &mut no_progress).unwrap();
    let manifest = Arc::new(Manifest::from_metainfo(&torrent).unwrap());
    let sink = open(&target, &manifest);
    sink.prepare(&mut no_progress).unwrap();

    let (start, before) = (Instant::now(), cpu());
    let mut dirty = 0;
    let count = manifest.piece_count();
    for step in 0..count {
        // In no order, as a swarm delivers.
        let index = (step * 97) % count;
        let bytes = content[index as usize * piece..][..piece].to_vec();
        sink.put(&manifest.verify(index, bytes).unwrap()).unwrap();
        dirty = dirty.max(dirty_kib());
    }
    let put = (start.elapsed(), cpu() - before);
    sink.finish(1).unwrap();
    let all = (start.elapsed(), cpu() - before);
    let gigabytes = content.len() as f64 / 1e9;
    let say = |what, (wall, cpu): (Duration, Duration)| {
        println!("{what}: {:.2} s, CPU {:.3} s per GB", wall.as_secs_f64(), cpu.as_secs_f64() / gigabytes);
    };
    println!("{mebibytes} MiB to {}", target.display());
    say("verified and put", put);
    say("and flushed", all);
    println!("dirty at most {} MiB", dirty >> 10);
}

fn open(target: &Path, manifest: &Arc<Manifest>) -> DiskSink {
    if target.exists() {
        DiskSink::open(target, Arc::clone(manifest)).unwrap()
    } else {
        DiskSink::create(target, Arc::clone(manifest)).unwrap()
    }
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()) as u64;
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

fn dirty_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("Dirty:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
