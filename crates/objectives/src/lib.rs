//! The mathematics of policy optimisation.
//!
//! A paper is a composition: [`advantage`] (how much better), [`surrogate`] (per-token loss), [`kl`] and entropy
//! (regularisers), [`aggregation`] (from tokens to one number), put together as an [`objective::Objective`] by its file
//! in [`papers`]. Statistics are computed in f64 on a [`table::Table`]; gradients flow through candle tensors.
//! [`conformance`] replays reference vectors made with the authors' code.

pub mod advantage;
pub mod aggregation;
pub mod conformance;
pub mod error;
pub mod filter;
pub mod kl;
pub mod objective;
pub mod papers;
pub mod registry;
pub mod shaping;
pub mod surrogate;
pub mod table;
pub mod trl;

pub use aggregation::{Aggregation, Normaliser};
pub use error::{Error, Result};
pub use objective::{LossParts, Objective, PolicyBatch, Surrogate};
pub use registry::{Algorithm, Card, algorithms};
pub use table::Table;
