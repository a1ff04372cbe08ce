//! One iteration of reinforcement learning: group rollouts, rewards, advantages, updates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use efference_nets::{RandomConv, score_logits};
use efference_objectives::batch::{
    EMBEDDINGS, ENTROPY, FINISH_STEPS, GROUP_IDS, LOG_PROBS, OLD_ENTROPY, OLD_LOG_PROBS, PROGRESS,
    PROMPT_IDS, REWARDS, SUCCESS, TASK_IDS, TRUNCATED, TURN_IDS, VALUES,
};
use efference_objectives::registry::Algorithm;
use efference_objectives::{Batch, Input, Normaliser, Objective, Prepared, State, Table};
use efference_ops::{Grads, value_and_grad};
use efference_rollout::{
    CollectOptions, Collector, Decision, EpisodePlan, Noise, Purpose, Trajectory, VlaPolicy, seed_for,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::checkpoint::Tensors;
use crate::config::RlConfig;
use crate::critic::Critic;
use crate::error::{Error, Result};
use crate::focus::Focus;
use crate::optimise::{Optimiser, OptimiserSettings};
use crate::packing::{Chosen, masked, micro_batches, pack};
use crate::progress::embed_episodes;
use crate::report::{StopFlag, TaskScore, Values};
use crate::supervised::Rehearsal;
use crate::world::World;

/// What one iteration did.
pub struct Iteration {
    /// Numbers for the log.
    pub values: Values,
    /// Everything that was played, in the order of the plans.
    pub trajectories: Vec<Trajectory>,
    /// Reward of each trajectory, 0 to 1.
    pub scores: Vec<f64>,
}

/// The stage: settings and reusable environments. Everything random is a function of the run's seed and the number of
/// the iteration, so this holds nothing that a resumed run would miss.
pub struct Rl<'w> {
    world: &'w dyn World,
    config: RlConfig,
    seed: u64,
    objective: Objective,
    /// What the objective's blocks remember.
    memory: State,
    encoder: RandomConv,
    collector: Collector<'w>,
    focus: Focus,
    critic: Option<Critic>,
}

/// Who learns, and how.
pub struct Learner<'l> {
    /// Acts and is changed.
    pub policy: &'l VlaPolicy,
    /// Changes it.
    pub optimiser: &'l mut Optimiser,
    /// What every update clones beside.
    pub rehearsal: Option<&'l Rehearsal<'l>>,
}

/// What the rollouts of this stage tell an objective.
const INPUTS: &[Input] = &[
    LOG_PROBS,
    OLD_LOG_PROBS,
    ENTROPY,
    REWARDS,
    SUCCESS,
    FINISH_STEPS,
    TRUNCATED,
    GROUP_IDS,
    PROMPT_IDS,
    TASK_IDS,
    EMBEDDINGS,
    OLD_ENTROPY,
    TURN_IDS,
];

/// What the rollouts under `config` tell an objective.
pub fn inputs(config: &RlConfig) -> Vec<Input> {
    let values = (config.critic.hidden > 0).then_some(VALUES);
    INPUTS.iter().copied().chain(values).collect()
}

impl<'w> Rl<'w> {
    /// Prepares the stage; `features` is the width of the policy's hidden states.
    ///
    /// # Errors
    /// [`Error::Setting`]: the algorithm's preset does not know a key, or a value is out of range.
    pub fn new(world: &'w dyn World, config: &RlConfig, features: usize, seed: u64) -> Result<Self> {
        let refuse =
            |e: efference_objectives::Error| Error::Setting { section: "rl.objective", source: Box::new(e) };
        let objective =
            Algorithm::from_table(&config.algorithm, &config.objective).map_err(refuse)?.objective;
        objective.check(&inputs(config)).map_err(refuse)?;
        let encoder = RandomConv::new(config.encoder.seed, config.encoder.frames);
        let collector = Collector::new(world);
        let focus = Focus::new(world.tasks().len());
        let tasks = world.tasks().iter().cloned();
        let critic = match config.critic.hidden {
            0 => None,
            _ => Some(Critic::new(&config.critic, features, tasks, world.max_steps(), seed)?),
        };
        Ok(Self {
            world,
            config: config.clone(),
            seed,
            objective,
            memory: State::default(),
            encoder,
            collector,
            focus,
            critic,
        })
    }

    /// What outlives an iteration, for a checkpoint: recent success per task, as bits.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let bits = |(task, rate): (&String, &f64)| (counter(task), rate.to_bits());
        self.world.tasks().iter().zip(&self.focus.rates).map(bits).collect()
    }

    /// Takes it over again.
    pub fn restore(&mut self, counters: &BTreeMap<String, u64>, memory: &State) {
        self.memory = memory.clone();
        for (task, rate) in self.world.tasks().iter().zip(&mut self.focus.rates) {
            if let Some(bits) = counters.get(&counter(task)) {
                *rate = f64::from_bits(*bits);
            }
        }
    }

    /// Weights and moments of the critic, for a checkpoint.
    ///
    /// # Errors
    /// No memory.
    pub fn critic_state(&self) -> Result<Tensors> {
        self.critic.as_ref().map_or_else(|| Ok(Tensors::new()), Critic::state)
    }

    /// Takes them out of `moments` again.
    ///
    /// # Errors
    /// They belong to another critic.
    pub fn restore_critic(&mut self, moments: &mut Tensors) -> Result<()> {
        Critic::restore(self.critic.as_mut(), moments)
    }

    /// Why the size of micro-batches changes the gradient, if it does.
    pub fn batch_wide(&self) -> Option<String> {
        self.objective.batch_wide()
    }

    /// What the objective's blocks remember, for a checkpoint.
    pub fn memory(&self) -> &State {
        &self.memory
    }

    /// The rollouts of iteration `i`: each prompt (task and initial state) `group` times.
    fn plans(&self, i: u64) -> Vec<EpisodePlan> {
        let tasks = self.world.tasks();
        let prompts = self.config.prompts as u64;
        let order: Vec<usize> = if self.config.focus {
            self.focus.share(self.config.prompts)
        } else {
            (0..prompts).map(|p| ((i * prompts + p) % tasks.len() as u64) as usize).collect()
        };
        (0..)
            .zip(order)
            .flat_map(|(p, task)| {
                let env_seed = self.world.train_seed(seed_for(self.seed, Purpose::Prompts, &[i, p]));
                (0..self.config.group as u64).map(move |g| (&tasks[task], env_seed, p, g))
            })
            .map(|(task, env_seed, p, g)| EpisodePlan {
                task: task.clone(),
                env_seed,
                // With `mirrored`, two neighbours share their numbers.
                action_seed: {
                    let place = if self.config.mirrored { g / 2 * 2 } else { g };
                    seed_for(self.seed, Purpose::Actions, &[i, p, place])
                },
                mirrored: self.config.mirrored && g % 2 == 1,
                group: p,
            })
            .collect()
    }

    /// Plays, rewards and learns. Trajectories keep their states if `keep_snapshots` or the algorithm asks for it. `None` when `stop` was requested during the rollouts; then nothing has changed.
    ///
    /// # Errors
    /// A simulator, the network or the objective failed; sampled and re-scored log-probabilities differ.
    pub fn iteration(
        &mut self,
        i: u64,
        learner: &mut Learner<'_>,
        stop: &StopFlag,
        keep_snapshots: bool,
    ) -> Result<Option<Iteration>> {
        let start = Instant::now();
        let policy = learner.policy;
        let plans = self.plans(i);
        let embeds = self.objective.needs().contains(&EMBEDDINGS);
        let noise = if self.config.noise == "chunk" { Noise::Chunk } else { Noise::Token };
        let options = CollectOptions {
            temperature: self.config.temperature,
            noise,
            slots: self.world.slots(),
            keep_snapshots: keep_snapshots || embeds,
        };
        let trajectories = self.collector.collect(policy, &plans, &options, &mut |_| !stop.requested())?;
        if trajectories.is_empty() {
            return Ok(None);
        }
        let rollout_secs = start.elapsed().as_secs_f64();
        let mut batch = self.batch(i, policy, &trajectories, embeds)?;
        self.objective.shape_rewards(&mut batch, &mut self.memory)?;
        let scores = batch.numbers(if batch.has(PROGRESS) { PROGRESS } else { REWARDS })?;
        for score in task_scores(&trajectories) {
            if let Some(at) = self.world.tasks().iter().position(|t| *t == score.task) {
                self.focus.see(at, score.rate());
            }
        }
        let reward_secs = start.elapsed().as_secs_f64() - rollout_secs;
        let explained = match &mut self.critic {
            None => None,
            Some(critic) => {
                let rewards = batch.numbers(REWARDS)?;
                let first = !critic.fitted();
                let mut explained = if first { critic.fit(&trajectories, &rewards, self.seed)? } else { 0.0 };
                let values = self.critic_table(policy, &trajectories, batch.cols())?;
                batch.set(VALUES, values)?;
                if let Some(critic) = self.critic.as_mut().filter(|_| !first) {
                    explained = critic.fit(&trajectories, &rewards, self.seed)?;
                }
                Some(explained)
            }
        };
        let mut values = self.rollout_values(&trajectories, &scores, batch.has(PROGRESS));
        values.extend(explained.map(|x| ("critic_explained".to_string(), x)));
        let trained_tokens = self.learn(i, learner, &trajectories, batch, &mut values)?;
        let secs = start.elapsed().as_secs_f64();
        let steps: usize = trajectories.iter().map(|t| t.finish_steps).sum();
        let update_secs = secs - rollout_secs - reward_secs;
        for (name, x) in [
            ("time/rollout_secs", rollout_secs),
            ("time/reward_secs", reward_secs),
            ("time/update_secs", update_secs),
            ("speed/env_steps_per_s", steps as f64 / rollout_secs),
            ("speed/episodes_per_s", trajectories.len() as f64 / secs),
            ("speed/tokens_per_s", trained_tokens as f64 / update_secs.max(1e-9)),
        ] {
            values.insert(name.into(), x);
        }
        Ok(Some(Iteration { values, trajectories, scores }))
    }

    /// What is known about the rollouts of iteration `i`: one row per trajectory, padded to the longest, one column per
    /// action token. The reward is 1 for a success.
    fn batch(&self, i: u64, policy: &VlaPolicy, trajectories: &[Trajectory], embeds: bool) -> Result<Batch> {
        let per_decision = policy.chunk() * policy.action_dim();
        let cols = per_decision * trajectories.iter().map(|t| t.decisions.len()).max().unwrap_or(0);
        let table = |row: &dyn Fn(&Trajectory) -> Vec<f64>| {
            let values: Vec<f64> = trajectories
                .iter()
                .flat_map(|t| {
                    let mut row = row(t);
                    row.resize(cols, 0.0);
                    row
                })
                .collect();
            Table { rows: trajectories.len(), cols, values }
        };
        let mask = table(&|t| vec![1.0; t.tokens(policy.action_dim())]);
        let old = table(&|t| t.decisions.iter().flat_map(|d| &d.log_probs).map(|&x| f64::from(x)).collect());
        let entropy =
            table(&|t| t.decisions.iter().flat_map(|d| &d.entropy).map(|&x| f64::from(x)).collect());
        let turns =
            table(&|t| (0..t.decisions.len() * per_decision).map(|i| (i / per_decision) as f64).collect());
        let like = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let old = old.to_tensor(&like)?;
        let numbers = |x: &dyn Fn(&Trajectory) -> f64| trajectories.iter().map(x).collect::<Vec<f64>>();
        let success = numbers(&|t| f64::from(u8::from(t.success)));
        let ids: BTreeMap<&str, u64> = self.world.tasks().iter().map(String::as_str).zip(0..).collect();
        let task = |t: &Trajectory| ids.get(t.plan.task.as_str()).copied().unwrap_or(u64::MAX);
        let max_steps = self.world.max_steps();
        let mut batch = Batch::new(mask)
            .with(OLD_LOG_PROBS, old)?
            .with(REWARDS, success.clone())?
            .with(SUCCESS, success)?
            .with(FINISH_STEPS, numbers(&|t| t.finish_steps as f64))?
            .with(TRUNCATED, numbers(&|t| f64::from(u8::from(t.finish_steps >= max_steps))))?
            .with(OLD_ENTROPY, entropy)?
            .with(TURN_IDS, turns)?
            .with(GROUP_IDS, trajectories.iter().map(|t| t.plan.group).collect::<Vec<u64>>())?
            // An initial state is a prompt. They are drawn anew in every iteration, so histories per prompt stay short.
            .with(PROMPT_IDS, trajectories.iter().map(|t| t.plan.env_seed).collect::<Vec<u64>>())?
            .with(TASK_IDS, trajectories.iter().map(task).collect::<Vec<u64>>())?;
        if embeds {
            let mut embeddings = embed_episodes(self.world, &self.encoder, trajectories)?;
            if self.config.encoder.shuffled {
                let seed = seed_for(self.seed, Purpose::Shuffle, &[i]);
                embeddings.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            }
            batch.set(EMBEDDINGS, embeddings)?;
        }
        Ok(batch)
    }

    /// The critic's value of each decision on its tokens, [B, T].
    fn critic_table(&self, policy: &VlaPolicy, trajectories: &[Trajectory], cols: usize) -> Result<Table> {
        let per_decision = policy.chunk() * policy.action_dim();
        let mut out = Table { rows: trajectories.len(), cols, values: vec![0.0; trajectories.len() * cols] };
        let Some(critic) = &self.critic else { return Ok(out) };
        let mut values = critic.values(trajectories)?.into_iter();
        for (row, t) in trajectories.iter().enumerate() {
            let tokens = out.values[row * cols..(row + 1) * cols].chunks_mut(per_decision);
            for (tokens, value) in tokens.zip(values.by_ref().take(t.decisions.len())) {
                tokens.fill(value);
            }
        }
        Ok(out)
    }

    fn rollout_values(&self, trajectories: &[Trajectory], scores: &[f64], graded: bool) -> Values {
        let n = trajectories.len() as f64;
        let failures: Vec<f64> =
            trajectories.iter().zip(scores).filter(|(t, _)| !t.success).map(|(_, s)| *s).collect();
        let mut values = Values::new();
        let mut put = |name: &str, x: f64| values.insert(name.into(), x);
        put("success", trajectories.iter().filter(|t| t.success).count() as f64 / n);
        put("reward", scores.iter().sum::<f64>() / n);
        if graded {
            put("progress", failures.iter().sum::<f64>() / (failures.len() as f64).max(1.0));
        }
        put("episode_steps", trajectories.iter().map(|t| t.finish_steps as f64).sum::<f64>() / n);
        put("aborted", trajectories.iter().filter(|t| t.aborted.is_some()).count() as f64);
        for score in task_scores(trajectories) {
            put(&format!("success/{}", score.task), score.rate());
        }
        values
    }

    /// Filter, advantages, updates. Returns how many tokens were trained on.
    fn learn(
        &mut self,
        i: u64,
        learner: &mut Learner<'_>,
        trajectories: &[Trajectory],
        batch: Batch,
        values: &mut Values,
    ) -> Result<usize> {
        let policy = learner.policy;
        let mut batch = self.objective.prepare_rewarded(batch, &mut self.memory)?;
        let trajectories: Vec<&Trajectory> = batch.kept.iter().map(|&t| &trajectories[t]).collect();
        let groups: BTreeSet<u64> = trajectories.iter().map(|t| t.plan.group).collect();
        values.insert("groups_kept".into(), groups.len() as f64);
        if trajectories.is_empty() {
            values.insert("loss".into(), 0.0);
            return Ok(0);
        }
        if self.config.old_log_probs == "recomputed" {
            let old = self.recomputed(policy, &trajectories, batch.batch.cols())?;
            batch.batch.set(OLD_LOG_PROBS, old)?;
        }
        learner.optimiser.schedule_at(i * OptimiserSettings::rl_updates(&self.config) as u64);
        let mut sums = Sums::default();
        for epoch in 0..self.config.epochs as u64 {
            let mut order: Vec<usize> = (0..trajectories.len()).collect();
            let seed = seed_for(self.seed, Purpose::MiniBatches, &[i, epoch]);
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            for mini in order.chunks(self.config.mini_batch) {
                let chosen = self.choose(mini, &trajectories, &[i, epoch]);
                self.update(learner, (&trajectories, &batch), &chosen, &mut sums)?;
            }
        }
        sums.write(values);
        values.insert("skipped_steps".into(), learner.optimiser.skipped() as f64);
        Ok(sums.tokens as usize)
    }

    /// Log-probabilities of what was sampled, computed again by the trainer before the first update, [B, `cols`]; they
    /// must be those of the rollout, bit for bit on CPU.
    fn recomputed(&self, policy: &VlaPolicy, trajectories: &[&Trajectory], cols: usize) -> Result<Tensor> {
        let decisions: Vec<&Decision> = trajectories.iter().flat_map(|t| &t.decisions).collect();
        let allowed = allowed_gap(policy);
        let mut rows = Vec::with_capacity(decisions.len());
        for part in decisions.chunks(self.config.micro_batch) {
            let input = policy.input(part.iter().map(|d| (d.pixels.as_slice(), &d.proprio, &*d.prompt)))?;
            let bins: Vec<&[u32]> = part.iter().map(|d| d.action_ids.as_slice()).collect();
            let scored = score_logits(&policy.net.infer(&input)?, &bins, self.config.temperature)?.log_probs;
            VlaPolicy::check_on_policy(part, &scored, allowed)?;
            rows.extend(scored.to_vec2::<f32>()?);
        }
        let mut rows = rows.into_iter();
        let padded = |t: &&Trajectory| {
            let mut row = rows.by_ref().take(t.decisions.len()).collect::<Vec<_>>().concat();
            row.resize(cols, 0.0);
            row
        };
        let values: Vec<f32> = trajectories.iter().flat_map(padded).collect();
        Ok(Tensor::from_vec(values, (trajectories.len(), cols), &Device::Cpu)?)
    }

    /// Which decisions of the trajectories `mini` an update learns from.
    fn choose(&self, mini: &[usize], trajectories: &[&Trajectory], place: &[u64]) -> Vec<Chosen> {
        let share = self.config.decision_share;
        let one = |&trajectory: &usize| {
            let place = [place, &[trajectory as u64]].concat();
            let seed = seed_for(self.seed, Purpose::MiniBatches, &place);
            Chosen::draw(trajectory, trajectories[trajectory].decisions.len(), share, seed)
        };
        mini.iter().map(one).collect()
    }

    /// One optimiser step on the trajectories `mini` of the batch, gradients accumulated over micro-batches that share
    /// the mini-batch's denominators.
    fn update(
        &self,
        learner: &mut Learner<'_>,
        (trajectories, prepared): (&[&Trajectory], &Prepared),
        mini: &[Chosen],
        sums: &mut Sums,
    ) -> Result<()> {
        let policy = learner.policy;
        let per_decision = policy.chunk() * policy.action_dim();
        let rows: Vec<usize> = mini.iter().map(|c| c.trajectory).collect();
        let whole = masked(prepared.batch.mask().select(&rows), mini, per_decision);
        let longest = whole.cols / per_decision;
        let whole = Normaliser::of(&whole);
        let first = sums.updates == 0.0;
        let mut grads = Grads::new();
        let mut parts = Sums { tokens: whole.tokens, ..Sums::default() };
        for micro in micro_batches(mini, self.config.micro_batch) {
            let decisions: Vec<&Decision> =
                micro.iter().flat_map(|c| c.of(&trajectories[c.trajectory].decisions)).collect();
            let (_, found) = value_and_grad(|| {
                let scored = policy.score(&decisions, self.config.temperature)?;
                if first {
                    VlaPolicy::check_on_policy(&decisions, &scored.log_probs.detach(), allowed_gap(policy))?;
                }
                let rows: Vec<usize> = micro.iter().map(|c| c.trajectory).collect();
                let batch = prepared.batch.select(&rows)?;
                let mask = masked(batch.mask().clone(), micro, per_decision);
                let batch = batch
                    .masked(mask)?
                    .with(LOG_PROBS, pack(&scored.log_probs.to_device(&Device::Cpu)?, micro, longest)?)?
                    .with(ENTROPY, pack(&scored.entropy.to_device(&Device::Cpu)?, micro, longest)?)?;
                let signals = prepared.signals.select(&rows);
                let loss = self.objective.loss(&batch, &signals, &whole, &self.memory)?;
                parts.loss += f64::from(loss.loss.to_scalar::<f32>()?);
                parts.entropy += loss.entropy;
                parts.approx_kl += loss.stat("approx_kl");
                parts.clip_frac += loss.stat("clip_frac");
                parts.clip_frac_lower += loss.stat("clip_frac_lower");
                parts.max_ratio_gap = parts.max_ratio_gap.max(loss.max_ratio_gap);
                Ok::<_, Error>(loss.loss)
            })?;
            grads.add(found, policy.params.trainable())?;
        }
        if let Some(rehearsal) = learner.rehearsal {
            parts.rehearsal = rehearsal.add_to(&mut grads, policy, learner.optimiser.updates())?;
        }
        let report = learner.optimiser.step(&mut grads)?;
        (parts.grad_norm, parts.lr, parts.updates) = (report.grad_norm, report.lr, 1.0);
        sums.add(&parts);
        Ok(())
    }
}

/// How far a log-probability may be from the same one computed again: not at all on CPU.
fn allowed_gap(policy: &VlaPolicy) -> f32 {
    if policy.params.device().is_cpu() { 0.0 } else { 1e-4 }
}

/// Means over the updates of an iteration.
#[derive(Default)]
struct Sums {
    updates: f64,
    /// Tokens that were learned from, a sum.
    tokens: f64,
    loss: f64,
    rehearsal: f64,
    entropy: f64,
    approx_kl: f64,
    clip_frac: f64,
    clip_frac_lower: f64,
    grad_norm: f64,
    lr: f64,
    max_ratio_gap: f64,
}

impl Sums {
    fn add(&mut self, one: &Self) {
        self.updates += one.updates;
        self.tokens += one.tokens;
        self.loss += one.loss;
        self.rehearsal += one.rehearsal;
        self.entropy += one.entropy;
        self.approx_kl += one.approx_kl;
        self.clip_frac += one.clip_frac;
        self.clip_frac_lower += one.clip_frac_lower;
        self.grad_norm += one.grad_norm;
        self.lr = one.lr;
        self.max_ratio_gap = self.max_ratio_gap.max(one.max_ratio_gap);
    }

    fn write(&self, values: &mut Values) {
        for (name, x) in [
            ("loss", self.loss),
            ("rehearsal_nll", self.rehearsal),
            ("entropy", self.entropy),
            ("approx_kl", self.approx_kl),
            ("clip_frac", self.clip_frac),
            ("clip_frac_lower", self.clip_frac_lower),
            ("grad_norm", self.grad_norm),
        ] {
            values.insert(name.into(), x / self.updates.max(1.0));
        }
        values.insert("lr".into(), self.lr);
        values.insert("max_ratio_gap".into(), self.max_ratio_gap);
        values.insert("updates".into(), self.updates);
    }
}

fn counter(task: &str) -> String {
    format!("rl/recent_success/{task}")
}

/// Success per task, in the order of first appearance.
pub fn task_scores(trajectories: &[Trajectory]) -> Vec<TaskScore> {
    let mut scores: Vec<TaskScore> = Vec::new();
    for t in trajectories {
        let at = scores.iter().position(|s| s.task == t.plan.task).unwrap_or_else(|| {
            scores.push(TaskScore { task: t.plan.task.clone(), successes: 0, episodes: 0 });
            scores.len() - 1
        });
        scores[at].episodes += 1;
        scores[at].successes += u64::from(t.success);
    }
    scores
}
