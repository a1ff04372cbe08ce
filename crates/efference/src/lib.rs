//! Train, watch and evaluate multimodal and embodied policies.
//!
//! This crate is the command line; the parts are re-exported for programs that use the framework as a library.
//! Read [`cli`] first: it parses arguments and hands them to one file per command in [`commands`].

pub use efference_data as data;
pub use efference_envs as envs;
pub use efference_mujoco as mujoco;
pub use efference_nets as nets;
pub use efference_objectives as objectives;
pub use efference_ops as ops;
pub use efference_rollout as rollout;
pub use efference_train as train;
pub use efference_viz as viz;

pub mod cli;
pub mod commands;
pub mod console;
pub mod errors;
pub mod interrupt;
mod native;
pub mod text;
pub mod ui;
