//! Demonstrations by the scripted experts, through the same action interface that a policy has.

use std::collections::BTreeMap;

use efference_data::{Episode, EpisodeMeta, RgbImage, Source, States};
use efference_envs::Env;
use efference_envs::tabletop::{Expert, TabletopEnv, TabletopOptions, Task};

use crate::error::{Error, Result};

/// One episode of `expert` from the initial state of `env_seed`, with both cameras' frames and the simulator's state
/// before every action. Whether it succeeded is in `meta.success`, as the environment judged.
///
/// # Errors
/// [`Error::Env`]: options out of range, or the simulator or renderer refused.
pub fn demonstrate(
    options: &TabletopOptions,
    task: Task,
    env_seed: u64,
    mut expert: Expert,
) -> Result<Episode> {
    let failed = |source| Error::Env { task: task.id().into(), env_seed, source: Box::new(source) };
    let mut env = TabletopEnv::with_task(task, options).map_err(failed)?;
    let mut observation = env.reset(env_seed).map_err(failed)?;
    let mut cameras: BTreeMap<String, Vec<RgbImage>> =
        env.spec().cameras.iter().map(|name| (name.clone(), Vec::new())).collect();
    let (mut proprio, mut actions, mut rewards) = (Vec::new(), Vec::new(), Vec::new());
    let mut states = States { width: 0, values: Vec::new() };
    loop {
        for (name, frames) in &mut cameras {
            frames.push(env.render(name).map_err(failed)?);
        }
        let snapshot = env.snapshot();
        states.width = snapshot.state().len();
        states.values.extend_from_slice(snapshot.state());
        let action = expert.act(&env);
        proprio.push(observation.proprio);
        actions.push(action);
        let outcome = env.step(&action).map_err(failed)?;
        rewards.push(outcome.reward);
        observation = outcome.observation;
        if outcome.done {
            let spec = env.spec();
            let meta = EpisodeMeta {
                task: task.id().into(),
                instruction: env.instruction().into(),
                seed: env_seed,
                success: outcome.success,
                source: Source::Scripted,
                mujoco_version: efference_envs::mujoco_version(),
                control_hz: f64::from(spec.control_hz),
                extra: BTreeMap::new(),
            };
            let frame_steps = (0..actions.len() as u32).collect();
            let states = Some(states);
            return Ok(Episode { meta, cameras, frame_steps, proprio, actions, rewards, states });
        }
    }
}
