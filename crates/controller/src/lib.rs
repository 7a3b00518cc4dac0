//! The controller: the daemon behind `rackswarm serve`.
//!
//! [`bind`] opens every port, [`Bound::run`] does the rest in order. Events
//! come from HTTP ([`http`]), from the boot services ([`director`]) and from
//! power drivers; the one writer ([`keeper`]) takes them in, stores what they
//! change ([`store`]) and wakes [`reconcile`], which acts on what the state
//! demands.

pub mod captures;
pub mod clock;
pub mod config;
pub mod director;
pub mod error;
pub mod http;
pub mod images;
pub mod keeper;
pub mod kernels;
pub mod privileges;
pub mod reconcile;
pub mod serve;
pub mod sets;
pub mod state;
pub mod store;
pub mod switchboard;
pub mod token;
pub mod view;

pub use config::{Config, print_config};
pub use error::Error;
pub use http::openapi_json;
pub use serve::{Bound, bind};
