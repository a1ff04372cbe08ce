//! The loop: configuration, recipes, checkpoints, resume, evaluation.

pub mod config;
pub mod report;
