//! Maintenance windows: when nodes may start.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Millis;

const MINUTE: u64 = 60_000;
const DAY_MINUTES: u64 = 1_440;

/// A time in which nodes may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Window {
    /// From one moment to another.
    Once {
        /// Its begin, in milliseconds since the Unix epoch.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        from: Millis,
        /// Its end.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        until: Millis,
    },
    /// Every day; over midnight where its end is before its begin, all day where they are the same.
    Daily {
        /// Minutes from midnight to its begin, 0 to 1439.
        from_minute: u16,
        /// Minutes from midnight to its end, 0 to 1439.
        until_minute: u16,
        /// Minutes that its clock is before UTC, -1440 to 1440. Daylight saving is not followed.
        #[serde(default)]
        offset_minutes: i16,
    },
}

/// Whether nodes may start at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// They may.
    Open,
    /// Not before this moment.
    At(Millis),
    /// No window is left.
    Never,
}

/// Whether nodes may start now; always where there are no windows.
#[must_use]
pub fn opening(windows: &[Window], now: Millis) -> Opening {
    if windows.is_empty() {
        return Opening::Open;
    }
    let openings = windows.iter().map(|window| window.opening(now));
    openings.fold(Opening::Never, |best, next| match (best, next) {
        (Opening::Open, _) | (_, Opening::Open) => Opening::Open,
        (Opening::At(a), Opening::At(b)) => Opening::At(a.min(b)),
        (Opening::Never, other) | (other, Opening::Never) => other,
    })
}

/// When the next of these windows is over for good; then it may have been the last.
#[must_use]
pub(super) fn over_at(windows: &[Window], now: Millis) -> Option<Millis> {
    let ends = windows.iter().filter_map(|window| match window {
        Window::Once { until, .. } => Some(*until).filter(|until| *until > now),
        Window::Daily { .. } => None,
    });
    ends.min()
}

impl Window {
    fn opening(self, now: Millis) -> Opening {
        match self {
            Self::Once { from, .. } if now < from => Opening::At(from),
            Self::Once { until, .. } if now < until => Opening::Open,
            Self::Once { .. } => Opening::Never,
            Self::Daily { from_minute, until_minute, offset_minutes } => {
                let (from, until) = (u64::from(from_minute), u64::from(until_minute));
                let length = match (until + DAY_MINUTES - from) % DAY_MINUTES {
                    0 => DAY_MINUTES,
                    length => length,
                };
                // A day more, so that nothing is before the epoch.
                let offset = DAY_MINUTES.saturating_add_signed(i64::from(offset_minutes));
                let into = (now.0 / MINUTE + offset + DAY_MINUTES - from) % DAY_MINUTES;
                if into < length {
                    Opening::Open
                } else {
                    Opening::At(Millis((now.0 / MINUTE + DAY_MINUTES - into) * MINUTE))
                }
            }
        }
    }

    /// Checks its bounds.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        match *self {
            Self::Once { from, until } if until <= from => {
                Err("windows: the end of a window is not after its begin".to_owned())
            }
            Self::Daily { from_minute, until_minute, offset_minutes }
                if u64::from(from_minute.max(until_minute)) >= DAY_MINUTES
                    || u64::from(offset_minutes.unsigned_abs()) > DAY_MINUTES =>
            {
                Err("windows: minutes of a day are 0 to 1439, and the offset -1440 to 1440".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Once { from, until } => write!(f, "from {} to {} ms of the Unix epoch", from.0, until.0),
            Self::Daily { from_minute, until_minute, offset_minutes } => {
                let sign = if *offset_minutes < 0 { '-' } else { '+' };
                let offset = offset_minutes.unsigned_abs();
                write!(
                    f,
                    "daily {:02}:{:02}-{:02}:{:02} (UTC{sign}{:02}:{:02})",
                    from_minute / 60,
                    from_minute % 60,
                    until_minute / 60,
                    until_minute % 60,
                    offset / 60,
                    offset % 60
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * MINUTE;
    /// 1 January 1970 is as good a day as any.
    fn at(hour: u64, minute: u64) -> Millis {
        Millis(30 * 24 * HOUR + hour * HOUR + minute * MINUTE + 17)
    }
    fn daily(from: u16, until: u16, offset_minutes: i16) -> Window {
        Window::Daily { from_minute: from * 60, until_minute: until * 60, offset_minutes }
    }
    fn opens(day: u64, hour: u64) -> Opening {
        Opening::At(Millis((30 + day) * 24 * HOUR + hour * HOUR))
    }

    #[test]
    fn a_daily_window_opens_every_day_also_over_midnight_and_by_its_own_clock() {
        let night = daily(22, 6, 0);
        for (hour, expected) in [
            (0, Opening::Open),
            (5, Opening::Open),
            (6, opens(0, 22)),
            (21, opens(0, 22)),
            (22, Opening::Open),
            (23, Opening::Open),
        ] {
            assert_eq!(opening(&[night], at(hour, 59 * u64::from(hour != 6 && hour != 22))), expected, "{hour}");
        }
        let noon = daily(12, 13, 0);
        assert_eq!(opening(&[noon], at(12, 30)), Opening::Open);
        assert_eq!(opening(&[noon], at(13, 0)), opens(1, 12));
        // Two hours before UTC, noon is at ten.
        assert_eq!(opening(&[daily(12, 13, 120)], at(10, 30)), Opening::Open);
        assert_eq!(opening(&[daily(12, 13, -120)], at(10, 30)), opens(0, 14));
        assert_eq!(opening(&[daily(0, 0, 0)], at(3, 3)), Opening::Open);
    }

    #[test]
    fn of_several_windows_the_first_to_open_counts_and_none_is_left_in_the_end() {
        let once = |from, until| Window::Once { from: Millis(from), until: Millis(until) };
        let two = [once(100, 200), once(300, 400)];
        let expected = [
            (50, Opening::At(Millis(100))),
            (100, Opening::Open),
            (200, Opening::At(Millis(300))),
            (399, Opening::Open),
            (400, Opening::Never),
        ];
        for (now, expected) in expected {
            assert_eq!(opening(&two, Millis(now)), expected, "{now}");
        }
        assert_eq!(opening(&[], Millis(0)), Opening::Open);
        assert!(once(5, 5).check().is_err() && daily(24, 0, 0).check().is_err() && daily(23, 0, 0).check().is_ok());
    }
}
