//! The planner: how fast a delivery can be, what limits it, and what other
//! methods would take. Pure arithmetic, nothing is simulated.

pub mod bound;
