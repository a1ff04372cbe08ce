//! The world a run acts in: its tasks, its environments, and those who can show how a task is done.
//!
//! The loop knows worlds through [`World`] only. To add one: a file beside this one and a line in [`open`].

mod libero;
mod tabletop;

use efference_data::Episode;
use efference_envs::{Action, Env, Observation, RgbImage};
use efference_nets::Quantiles;
use efference_rollout::EnvSource;

pub use libero::{Libero, libero_settings};
pub use tabletop::Tabletop;

use crate::config::EnvConfig;
use crate::error::Result;

/// The suite whose episodes come from stored demonstrations only: nothing can be rolled out or evaluated.
pub const DATASET_SUITE: &str = "dataset";

/// A suite of tasks as a configuration describes it.
pub trait World: EnvSource + Send {
    /// Ids of this run's tasks, in order.
    fn tasks(&self) -> &[String];

    /// Where task number `task` of this run stands in the whole suite: random numbers belong to this place, so a run on
    /// some of the tasks sees what a run on all of them sees.
    fn place(&self, task: usize) -> u64;

    /// An episode ends after so many control steps.
    fn max_steps(&self) -> usize;

    /// Side of the square pictures that the policy sees, in pixels.
    fn image_size(&self) -> usize;

    /// Environments that run at the same time. Changes memory and speed, never a result.
    fn slots(&self) -> usize {
        64
    }

    /// Seed of the `n`-th training episode, never one of the evaluation.
    fn train_seed(&self, n: u64) -> u64;

    /// Seed of the `i`-th of the fixed evaluation states.
    fn eval_seed(&self, i: usize) -> u64;

    /// Range of each number of proprioception, the same for every policy of the suite.
    fn proprio_range(&self) -> Quantiles;

    /// An environment for pictures that people look at, `side` pixels wide.
    ///
    /// # Errors
    /// The task is unknown or its simulator cannot be built.
    fn make_for_people(&self, task: &str, side: usize) -> Result<Box<dyn Env>>;

    /// Lets the scripted expert play from an initial state; an episode that failed is returned too.
    ///
    /// # Errors
    /// The simulator or the renderer refused.
    fn demonstrate(&self, task: usize, seed: u64) -> Result<Episode>;

    /// Labelled looks without a task, `chunk` actions each; `None` where the suite has no such thing.
    ///
    /// # Errors
    /// The simulator refused.
    fn play(&self, chunk: usize) -> Result<Option<Box<dyn PlayMaker>>>;

    /// What else a policy's results depend on: a checkpoint is refused where it differs.
    fn settings(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// One labelled look.
#[derive(Clone, Debug)]
pub struct PlayLook {
    /// One per camera, in the world's order.
    pub images: Vec<RgbImage>,
    /// What the robot feels.
    pub observation: Observation,
    /// What it is told.
    pub instruction: String,
    /// What it should do.
    pub actions: Vec<Action>,
}

/// Makes labelled looks; one per thread.
pub trait PlayMaker: Send {
    /// The look of a seed: the same seed gives the same look.
    ///
    /// # Errors
    /// The simulator or the renderer refused.
    fn look(&mut self, seed: u64) -> Result<PlayLook>;
}

/// The world of a configuration; `None` for stored demonstrations, which have no simulator.
///
/// # Errors
/// [`crate::Error::Setting`] for an unknown task or an option out of range.
pub fn open(config: &EnvConfig) -> Result<Option<Box<dyn World>>> {
    Ok(match config.suite.as_str() {
        DATASET_SUITE => None,
        suite if suite.starts_with("libero") => Some(Box::new(Libero::new(config)?)),
        _ => Some(Box::new(Tabletop::new(config)?)),
    })
}
