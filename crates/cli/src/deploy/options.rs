//! The options that say how a deployment goes on.

use clap::{Args, ValueEnum, value_parser};
use fleet::ids::{Millis, NodeName};
use fleet::rollout::{Budget, Canary, Order, Rollout, Window};
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// How a deployment goes on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rollout")]
pub(super) struct RolloutOptions {
    /// Nodes that come first, while all others wait until they are proved: a number, spread over the racks, or names
    #[arg(long, value_name = "N|NODE,...", value_parser = canary)]
    canary: Option<Canary>,
    /// In which order nodes start
    #[arg(long, value_enum, default_value_t)]
    order: OrderOption,
    /// Nodes under way at the same time [default: all]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    at_once: Option<u32>,
    /// Nodes of one rack under way at the same time [default: all]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    at_once_per_rack: Option<u32>,
    /// Pause when so many nodes have failed
    #[arg(long, value_name = "N|P%")]
    failure_budget: Option<Budget>,
    /// Pause a rack when so many of its nodes have failed
    #[arg(long, value_name = "N|P%")]
    failure_budget_per_rack: Option<Budget>,
    /// Start nodes only then: daily as in 22:00-06:00, or once as in 2026-11-24T22:00/2026-11-25T06:00, by this machine's
    /// clock; may be repeated
    #[arg(long = "window", value_name = "WINDOW", value_parser = window)]
    windows: Vec<Window>,
    /// Start the deployed kernel without going through the firmware [default: as set for the node or its rack]
    #[arg(long, overrides_with = "no_kexec")]
    kexec: bool,
    /// Restart through the firmware, whatever is set for nodes and racks
    #[arg(long)]
    no_kexec: bool,
    /// Also nodes whose hardware failed a check before its first use
    #[arg(long)]
    despite_checks: bool,
}

/// As [`Order`], with words for the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum OrderOption {
    /// All nodes of all racks at once, as far as the limits let them
    #[default]
    Lanes,
    /// One node of each rack first; the rest of a rack when that one is proved
    Leaders,
}

impl RolloutOptions {
    pub(super) fn into_rollout(self) -> Rollout {
        Rollout {
            order: match self.order {
                OrderOption::Lanes => Order::Lanes,
                OrderOption::Leaders => Order::Leaders,
            },
            canary: self.canary,
            at_once: self.at_once,
            at_once_per_rack: self.at_once_per_rack,
            failure_budget: self.failure_budget,
            failure_budget_per_rack: self.failure_budget_per_rack,
            windows: self.windows,
            despite_checks: self.despite_checks,
            kexec: if self.no_kexec { Some(false) } else { self.kexec.then_some(true) },
        }
    }
}

fn canary(text: &str) -> Result<Canary, String> {
    if let Ok(count) = text.parse::<u32>() {
        return if count == 0 { Err("at least one node".to_owned()) } else { Ok(Canary::Count(count)) };
    }
    let names = text.split(',').map(|name| name.trim().parse::<NodeName>().map_err(|bad| bad.to_string()));
    Ok(Canary::Nodes(names.collect::<Result<_, _>>()?))
}

/// A maintenance window, by this machine's clock.
pub(super) fn window(text: &str) -> Result<Window, String> {
    window_at(text, &Zoned::now())
}

fn window_at(text: &str, now: &Zoned) -> Result<Window, String> {
    let wrong = || {
        format!("`{text}` is no window: write it as in 22:00-06:00 (daily) or 2026-11-24T22:00/2026-11-25T06:00 (once)")
    };
    if let Some((from, until)) = text.split_once('/') {
        let from = moment(from, now.time_zone()).ok_or_else(wrong)?;
        let until = moment(until, now.time_zone()).ok_or_else(wrong)?;
        let window = Window::Once { from, until };
        return window.check().map(|()| window);
    }
    let (from, until) = text.split_once('-').ok_or_else(wrong)?;
    let minute = |text: &str| {
        let time = Time::strptime("%H:%M", text.trim()).ok()?;
        u16::try_from(i32::from(time.hour()) * 60 + i32::from(time.minute())).ok()
    };
    Ok(Window::Daily {
        from_minute: minute(from).ok_or_else(wrong)?,
        until_minute: minute(until).ok_or_else(wrong)?,
        offset_minutes: i16::try_from(now.offset().seconds() / 60).map_err(|_| wrong())?,
    })
}

/// A moment with its offset, or by the local clock.
fn moment(text: &str, zone: &TimeZone) -> Option<Millis> {
    let text = text.trim();
    let timestamp = match text.parse::<Timestamp>() {
        Ok(timestamp) => timestamp,
        Err(_) => text.parse::<DateTime>().ok()?.to_zoned(zone.clone()).ok()?.timestamp(),
    };
    u64::try_from(timestamp.as_millisecond()).ok().map(Millis)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn windows_are_read_by_the_local_clock() {
        let now: Zoned = "2026-11-23T08:00+01:00[Europe/Berlin]".parse().unwrap();
        let daily = Window::Daily { from_minute: 22 * 60, until_minute: 6 * 60 + 30, offset_minutes: 60 };
        assert_eq!(window_at("22:00-06:30", &now), Ok(daily));
        let hour = |timestamp: &str| Millis(timestamp.parse::<Timestamp>().unwrap().as_millisecond().unsigned_abs());
        let once = Window::Once { from: hour("2026-11-24T21:00Z"), until: hour("2026-11-25T05:00Z") };
        assert_eq!(window_at("2026-11-24T22:00/2026-11-25T06:00", &now), Ok(once));
        assert_eq!(window_at("2026-11-24T21:00Z/2026-11-25T05:00Z", &now), Ok(once));
        for wrong in ["", "22:00", "22-06", "24:00-06:00", "tonight", "2026-11-25T06:00/2026-11-24T06:00", "a/b"] {
            assert!(window_at(wrong, &now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn canaries_are_a_number_or_names() {
        assert_eq!(canary("2"), Ok(Canary::Count(2)));
        assert_eq!(canary("n1,n2"), Ok(Canary::Nodes(vec!["n1".parse().unwrap(), "n2".parse().unwrap()])));
        assert!(canary("0").is_err() && canary("N 1").is_err() && canary("n1,").is_err());
    }
}
