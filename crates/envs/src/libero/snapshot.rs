//! A simulation, put away.

use serde::{Deserialize, Serialize};

/// Everything that a simulation's future, its present observation and its pictures depend on: a few hundred numbers.
/// Plain numbers, so that it can be stored and sent; [`LiberoSim::restore`](super::LiberoSim::restore) knows their
/// order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiberoSnapshot {
    pub(super) numbers: Vec<f64>,
}

impl LiberoSnapshot {
    /// The numbers, for example to store them with an episode.
    pub fn numbers(&self) -> &[f64] {
        &self.numbers
    }

    /// A snapshot from stored numbers; `restore` checks that they fit the task.
    pub fn from_numbers(numbers: Vec<f64>) -> Self {
        Self { numbers }
    }
}
