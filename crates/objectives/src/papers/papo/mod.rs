//! PAPO: Perception-Aware Policy Optimization for multimodal reasoning (arXiv 2507.06448).
//!
//! Base: GRPO (PAPO_G) or DAPO (PAPO_D) on answers about an image. New: the policy is pushed away from what it would
//! say if parts of the image were blackened, so that answers must depend on what is seen; two likelihood terms keep
//! that unbounded KL from being exploited. Rewards, advantages and clipping stay as they are.
//!
//! ```text
//! a_t   = log-probability of the SAME tokens on the masked image (rollout weights, no gradient unless `recompute`)
//! x     = clamp(a - logp, -20, 20);   k = clamp(exp(x) - x - 1, -10, 10)             per token, [B, T]
//! k    *= weight of the sample;       k = 0 below the (1 - top_p) quantile of its sample;   k = clamp(k, 0, clip)
//! loss  = clipped ratio + kl_coef KL(ref) - gamma_t agg(k)
//!         + discount (eta1 tokmean(-logp) + eta2 tokmean(-a)) + sft tokmean over right answers(-logp)
//! gamma_t: constant, or from start to end in `anneal_steps` rollout batches;   discount = gamma_t / gamma_0
//! ```
//!
//! | setting | PAPO_G 3B | PAPO_G 7B | PAPO_D | G without reference |
//! |---|---|---|---|---|
//! | `regularizer.perception_kl.coef` | 0.02 | 0.02 | 0.01 | 0.01 |
//! | `regularizer.sampled_nll` both coefficients | absent | 0.05 | 0.03 | 0.03 |
//! | `regularizer.kl.coef` | 0.01 | 0.01 | absent | absent |
//! | `surrogate.clip_high` | 0.3 | 0.3 | 0.28 | 0.3 |
//! | `filter` `group_mean_within` | absent | absent | 0.01, 0.99 | absent |
//!
//! Where code and paper differ, the code is followed: the ratio inside k is masked over true (the paper prints its
//! inverse, which is no low-variance estimator for samples of the true policy); tokens are averaged over the batch
//! (the paper says per answer); the "entropy" terms are the negative log-likelihood of samples, ADDED to the loss;
//! the masked one has no gradient unless the masked forward pass is repeated in every update. A text-only prompt
//! has no masked image: give it weight 0 and its own log-probabilities. Source: MikeWangWZHL/PAPO.

pub mod rollout;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, LOG_PROBS, SUCCESS, Signals, keep_where};
use crate::block::{Block, BlockKind, Filter, Kind, Regularizer, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::{KlEstimator, clamp};
use crate::regularizer::Kl;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Log-probability of the same tokens when the image is replaced by its masked copy.
pub const AUG_LOG_PROBS: Input =
    Input::new("aug_log_probs", "[B, T]", "log-probability of the chosen tokens on the masked image");
/// Weight of every sample's perception term; 1 where the batch has none.
pub const PERCEPTION_WEIGHTS: Input =
    Input::new("kl_prcp_weighting", "[B]", "weight of every sample's perception term");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "papo",
    title: "Perception-Aware Policy Optimization for Multimodal Reasoning",
    arxiv: "2507.06448",
    summary: "Answers must become less likely when the image is masked.",
    blocks: &[
        BlockKind::regularizer::<PerceptionKl>(),
        BlockKind::regularizer::<SampledNll>(),
        BlockKind::regularizer::<CorrectNll>(),
        BlockKind::filter::<GroupMeanWithin>(),
    ],
    recipe,
    vectors: Some(("papo.json", 18)),
    end_to_end: None,
};

/// PAPO_G for 3B models: GRPO with clip-higher 0.3, reference KL 0.01, perception KL 0.02, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.3, dual_clip: Some(3.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .advantage(&GroupNorm::default())
        .regularizer(&Kl { coef: 0.01, ..Kl::default() })
        .regularizer(&PerceptionKl::default())
}

/// -gamma_t times the KL between the policy on the true and on the masked image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerceptionKl {
    /// gamma, 0 or more. 0.005 to 0.02 help, 0.04 makes training collapse.
    pub coef: f64,
    /// Where annealing starts, if that is not `coef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_coef: Option<f64>,
    /// Where annealing ends.
    pub end_coef: f64,
    /// Rollout batches from start to end (see [`annealing_steps`]); 0 keeps gamma constant.
    pub anneal_steps: u64,
    /// Share of each answer's tokens, those of the largest KL, that count; 1 counts all. In (0, 1].
    pub token_top_p: f64,
    /// Largest KL of a token; 0 turns this off.
    pub clip: f64,
    /// Whether the masked forward pass is repeated in every update and gets a gradient.
    pub recompute: bool,
}

impl Default for PerceptionKl {
    fn default() -> Self {
        Self {
            coef: 0.02,
            start_coef: None,
            end_coef: 0.0,
            anneal_steps: 0,
            token_top_p: 1.0,
            clip: 0.0,
            recompute: false,
        }
    }
}

/// What [`PerceptionKl`] remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerceptionMemory {
    /// Rollout batches seen.
    pub batches: u64,
    /// gamma of the current batch; the first one's before there is a batch.
    pub coef: Option<f64>,
    /// gamma of the current batch over `coef`; 1 before there is a batch.
    pub discount: Option<f64>,
}

impl PerceptionKl {
    /// gamma of rollout batch `batch`, counted from 0.
    pub fn coef_at(&self, batch: u64) -> f64 {
        match self.anneal_steps {
            0 => self.coef,
            steps => annealed(self.start_coef.unwrap_or(self.coef), self.end_coef, batch, steps),
        }
    }

    /// The KL of every token, [B, T], positive, with gradient and without gamma.
    ///
    /// # Errors
    /// A missing input, shapes that differ.
    pub fn per_token(&self, batch: &Batch) -> Result<Tensor> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let masked_image = batch.tensor(AUG_LOG_PROBS)?;
        let masked_image = if self.recompute { masked_image } else { masked_image.detach() };
        let mut k = KlEstimator::K3.estimate(&log_probs, &masked_image)?;
        if batch.has(PERCEPTION_WEIGHTS) {
            let weights = Table::broadcast(&batch.numbers(PERCEPTION_WEIGHTS)?, batch.mask())?;
            k = (k * weights.to_tensor(&log_probs)?)?;
        }
        if self.token_top_p < 1.0 {
            let keep = top_tokens(&Table::from_tensor(&k.detach())?, batch.mask(), self.token_top_p)?;
            k = keep_where(&k, &keep)?;
        }
        if self.clip > 0.0 { clamp(&k, 0.0, self.clip) } else { Ok(k) }
    }
}

/// Refuses what is not a number of 0 or more.
fn not_negative(name: &'static str, got: f64) -> Result<()> {
    if got >= 0.0 && got.is_finite() {
        Ok(())
    } else {
        Err(Error::Setting { name, got, expected: "0 or more" })
    }
}

impl Block for PerceptionKl {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, AUG_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        not_negative("coef", self.coef)?;
        not_negative("start_coef", self.start_coef.unwrap_or(0.0))?;
        not_negative("end_coef", self.end_coef)?;
        not_negative("clip", self.clip)?;
        if self.token_top_p > 0.0 && self.token_top_p <= 1.0 {
            return Ok(());
        }
        Err(Error::Setting { name: "token_top_p", got: self.token_top_p, expected: "above 0, at most 1" })
    }

    fn describe(&self) -> String {
        format!("-{} KL to the policy on the masked image (k3)", self.coef)
    }
}

impl Kind for PerceptionKl {
    const KIND: &'static str = "perception_kl";
}

impl Regularizer for PerceptionKl {
    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let memory: PerceptionMemory = state.get(Self::KIND)?;
        let coef = memory.coef.unwrap_or_else(|| self.coef_at(0));
        Ok(Terms::Tokens((self.per_token(batch)? * -coef)?))
    }

    fn prepare(&self, _batch: &Batch, _signals: &Signals, state: &mut State) -> Result<()> {
        let before: PerceptionMemory = state.get(Self::KIND)?;
        let coef = self.coef_at(before.batches);
        let discount = Some(entropy_discount(coef, self.coef));
        state.set(Self::KIND, &PerceptionMemory { batches: before.batches + 1, coef: Some(coef), discount })
    }
}

/// The pair of "entropy" terms: negative log-likelihood of the samples, on the true and on the masked image.
/// Discounted by the annealing of [`PerceptionKl`]; always a token mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampledNll {
    /// eta1, weight of the true image's term, 0 or more.
    pub true_coef: f64,
    /// eta2, weight of the masked image's term, 0 or more.
    pub masked_coef: f64,
    /// Whether the masked term has a gradient; without, it only shows in the loss.
    pub recompute: bool,
}

impl Block for SampledNll {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![LOG_PROBS];
        needs.extend((self.masked_coef != 0.0).then_some(AUG_LOG_PROBS));
        needs
    }

    fn validate(&self) -> Result<()> {
        not_negative("true_coef", self.true_coef)?;
        not_negative("masked_coef", self.masked_coef)
    }

    fn describe(&self) -> String {
        format!("{} NLL of samples on the true image, {} on the masked one", self.true_coef, self.masked_coef)
    }
}

impl Kind for SampledNll {
    const KIND: &'static str = "sampled_nll";
}

impl Regularizer for SampledNll {
    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let discount = state.get::<PerceptionMemory>(PerceptionKl::KIND)?.discount.unwrap_or(1.0);
        let mut terms = (batch.tensor(LOG_PROBS)? * (-self.true_coef * discount))?;
        if self.masked_coef != 0.0 {
            let masked_image = batch.tensor(AUG_LOG_PROBS)?;
            let masked_image = if self.recompute { masked_image } else { masked_image.detach() };
            terms = (terms - (masked_image * (self.masked_coef * discount))?)?;
        }
        Ok(Terms::Tokens(terms))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        Some(Aggregation::TokenMean)
    }
}

/// coef times the mean negative log-likelihood over the tokens of right answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorrectNll {
    /// Weight, 0 or more.
    pub coef: f64,
    /// An answer is right when its accuracy is above this.
    pub threshold: f64,
}

impl Default for CorrectNll {
    fn default() -> Self {
        Self { coef: 0.001, threshold: 0.1 }
    }
}

impl CorrectNll {
    /// The mask without the answers that are wrong, and which share of the tokens is left.
    fn right(&self, batch: &Batch) -> Result<(Table, f64)> {
        let right: Vec<f64> =
            batch.numbers(SUCCESS)?.iter().map(|&x| f64::from(u8::from(x > self.threshold))).collect();
        let right = Table::broadcast(&right, batch.mask())?;
        let (left, all) = (right.values.iter().sum::<f64>(), batch.mask().values.iter().sum::<f64>());
        Ok((right, if all > 0.0 { left / all } else { 0.0 }))
    }
}

impl Block for CorrectNll {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, SUCCESS]
    }

    fn validate(&self) -> Result<()> {
        not_negative("coef", self.coef)
    }

    fn describe(&self) -> String {
        format!("{} NLL of answers with accuracy above {}", self.coef, self.threshold)
    }
}

impl Kind for CorrectNll {
    const KIND: &'static str = "correct_nll";
}

impl Regularizer for CorrectNll {
    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let (right, share) = self.right(batch)?;
        // The share of the whole batch, where it is known, lets micro-batches add up.
        let share = state.get::<Option<f64>>(Self::KIND)?.unwrap_or(share);
        let scale = if share > 0.0 { -self.coef / share } else { 0.0 };
        Ok(Terms::Tokens((keep_where(&batch.tensor(LOG_PROBS)?, &right)? * scale)?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        Some(Aggregation::TokenMean)
    }

    fn prepare(&self, batch: &Batch, _signals: &Signals, state: &mut State) -> Result<()> {
        state.set(Self::KIND, &Some(self.right(batch)?.1))
    }
}

/// PAPO_D's online filter: keeps groups whose mean accuracy lies strictly inside the bounds; when none does,
/// everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupMeanWithin {
    /// Groups need more.
    pub lower: f64,
    /// Groups need less.
    pub upper: f64,
}

impl Default for GroupMeanWithin {
    fn default() -> Self {
        Self { lower: 0.01, upper: 0.99 }
    }
}

impl GroupMeanWithin {
    /// One flag per sequence. `metric` [B] and `group_ids` [B].
    ///
    /// # Errors
    /// Lengths differ, or a metric is not finite.
    pub fn keep(&self, metric: &[f64], group_ids: &[u64]) -> Result<Vec<bool>> {
        if metric.len() != group_ids.len() {
            let expected = format!("[{}], like `group_ids`", group_ids.len());
            return Err(Error::Shape { name: "metric", got: vec![metric.len()], expected });
        }
        if let Some(index) = metric.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { name: "metric", index, got: metric[index] });
        }
        let mut keep = vec![false; metric.len()];
        for index in members(group_ids).values() {
            let mean = index.iter().map(|&i| metric[i]).sum::<f64>() / index.len() as f64;
            index.iter().for_each(|&i| keep[i] = self.lower < mean && mean < self.upper);
        }
        if keep.contains(&true) { Ok(keep) } else { Ok(vec![true; metric.len()]) }
    }
}

impl Block for GroupMeanWithin {
    fn needs(&self) -> Vec<Input> {
        vec![SUCCESS, GROUP_IDS]
    }

    fn validate(&self) -> Result<()> {
        if self.lower < self.upper {
            return Ok(());
        }
        Err(Error::Setting { name: "lower", got: self.lower, expected: "below `upper`" })
    }

    fn describe(&self) -> String {
        format!("groups with mean accuracy inside ({}, {}), else all", self.lower, self.upper)
    }
}

impl Kind for GroupMeanWithin {
    const KIND: &'static str = "group_mean_within";
}

impl Filter for GroupMeanWithin {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        Self::keep(self, &batch.numbers(SUCCESS)?, batch.ids(GROUP_IDS)?)
    }
}

/// GRPO's advantage with statistics in single precision, [B]: only to compare with the authors' numbers. Three
/// rewards of 0.9 have another mean than 0.9 in single precision, and get 0.056 instead of the 0 of [`GroupNorm`].
///
/// # Errors
/// Lengths differ, or a reward is not finite.
pub fn single_precision_group_norm(rewards: &[f64], group_ids: &[u64], epsilon: f64) -> Result<Vec<f64>> {
    if rewards.len() != group_ids.len() {
        let expected = format!("[{}], like `group_ids`", group_ids.len());
        return Err(Error::Shape { name: "rewards", got: vec![rewards.len()], expected });
    }
    if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
        return Err(Error::NotFinite { name: "rewards", index, got: rewards[index] });
    }
    let mut out = vec![0.0; rewards.len()];
    for index in members(group_ids).values() {
        let group: Vec<f32> = index.iter().map(|&i| rewards[i] as f32).collect();
        let (mean, spread) = match group.len() {
            1 => (0.0, 1.0),
            n => {
                let mean = group.iter().sum::<f32>() / n as f32;
                let away = |r: &f32| f64::from(*r) - f64::from(mean);
                let squares: f64 = group.iter().map(|r| away(r) * away(r)).sum();
                (mean, (squares / (n - 1) as f64).sqrt() as f32)
            }
        };
        for (&i, r) in index.iter().zip(&group) {
            out[i] = f64::from((r - mean) / (spread + epsilon as f32));
        }
    }
    Ok(out)
}

/// 1 on the tokens of each answer whose `k` is at least the (1 - `top_p`) quantile (linear interpolation) of the
/// answer's valid tokens, [B, T].
///
/// # Errors
/// Shapes differ.
pub fn top_tokens(k: &Table, mask: &Table, top_p: f64) -> Result<Table> {
    k.same_shape("k", mask)?;
    let mut keep = mask.filled(0.0);
    for row in 0..mask.rows {
        let at = row * mask.cols;
        let valid: Vec<usize> = (at..at + mask.cols).filter(|&i| mask.values[i] != 0.0).collect();
        let mut sorted: Vec<f64> = valid.iter().map(|&i| k.values[i]).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { continue };
        let place = (last as f64 * (1.0 - top_p)).clamp(0.0, last as f64);
        // A place that is whole but for rounding is that token itself.
        let place = if (place - place.round()).abs() < 1e-9 { place.round() } else { place };
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        let threshold = low + (high - low) * place.fract();
        valid.iter().filter(|&&i| k.values[i] >= threshold).for_each(|&i| keep.values[i] = 1.0);
    }
    Ok(keep)
}

/// start + (end - start) min(step / total, 1); `total` 0 counts as 1.
pub fn annealed(start: f64, end: f64, step: u64, total: u64) -> f64 {
    start + (end - start) * (step as f64 / total.max(1) as f64).min(1.0)
}

/// Rollout batches over which gamma anneals: max(1, int(training steps * ratio)); the authors' ratio is 0.5.
pub fn annealing_steps(training_steps: u64, ratio: f64) -> u64 {
    ((training_steps as f64 * ratio) as u64).max(1)
}

/// Factor on the entropy terms: current gamma over the initial one, 1 when they are equal or nothing can divide.
pub fn entropy_discount(current: f64, initial: f64) -> f64 {
    if current == initial || initial == 0.0 { 1.0 } else { current / initial }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Tensor, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::OLD_LOG_PROBS;
    use crate::objective::Objective;

    fn numbers(seed: usize, n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f64 / 500.0 - 2.2).collect()
    }

    fn tensor(values: Vec<f64>, t: usize) -> Tensor {
        let b = values.len() / t;
        Tensor::from_vec(values, (b, t), &Device::Cpu).unwrap()
    }

    /// Four answers of five tokens in two groups, one with padding of infinite log-probability.
    fn batch(p: &Tensor) -> Batch {
        let mut mask = vec![1.0; 20];
        mask[13..15].fill(0.0);
        let mut aug = numbers(2, 20);
        aug[13..15].fill(f64::NEG_INFINITY);
        Batch::new(Table { rows: 4, cols: 5, values: mask })
            .with(LOG_PROBS, p.clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, tensor(numbers(1, 20), 5)))
            .and_then(|b| b.with(AUG_LOG_PROBS, tensor(aug, 5)))
            .and_then(|b| b.with(SUCCESS, vec![1.0, 0.0, 1.0, 1.0]))
            .and_then(|b| b.with(GROUP_IDS, vec![0, 0, 1, 1]))
            .and_then(|b| b.with(crate::batch::REWARDS, vec![1.0, 0.0, 1.0, 1.0]))
            .unwrap()
    }

    fn objective(regularizers: Vec<Box<dyn Regularizer>>) -> Objective {
        Objective {
            advantage: Some(Box::new(GroupNorm::default())),
            regularizers,
            ..Objective::new(ClippedRatio::default(), Aggregation::TokenMean)
        }
    }

    #[test]
    fn micro_batches_with_the_whole_normaliser_give_the_gradient_of_the_batch() {
        let p = Var::from_tensor(&tensor(numbers(0, 20), 5)).unwrap();
        let nll = SampledNll { true_coef: 0.05, masked_coef: 0.05, recompute: true };
        let objective = objective(vec![
            Box::new(PerceptionKl { token_top_p: 0.5, recompute: true, ..PerceptionKl::default() }),
            Box::new(nll),
            Box::new(CorrectNll { coef: 0.3, ..CorrectNll::default() }),
        ]);
        let mut state = State::default();
        let ready = objective.prepare(batch(p.as_tensor()), &mut state).unwrap();
        let whole = ready.batch.normaliser();
        let gradient = |rows: &[usize]| {
            let (b, s) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let loss = objective.loss(&b, &s, &whole, &state).unwrap().loss;
            let grads = loss.backward().unwrap();
            Table::from_tensor(grads.get(p.as_tensor()).unwrap()).unwrap().values
        };
        let all = gradient(&[0, 1, 2, 3]);
        assert!(all.iter().all(|g| g.is_finite()));
        for ((a, b), c) in all.iter().zip(gradient(&[0])).zip(gradient(&[3, 1, 2])) {
            assert!((a - b - c).abs() < 1e-12);
        }
    }

    #[test]
    fn equal_groups_keep_only_the_perception_gradient() {
        let p = Var::from_tensor(&tensor(numbers(0, 20), 5)).unwrap();
        let mut same = batch(p.as_tensor());
        same.set(crate::batch::REWARDS, vec![0.9; 4]).unwrap();
        let mut state = State::default();
        let plain = objective(Vec::new());
        let ready = plain.prepare(same, &mut state).unwrap();
        assert!(ready.signals.advantages.values.iter().all(|&a| a == 0.0));
        let with = objective(vec![Box::new(PerceptionKl::default())]);
        let parts = with.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state).unwrap();
        assert_eq!(parts.pg_loss, 0.0);
        assert!(parts.regularizers[0].1 < 0.0);
    }

    #[test]
    fn annealing_continues_bit_for_bit_after_a_checkpoint() {
        let block = PerceptionKl { coef: 0.013, anneal_steps: 7, ..PerceptionKl::default() };
        let p = tensor(numbers(0, 20), 5);
        let (b, s) = (batch(&p), Signals::new(batch(&p).mask().filled(0.0)));
        let mut state = State::default();
        for _ in 0..3 {
            block.prepare(&b, &s, &mut state).unwrap();
        }
        let text = serde_json::to_string(&state).unwrap();
        let mut restored: State = serde_json::from_str(&text).unwrap();
        block.prepare(&b, &s, &mut state).unwrap();
        block.prepare(&b, &s, &mut restored).unwrap();
        assert_eq!(state, restored);
        let memory: PerceptionMemory = state.get(PerceptionKl::KIND).unwrap();
        assert_eq!(memory.coef, Some(annealed(0.013, 0.0, 3, 7)));
        assert_eq!(memory.discount, Some(annealed(0.013, 0.0, 3, 7) / 0.013));
    }

    #[test]
    fn the_double_entropy_variant_is_one_override_away() {
        let over = "[regularizer.sampled_nll]\ntrue_coef = 0.05\nmasked_coef = 0.05".parse().unwrap();
        assert_eq!(recipe().with(&over).unwrap().build().unwrap().regularizers.len(), 3);
        assert!(PerceptionKl { token_top_p: 0.0, ..PerceptionKl::default() }.validate().is_err());
    }

    proptest! {
        #[test]
        fn top_tokens_keep_at_least_their_share(
            k in proptest::collection::vec(0.0f64..5.0, 1..20), p in 0.05f64..1.0,
        ) {
            let k = Table { rows: 1, cols: k.len(), values: k };
            let kept: f64 = top_tokens(&k, &k.filled(1.0), p).unwrap().values.iter().sum();
            prop_assert!(kept >= 1.0 && kept >= (k.cols as f64 - 1.0) * p - 1e-9);
        }
    }
}
