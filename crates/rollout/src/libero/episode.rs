//! One episode, by the rules of a protocol.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use efference_envs::SceneState;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::policy::{EvalPolicy, PolicyError, Start, View};
use super::protocol::Protocol;
use super::simulator::{Camera, Simulator, SimulatorError};

/// Why an episode could not be played to its end. It is neither a success nor a failure.
#[derive(Debug, thiserror::Error)]
pub enum EpisodeError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The simulator.
    #[error(transparent)]
    Simulator(#[from] SimulatorError),
    /// A person asked to stop; the episode counts as not played.
    #[error("stopped")]
    Stopped,
}

/// By which rules an episode is played.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The protocol.
    pub protocol: &'a Protocol,
    /// Time for one control step; in this process it can only be noticed afterwards.
    pub step_limit: Duration,
    /// Asked before every step.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// Which episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Task number in the suite.
    pub task: usize,
    /// Saved initial state, and entry of the table of fixture poses.
    pub episode: usize,
}

/// How an episode ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether the goal was reached.
    pub success: bool,
    /// Control steps, idle ones included.
    pub steps: usize,
    /// How often the policy was asked.
    pub queries: usize,
    /// Why the simulation ended early (it became unstable), if it did.
    pub aborted: Option<String>,
}

/// Pictures of an episode, for people.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// A picture is kept every so many control steps; 0 counts as 1.
    pub every: usize,
    /// Control step of each picture.
    pub steps: Vec<usize>,
    /// The scene's camera, upright.
    pub scene: Vec<RgbImage>,
    /// The hand's camera, upright.
    pub hand: Vec<RgbImage>,
    /// Poses, shapes and cameras at each picture.
    pub states: Vec<SceneState>,
}

impl Recording {
    fn look(&mut self, step: usize, simulator: &mut dyn Simulator) -> Result<(), SimulatorError> {
        if step.is_multiple_of(self.every.max(1)) {
            self.keep(step, simulator)?;
        }
        Ok(())
    }

    fn keep(&mut self, step: usize, simulator: &mut dyn Simulator) -> Result<(), SimulatorError> {
        if self.steps.last() == Some(&step) {
            return Ok(());
        }
        let state = simulator.scene()?;
        self.scene.push(simulator.render(Camera::Scene)?);
        self.hand.push(simulator.render(Camera::Hand)?);
        self.states.push(state);
        self.steps.push(step);
        Ok(())
    }
}

/// Plays one episode: restore, idle, then answer by answer until success or the step limit.
///
/// # Errors
/// [`EpisodeError`]; the policy is told that the episode is over in any case.
pub fn play(
    simulator: &mut dyn Simulator,
    policy: &mut dyn EvalPolicy,
    rules: &Rules<'_>,
    start: &Start<'_>,
    mut recording: Option<&mut Recording>,
) -> Result<Outcome, EpisodeError> {
    simulator.start(start.task, start.episode)?;
    policy.start(start)?;
    let mut outcome = Outcome { success: false, steps: 0, queries: 0, aborted: None };
    let played = run(simulator, policy, rules, start, &mut recording, &mut outcome);
    policy.end(outcome.success, outcome.steps);
    played?;
    if let Some(recording) = recording {
        recording.keep(outcome.steps, simulator)?;
    }
    Ok(outcome)
}

fn run(
    simulator: &mut dyn Simulator,
    policy: &mut dyn EvalPolicy,
    rules: &Rules<'_>,
    start: &Start<'_>,
    recording: &mut Option<&mut Recording>,
    outcome: &mut Outcome,
) -> Result<(), EpisodeError> {
    let Rules { protocol, step_limit, stop } = *rules;
    let mut queue: VecDeque<[f64; 7]> = VecDeque::new();
    for t in 0..protocol.max_steps + protocol.idle_steps {
        if stop() {
            return Err(EpisodeError::Stopped);
        }
        if let Some(recording) = recording.as_deref_mut() {
            recording.look(t, simulator)?;
        }
        let idle = t < protocol.idle_steps;
        let action = if idle {
            protocol.idle_action
        } else {
            if queue.is_empty() {
                let mut view = View { simulator, protocol, instruction: start.instruction };
                queue.extend(chunk(policy.act(&mut view)?, protocol.executed)?);
                outcome.queries += 1;
            }
            let mut action = queue.pop_front().unwrap_or(protocol.idle_action);
            action[6] = protocol.gripper.convert(action[6]);
            action
        };
        let begun = Instant::now();
        let stepped = simulator.step(&action)?;
        if begun.elapsed() > step_limit {
            let limit_s = step_limit.as_secs_f64();
            return Err(SimulatorError::Slow { what: "finish a control step", limit_s }.into());
        }
        outcome.steps = t + 1;
        if stepped.aborted.is_some() {
            outcome.aborted = stepped.aborted;
            return Ok(());
        }
        // A goal that holds before the policy acts ends no episode.
        if stepped.success && !idle {
            outcome.success = true;
            return Ok(());
        }
    }
    Ok(())
}

/// The actions of an answer that are executed.
fn chunk(mut actions: Vec<[f64; 7]>, executed: Option<usize>) -> Result<Vec<[f64; 7]>, PolicyError> {
    let needed = executed.unwrap_or(1);
    if actions.len() < needed {
        return Err(PolicyError::Short { got: actions.len(), executed: needed });
    }
    if let Some(executed) = executed {
        actions.truncate(executed);
    }
    for (row, action) in actions.iter().enumerate() {
        if let Some(column) = action.iter().position(|x| !x.is_finite()) {
            return Err(PolicyError::NotFinite { row, column, value: action[column] });
        }
    }
    Ok(actions)
}
