//! Checks of the hardware before its first use. Nothing is written: a deployment reads back samples of what it writes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use api::client::Client;
use fleet::discovery::{Check, CheckOutcome};
use fleet::disk::{Disk, Size};
use serde_json::Value;
use tokio::time::Instant;

use crate::Stop;
use crate::command::Run;

/// A disk that takes longer to tell its health has trouble of its own.
const SMART_LIMIT: Duration = Duration::from_secs(30);
/// Reads of one disk, spread over all of it.
const READS: u64 = 48;
/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;
/// After this time no more is read.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// The slowest disk that is fit for use, in bytes a second: one that repeats failing reads is below, any other far above.
const DISK_LEAST: u64 = 2 << 20;
/// Bytes that are asked of the server first, and then where that was quick.
const SAMPLES: [usize; 2] = [1 << 20, 16 << 20];
/// A sample that took less was too small to tell a rate.
const QUICK: Duration = Duration::from_millis(500);
/// The slowest network that is fit for use, in bits a second: a cable that negotiated 10 Mbit/s and loses most of it.
const NETWORK_LEAST: u64 = 1_000_000;

/// Makes all checks, disks side by side.
pub(crate) async fn make(client: &Client, disks: &[Disk]) -> Vec<Check> {
    let fixed = disks.iter().filter(|disk| !disk.removable && !disk.boot_medium).cloned();
    let tried: Vec<_> = fixed.map(|disk| tokio::task::spawn_blocking(move || [health(&disk), read(&disk)])).collect();
    let mut checks = vec![network(client).await];
    for disk in tried {
        match disk.await {
            Ok(found) => checks.extend(found),
            Err(error) => checks.push(check("disk", CheckOutcome::NotMade, format!("the check ended early: {error}"))),
        }
    }
    checks.sort_by(|a, b| (&a.name, &a.text).cmp(&(&b.name, &b.text)));
    checks
}

fn check(name: &str, outcome: CheckOutcome, text: String) -> Check {
    Check { name: name.to_owned(), outcome, text }
}

/// What the disk says of its own health.
fn health(disk: &Disk) -> Check {
    let run = Run::new("smartctl", SMART_LIMIT).args(["--health", "--json=c", &disk.path]).fine(&SMARTCTL_ENDS);
    let (outcome, text) = match run.text(&Stop::default()) {
        Ok(told) => judge_health(&told),
        Err(error) => (CheckOutcome::NotMade, error.to_string()),
    };
    check("disk health", outcome, format!("{}: {text}", disk.path))
}

/// Its status is a set of bits about the disk (smartctl(8), EXIT STATUS); what it prints says the same in words.
const SMARTCTL_ENDS: [i32; 256] = {
    let mut all = [0; 256];
    let mut status = 0;
    while status < 256 {
        all[status] = status as i32;
        status += 1;
    }
    all
};

fn judge_health(told: &str) -> (CheckOutcome, String) {
    let Ok(told) = serde_json::from_str::<Value>(told) else {
        return (CheckOutcome::NotMade, "smartctl printed nothing that can be read".to_owned());
    };
    match told.pointer("/smart_status/passed").and_then(Value::as_bool) {
        Some(true) => (CheckOutcome::Passed, "the disk says that it is in good health (SMART)".to_owned()),
        Some(false) => (CheckOutcome::Failed, "the disk says that it is failing (SMART): replace it".to_owned()),
        None => {
            let words = told.pointer("/smartctl/messages/0/string").and_then(Value::as_str);
            let words = words.unwrap_or("it tells nothing of its health");
            (CheckOutcome::NotMade, format!("no SMART: {}", words.chars().take(120).collect::<String>()))
        }
    }
}

/// Reads a sample all over the disk.
fn read(disk: &Disk) -> Check {
    let (outcome, text) = match sample(disk) {
        Ok((bytes, took)) => judge_rate(bytes, took),
        Err(error) => (CheckOutcome::Failed, error),
    };
    check("disk read", outcome, format!("{}: {text}", disk.path))
}

fn sample(disk: &Disk) -> Result<(u64, Duration), String> {
    let file = File::open(&disk.path).map_err(|error| format!("cannot be opened: {error}"))?;
    let last = disk.size_bytes.saturating_sub(READ_BYTES as u64);
    let mut buffer = vec![0; READ_BYTES.min(usize::try_from(disk.size_bytes).unwrap_or(READ_BYTES))];
    let (begun, mut bytes) = (Instant::now(), 0);
    for number in 0..READS {
        // Whole sectors, whatever their size.
        let at = (last / (READS - 1) * number) & !0xffff;
        file.read_exact_at(&mut buffer, at).map_err(|error| format!("cannot be read at {}: {error}", Size(at)))?;
        bytes += buffer.len() as u64;
        if begun.elapsed() > READ_LIMIT {
            break;
        }
    }
    Ok((bytes, begun.elapsed()))
}

fn judge_rate(bytes: u64, took: Duration) -> (CheckOutcome, String) {
    let rate = per_second(bytes, took);
    let found = format!("{} read in {} ms, {} a second", Size(bytes), took.as_millis(), Size(rate));
    match rate >= DISK_LEAST {
        true => (CheckOutcome::Passed, found),
        false => (CheckOutcome::Failed, format!("{found}; {} is the least: replace it", Size(DISK_LEAST))),
    }
}

/// How fast the server's bytes arrive.
async fn network(client: &Client) -> Check {
    let mut found = (CheckOutcome::NotMade, String::new());
    for bytes in SAMPLES {
        let begun = Instant::now();
        match client.read(&format!("/api/v1/agent/sample?bytes={bytes}"), bytes).await {
            Ok(sample) => {
                let took = begun.elapsed();
                found = judge_network(sample.len() as u64, took);
                if took > QUICK {
                    break;
                }
            }
            Err(error) => {
                found = (CheckOutcome::Failed, format!("{} of the server did not arrive: {error}", Size(bytes as u64)));
                break;
            }
        }
    }
    check("network", found.0, found.1)
}

fn judge_network(bytes: u64, took: Duration) -> (CheckOutcome, String) {
    let bits = per_second(bytes, took).saturating_mul(8);
    let found = format!("{} came from the server at {} Mbit/s", Size(bytes), bits / 1_000_000);
    match bits >= NETWORK_LEAST {
        true => (CheckOutcome::Passed, found),
        false => (CheckOutcome::Failed, format!("{found}, 1 is the least: check the cable and the port's rate")),
    }
}

fn per_second(bytes: u64, took: Duration) -> u64 {
    let microseconds = took.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / microseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_disks_own_words_are_judged() {
        for (told, outcome) in [
            (r#"{"smart_status":{"passed":true,"nvme":{"value":0}}}"#, CheckOutcome::Passed),
            (r#"{"smartctl":{"exit_status":8},"smart_status":{"passed":false}}"#, CheckOutcome::Failed),
            (r#"{"smartctl":{"messages":[{"string":"Unable to detect device type"}]}}"#, CheckOutcome::NotMade),
            ("smartctl: not found", CheckOutcome::NotMade),
        ] {
            assert_eq!(judge_health(told).0, outcome, "{told}");
        }
        assert!(
            judge_health(r#"{"smartctl":{"messages":[{"string":"no device type"}]}}"#).1.contains("no device type")
        );
    }

    #[test]
    fn rates_are_judged_at_their_limits() {
        let second = Duration::from_secs(1);
        assert_eq!(judge_rate(DISK_LEAST, second).0, CheckOutcome::Passed);
        assert_eq!(judge_rate(DISK_LEAST - 1, second).0, CheckOutcome::Failed);
        assert_eq!(judge_rate(1, Duration::ZERO).0, CheckOutcome::Failed);
        assert_eq!(judge_network(125_000, second).0, CheckOutcome::Passed);
        assert_eq!(judge_network(124_999, second).0, CheckOutcome::Failed);
    }

    #[test]
    fn a_disk_is_read_from_its_start_to_its_end_and_never_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for size_bytes in [512, READ_BYTES as u64 + 1, 256 << 20] {
            File::create(&path).unwrap().set_len(size_bytes).unwrap();
            let disk = Disk { path: path.display().to_string(), size_bytes, ..Disk::default() };
            let check = read(&disk);
            assert_eq!(check.outcome, CheckOutcome::Passed, "{check:?}");
        }
        // It ends before what it says of itself.
        let disk = Disk { path: path.display().to_string(), size_bytes: 1 << 40, ..Disk::default() };
        assert!(read(&disk).text.contains("cannot be read at"));
    }
}
