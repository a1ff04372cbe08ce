//! Demonstrations without a policy: the oracle's flow, executed and recorded.

use std::collections::BTreeMap;

use efference_data::{Episode, EpisodeMeta, PROPRIO_DIM, Source as Origin, States};
use efference_envs::flow::FlowEnv;
use efference_envs::{Action, Env, Outcome, mujoco_version};

use super::workbench::Watcher;
use super::{Result, System, Trial, watch_trial};

/// Records every control step with all cameras drawn and the simulator's state before it.
struct Recorder {
    episode: Episode,
    states: States,
    /// Before the next control step.
    proprio: [f32; PROPRIO_DIM],
}

impl Watcher for Recorder {
    fn before(&mut self, env: &mut FlowEnv, action: &Action) -> Result<()> {
        for (camera, frames) in &mut self.episode.cameras {
            frames.push(env.render(camera)?);
        }
        self.episode.frame_steps.push(self.episode.actions.len() as u32);
        self.states.values.extend_from_slice(env.snapshot().state());
        self.episode.proprio.push(self.proprio);
        self.episode.actions.push(*action);
        Ok(())
    }

    fn after(&mut self, outcome: &Outcome) {
        self.episode.rewards.push(outcome.reward);
        self.proprio = outcome.observation.proprio;
    }
}

/// Plays the episode of `seed` with a system (usually [`System::oracle`]) and returns it as a demonstration, also when it
/// failed; `None` when the system refused before the first step.
///
/// # Errors
/// As [`super::run_trial`], or no offscreen rendering.
pub fn demonstrate_flow(env: &mut FlowEnv, system: &System, seed: u64) -> Result<(Option<Episode>, Trial)> {
    let proprio = env.reset(seed)?.proprio;
    let spec = env.spec().clone();
    let mut extra = BTreeMap::new();
    extra.insert("arm".to_owned(), env.arm().id().to_owned());
    let episode = Episode {
        meta: EpisodeMeta {
            task: spec.task.clone(),
            instruction: env.instruction().to_owned(),
            seed,
            success: false,
            source: Origin::Scripted,
            mujoco_version: mujoco_version(),
            control_hz: f64::from(spec.control_hz),
            extra,
        },
        cameras: spec.cameras.iter().map(|camera| (camera.clone(), Vec::new())).collect(),
        frame_steps: Vec::new(),
        proprio: Vec::new(),
        actions: Vec::new(),
        rewards: Vec::new(),
        states: None,
    };
    let width = env.snapshot().state().len();
    let mut recorder = Recorder { episode, states: States { width, values: Vec::new() }, proprio };
    let trial = watch_trial(env, system, seed, &mut recorder)?;
    let mut episode = recorder.episode;
    episode.states = Some(recorder.states);
    episode.meta.success = trial.report.success;
    if let Some(why) = trial.trace.last.as_ref().and_then(|o| o.aborted.clone()) {
        episode.meta.extra.insert("aborted".to_owned(), why);
    }
    let empty = episode.actions.is_empty();
    Ok(((!empty).then_some(episode), trial))
}
