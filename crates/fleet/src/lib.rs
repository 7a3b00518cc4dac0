//! Nodes, racks, images, deployments, their lives, and the plan. Pure: time is
//! an argument, nothing here waits, reads a clock or knows a wire format.
//!
//! What happens is an [`event::Event`]; [`intake::intake`] turns it into
//! [`change::Change`]s against a [`change::Snapshot`]; [`plan::plan`] derives
//! from the snapshot alone what is to be done next.

pub mod agenda;
pub mod capture;
pub mod change;
pub mod deployment;
pub mod discovery;
pub mod disk;
pub mod event;
pub mod ids;
pub mod intake;
pub mod layout;
pub mod ledger;
pub mod life;
pub mod node;
pub mod plan;
pub mod post;
pub mod preview;
pub mod report;
pub mod rollout;
pub mod run;
pub mod set;
pub mod wipe;
