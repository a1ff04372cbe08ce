//! One file per paper: what it changes, and how it is composed of the blocks of this crate.

pub mod grpo;
pub mod srpo;
