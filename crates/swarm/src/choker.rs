//! See the crate's top.
