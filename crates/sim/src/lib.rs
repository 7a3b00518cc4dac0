//! The simulator and the planner. [`run`] steps the production engine and
//! tracker through a [`Scenario`] in virtual time; [`plan`] is arithmetic.
//! Neither knows a clock, so the same scenario and seed give the same
//! [`Report`], to the bit.

mod agenda;
mod chance;
mod foreign;
mod net;
pub mod picture;
pub mod plan;
pub mod report;
pub mod scenario;
mod trace;
pub mod units;
mod world;

pub use report::{NodeReport, Report, Sample};
pub use scenario::{Model, Scenario, ScenarioError};

use net::blocks::Blocks;
use net::transfers::Transfers;
use world::World;

/// Runs a scenario. `progress` is called now and then and stops the run by
/// returning false.
///
/// # Errors
/// When the scenario is impossible.
pub fn run(scenario: &Scenario, seed: u64, progress: &mut dyn FnMut(&Sample) -> bool) -> Result<Report, ScenarioError> {
    Ok(match scenario.network.model {
        Model::Transfers => World::<Transfers>::new(scenario, seed)?.run(progress),
        Model::Blocks => World::<Blocks>::new(scenario, seed)?.run(progress),
    })
}
