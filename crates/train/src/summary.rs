//! What a run has to say at its end.

use std::path::PathBuf;

use serde::Serialize;

use crate::evaluate::EvalTable;
use crate::heldout::HeldOut;

/// What came out of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The run folder.
    pub run: PathBuf,
    /// Whether all stages are done; if not, the run was stopped and can be resumed.
    pub finished: bool,
    /// Updates done, over all stages.
    pub step: u64,
    /// Success tables in order.
    pub evals: Vec<EvalTable>,
    /// Likelihood of the held-out demonstrations, if there are any.
    pub held_out: Option<HeldOut>,
    /// Seconds spent in each stage, including earlier sittings.
    pub seconds: std::collections::BTreeMap<String, f64>,
    /// Version of the simulator.
    pub mujoco_version: String,
}

impl Summary {
    /// The table of this label.
    pub fn eval(&self, label: &str) -> Option<&EvalTable> {
        self.evals.iter().rev().find(|table| table.label == label)
    }
}
