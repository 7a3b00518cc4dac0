//! Sizes, rates and times as people write them in a scenario. Within the
//! simulator everything is an integer: bytes, bits per second, nanoseconds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Nanoseconds of virtual time.
pub type Nanos = u64;

/// One second.
pub const SECOND: Nanos = 1_000_000_000;

/// A text that is no size, rate or time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: write {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// A number of bytes: `500`, `64kB` (powers of 1000), `256KiB` or `4G`
/// (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "Written")]
pub struct Size(pub u64);

/// Bits per second on the wire: `100Mbit`, `1Gbit` (powers of 1000), or
/// bytes per second as `100MB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "Written")]
pub struct Rate(pub u64);

/// A span of time: `200us`, `1.5s`, `5min`; a bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "Written")]
pub struct Span(pub Nanos);

/// A moment: a [`Span`] after the start, or `40%` of the bound of the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Written")]
pub enum When {
    /// So long after the start.
    After(Nanos),
    /// So many millionths of the bound after the start.
    Share(u64),
}

/// TOML gives either a number or a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Whole(u64),
    Broken(f64),
    Text(String),
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Written::Whole(number) => write!(f, "{number}"),
            Written::Broken(number) => write!(f, "{number}"),
            Written::Text(text) => f.write_str(text),
        }
    }
}

impl Size {
    const WHAT: (&'static str, &'static str) = ("size", "bytes, or a number with kB, MB, GB, KiB, MiB or GiB");
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        let units: [(&str, u64); 12] = [
            ("B", 1),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("K", 1 << 10),
            ("KiB", 1 << 10),
            ("M", 1 << 20),
            ("MiB", 1 << 20),
            ("G", 1 << 30),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
        ];
        scaled(text, 1, &units, Size::WHAT).map(Size)
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Rate, UnitError> {
        let units: [(&str, u64); 9] = [
            ("bit", 1),
            ("kbit", 1_000),
            ("Mbit", 1_000_000),
            ("Gbit", 1_000_000_000),
            ("B/s", 8),
            ("kB/s", 8_000),
            ("MB/s", 8_000_000),
            ("MiB/s", 8 << 20),
            ("GB/s", 8_000_000_000),
        ];
        let trimmed = text.strip_suffix("/s").filter(|rest| rest.ends_with("bit")).unwrap_or(text);
        scaled(trimmed, 1, &units, ("rate", "a number with kbit, Mbit, Gbit, MB/s or GB/s")).map(Rate)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Span, UnitError> {
        let units: [(&str, u64); 6] =
            [("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", SECOND), ("min", 60 * SECOND), ("h", 3600 * SECOND)];
        scaled(text, SECOND, &units, ("time", "seconds, or a number with us, ms, s, min or h")).map(Span)
    }
}

impl FromStr for When {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<When, UnitError> {
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                scaled(percent, 10_000, &[], ("moment", "a time such as 12s, or a part of the bound such as 40%"))
                    .map(When::Share)
            }
            None => text.parse().map(|Span(nanos)| When::After(nanos)),
        }
    }
}

macro_rules! from_written {
    ($($unit:ty),*) => {$(
        impl TryFrom<Written> for $unit {
            type Error = UnitError;

            fn try_from(written: Written) -> Result<$unit, UnitError> {
                written.to_string().parse()
            }
        }
    )*};
}

from_written!(Size, Rate, Span, When);

/// A decimal number times its unit, exactly; `bare` is the unit of a number
/// without one.
fn scaled(
    text: &str,
    bare: u64,
    units: &[(&str, u64)],
    (what, example): (&'static str, &'static str),
) -> Result<u64, UnitError> {
    let wrong = || UnitError { text: text.to_owned(), what, example };
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit.trim() {
        "" => bare,
        unit => units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(wrong)?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
        return Err(wrong());
    }
    let digits = format!("{whole}{fraction:0<9}");
    let billionths: u128 = digits.parse().map_err(|_| wrong())?;
    u64::try_from(billionths.checked_mul(factor.into()).ok_or_else(wrong)? / 1_000_000_000).map_err(|_| wrong())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rates_and_times_are_exact() {
        assert_eq!("256KiB".parse(), Ok(Size(262_144)));
        assert_eq!("1.5GB".parse(), Ok(Size(1_500_000_000)));
        assert_eq!("4 GiB".parse(), Ok(Size(4 << 30)));
        assert_eq!("100Mbit".parse(), Ok(Rate(100_000_000)));
        assert_eq!("2.5Gbit/s".parse(), Ok(Rate(2_500_000_000)));
        assert_eq!("100MB/s".parse(), Ok(Rate(800_000_000)));
        assert_eq!("200us".parse(), Ok(Span(200_000)));
        assert_eq!("1.5".parse(), Ok(Span(1_500_000_000)));
        assert_eq!("40%".parse(), Ok(When::Share(400_000)));
        assert_eq!("12s".parse(), Ok(When::After(12 * SECOND)));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        let error = "12 parsecs".parse::<Span>().unwrap_err().to_string();
        assert_eq!(error, "`12 parsecs` is no time: write seconds, or a number with us, ms, s, min or h");
        for text in ["", ".", "-1", "1..2", "99999999999999999999G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
