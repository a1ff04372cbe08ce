//! Demonstrations of LIBERO tasks by the scripted expert.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::expert::{Expert, ExpertOptions};
use super::{LiberoEnv, LiberoOptions, Pack};
use crate::{Env, Result, mujoco_version};
use efference_data::{Episode, EpisodeMeta, Source, States};

/// Plays one episode from the initial state `env_seed`: a plan is found by trials in the simulation, noise is on what is
/// executed, and the labels are what the expert wanted. The idle steps at the start are not part of it.
///
/// Cameras are drawn afterwards, from the states, at every `look_every`-th step (at least 1), and only when the goal was
/// reached: an episode that failed comes back without pictures. Pictures are as `options` has them (mirrored: as
/// evaluators show them to policies). Rows of `states` are time, qpos, qvel, \[1 + nq + nv\].
///
/// Drawing contexts belong to threads: call it from a thread pool for many episodes.
///
/// # Errors
/// An option out of range, a goal that the scene contradicts, or no headless rendering.
pub fn demonstrate(
    pack: &Arc<Pack>,
    options: &LiberoOptions,
    expert: ExpertOptions,
    env_seed: u64,
    look_every: usize,
) -> Result<Episode> {
    let mut env = LiberoEnv::new(pack, options)?;
    env.reset(env_seed)?;
    let plan = Expert::new(expert).plan(env.sim_mut(), env_seed)?;

    let steps = plan.labels.len();
    let (state, entry) = LiberoEnv::start_of(pack, env_seed);
    let mut episode = Episode {
        meta: EpisodeMeta {
            task: pack.id(),
            instruction: env.instruction().to_owned(),
            seed: env_seed,
            success: plan.success,
            source: Source::Scripted,
            mujoco_version: mujoco_version(),
            control_hz: f64::from(env.spec().control_hz),
            extra: BTreeMap::from([
                ("expert_noise".into(), expert.noise.to_string()),
                ("name".into(), pack.meta.name.clone()),
                ("initial_state".into(), state.to_string()),
                ("fixture_poses".into(), entry.to_string()),
                ("substep_order".into(), format!("{:?}", options.order).to_lowercase()),
                ("image_orientation".into(), if options.mirror { "rotated_180" } else { "upright" }.into()),
            ]),
        },
        cameras: BTreeMap::new(),
        frame_steps: Vec::new(),
        proprio: Vec::with_capacity(steps),
        actions: plan.labels.iter().map(|label| label.map(|v| v as f32)).collect(),
        rewards: (0..steps).map(|t| f32::from(plan.success && t + 1 == steps)).collect(),
        states: None,
    };
    let mut states = States { width: 0, values: Vec::new() };
    let cameras = if plan.success { env.spec().cameras.clone() } else { Vec::new() };
    for (t, snapshot) in plan.states.iter().enumerate() {
        let sim = env.sim_mut();
        sim.restore(snapshot)?;
        episode.proprio.push(sim.observation().policy_state().map(|v| v as f32));
        let row = sim.init_state();
        states.width = row.len();
        states.values.extend(row);
        if cameras.is_empty() || t % look_every.max(1) != 0 {
            continue;
        }
        episode.frame_steps.push(t as u32);
        for camera in &cameras {
            let picture = env.render(camera)?;
            episode.cameras.entry(camera.clone()).or_default().push(picture);
        }
    }
    episode.states = (states.width > 0).then_some(states);
    Ok(episode)
}
