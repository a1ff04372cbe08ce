//! SPO: Single-stream Policy Optimization (arXiv 2509.13232).
//!
//! Base: GRPO without KL, ONE answer per prompt. The group's baseline is replaced by a tracker of every prompt's
//! success rate that lives through training and forgets faster when the policy has moved away. Advantages are
//! normalised over the batch, prompts are drawn with priority to the uncertain ones. No group can be dead, and
//! nobody waits for one.
//!
//! ```text
//! start, s of n0 offline answers right, N = 1/(1 - rho_min):
//!   alpha = N (s + 0.5)/(n0 + 1),  beta = N (n0 - s + 0.5)/(n0 + 1);        0.5 and 0.5 without offline answers
//! draw: weight = sqrt(v (1 - v)) + 0.05 with v = alpha/(alpha + beta), B prompts without replacement
//! advantage, with the tracker BEFORE its update:
//!   a = R - v,  a = (a - mean_B a)/(std_B a + 1e-8)                         over sequences, unbiased
//! after the policy update:
//!   D   = mean over the prompt's PREVIOUS answer of |stored - current log-probability|     0 on a first visit
//!   rho = clamp(2^(-D/0.06), 0.875, 0.96)
//!   alpha = rho alpha + R,  beta = rho beta + 1 - R
//! ```
//!
//! `rewards` [B] within [0, 1], `prompt_ids` [B] stable over iterations. A prompt that stands in a batch twice starts
//! from one tracker, and the last one written wins. Loss: clip 0.2 / 0.28, dual clip 10, token mean.
//!
//! The trainer closes an iteration with [`SingleStream::settle`], which takes the measured drifts ([`drift`]); the
//! stored answers are its business. Without that call the next batch settles the last one as if every prompt that was
//! seen before had drifted far (rho_min), which is the constant variant of the paper for all but first visits.
//!
//! Source: the authors' recipe in verl. The drift is called a KL there, but is a mean of absolute differences: with
//! half value 0.06, rho leaves its ends only for D between 0.0035 and 0.0116.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, OUTCOMES, PROMPT_IDS};
use crate::block::{Advantage, Block, BlockKind, Kind};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "spo_single",
    title: "Single-stream Policy Optimization",
    arxiv: "2509.13232",
    summary: "One answer per prompt; the baseline is a tracker of the prompt's success rate.",
    blocks: &[BlockKind::advantage::<SingleStream>()],
    recipe,
    vectors: Some(("spo_single.json", 7)),
    end_to_end: None,
};

/// Tracked baselines, clip-higher with dual clip 10, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(10.0) };
    Composition::new(&surrogate, Aggregation::TokenMean).advantage(&SingleStream::default())
}

/// Pseudo counts of a prompt's successes and failures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracker {
    /// Successes, greater than 0.
    pub alpha: f64,
    /// Failures, greater than 0.
    pub beta: f64,
}

impl Default for Tracker {
    fn default() -> Self {
        Self { alpha: 0.5, beta: 0.5 }
    }
}

impl Tracker {
    /// From `successes` among `answers` offline answers, at the effective sample size 1/(1 - rho_min).
    ///
    /// # Errors
    /// More successes than answers; `rho_min` outside of [0, 1).
    pub fn offline(successes: u64, answers: u64, rho_min: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&rho_min) {
            return Err(Error::Setting { name: "rho_min", got: rho_min, expected: "0 to 1, 1 excluded" });
        }
        if answers == 0 {
            return Ok(Self::default());
        }
        if successes > answers {
            let reason = format!("{successes} successes among {answers} answers");
            return Err(Error::Invalid { what: "offline answers", reason });
        }
        let (s, n) = (successes as f64, answers as f64);
        let size = 1.0 / (1.0 - rho_min);
        Ok(Self { alpha: size * (s + 0.5) / (n + 1.0), beta: size * (n - s + 0.5) / (n + 1.0) })
    }

    /// The success rate, v.
    pub fn value(&self) -> f64 {
        self.alpha / (self.alpha + self.beta)
    }

    /// After one more answer: v moves to the reward by 1/(rho (alpha + beta) + 1).
    pub fn updated(&self, rho: f64, reward: f64) -> Self {
        Self { alpha: rho * self.alpha + reward, beta: rho * self.beta + (1.0 - reward) }
    }
}

/// sqrt(v (1 - v)) + floor for every success rate: what a prompt weighs in the draw.
pub fn priorities(values: &[f64], floor: f64) -> Vec<f64> {
    values.iter().map(|v| (v * (1.0 - v)).max(0.0).sqrt() + floor).collect()
}

/// Weights over their sum; uniform when all are 0.
pub fn probabilities(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    if total > 0.0 {
        weights.iter().map(|w| w / total).collect()
    } else {
        vec![1.0 / weights.len().max(1) as f64; weights.len()]
    }
}

/// Draws `count` places of a pool by weight, without replacement; with replacement if the pool is smaller. `uniform`
/// gives random numbers in [0, 1).
///
/// # Errors
/// A weight that is negative or not finite, an empty pool.
pub fn draw(weights: &[f64], count: usize, mut uniform: impl FnMut() -> f64) -> Result<Vec<usize>> {
    if let Some(index) = weights.iter().position(|w| !(*w >= 0.0 && w.is_finite())) {
        return Err(Error::NotFinite { name: "weights", index, got: weights[index] });
    }
    if weights.is_empty() && count > 0 {
        return Err(Error::TooFew { what: "a draw", got: 0, needed: 1 });
    }
    let p = probabilities(weights);
    if count > p.len() {
        let pick = |u: f64| {
            let mut below = 0.0;
            let inside = |p: &f64| {
                below += p;
                u < below
            };
            p.iter().position(inside).unwrap_or_else(|| p.iter().rposition(|&p| p > 0.0).unwrap_or(0))
        };
        return Ok((0..count).map(|_| pick(uniform())).collect());
    }
    // The smallest of exponential waiting times with these rates: successive draws without replacement.
    let mut wait = |p: f64| {
        let time = -(1.0 - uniform()).ln();
        if p > 0.0 { time / p } else { f64::INFINITY }
    };
    let mut waits: Vec<(f64, usize)> = p.iter().enumerate().map(|(i, &p)| (wait(p), i)).collect();
    waits.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(waits.into_iter().take(count).map(|(_, i)| i).collect())
}

/// D of every row [B]: mean of |stored - current| over valid tokens, all tables [B, T]. `eps` (1e-8) joins the token
/// count, so a row without tokens has 0.
///
/// # Errors
/// Shapes that differ.
pub fn drift(stored: &Table, current: &Table, mask: &Table, eps: f64) -> Result<Vec<f64>> {
    stored.same_shape("stored_log_probs", mask)?;
    current.same_shape("current_log_probs", mask)?;
    let row = |row: usize| {
        let pairs = stored.row(row).iter().zip(current.row(row)).zip(mask.row(row));
        let sum: f64 = pairs.filter(|(_, m)| **m != 0.0).map(|((a, b), m)| (a - b).abs() * m).sum();
        let n: f64 = mask.row(row).iter().sum();
        if n > 0.0 { sum / (n + eps) } else { 0.0 }
    };
    Ok((0..mask.rows).map(row).collect())
}

/// How fast trackers forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forgetting {
    /// By the measured drift.
    #[default]
    Drift,
    /// Always `rho_min`.
    Constant,
}

/// Reward minus the prompt's tracked success rate, normalised over the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SingleStream {
    /// Strongest forgetting, 0 to 1.
    pub rho_min: f64,
    /// Weakest forgetting, `rho_min` to 1.
    pub rho_max: f64,
    /// Drift at which rho would be 0.5.
    pub drift_half: f64,
    /// By drift or constant.
    pub forgetting: Forgetting,
    /// Added to the batch's deviation.
    pub epsilon: f64,
}

impl Default for SingleStream {
    fn default() -> Self {
        Self { rho_min: 0.875, rho_max: 0.96, drift_half: 0.06, forgetting: Forgetting::Drift, epsilon: 1e-8 }
    }
}

/// Everything that outlives an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Trackers by prompt; (0.5, 0.5) for prompts that are not there.
    pub trackers: BTreeMap<u64, Tracker>,
    /// Prompts that have been answered in training.
    pub visited: BTreeSet<u64>,
    /// Prompts and rewards of the last batch, not yet in the trackers.
    pub pending: Vec<(u64, f64)>,
}

impl SingleStream {
    /// clamp(2^(-D / drift_half), rho_min, rho_max).
    pub fn rho(&self, drift: f64) -> f64 {
        match self.forgetting {
            Forgetting::Constant => self.rho_min,
            Forgetting::Drift => (-drift / self.drift_half).exp2().clamp(self.rho_min, self.rho_max),
        }
    }

    /// (a - mean)/(std + epsilon) of a = `rewards` - `values`, [B] each; 0 where all are equal.
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn normalise(&self, rewards: &[f64], values: &[f64]) -> Result<Vec<f64>> {
        if rewards.len() != values.len() {
            let expected = format!("[{}], like `rewards`", rewards.len());
            return Err(Error::Shape { name: "values", got: vec![values.len()], expected });
        }
        let a: Vec<f64> = rewards.iter().zip(values).map(|(r, v)| r - v).collect();
        if a.iter().all(|x| *x == a[0]) {
            return Ok(vec![0.0; a.len()]);
        }
        let n = a.len() as f64;
        let mean = a.iter().sum::<f64>() / n;
        let std = (a.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0)).sqrt();
        Ok(a.iter().map(|x| (x - mean) / (std + self.epsilon)).collect())
    }

    /// What the block remembers.
    ///
    /// # Errors
    /// [`Error::State`]: written by another version.
    pub fn memory(state: &State) -> Result<Memory> {
        state.get(Self::KIND)
    }

    /// Replaces what the block remembers, for instance by trackers from offline answers.
    ///
    /// # Errors
    /// [`Error::State`]: a number that is not finite.
    pub fn set_memory(state: &mut State, memory: &Memory) -> Result<()> {
        state.set(Self::KIND, memory)
    }

    /// Ends an iteration, after the policy update: the last batch's rewards go into the trackers. `drifts`: D of
    /// prompts that were answered before.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn settle(&self, state: &mut State, drifts: &BTreeMap<u64, f64>) -> Result<()> {
        let mut memory = Self::memory(state)?;
        self.settle_pending(&mut memory, drifts);
        Self::set_memory(state, &memory)
    }

    fn settle_pending(&self, memory: &mut Memory, drifts: &BTreeMap<u64, f64>) {
        let pending = std::mem::take(&mut memory.pending);
        let before = memory.trackers.clone();
        for &(prompt, reward) in &pending {
            let rho = match drifts.get(&prompt) {
                Some(d) if d.is_finite() => self.rho(*d),
                _ if memory.visited.contains(&prompt) => self.rho_min,
                _ => self.rho(0.0),
            };
            let tracker = before.get(&prompt).copied().unwrap_or_default();
            memory.trackers.insert(prompt, tracker.updated(rho, reward));
        }
        memory.visited.extend(pending.into_iter().map(|(prompt, _)| prompt));
    }
}

impl Block for SingleStream {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![PROMPT_IDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(0.0..=1.0).contains(&self.rho_min) {
            return wrong("rho_min", self.rho_min, "0 to 1");
        }
        if !(self.rho_min..=1.0).contains(&self.rho_max) {
            return wrong("rho_max", self.rho_max, "`rho_min` to 1");
        }
        if !(self.drift_half > 0.0 && self.drift_half.is_finite()) {
            return wrong("drift_half", self.drift_half, "greater than 0");
        }
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return wrong("epsilon", self.epsilon, "0 or more");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        match self.forgetting {
            Forgetting::Drift => {
                format!("R - tracked success rate, rho by drift in [{}, {}]", self.rho_min, self.rho_max)
            }
            Forgetting::Constant => format!("R - tracked success rate, rho {}", self.rho_min),
        }
    }
}

impl Kind for SingleStream {
    const KIND: &'static str = "single_stream";
}

impl Advantage for SingleStream {
    fn advantages(&self, batch: &Batch, state: &mut State) -> Result<Table> {
        let (rewards, prompts) = (batch.outcomes()?, batch.ids(PROMPT_IDS)?);
        if let Some(r) = rewards.iter().find(|r| !(0.0..=1.0).contains(*r)) {
            let reason = format!("{r} is outside of [0, 1], and the tracker counts successes");
            return Err(Error::Invalid { what: "rewards", reason });
        }
        let mut memory = Self::memory(state)?;
        self.settle_pending(&mut memory, &BTreeMap::new());
        let value = |id| memory.trackers.get(id).copied().unwrap_or_default().value();
        let values: Vec<f64> = prompts.iter().map(value).collect();
        let advantages = self.normalise(&rewards, &values)?;
        memory.pending = prompts.iter().copied().zip(rewards).collect();
        Self::set_memory(state, &memory)?;
        Table::broadcast(&advantages, batch.mask())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::REWARDS;
    use proptest::prelude::*;

    fn batch(rewards: &[f64], prompts: &[u64]) -> Batch {
        Batch::new(Table::from_rows(&vec![vec![1.0]; rewards.len()]).unwrap())
            .with(REWARDS, rewards.to_vec())
            .unwrap()
            .with(PROMPT_IDS, prompts.to_vec())
            .unwrap()
    }

    #[test]
    fn trackers_change_after_the_advantage_and_by_drift() {
        let block = SingleStream::default();
        let mut state = State::default();
        block.advantages(&batch(&[1.0, 0.0], &[5, 6]), &mut state).unwrap();
        assert!(SingleStream::memory(&state).unwrap().trackers.is_empty());
        block.settle(&mut state, &BTreeMap::new()).unwrap();
        let first = SingleStream::memory(&state).unwrap();
        assert_eq!(first.trackers[&5], Tracker::default().updated(0.96, 1.0));
        block.advantages(&batch(&[0.0, 0.0], &[5, 6]), &mut state).unwrap();
        block.settle(&mut state, &BTreeMap::from([(5, 0.008)])).unwrap();
        let second = SingleStream::memory(&state).unwrap();
        assert_eq!(second.trackers[&5], first.trackers[&5].updated((-0.008f64 / 0.06).exp2(), 0.0));
        assert_eq!(second.trackers[&6], first.trackers[&6].updated(0.875, 0.0));
        block.settle(&mut state, &BTreeMap::new()).unwrap();
        assert_eq!(SingleStream::memory(&state).unwrap(), second);
    }

    #[test]
    fn a_checkpoint_changes_no_bit_and_the_last_of_two_wins() {
        let block = SingleStream::default();
        let mut state = State::default();
        block.advantages(&batch(&[0.3, 1.0, 0.1], &[1, 1, 2]), &mut state).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let mut restored: State = serde_json::from_str(&text).unwrap();
        let next = batch(&[0.0, 0.7, 1.0], &[2, 1, 3]);
        assert_eq!(
            block.advantages(&next, &mut state).unwrap(),
            block.advantages(&next, &mut restored).unwrap()
        );
        assert_eq!(state, restored);
        let memory = SingleStream::memory(&state).unwrap();
        assert_eq!(memory.trackers[&1], Tracker::default().updated(0.96, 1.0));
    }

    #[test]
    fn bad_rewards_and_counts_are_refused() {
        let block = SingleStream::default();
        assert!(block.advantages(&batch(&[-1.0, 1.0], &[1, 2]), &mut State::default()).is_err());
        assert!(Tracker::offline(9, 8, 0.875).is_err() && Tracker::offline(1, 8, 1.0).is_err());
        assert_eq!(block.normalise(&[1.0], &[0.3]).unwrap(), [0.0]);
        assert_eq!(block.normalise(&[], &[]).unwrap(), [0.0; 0]);
        let masked = Table::from_rows(&[vec![0.0, 0.0]]).unwrap();
        let cold = masked.filled(f64::NEG_INFINITY);
        assert_eq!(drift(&cold, &cold, &masked, 0.0).unwrap(), [0.0]);
    }

    #[test]
    fn draws_follow_the_weights() {
        let mut seed = 1u64;
        let mut uniform = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut first = [0usize; 3];
        for _ in 0..4000 {
            let drawn = draw(&[3.0, 1.0, 0.0], 2, &mut uniform).unwrap();
            assert_eq!(drawn.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
            first[drawn[0]] += 1;
        }
        assert!((2850..3150).contains(&first[0]), "{first:?}");
        let many = draw(&[3.0, 1.0, 0.0], 4000, &mut uniform).unwrap();
        assert!((2850..3150).contains(&many.iter().filter(|&&i| i == 0).count()) && !many.contains(&2));
        assert_eq!(draw(&[0.0, 1.0], 2, || 0.0).unwrap(), [1, 0]);
        assert_eq!(probabilities(&[0.0; 4]), [0.25; 4]);
        assert!(draw(&[], 1, &mut uniform).is_err() && draw(&[f64::NAN], 1, &mut uniform).is_err());
    }

    proptest! {
        #[test]
        fn the_update_is_a_step_towards_the_reward(
            alpha in 0.1f64..9.0, beta in 0.1f64..9.0, rho in 0.8f64..1.0, right in any::<bool>(),
        ) {
            let reward = f64::from(u8::from(right));
            let before = Tracker { alpha, beta };
            let eta = 1.0 / (rho * (alpha + beta) + 1.0);
            let v = before.value() + eta * (reward - before.value());
            prop_assert!((before.updated(rho, reward).value() - v).abs() < 1e-12);
        }

        #[test]
        fn advantages_are_centred_and_follow_a_permutation(
            rewards in proptest::collection::vec(0u8..2, 8),
            values in proptest::collection::vec(0.0f64..1.0, 8),
            turn in 0usize..8,
        ) {
            let (mut r, mut v): (Vec<f64>, _) = (rewards.into_iter().map(f64::from).collect(), values);
            let block = SingleStream::default();
            let mut a = block.normalise(&r, &v).unwrap();
            prop_assert!(a.iter().sum::<f64>().abs() < 1e-9);
            r.rotate_left(turn);
            v.rotate_left(turn);
            a.rotate_left(turn);
            for (x, y) in a.iter().zip(block.normalise(&r, &v).unwrap()) {
                prop_assert!((x - y).abs() < 1e-9);
            }
        }
    }
}
