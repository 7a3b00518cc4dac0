//! The clock: timelines, deadlines and leases count by it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use controller::Config;

use super::Finding;
use crate::output::{moment, now, span};
use fleet::ids::Millis;

const CHECK: &str = "clock";
/// This program was written in 2026, so no earlier moment is now: 2026-01-01 in milliseconds.
const EARLIEST: Millis = Millis(1_767_225_600_000);
/// A battery that is empty sets some clocks far ahead: 2100-01-01.
const LATEST: Millis = Millis(4_102_444_800_000);
/// Set back by less than this, leases and deadlines are only a little late.
const TOLERANCE: Duration = Duration::from_secs(60);

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let database = config.server.data_dir.join("rackswarm.db");
    // SQLite writes the journal first, so its time is the last event's.
    let journal = database.with_extension("db-wal");
    let last = [database, journal].iter().filter_map(|path| written(path)).max();
    vec![judge(now(), last)]
}

fn written(path: &Path) -> Option<Millis> {
    let time: SystemTime = std::fs::metadata(path).ok()?.modified().ok()?;
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok().map(Millis)
}

fn judge(now: Millis, last_event: Option<Millis>) -> Finding {
    let fix = "set the clock (timedatectl set-ntp true, or date --set)";
    if !(EARLIEST..LATEST).contains(&now) {
        return Finding::fail(CHECK, format!("it is set to {}", moment(now)), fix);
    }
    match last_event.map(|last| Duration::from_millis(last.since(now))) {
        Some(ahead) if ahead > TOLERANCE => Finding::fail(
            CHECK,
            format!("it is {} behind the last event in the database; it was set back", span(ahead)),
            fix,
        ),
        _ => Finding::pass(CHECK, format!("it is {}", moment(now))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_clock_without_battery_or_set_back_is_found() {
        assert_eq!(judge(Millis(0), None).verdict, Verdict::Fail);
        assert_eq!(judge(LATEST, None).verdict, Verdict::Fail);
        assert_eq!(judge(EARLIEST, Some(EARLIEST.plus(30_000))).verdict, Verdict::Pass);
        assert_eq!(judge(EARLIEST, Some(EARLIEST.plus(3_600_000))).verdict, Verdict::Fail);
        assert_eq!(judge(EARLIEST.plus(5), Some(EARLIEST)).verdict, Verdict::Pass);
    }
}
