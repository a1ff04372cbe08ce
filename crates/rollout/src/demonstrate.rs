//! Demonstrations by the scripted expert, through the environment and its seven numbers.

use std::collections::BTreeMap;

use efference_data::{Episode, EpisodeMeta, Source, States};
use efference_envs::tabletop::{Expert, TabletopEnv, TabletopOptions, Task};
use efference_envs::{Env, mujoco_version};

use crate::{Error, Result};

/// Plays one episode of `task` from the initial state `env_seed`, with both cameras drawn and the simulator's state kept
/// before every control step. The environment decides about success; an episode that failed is returned too.
///
/// Drawing contexts belong to threads: call it from a thread pool for many episodes.
///
/// # Errors
/// [`Error::Env`]: an option out of range, or no headless rendering.
pub fn demonstrate(
    options: &TabletopOptions,
    task: Task,
    env_seed: u64,
    mut expert: Expert,
) -> Result<Episode> {
    let failed = |source| Error::Env { task: task.id().into(), env_seed, source: Box::new(source) };
    let mut env = TabletopEnv::with_task(task, options).map_err(failed)?;
    let mut episode = empty(&env, env_seed);
    let mut states = States { width: env.snapshot().state().len(), values: Vec::new() };
    let mut observation = env.reset(env_seed).map_err(failed)?;
    loop {
        for (camera, frames) in &mut episode.cameras {
            frames.push(env.render(camera).map_err(failed)?);
        }
        episode.frame_steps.push(episode.actions.len() as u32);
        states.values.extend_from_slice(env.snapshot().state());
        episode.proprio.push(observation.proprio);
        let action = expert.act(&env);
        let outcome = env.step(&action).map_err(failed)?;
        episode.actions.push(action);
        episode.rewards.push(outcome.reward);
        observation = outcome.observation;
        if outcome.done {
            episode.meta.success = outcome.success;
            episode.meta.extra.extend(outcome.aborted.map(|why| ("aborted".to_owned(), why)));
            episode.states = Some(states);
            return Ok(episode);
        }
    }
}

/// The episode before its first step.
fn empty(env: &TabletopEnv, env_seed: u64) -> Episode {
    let spec = env.spec();
    Episode {
        meta: EpisodeMeta {
            task: spec.task.clone(),
            instruction: env.instruction().to_owned(),
            seed: env_seed,
            success: false,
            source: Source::Scripted,
            mujoco_version: mujoco_version(),
            control_hz: f64::from(spec.control_hz),
            extra: BTreeMap::new(),
        },
        cameras: spec.cameras.iter().map(|camera| (camera.clone(), Vec::new())).collect(),
        frame_steps: Vec::new(),
        proprio: Vec::new(),
        actions: Vec::new(),
        rewards: Vec::new(),
        states: None,
    }
}
