//! Success on the fixed evaluation states.

use efference_rollout::{
    CollectOptions, Collector, EpisodePlan, Noise, Purpose, Trajectory, VlaPolicy, seed_for,
};
use serde::{Deserialize, Serialize};

use crate::config::EvalConfig;
use crate::error::Result;
use crate::report::{StopFlag, TaskScore};
use crate::rl::task_scores;
use crate::world::World;

/// Success per task at one moment of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalTable {
    /// When: `before_rl`, `iteration`, `after_rl`, `eval`.
    pub label: String,
    /// Update within the run.
    pub step: u64,
    /// One row per task.
    pub tasks: Vec<TaskScore>,
}

impl EvalTable {
    /// Mean over the tasks of their success, 0 to 1.
    pub fn mean(&self) -> f64 {
        self.tasks.iter().map(TaskScore::rate).sum::<f64>() / (self.tasks.len() as f64).max(1.0)
    }
}

/// Plays the evaluation states of every task. `None` when `stop` was requested before the end.
///
/// # Errors
/// A simulator or the network failed.
pub fn evaluate(
    world: &dyn World,
    policy: &VlaPolicy,
    config: &EvalConfig,
    keep_snapshots: bool,
    stop: &StopFlag,
    on_finished: &mut dyn FnMut(usize),
) -> Result<Option<(Vec<TaskScore>, Vec<Trajectory>)>> {
    let mut plans = Vec::new();
    for (t, task) in world.tasks().iter().enumerate() {
        for i in 0..config.episodes_per_task {
            plans.push(EpisodePlan {
                task: task.clone(),
                env_seed: world.eval_seed(i),
                // Fixed, so that a sampled evaluation is as repeatable as a greedy one.
                action_seed: seed_for(0, Purpose::Actions, &[world.eval_seed(i), t as u64]),
                mirrored: false,
                group: plans.len() as u64,
            });
        }
    }
    let options = CollectOptions {
        temperature: config.temperature,
        noise: Noise::Token,
        slots: world.slots(),
        keep_snapshots,
    };
    let trajectories = Collector::new(world).collect(policy, &plans, &options, &mut |done| {
        on_finished(done);
        !stop.requested()
    })?;
    Ok((!trajectories.is_empty() || plans.is_empty()).then(|| (task_scores(&trajectories), trajectories)))
}
