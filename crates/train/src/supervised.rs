//! Learning from examples: behaviour cloning on demonstrations, and grounding on play data.

use std::sync::{Mutex, PoisonError};

use efference_data::{Episode, EpisodeStore, OnCorrupt};
use efference_nets::action_nll;
use efference_ops::{Grads, value_and_grad};
use efference_rollout::{Look, Purpose, VlaPolicy, seed_for};
use rayon::prelude::*;

use crate::config::{SftConfig, TrainConfig};
use crate::decisions::{DecisionSet, Example};
use crate::error::{Error, Result};
use crate::optimise::Optimiser;
use crate::report::Values;
use crate::world::{PlayMaker, World};

/// One update on `examples`: mean negative log-likelihood of all their action tokens.
///
/// # Errors
/// Examples of another shape than the network's; what [`Optimiser::step`] says.
pub fn update(
    policy: &VlaPolicy,
    optimiser: &mut Optimiser,
    examples: &[Example],
    smoothing_bins: &[f64],
) -> Result<Values> {
    let (loss, found) =
        value_and_grad(|| Ok::<_, Error>(nll(policy, examples, smoothing_bins, false)?.mean_all()?))?;
    let mut grads = Grads::from_store(found, policy.params.trainable())?;
    let report = optimiser.step(&mut grads)?;
    let mut values = Values::new();
    values.insert("loss".into(), f64::from(loss.to_scalar::<f32>()?));
    values.insert("grad_norm".into(), report.grad_norm);
    values.insert("lr".into(), report.lr);
    values.insert("skipped_steps".into(), optimiser.skipped() as f64);
    Ok(values)
}

/// Negative log-likelihood in nats of every action token of `examples`, [N, K * A], for reports: no gradient.
///
/// # Errors
/// Examples of another shape than the network's.
pub fn token_nll(policy: &VlaPolicy, examples: &[Example]) -> Result<Vec<Vec<f32>>> {
    let mut rows = Vec::with_capacity(examples.len());
    for part in examples.chunks(64) {
        rows.extend(nll(policy, part, &[0.0], true)?.to_vec2::<f32>()?);
    }
    Ok(rows)
}

fn nll(
    policy: &VlaPolicy,
    examples: &[Example],
    smoothing_bins: &[f64],
    frozen: bool,
) -> Result<candle_core::Tensor> {
    let looks = examples.iter().map(|e| (e.look.pixels.as_slice(), &e.look.proprio, &*e.look.prompt));
    let input = policy.input(looks)?;
    let logits = if frozen { policy.net.infer(&input)? } else { policy.net.forward(&input)? };
    let targets: Vec<&[u32]> = examples.iter().map(|e| e.targets.as_slice()).collect();
    Ok(action_nll(&logits, &targets, smoothing_bins)?)
}

/// What reinforcement learning keeps cloning beside its rollouts: demonstrations and play scenes, a batch per update.
pub struct Rehearsal<'r> {
    /// The demonstrations and how many of their decisions an update takes.
    pub demos: Option<(&'r DecisionSet, usize)>,
    /// The play scenes and how many an update takes.
    pub play: Option<(&'r PlayScenes, usize)>,
    /// Weight of the loss.
    pub coef: f64,
    /// Smoothing of the targets per action dimension, bins.
    pub smoothing_bins: [f64; 7],
    /// Seed of the run.
    pub seed: u64,
}

impl Rehearsal<'_> {
    /// Adds the gradient of update number `update` to `grads`; returns the mean negative log-likelihood.
    ///
    /// # Errors
    /// The simulator, the renderer or the tokenizer refused.
    pub fn add_to(&self, grads: &mut Grads, policy: &VlaPolicy, update: u64) -> Result<f64> {
        let mut examples = Vec::new();
        if let Some((set, batch)) = self.demos {
            let seed = seed_for(self.seed, Purpose::DataOrder, &[update, 1]);
            examples.extend(set.draw(batch, 0, seed));
        }
        if let Some((play, batch)) = self.play {
            // Far from the scenes of the supervised stages.
            let first = (1 << 40) + update * batch as u64;
            examples.extend(play.draw(policy, first, batch)?);
        }
        let mut mean = 0.0;
        let (_, found) = value_and_grad(|| {
            let loss = nll(policy, &examples, &self.smoothing_bins, false)?.mean_all()?;
            mean = f64::from(loss.to_scalar::<f32>()?);
            Ok::<_, Error>((loss * self.coef)?)
        })?;
        grads.add(found, policy.params.trainable())?;
        Ok(mean)
    }
}

/// The suite has no play scenes, though the configuration asks for some.
fn no_play() -> Error {
    let why =
        "this suite has no play scenes: remove [pretrain], and set sft.play_batch and rl.rehearse_play to 0";
    Error::Setting { section: "env.suite", source: why.into() }
}

/// Play scenes, drawn when they are needed: scene `i` is the same whenever it is asked for.
pub struct PlayScenes {
    makers: Vec<Mutex<Box<dyn PlayMaker>>>,
    samples: u64,
    seed: u64,
}

impl PlayScenes {
    /// `samples` different scenes.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn new(world: &dyn World, chunk: usize, samples: usize, seed: u64) -> Result<Self> {
        let makers = (0..rayon::current_num_threads())
            .map(|_| Ok(Mutex::new(world.play(chunk)?.ok_or_else(no_play)?)))
            .collect::<Result<_>>()?;
        Ok(Self { makers, samples: samples as u64, seed })
    }

    /// `batch` scenes from number `first` on, wrapping around at the end.
    ///
    /// # Errors
    /// The simulator, the renderer or the tokenizer refused.
    pub fn draw(&self, policy: &VlaPolicy, first: u64, batch: usize) -> Result<Vec<Example>> {
        let numbers: Vec<u64> = (0..batch as u64).map(|i| (first + i) % self.samples).collect();
        let parts = numbers.par_chunks(batch.div_ceil(self.makers.len()).max(1)).zip(&self.makers);
        let parts: Vec<Vec<Example>> = parts
            .map(|(numbers, maker)| {
                let mut maker = maker.lock().unwrap_or_else(PoisonError::into_inner);
                numbers
                    .iter()
                    .map(|&number| {
                        let sample = maker.look(seed_for(self.seed, Purpose::Play, &[number]))?;
                        let pixels = sample.images.iter().flat_map(|image| image.as_raw().iter().copied());
                        let look = Look {
                            pixels: pixels.collect(),
                            proprio: sample.observation.proprio,
                            prompt: policy.prompt(&sample.instruction)?,
                        };
                        Ok(Example { look, targets: policy.encode_chunk(&sample.actions) })
                    })
                    .collect::<Result<_>>()
            })
            .collect::<Result<_>>()?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// The demonstrations of `[sft]`, those to learn from and those held out; `skipped` gets a line for each that is damaged.
///
/// # Errors
/// A store that cannot be read; the simulator refused.
pub fn demonstrations(
    config: &TrainConfig,
    sft: &SftConfig,
    world: Option<&dyn World>,
    skipped: &mut Vec<String>,
) -> Result<(Vec<Episode>, Vec<Episode>)> {
    let mut episodes = match world {
        Some(world) if sft.demos == "expert" => {
            experts(config.run.seed, sft.demos_per_task.max(1) + sft.holdout, world)?
        }
        _ => {
            let skip = sft.skip_damaged == Some(true);
            let on_corrupt = if skip { OnCorrupt::Skip } else { OnCorrupt::Error };
            let load = || EpisodeStore::open(&sft.demos)?.load_all(on_corrupt);
            let (episodes, damaged) = load().map_err(unusable)?;
            skipped.extend(damaged.iter().map(|e| format!("skipped: {e}")));
            first_of_each_task(
                episodes,
                if sft.demos_per_task == 0 { 0 } else { sft.demos_per_task + sft.holdout },
            )
        }
    };
    let held_out = if sft.holdout == 0 { Vec::new() } else { last_of_each_task(&mut episodes, sft.holdout) };
    Ok((episodes, held_out))
}

fn unusable(error: efference_data::Error) -> Error {
    let source = if error.is_corrupt_episode() {
        format!("{error}\n  hint: `sft.skip_damaged = true` passes over damaged episodes").into()
    } else {
        Box::new(error).into()
    };
    Error::Setting { section: "sft.demos", source }
}

/// Initial states that an expert may fail on before it counts as unable.
const ATTEMPTS: u64 = 10;

/// `per_task` successful demonstrations of each task. Where the expert fails (distractors can stand in its way), it tries
/// another initial state: what failed is nothing to learn from.
fn experts(seed: u64, per_task: usize, world: &dyn World) -> Result<Vec<Episode>> {
    let wanted: Vec<(usize, u64)> =
        (0..world.tasks().len()).flat_map(|task| (0..per_task as u64).map(move |i| (task, i))).collect();
    let one = |(task, i): (usize, u64)| {
        let number = world.place(task);
        for attempt in 0..ATTEMPTS {
            let place = [number, i, attempt];
            // The first attempt stands at the place that `efference demos` uses.
            let place = if attempt == 0 { &place[..2] } else { &place[..] };
            let seed = world.train_seed(seed_for(seed, Purpose::Demonstrations, place));
            let episode = world.demonstrate(task, seed)?;
            if episode.meta.success {
                return Ok(episode);
            }
        }
        let why = format!(
            "the expert failed at `{}` from {ATTEMPTS} initial states within {} control steps; raise `env.max_steps`",
            world.tasks()[task],
            world.max_steps()
        );
        Err(Error::Setting { section: "sft.demos", source: why.into() })
    };
    wanted.into_par_iter().map(one).collect()
}

fn first_of_each_task(episodes: Vec<Episode>, per_task: usize) -> Vec<Episode> {
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    let keep = |episode: &Episode| {
        let count = seen.entry(episode.meta.task.clone()).or_default();
        *count += 1;
        per_task == 0 || *count <= per_task
    };
    let mut keep = keep;
    episodes.into_iter().filter(|episode| keep(episode)).collect()
}

fn last_of_each_task(episodes: &mut Vec<Episode>, per_task: usize) -> Vec<Episode> {
    let mut left = std::collections::BTreeMap::<String, usize>::new();
    let mut held = Vec::new();
    for i in (0..episodes.len()).rev() {
        let count = left.entry(episodes[i].meta.task.clone()).or_default();
        if *count < per_task {
            *count += 1;
            held.push(episodes.remove(i));
        }
    }
    held.reverse();
    held
}
