//! Runs planned episodes: many environments at a time, one batched look of the policy per chunk.
//!
//! A finished environment takes the next planned episode at once, so the batch stays full. That changes nothing in
//! the result: a row of the network's output does not depend on its batch, actions are drawn from seeds that belong
//! to (episode, query), and an environment only ever sees its own actions.

use std::sync::{Mutex, PoisonError};

use efference_envs::Env;
use efference_nets::Draw;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::noise::Noise;
use crate::policy::{Look, VlaPolicy};
use crate::trajectory::{Decision, EpisodePlan, Trajectory};

/// Makes environments for tasks. Shared by threads; making one should be cheap (the model is shared).
pub trait EnvSource: Sync {
    /// A fresh environment for `task`.
    ///
    /// # Errors
    /// The task is unknown or its simulator cannot be built.
    fn make(&self, task: &str) -> efference_envs::Result<Box<dyn Env>>;

    /// Cameras the policy looks through, in order.
    fn cameras(&self) -> &[String];
}

/// How to run episodes.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// Sampling temperature of the action tokens; 0 takes the most likely action.
    pub temperature: f64,
    /// How their random numbers hang together.
    pub noise: Noise,
    /// Environments that run at the same time. Changes memory and speed, never a result.
    pub slots: usize,
    /// Keep the state before every control step, so that frames can be drawn afterwards.
    pub keep_snapshots: bool,
}

/// An environment with the episode it is playing.
#[derive(Default)]
struct Slot {
    /// The task and environment of the latest episode.
    env: Option<(String, Box<dyn Env>)>,
    playing: Option<Playing>,
}

/// Environments that wait for an episode of their task, those that have waited longest first. At most one per slot, so
/// that a suite of many large scenes does not fill the memory.
#[derive(Default)]
struct Idle(Mutex<Vec<(String, Box<dyn Env>)>>);

impl Idle {
    /// Exchanges the environment of a slot for one of `task`.
    fn exchange(
        &self,
        of: &mut Option<(String, Box<dyn Env>)>,
        source: &dyn EnvSource,
        task: &str,
        slots: usize,
    ) -> efference_envs::Result<()> {
        if of.as_ref().is_some_and(|(has, _)| has == task) {
            return Ok(());
        }
        let found = {
            let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let found = idle.iter().position(|(has, _)| has == task).map(|i| idle.remove(i));
            idle.extend(of.take());
            if idle.len() > slots {
                idle.remove(0);
            }
            found
        };
        *of = Some(match found {
            Some(found) => found,
            None => (task.to_owned(), source.make(task)?),
        });
        Ok(())
    }
}

struct Playing {
    index: usize,
    proprio: [f32; 8],
    trajectory: Trajectory,
    finished: bool,
}

/// Reusable environments. Keep one for the whole run: models are compiled once.
pub struct Collector<'s> {
    source: &'s dyn EnvSource,
    slots: Vec<Slot>,
    idle: Idle,
}

impl<'s> Collector<'s> {
    /// No environment is made before it is needed.
    pub fn new(source: &'s dyn EnvSource) -> Self {
        Self { source, slots: Vec::new(), idle: Idle::default() }
    }

    /// The cameras and tasks behind this collector.
    pub fn source(&self) -> &'s dyn EnvSource {
        self.source
    }

    /// Plays every plan and returns the trajectories in the order of the plans. `on_finished` hears the number of
    /// finished episodes; when it returns false the rest is abandoned and the list comes back empty.
    ///
    /// # Errors
    /// An environment or the network failed. An unstable simulation is no error: that episode ends and says why.
    pub fn collect(
        &mut self,
        policy: &VlaPolicy,
        plans: &[EpisodePlan],
        options: &CollectOptions,
        on_finished: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<Trajectory>> {
        let mut done: Vec<Option<Trajectory>> = vec![None; plans.len()];
        let mut finished = 0;
        let mut next = 0;
        while self.slots.len() < options.slots.max(1).min(plans.len()) {
            self.slots.push(Slot::default());
        }
        for slot in &mut self.slots {
            slot.playing = None; // what an abandoned call left behind
        }
        let active = self.slots.len().min(options.slots.max(1));
        while finished < plans.len() {
            let mut starting = Vec::new();
            for slot in self.slots[..active].iter_mut() {
                let starts = slot.playing.is_none() && next < plans.len();
                starting.push(starts.then(|| {
                    next += 1;
                    next - 1
                }));
            }
            let (source, idle) = (self.source, &self.idle);
            // 1. resets and looks, in parallel over environments
            let looks: Vec<Option<Look>> = self.slots[..active]
                .par_iter_mut()
                .zip(starting)
                .map(|(slot, start)| {
                    if let Some(index) = start {
                        let plan = &plans[index];
                        idle.exchange(&mut slot.env, source, &plan.task, active)
                            .map_err(|source| env_error(plan, source))?;
                        slot.start(index, plan, policy, options.keep_snapshots)?;
                    }
                    slot.look(source.cameras(), policy)
                })
                .collect::<Result<_>>()?;
            // 2. one batched decision
            let (rows, looks): (Vec<usize>, Vec<Look>) =
                looks.into_iter().enumerate().filter_map(|(i, look)| Some((i, look?))).unzip();
            let dims = policy.action_dim();
            let draws: Vec<Draw> = rows.iter().map(|&i| self.slots[i].draw(options.noise, dims)).collect();
            let choices = policy.sample(&looks, options.temperature, &draws)?;
            let mut chosen: Vec<Option<Decision>> = (0..active).map(|_| None).collect();
            for ((row, look), choice) in rows.into_iter().zip(looks).zip(choices) {
                chosen[row] = Some(Decision {
                    pixels: look.pixels,
                    proprio: look.proprio,
                    prompt: look.prompt,
                    action_ids: choice.ids,
                    log_probs: choice.log_probs,
                    entropy: choice.entropy,
                    features: choice.features,
                });
            }
            // 3. the chunk, in parallel over environments
            self.slots[..active].par_iter_mut().zip(chosen).try_for_each(
                |(slot, decision)| match decision {
                    Some(decision) => slot.act(decision, policy, options.keep_snapshots),
                    None => Ok(()),
                },
            )?;
            for slot in &mut self.slots[..active] {
                if slot.playing.as_ref().is_some_and(|p| p.finished)
                    && let Some(playing) = slot.playing.take()
                {
                    done[playing.index] = Some(playing.trajectory);
                    finished += 1;
                }
            }
            if !on_finished(finished) {
                return Ok(Vec::new());
            }
        }
        Ok(done.into_iter().flatten().collect())
    }
}

impl Slot {
    fn start(
        &mut self,
        index: usize,
        plan: &EpisodePlan,
        policy: &VlaPolicy,
        keep_snapshots: bool,
    ) -> Result<()> {
        let failed = |source| env_error(plan, source);
        let Some((_, env)) = &mut self.env else { return Ok(()) };
        let observation = env.reset(plan.env_seed).map_err(failed)?;
        let trajectory = Trajectory {
            prompt: policy.prompt(env.instruction())?,
            plan: plan.clone(),
            decisions: Vec::new(),
            finish_steps: 0,
            success: false,
            aborted: None,
            snapshots: if keep_snapshots { vec![env.snapshot()] } else { Vec::new() },
            remaining: 0.0,
        };
        self.playing = Some(Playing { index, proprio: observation.proprio, trajectory, finished: false });
        Ok(())
    }

    fn look(&mut self, cameras: &[String], policy: &VlaPolicy) -> Result<Option<Look>> {
        let Some(playing) = &self.playing else { return Ok(None) };
        let plan = &playing.trajectory.plan;
        let failed = |source| env_error(plan, source);
        let Some((_, env)) = &mut self.env else { return Ok(None) };
        let side = policy.image_size();
        let mut pixels = Vec::with_capacity(cameras.len() * side * side * 3);
        for camera in cameras {
            pixels.extend_from_slice(env.render(camera).map_err(failed)?.as_raw());
        }
        Ok(Some(Look { pixels, proprio: playing.proprio, prompt: playing.trajectory.prompt.clone() }))
    }

    fn draw(&self, noise: Noise, action_dim: usize) -> Draw {
        self.playing.as_ref().map_or(Draw::Tokens(0), |p| {
            noise.draw(&p.trajectory.plan, p.trajectory.decisions.len() as u64, action_dim)
        })
    }

    fn act(&mut self, decision: Decision, policy: &VlaPolicy, keep_snapshots: bool) -> Result<()> {
        let Some(playing) = &mut self.playing else { return Ok(()) };
        let trajectory = &mut playing.trajectory;
        let Some((_, env)) = &mut self.env else { return Ok(()) };
        for action in policy.decode_chunk(&decision.action_ids) {
            let outcome = env.step(&action).map_err(|source| env_error(&trajectory.plan, source))?;
            trajectory.finish_steps += 1;
            playing.proprio = outcome.observation.proprio;
            if keep_snapshots {
                trajectory.snapshots.push(env.snapshot());
            }
            if outcome.done {
                trajectory.success = outcome.success;
                trajectory.aborted = outcome.aborted;
                trajectory.remaining = env.remaining();
                playing.finished = true;
                break;
            }
        }
        trajectory.decisions.push(decision);
        Ok(())
    }
}

fn env_error(plan: &EpisodePlan, source: efference_envs::Error) -> Error {
    Error::Env { task: plan.task.clone(), env_seed: plan.env_seed, source: Box::new(source) }
}
