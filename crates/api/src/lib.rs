//! The HTTP contract between controller, operators and agents, and its client.
//!
//! The OpenAPI document is generated from these types (feature `openapi`).
//! Every request but the boot files, the tracker and the document itself
//! carries `Authorization: Bearer TOKEN`: operators use the token that the
//! controller made at its first start, agents the one from their kernel line,
//! deployed systems the one that post actions wrote.

pub mod agent;
pub mod capture;
pub mod client;
pub mod deployment;
pub mod operator;

use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// What went wrong and what to do, as a sentence.
    pub error: String,
}
