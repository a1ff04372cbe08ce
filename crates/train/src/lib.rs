//! The loop: configuration, recipes, checkpoints, resume, evaluation.

pub mod checkpoint;
pub mod config;
pub mod decisions;
pub mod metrics;
pub mod report;
pub mod run_dir;
pub mod show;
pub mod tensorboard;
