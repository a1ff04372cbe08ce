//! SPO: Segment Policy Optimization, SPO-chain and SPO-tree (arXiv 2505.23564).
//!
//! Base: PPO without a critic. New: advantages of contiguous segments of a response, from Monte-Carlo values at the
//! segments' ends; finer than one number per response, without a value network. Chain: segments are cut before tokens
//! that were unsure, one value per cut. Tree: segments of fixed length in a branching tree whose leaves' rewards give
//! all values at once. Both update on unsure tokens only:
//!
//! ```text
//! chain   cuts C = { t - 1 : p_t < 0.9 }, every `interval`-th;  V(c) = mean reward of M continuations of 0..=c
//!         A_segment = V(its end) - V(the end before it), 0 for the first when there is no V(-1); 0 where p_t > 0.9
//! tree    A = value(child) - value(parent); value(parent) = plain mean of its children; grpo: over their std + 1e-8
//! pm      = response_mask and exp(old_log_probs) < 0.9
//! A'      = (A - mu) / sqrt(var + 1e-8) over pm (over the response where pm is empty), unbiased
//! lr      = clamp(log_probs - old, +-10);  l = max(-A' e^lr, -A' clip(e^lr, 0.8, 1.2))
//! loss    = sum(l pm) / sum(pm) + beta mean_b sum_t clamp(k3 pm, 0, 1e9),  k3 on clamp(ref - log_probs, +-10)
//!         times 0 when the mean ratio over pm is above 10
//! ```
//!
//! Partition, estimator and mask are independent blocks: [`ChainSegments`] or [`TreeEdges`] for the advantage,
//! [`UnsureTokens`] for the mask, the shared `whiten` behind it, [`SegmentRatio`] and [`UnsureKl`] for the loss.
//! [`recipe`] is the chain, [`tree_recipe`] the tree.
//!
//! Source: AIFrameResearch/SPO. Where we differ: whitening is over the whole batch, not per micro-batch
//! (`whiten.per_update` is the authors' form); a batch of confident tokens only has loss 0 where theirs is 0 / 0. As
//! theirs: a token of p = 0.9 exactly keeps its advantage and is masked; the KL is a sum over tokens and a mean over
//! sequences; a tree's early leaf weighs like a whole sub-tree. The batch must hold the training model's
//! `old_log_probs`, not the sampler's. With mini-batches the mean over unsure tokens divides by their share in the
//! whole batch times the mini-batch's tokens. Their extra bonus and loss variants are not part of the paper.

mod segments;
mod tree;

pub use segments::{
    CUTPOINTS, ChainSampling, ChainSegments, SEGMENT_VALUES, cutpoints, segment_advantages, segment_value,
};
pub use tree::{
    Edge, EdgeMethod, EdgesThatTeach, NODE_VALUES, PARENT_VALUES, Replay, SIBLING_SPREADS, Sample, Tree,
    TreeEdges, replay,
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::WhitenAdvantages;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals, keep_where};
use crate::block::{Block, BlockKind, Kind, Regularizer, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "spo_segment",
    title: "Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language Models",
    arxiv: "2505.23564",
    summary: "Monte-Carlo values at the ends of segments give credit between token and response.",
    blocks: &[
        BlockKind::advantage::<ChainSegments>(),
        BlockKind::advantage::<TreeEdges>(),
        BlockKind::filter::<EdgesThatTeach>(),
        BlockKind::weight::<UnsureTokens>(),
        BlockKind::surrogate::<SegmentRatio>(),
        BlockKind::regularizer::<UnsureKl>(),
    ],
    recipe,
    vectors: Some(("spo_segment.json", 9)),
    end_to_end: None,
};

/// SPO-chain.
pub fn recipe() -> Composition {
    Composition::new(&SegmentRatio::default(), Aggregation::TokenMean)
        .advantage(&ChainSegments::default())
        .weight(&UnsureTokens::default())
        .weight(&WhitenAdvantages::default())
        .regularizer(&UnsureKl::default())
}

/// SPO-tree: every node is a sequence of its own; those of no advantage are dropped.
pub fn tree_recipe() -> Composition {
    Composition::new(&SegmentRatio::default(), Aggregation::TokenMean)
        .filter(&EdgesThatTeach::default())
        .advantage(&TreeEdges::default())
        .weight(&UnsureTokens::default())
        .weight(&WhitenAdvantages::default())
        .regularizer(&UnsureKl::default())
}

/// Name among [`Signals::extra`] of the flags of tokens that take part.
const UNSURE: &str = "unsure";

/// Only tokens that were sampled with less than this probability take part in whitening, loss and KL; means are over
/// them alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnsureTokens {
    /// Highest probability, itself excluded. More than 0.
    pub threshold: f64,
}

impl Default for UnsureTokens {
    fn default() -> Self {
        Self { threshold: 0.9 }
    }
}

impl UnsureTokens {
    /// 1 on valid tokens below the threshold, [B, T].
    ///
    /// # Errors
    /// Shapes differ.
    pub fn flags(&self, old_log_probs: &Table, mask: &Table) -> Result<Table> {
        old_log_probs.same_shape("old_log_probs", mask)?;
        let unsure = |(p, m): (&f64, &f64)| f64::from(u8::from(*m != 0.0 && p.exp() < self.threshold));
        Ok(Table { values: old_log_probs.values.iter().zip(&mask.values).map(unsure).collect(), ..*mask })
    }
}

impl Block for UnsureTokens {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        if self.threshold > 0.0 && self.threshold.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "threshold", got: self.threshold, expected: "more than 0" })
    }

    fn describe(&self) -> String {
        format!("only tokens of probability below {}", self.threshold)
    }
}

impl Kind for UnsureTokens {
    const KIND: &'static str = "unsure_tokens";
}

impl TokenRule for UnsureTokens {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let mask = batch.mask();
        signals.weights.same_shape("weights", mask)?;
        let flags = self.flags(&batch.table(OLD_LOG_PROBS)?, mask)?;
        // The aggregation divides by all valid tokens, the paper by those that take part.
        let unsure: f64 = flags.values.iter().sum();
        let factor = if unsure > 0.0 { mask.values.iter().sum::<f64>() / unsure } else { 0.0 };
        signals.weights.values.iter_mut().zip(&flags.values).for_each(|(w, f)| *w *= f * factor);
        signals.extra.insert(UNSURE.into(), flags);
        Ok(())
    }
}

/// The flags of an [`UnsureTokens`] before, else the mask.
fn taken<'a>(batch: &'a Batch, signals: &'a Signals) -> Result<&'a Table> {
    let flags = signals.extra.get(UNSURE).unwrap_or(batch.mask());
    flags.same_shape(UNSURE, batch.mask())?;
    Ok(flags)
}

/// log p - log p_old inside +-`limit`, 0 on tokens that do not take part.
fn log_ratio(batch: &Batch, flags: &Table, limit: f64) -> Result<Tensor> {
    let d = (batch.tensor(LOG_PROBS)? - batch.tensor(OLD_LOG_PROBS)?.detach())?;
    clamp(&keep_where(&d, flags)?, -limit, limit)
}

/// Whether the policy has moved so far that a batch is skipped: mean ratio of the tokens that take part above
/// `limit`.
fn too_far(batch: &Batch, flags: &Table, clamp_at: f64, limit: f64) -> Result<bool> {
    let d = Table::from_tensor(&log_ratio(batch, flags, clamp_at)?.detach())?;
    let n: f64 = flags.values.iter().sum();
    let sum: f64 = d.values.iter().zip(&flags.values).map(|(d, f)| d.exp() * f).sum();
    Ok(limit > 0.0 && n > 0.0 && sum / n > limit)
}

/// PPO's clipped ratio with the authors' guards.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentRatio {
    /// Ratios outside 1 +- clip do not profit further. 0 to 1.
    pub clip: f64,
    /// Log-ratios are cut to +- this, more than 0 and at most 20.
    pub log_ratio_clamp: f64,
    /// A (micro-)batch of a larger mean ratio is skipped; 0 skips none.
    pub skip_ratio: f64,
}

impl Default for SegmentRatio {
    fn default() -> Self {
        Self { clip: 0.2, log_ratio_clamp: 10.0, skip_ratio: 10.0 }
    }
}

fn check_guards(log_ratio_clamp: f64, skip_ratio: f64) -> Result<()> {
    if !(log_ratio_clamp > 0.0 && log_ratio_clamp <= 20.0) {
        let expected = "more than 0, at most 20";
        return Err(Error::Setting { name: "log_ratio_clamp", got: log_ratio_clamp, expected });
    }
    if !(skip_ratio >= 0.0 && skip_ratio.is_finite()) {
        return Err(Error::Setting { name: "skip_ratio", got: skip_ratio, expected: "0 or more" });
    }
    Ok(())
}

impl SegmentRatio {
    fn ratio(&self) -> ClippedRatio {
        ClippedRatio { clip_low: self.clip, clip_high: self.clip, dual_clip: None }
    }
}

impl Block for SegmentRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        self.ratio().validate()?;
        check_guards(self.log_ratio_clamp, self.skip_ratio)
    }

    fn describe(&self) -> String {
        format!("{}, skipped at mean ratio {}", self.ratio().describe(), self.skip_ratio)
    }
}

impl Kind for SegmentRatio {
    const KIND: &'static str = "segment_ratio";
}

impl Surrogate for SegmentRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let flags = taken(batch, signals)?;
        let d = log_ratio(batch, flags, self.log_ratio_clamp)?;
        let advantages = signals.advantages.to_tensor(&d)?;
        let outcome = self.ratio().loss(&d, &d.zeros_like()?, &advantages)?;
        let mut loss = outcome.into_loss()?;
        for (name, table) in &mut loss.stats {
            // Shares of the tokens that take part; the largest ratio is read off this one and must stay as it is.
            if *name != "approx_kl" {
                table.values.iter_mut().zip(&signals.weights.values).for_each(|(x, w)| *x *= w);
            }
        }
        if too_far(batch, flags, self.log_ratio_clamp, self.skip_ratio)?
            && let Terms::Tokens(x) = &loss.terms
        {
            // By a tensor: a factor of 0 would cut the parameters off the graph.
            loss.terms = Terms::Tokens((x * x.zeros_like()?)?);
        }
        Ok(loss)
    }
}

/// coef * k3 to the reference, summed over the tokens that take part, averaged over sequences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnsureKl {
    /// Weight, 0 or more.
    pub coef: f64,
    /// Log-ratios to the reference are cut to +- this.
    pub log_ratio_clamp: f64,
    /// A token's estimate is at most this, and no gradient flows there.
    pub ceiling: f64,
    /// A (micro-)batch of a larger mean ratio to the old policy is skipped; 0 skips none.
    pub skip_ratio: f64,
}

impl Default for UnsureKl {
    fn default() -> Self {
        Self { coef: 1e-4, log_ratio_clamp: 10.0, ceiling: 1e9, skip_ratio: 10.0 }
    }
}

impl Block for UnsureKl {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("coef", self.coef), ("ceiling", self.ceiling)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        check_guards(self.log_ratio_clamp, self.skip_ratio)
    }

    fn describe(&self) -> String {
        format!("{} KL to the reference (k3), summed over unsure tokens", self.coef)
    }
}

impl Kind for UnsureKl {
    const KIND: &'static str = "unsure_kl";
}

impl Regularizer for UnsureKl {
    fn terms(&self, batch: &Batch, signals: &Signals, _state: &State) -> Result<Terms> {
        let flags = taken(batch, signals)?;
        let d = (batch.tensor(REF_LOG_PROBS)?.detach() - batch.tensor(LOG_PROBS)?)?;
        let d = clamp(&keep_where(&d, flags)?, -self.log_ratio_clamp, self.log_ratio_clamp)?;
        let k3 = clamp(&((d.exp()? - &d)? - 1.0)?, 0.0, self.ceiling)?;
        let skip = too_far(batch, flags, self.log_ratio_clamp, self.skip_ratio)?;
        let coef = if skip { 0.0 } else { self.coef };
        Ok(Terms::Tokens((k3.ones_like()? * coef)?.mul(&k3)?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        Some(Aggregation::SeqMeanTokenSum)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::REWARDS;
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    fn batch(old: &[Vec<f64>], moved: f64) -> (Var, Batch) {
        let old = Table::from_rows(old).unwrap();
        let like = Tensor::zeros(1, candle_core::DType::F64, &Device::Cpu).unwrap();
        let old_tensor = old.to_tensor(&like).unwrap();
        let var = Var::from_tensor(&(&old_tensor + moved).unwrap()).unwrap();
        let mask = old.filled(1.0);
        let rows = mask.rows;
        let batch = Batch::new(mask)
            .with(LOG_PROBS, var.as_tensor().clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, old_tensor.clone()))
            .and_then(|b| b.with(REF_LOG_PROBS, (old_tensor - 0.05)?))
            .and_then(|b| b.with(REWARDS, (0..rows).map(|i| (i % 2) as f64).collect::<Vec<_>>()))
            .and_then(|b| b.with(CUTPOINTS, vec![vec![-1.0, 0.0]; rows]))
            .and_then(|b| b.with(SEGMENT_VALUES, vec![vec![0.5, 0.75]; rows]))
            .unwrap();
        (var, batch)
    }

    /// Confident tokens get no gradient; a batch of nothing else has loss 0; a policy far away is skipped, KL
    /// included.
    #[test]
    fn who_takes_part() {
        let run = |old: &[Vec<f64>], moved: f64| {
            let (var, batch) = batch(old, moved);
            let (objective, mut state) = (recipe().build().unwrap(), State::default());
            let ready = objective.prepare(batch, &mut state).unwrap();
            let whole = ready.batch.normaliser();
            let loss = objective.loss(&ready.batch, &ready.signals, &whole, &state).unwrap().loss;
            let grads = loss.backward().unwrap();
            let grad = Table::from_tensor(grads.get(var.as_tensor()).unwrap()).unwrap().values;
            (loss.to_scalar::<f64>().unwrap(), grad)
        };
        let (_, grad) = run(&[vec![-1.0, -0.01, -2.0], vec![-0.7, -0.5, -0.02]], 0.01);
        let flat: Vec<bool> = grad.iter().map(|g| *g == 0.0).collect();
        assert_eq!(flat, [false, true, false, false, false, true]);
        for (old, moved) in [(vec![vec![-0.01; 3]; 2], 0.01), (vec![vec![-3.0; 3]; 2], 2.5)] {
            let (loss, grad) = run(&old, moved);
            assert!(loss == 0.0 && grad.iter().all(|g| *g == 0.0), "{loss} {grad:?}");
        }
    }

    proptest! {
        /// One normaliser for all micro-batches: their losses add up to the batch's.
        #[test]
        fn micro_batches_add_up(old in proptest::collection::vec(-2.0f64..0.0, 12)) {
            let rows: Vec<Vec<f64>> = old.chunks(3).map(<[f64]>::to_vec).collect();
            let (_, batch) = batch(&rows, 0.1);
            let (objective, mut state) = (recipe().build().unwrap(), State::default());
            let ready = objective.prepare(batch, &mut state).unwrap();
            let whole = ready.batch.normaliser();
            let loss = |rows: &[usize]| {
                let (batch, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
                objective.loss(&batch, &signals, &whole, &state).unwrap().loss.to_scalar::<f64>().unwrap()
            };
            prop_assert!((loss(&[0, 1, 2, 3]) - loss(&[2]) - loss(&[3, 0, 1])).abs() < 1e-12);
        }
    }
}
