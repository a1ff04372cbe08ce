//! The loop: configuration, recipes, checkpoints, resume, evaluation.

pub mod checkpoint;
pub mod compare;
pub mod config;
mod critic;
pub mod decisions;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod flow;
mod focus;
pub mod heldout;
pub mod metrics;
pub mod network;
pub mod optimise;
mod packing;
mod parts;
pub mod policy_file;
pub mod progress;
pub mod record;
pub mod report;
pub mod rl;
pub mod run;
pub mod run_dir;
pub mod show;
mod summary;
pub mod supervised;
pub mod tensorboard;
pub mod world;

pub use error::{Error, Result};
