//! The mathematics of policy optimisation.
//!
//! A paper is a [`composition`] of small blocks ([`mod@block`] has one trait per role):
//!
//! ```text
//! reward* -> filter* -> advantage -> weight* -> bounds -> surrogate -> regularizer* -> aggregation
//! ```
//!
//! put together as an [`objective::Objective`] by its file in [`papers`]. Statistics are computed in f64 on a
//! [`table::Table`]; gradients flow through candle tensors. [`conformance`] replays reference vectors made with the
//! authors' code.

pub mod advantage;
pub mod aggregation;
pub mod batch;
pub mod block;
mod checks;
pub mod composition;
pub mod conformance;
pub mod critic;
pub mod diffusion;
pub mod error;
pub mod filter;
mod fused;
pub mod grounding;
pub mod kl;
pub mod objective;
pub mod page;
pub mod pairs;
pub mod papers;
pub mod registry;
pub mod regularizer;
pub mod shaping;
pub mod state;
pub mod surrogate;
pub mod table;
pub mod trl;

pub use aggregation::{Aggregation, Normaliser};
pub use batch::{Batch, Field, Input, Signals};
pub use composition::Composition;
pub use error::{Error, Result};
pub use objective::{LossParts, Objective, Prepared};
pub use papers::Paper;
pub use registry::{Algorithm, algorithms};
pub use state::State;
pub use table::Table;
