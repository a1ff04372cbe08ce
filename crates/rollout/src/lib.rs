//! Turns a policy and environments into trajectories.
//!
//! Today only [`seeds`] is complete: where every random number of a run comes from. `policy.rs`, `collect.rs` and
//! `trajectory.rs` are written and wait for the environment crate; they join this file with it.

pub mod seeds;

pub use seeds::{Purpose, seed_for};
