//! One iteration of reinforcement learning: group rollouts, rewards, advantages, updates.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{DType, Tensor};
use efference_envs::tabletop::train_seed;
use efference_nets::{Noise, RandomConv, Sampling, score_logits};
use efference_objectives::advantage::group_norm;
use efference_objectives::papers::srpo::progress_rewards;
use efference_objectives::registry::Algorithm;
use efference_objectives::shaping::place_terminal;
use efference_objectives::{Normaliser, Objective, PolicyBatch, Table};
use efference_ops::Grads;
use efference_rollout::{
    CollectOptions, Collector, Decision, EpisodePlan, Purpose, Trajectory, VlaPolicy, seed_for,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::config::RlConfig;
use crate::error::{Error, Result};
use crate::optimise::Optimiser;
use crate::progress::embed_episodes;
use crate::report::{StopFlag, TaskScore, Values};
use crate::world::Tabletop;

/// Environments that run at the same time.
pub const SLOTS: usize = 64;

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
    world: &'w Tabletop,
    config: RlConfig,
    seed: u64,
    algorithm: Algorithm,
    objective: Objective,
    encoder: RandomConv,
    collector: Collector<'w>,
    focus: Focus,
}

/// What the updates of an iteration have in common.
struct Batch<'t> {
    trajectories: Vec<&'t Trajectory>,
    /// [B] in the order of `trajectories`.
    advantages: Vec<f64>,
    /// [B][Q][K * A], as the trainer computed them before the first update.
    old_log_probs: Vec<Vec<Vec<f32>>>,
}

impl<'w> Rl<'w> {
    /// Prepares the stage.
    ///
    /// # Errors
    /// [`Error::Setting`]: the algorithm's preset does not know a key, or a value is out of range.
    pub fn new(world: &'w Tabletop, config: &RlConfig, seed: u64) -> Result<Self> {
        let algorithm = Algorithm::from_table(&config.algorithm, &config.objective)
            .map_err(|e| Error::Setting { section: "rl.objective", source: Box::new(e) })?;
        if algorithm.grpo().kl_coef != 0.0 {
            let why =
                "`kl_coef` needs a frozen reference policy, which `train` does not keep yet; leave it at 0";
            return Err(Error::Setting { section: "rl.objective", source: why.into() });
        }
        let objective = algorithm.grpo().recipe();
        let encoder = RandomConv::new(config.encoder.seed, config.encoder.frames);
        let collector = Collector::new(world);
        let focus = Focus::new(world.tasks.len());
        Ok(Self { world, config: config.clone(), seed, algorithm, objective, encoder, collector, focus })
    }

    /// What outlives an iteration, for a checkpoint: recent success per task, as bits.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let bits =
            |(task, rate): (&efference_envs::tabletop::Task, &f64)| (counter(task.id()), rate.to_bits());
        self.world.tasks.iter().zip(&self.focus.rates).map(bits).collect()
    }

    /// Takes it over again.
    pub fn restore(&mut self, counters: &BTreeMap<String, u64>) {
        for (task, rate) in self.world.tasks.iter().zip(&mut self.focus.rates) {
            if let Some(bits) = counters.get(&counter(task.id())) {
                *rate = f64::from_bits(*bits);
            }
        }
    }

    /// The rollouts of iteration `i`: each prompt (task and initial state) `group` times.
    fn plans(&self, i: u64) -> Vec<EpisodePlan> {
        let tasks = &self.world.tasks;
        let prompts = self.config.prompts as u64;
        let order: Vec<usize> = if self.config.focus {
            self.focus.share(self.config.prompts)
        } else {
            (0..prompts).map(|p| ((i * prompts + p) % tasks.len() as u64) as usize).collect()
        };
        (0..)
            .zip(order)
            .flat_map(|(p, task)| {
                let env_seed = train_seed(seed_for(self.seed, Purpose::Prompts, &[i, p]));
                (0..self.config.group as u64).map(move |g| (tasks[task].id(), env_seed, p, g))
            })
            .map(|(task, env_seed, p, g)| EpisodePlan {
                task: task.into(),
                env_seed,
                action_seed: seed_for(self.seed, Purpose::Actions, &[i, p, g]),
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
        policy: &VlaPolicy,
        optimiser: &mut Optimiser,
        stop: &StopFlag,
        keep_snapshots: bool,
    ) -> Result<Option<Iteration>> {
        let start = Instant::now();
        let plans = self.plans(i);
        let srpo = matches!(self.algorithm, Algorithm::Srpo(_));
        let noise = if self.config.noise == "chunk" { Noise::Chunk } else { Noise::Token };
        let sampling = Sampling { temperature: self.config.temperature, noise };
        let options = CollectOptions { sampling, slots: SLOTS, keep_snapshots: keep_snapshots || srpo };
        let trajectories = self.collector.collect(policy, &plans, &options, &mut |_| !stop.requested())?;
        if trajectories.is_empty() {
            return Ok(None);
        }
        let rollout_secs = start.elapsed().as_secs_f64();
        let scores = self.scores(i, &trajectories)?;
        for score in task_scores(&trajectories) {
            if let Some(at) = self.world.tasks.iter().position(|t| t.id() == score.task) {
                self.focus.see(at, score.rate());
            }
        }
        let reward_secs = start.elapsed().as_secs_f64() - rollout_secs;
        let mut values = self.rollout_values(&trajectories, &scores);
        let trained_tokens = self.learn(i, policy, optimiser, &trajectories, &scores, &mut values)?;
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

    /// Reward of each trajectory, 0 to 1, without the algorithm's coefficient.
    fn scores(&self, i: u64, trajectories: &[Trajectory]) -> Result<Vec<f64>> {
        let success: Vec<bool> = trajectories.iter().map(|t| t.success).collect();
        match &self.algorithm {
            Algorithm::Grpo(_) => Ok(success.iter().map(|&s| f64::from(u8::from(s))).collect()),
            Algorithm::Srpo(srpo) => {
                let mut embeddings = embed_episodes(self.world, &self.encoder, trajectories)?;
                if self.config.encoder.shuffled {
                    let seed = seed_for(self.seed, Purpose::Shuffle, &[i]);
                    embeddings.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
                }
                let ids: BTreeMap<&str, u64> = self.world.tasks.iter().map(|t| t.id()).zip(0..).collect();
                let task_ids: Vec<u64> = trajectories
                    .iter()
                    .map(|t| ids.get(t.plan.task.as_str()).copied().unwrap_or(u64::MAX))
                    .collect();
                Ok(progress_rewards(&embeddings, &success, &task_ids, &srpo.progress)?.rewards)
            }
        }
    }

    fn rollout_values(&self, trajectories: &[Trajectory], scores: &[f64]) -> Values {
        let n = trajectories.len() as f64;
        let failures: Vec<f64> =
            trajectories.iter().zip(scores).filter(|(t, _)| !t.success).map(|(_, s)| *s).collect();
        let mut values = Values::new();
        let mut put = |name: &str, x: f64| values.insert(name.into(), x);
        put("success", trajectories.iter().filter(|t| t.success).count() as f64 / n);
        put("reward", scores.iter().sum::<f64>() / n);
        if matches!(self.algorithm, Algorithm::Srpo(_)) {
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
        &self,
        i: u64,
        policy: &VlaPolicy,
        optimiser: &mut Optimiser,
        trajectories: &[Trajectory],
        scores: &[f64],
        values: &mut Values,
    ) -> Result<usize> {
        let success: Vec<bool> = trajectories.iter().map(|t| t.success).collect();
        let steps: Vec<usize> = trajectories.iter().map(|t| t.finish_steps).collect();
        let groups: Vec<u64> = trajectories.iter().map(|t| t.plan.group).collect();
        let settings = self.algorithm.grpo();
        let kept = settings.filter.keep(&success, &steps, self.world.options.max_steps, &groups)?;
        values.insert("groups_kept".into(), kept.len() as f64);

        // The reward stands on the last executed token; advantages are per sequence, so only its sum counts.
        let coefficient = match &self.algorithm {
            Algorithm::Grpo(_) => 1.0,
            Algorithm::Srpo(srpo) => srpo.reward_coef,
        };
        let longest = trajectories.iter().map(|t| t.decisions.len()).max().unwrap_or(0);
        let width = longest * policy.chunk() * policy.action_dim();
        let rewards = place_terminal(scores, &steps, policy.action_dim(), coefficient, width).row_sums();
        let advantages = group_norm(&rewards, &groups, &settings.advantage)?;

        let index: Vec<usize> = (0..trajectories.len()).filter(|&t| kept.contains(&groups[t])).collect();
        if index.is_empty() {
            values.insert("loss".into(), 0.0);
            return Ok(0);
        }
        let trajectories: Vec<&Trajectory> = index.iter().map(|&t| &trajectories[t]).collect();
        let old_log_probs = self.old_log_probs(policy, &trajectories)?;
        let batch =
            Batch { advantages: index.iter().map(|&t| advantages[t]).collect(), trajectories, old_log_probs };
        let tokens: usize = batch.trajectories.iter().map(|t| t.tokens(policy.action_dim())).sum();

        let mut sums = Sums::default();
        for epoch in 0..self.config.epochs as u64 {
            let mut order: Vec<usize> = (0..batch.trajectories.len()).collect();
            let seed = seed_for(self.seed, Purpose::MiniBatches, &[i, epoch]);
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            for mini in order.chunks(self.config.mini_batch) {
                self.update(policy, optimiser, &batch, mini, &mut sums)?;
            }
        }
        sums.write(values);
        values.insert("skipped_steps".into(), optimiser.skipped() as f64);
        Ok(tokens * self.config.epochs)
    }

    /// Log-probabilities of what was sampled under the policy as it is before the first update, computed again by the
    /// trainer; on CPU they must be those of the rollout bit for bit.
    fn old_log_probs(&self, policy: &VlaPolicy, trajectories: &[&Trajectory]) -> Result<Vec<Vec<Vec<f32>>>> {
        let decisions: Vec<&Decision> = trajectories.iter().flat_map(|t| &t.decisions).collect();
        let allowed = if policy.params.device().is_cpu() { 0.0 } else { 1e-4 };
        let mut rows = Vec::with_capacity(decisions.len());
        for part in decisions.chunks(self.config.micro_batch) {
            let input = policy.input(part.iter().map(|d| (d.pixels.as_slice(), &d.proprio, &*d.prompt)))?;
            let bins: Vec<&[u32]> = part.iter().map(|d| d.action_ids.as_slice()).collect();
            let scored = score_logits(&policy.net.infer(&input)?, &bins, self.config.temperature)?.log_probs;
            VlaPolicy::check_on_policy(part, &scored, allowed)?;
            rows.extend(scored.to_vec2::<f32>()?);
        }
        let mut rows = rows.into_iter();
        Ok(trajectories.iter().map(|t| rows.by_ref().take(t.decisions.len()).collect()).collect())
    }

    /// One optimiser step on the trajectories `mini` of the batch, gradients accumulated over micro-batches that share
    /// the mini-batch's denominators.
    fn update(
        &self,
        policy: &VlaPolicy,
        optimiser: &mut Optimiser,
        batch: &Batch<'_>,
        mini: &[usize],
        sums: &mut Sums,
    ) -> Result<()> {
        let per_decision = policy.chunk() * policy.action_dim();
        let longest = mini.iter().map(|&b| batch.trajectories[b].decisions.len()).max().unwrap_or(0);
        let mask = |members: &[usize]| -> Result<Table> {
            let row = |&b: &usize| {
                let valid = batch.trajectories[b].tokens(policy.action_dim());
                (0..longest * per_decision).map(|t| f64::from(u8::from(t < valid))).collect()
            };
            Ok(Table::from_rows(&members.iter().map(row).collect::<Vec<Vec<f64>>>())?)
        };
        let whole = Normaliser::of(&mask(mini)?);
        let mut grads = Grads::new();
        let mut parts = Sums::default();
        for micro in micro_batches(mini, batch, self.config.micro_batch) {
            let decisions: Vec<&Decision> =
                micro.iter().flat_map(|&b| &batch.trajectories[b].decisions).collect();
            let lengths: Vec<usize> = micro.iter().map(|&b| batch.trajectories[b].decisions.len()).collect();
            let scored = policy.score(&decisions, self.config.temperature)?;
            let (log_probs, entropy) =
                (pack(&scored.log_probs, &lengths, longest)?, pack(&scored.entropy, &lengths, longest)?);
            let mask = mask(micro)?;
            let advantages: Vec<f64> = micro.iter().map(|&b| batch.advantages[b]).collect();
            let advantages = Table::broadcast(&advantages, &mask)?;
            let old: Vec<f32> = micro
                .iter()
                .flat_map(|&b| {
                    let row = batch.old_log_probs[b].iter().flatten().copied();
                    row.chain(std::iter::repeat(0.0)).take(longest * per_decision)
                })
                .collect();
            let old = Tensor::from_vec(old, log_probs.dims(), log_probs.device())?.to_dtype(DType::F32)?;
            let loss = self.objective.loss(
                &PolicyBatch {
                    log_probs: &log_probs,
                    old_log_probs: &old,
                    ref_log_probs: None,
                    entropy: Some(&entropy),
                    advantages: &advantages,
                    response_mask: &mask,
                },
                &whole,
            )?;
            parts.loss += f64::from(loss.loss.to_scalar::<f32>()?);
            parts.entropy += loss.entropy;
            parts.approx_kl += loss.approx_kl;
            parts.clip_frac += loss.clip_frac;
            parts.clip_frac_lower += loss.clip_frac_lower;
            parts.max_ratio_gap = parts.max_ratio_gap.max(loss.max_ratio_gap);
            grads.add(&loss.loss.backward()?, policy.params.trainable())?;
        }
        let report = optimiser.step(&mut grads)?;
        (parts.grad_norm, parts.lr, parts.updates) = (report.grad_norm, report.lr, 1.0);
        sums.add(&parts);
        Ok(())
    }
}

/// Consecutive runs of `mini` with at most `most` decisions each, or one trajectory if that alone has more.
fn micro_batches<'m>(mini: &'m [usize], batch: &Batch<'_>, most: usize) -> Vec<&'m [usize]> {
    let mut parts = Vec::new();
    let (mut start, mut count) = (0, 0);
    for (at, &b) in mini.iter().enumerate() {
        let decisions = batch.trajectories[b].decisions.len();
        if count > 0 && count + decisions > most {
            parts.push(&mini[start..at]);
            (start, count) = (at, 0);
        }
        count += decisions;
    }
    parts.push(&mini[start..]);
    parts
}

/// Rows of decisions [D, T] to rows of trajectories [B, longest * T], zeros after the last decision of each.
fn pack(rows: &Tensor, lengths: &[usize], longest: usize) -> Result<Tensor> {
    let (d, t) = rows.dims2()?;
    let mut ids = Vec::with_capacity(lengths.len() * longest);
    let mut next = 0u32;
    for &length in lengths {
        ids.extend((next..).take(length));
        ids.extend(std::iter::repeat_n(d as u32, longest - length));
        next += length as u32;
    }
    let zeros = Tensor::zeros((1, t), rows.dtype(), rows.device())?;
    let ids = Tensor::from_vec(ids, lengths.len() * longest, rows.device())?;
    Ok(Tensor::cat(&[rows, &zeros], 0)?.index_select(&ids, 0)?.reshape((lengths.len(), longest * t))?)
}

/// Means over the updates of an iteration.
#[derive(Default)]
struct Sums {
    updates: f64,
    loss: f64,
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
        self.loss += one.loss;
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

/// Recent success per task, and who gets how many prompts by it.
struct Focus {
    rates: Vec<f64>,
}

impl Focus {
    /// Nothing has succeeded yet.
    fn new(tasks: usize) -> Self {
        Self { rates: vec![0.0; tasks] }
    }

    /// A moving average over about three iterations.
    fn see(&mut self, task: usize, rate: f64) {
        self.rates[task] += (rate - self.rates[task]) / 3.0;
    }

    /// Task of each of `prompts` prompts, in proportion to 1.15 - success: what always succeeds still gets a look now and
    /// then. Largest remainders are rounded up.
    fn share(&self, prompts: usize) -> Vec<usize> {
        let weights: Vec<f64> = self.rates.iter().map(|rate| 1.15 - rate.clamp(0.0, 1.0)).collect();
        let total: f64 = weights.iter().sum();
        let exact: Vec<f64> = weights.iter().map(|w| w / total * prompts as f64).collect();
        let mut counts: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by(|&a, &b| (exact[b].fract()).total_cmp(&exact[a].fract()).then(a.cmp(&b)));
        let missing = prompts - counts.iter().sum::<usize>();
        order.iter().take(missing).for_each(|&task| counts[task] += 1);
        counts.iter().enumerate().flat_map(|(task, &n)| std::iter::repeat_n(task, n)).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::Focus;

    #[test]
    fn what_fails_gets_more_prompts_and_nothing_is_forgotten() {
        let mut focus = Focus::new(3);
        assert_eq!(focus.share(6), [0, 0, 1, 1, 2, 2]);
        for _ in 0..30 {
            focus.see(0, 1.0);
            focus.see(1, 0.5);
        }
        let shares = focus.share(20);
        let count = |task| shares.iter().filter(|t| **t == task).count();
        assert_eq!([count(0), count(1), count(2)], [1, 7, 12]);
        assert_eq!(focus.share(1).len(), 1);
    }
}
