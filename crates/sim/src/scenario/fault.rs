//! What goes wrong, and when.

use serde::Deserialize;

use super::{Who, yes};
use crate::units::{Nanos, Rate, Span, When};

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// Programs end, or machines lose power.
    Crash {
        /// Which.
        who: Who,
        /// When.
        at: When,
        /// They start again so long after; without it, never.
        #[serde(default)]
        back_after: Option<Span>,
        /// What they had verified is still there.
        #[serde(default = "yes")]
        keeps_disk: bool,
        /// The machine loses power: nobody is told that connections are gone.
        #[serde(default)]
        silent: bool,
    },
    /// Processes stand still; their links do not break.
    Freeze {
        /// Which.
        who: Who,
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
    },
    /// Disks write slowly.
    SlowDisk {
        /// Whose.
        who: Who,
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
        /// How slowly.
        rate: Rate,
    },
    /// Links are slow.
    SlowLink {
        /// Whose.
        who: Who,
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
        /// How slow.
        rate: Rate,
    },
    /// The seeds die when they have sent so many copies of the image.
    SeedDies {
        /// How many; 0.5 for half a copy.
        after_copies: f64,
        /// They come back so long after; without it, never.
        #[serde(default)]
        back_after: Option<Span>,
    },
    /// The tracker does not answer.
    TrackerDead {
        /// When.
        at: When,
        /// For how long; without it, for good.
        #[serde(default)]
        lasts: Option<Span>,
    },
    /// The tracker answers late.
    TrackerSlow {
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
        /// How late.
        by: Span,
    },
    /// The tracker answers with addresses at which nobody listens, beside
    /// the right ones.
    TrackerStale {
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
    },
    /// A rack's uplink loses rate, or is down.
    RackUplink {
        /// Which rack.
        rack: u32,
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
        /// What is left of its rate; 0 is down.
        #[serde(default)]
        left: f64,
    },
    /// A whole rack loses power and comes back.
    RackPower {
        /// Which rack.
        rack: u32,
        /// When.
        at: When,
        /// How long it takes.
        back_after: Span,
    },
    /// The node of a rack that brought most bytes into it dies.
    LaneMember {
        /// Which rack.
        rack: u32,
        /// When.
        at: When,
    },
    /// Messages take longer.
    Delay {
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
        /// How much longer.
        by: Span,
    },
    /// Nothing goes from some to others; the other way is open.
    Partition {
        /// From whom.
        from: Who,
        /// To whom.
        to: Who,
        /// When.
        at: When,
        /// For how long.
        lasts: Span,
    },
    /// Connections break in the middle of a piece.
    Reset {
        /// When.
        at: When,
        /// How many, by chance.
        count: u32,
    },
}

impl Fault {
    pub(super) fn whos(&self) -> Vec<&Who> {
        match self {
            Fault::Crash { who, .. }
            | Fault::Freeze { who, .. }
            | Fault::SlowDisk { who, .. }
            | Fault::SlowLink { who, .. } => vec![who],
            Fault::Partition { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        }
    }

    pub(super) fn rack(&self) -> Option<u32> {
        match self {
            Fault::RackUplink { rack, .. } | Fault::RackPower { rack, .. } | Fault::LaneMember { rack, .. } => {
                Some(*rack)
            }
            _ => None,
        }
    }

    /// Copies of pieces may be lost by it, so that more must be sent.
    pub(crate) fn loses_copies(&self) -> bool {
        matches!(
            self,
            Fault::Crash { .. } | Fault::SeedDies { .. } | Fault::RackPower { .. } | Fault::LaneMember { .. }
        )
    }

    /// When it begins; `None` where something else than time decides.
    pub(crate) fn at(&self) -> Option<When> {
        match self {
            Fault::SeedDies { .. } => None,
            Fault::Crash { at, .. }
            | Fault::Freeze { at, .. }
            | Fault::SlowDisk { at, .. }
            | Fault::SlowLink { at, .. }
            | Fault::TrackerDead { at, .. }
            | Fault::TrackerSlow { at, .. }
            | Fault::TrackerStale { at, .. }
            | Fault::RackUplink { at, .. }
            | Fault::RackPower { at, .. }
            | Fault::LaneMember { at, .. }
            | Fault::Delay { at, .. }
            | Fault::Partition { at, .. }
            | Fault::Reset { at, .. } => Some(*at),
        }
    }

    /// How long it lasts, if it ends by itself.
    pub(crate) fn lasts(&self) -> Option<Nanos> {
        match self {
            Fault::Crash { back_after, .. } | Fault::SeedDies { back_after, .. } => back_after.map(|span| span.0),
            Fault::RackPower { back_after, .. } => Some(back_after.0),
            Fault::TrackerDead { lasts, .. } => lasts.map(|span| span.0),
            Fault::Freeze { lasts, .. }
            | Fault::SlowDisk { lasts, .. }
            | Fault::SlowLink { lasts, .. }
            | Fault::TrackerSlow { lasts, .. }
            | Fault::TrackerStale { lasts, .. }
            | Fault::RackUplink { lasts, .. }
            | Fault::Delay { lasts, .. }
            | Fault::Partition { lasts, .. } => Some(lasts.0),
            Fault::LaneMember { .. } | Fault::Reset { .. } => None,
        }
    }
}
