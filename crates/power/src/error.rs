//! What can go wrong, grouped by what to do about it.

use std::time::Duration;

/// What the caller should do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Trying again later may help.
    Retry,
    /// Trying again changes nothing until a person has changed something.
    Refuse,
}

/// An operation that failed. The sentence says what was wrong and what to do; it never contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No row of the driver table has this scheme.
    #[error("no power driver is called as in `{address}`; an address is `DRIVER:...`, and the drivers are {known}")]
    UnknownScheme {
        /// The address as given.
        address: String,
        /// The schemes there are.
        known: String,
    },
    /// No row of the table of sets has this scheme.
    #[error("no kind of set is called as in `{address}`; an address is `KIND:...`, and the kinds are {known}")]
    UnknownSet {
        /// The address as given.
        address: String,
        /// The schemes there are.
        known: String,
    },
    /// A driver or a set could not read its address.
    #[error("address `{address}`: {why}; an example is `{example}`")]
    Address {
        /// The address as given, without anything that looks like a password.
        address: String,
        /// What is wrong.
        why: String,
        /// An address of this driver that is right.
        example: String,
    },
    /// The operation was given up at its deadline.
    #[error("{operation} of `{address}` did not finish within {} s; is its controller reachable? (`limit_seconds=` in the address changes the limit)", limit.as_secs_f32())]
    Deadline {
        /// What was asked: `state`, `on`, `off`, `cycle`, `reset`, `boot_next`.
        operation: &'static str,
        /// The machine's address.
        address: String,
        /// The deadline.
        limit: Duration,
    },
    /// A passing trouble: the controller did not answer, was busy, or did not do what it said.
    #[error("{target}: {why}")]
    Transient {
        /// The machine or controller.
        target: String,
        /// What happened and what to look at.
        why: String,
    },
    /// The controller or this host refuses, and will again until a person changes something.
    #[error("{target}: {why}")]
    Refused {
        /// The machine or controller.
        target: String,
        /// What happened and what to change.
        why: String,
    },
}

impl Error {
    /// Whether trying again may help.
    pub fn advice(&self) -> Advice {
        match self {
            Error::Deadline { .. } | Error::Transient { .. } => Advice::Retry,
            Error::UnknownScheme { .. } | Error::UnknownSet { .. } | Error::Address { .. } | Error::Refused { .. } => {
                Advice::Refuse
            }
        }
    }

    pub(crate) fn transient(target: &str, why: impl Into<String>) -> Error {
        Error::Transient { target: target.to_owned(), why: why.into() }
    }

    pub(crate) fn refused(target: &str, why: impl Into<String>) -> Error {
        Error::Refused { target: target.to_owned(), why: why.into() }
    }
}
