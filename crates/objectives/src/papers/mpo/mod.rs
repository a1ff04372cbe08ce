//! MPO: Meta Policy Optimization with evolving reward models (arXiv 2504.20157).
//!
//! Base: PPO with a value head in TRL's form, KL in the reward. New: the judge's rubric evolves. A reward model
//! scores every answer item by item under a rubric; every `interval` updates a meta reward model reads recent answers
//! with their scores, writes refined rubrics, merges them into one, and the reward model goes on with it. The texts'
//! side (scores, items, merging, which answers are read) is in [`rubric`]; here is the policy's side:
//!
//! ```text
//! seqlen = index of the last kept token;  mask = t <= seqlen;  vmask = t <= seqlen + 1
//! score -= missing_eos_penalty where the truncated answer has no end
//! rew_t = -kl_coef kl_t,  kl = old - ref (k1) or exp(ref - old) - 1 - (ref - old) (k3); 0 outside of the mask
//! rew[seqlen + 1 if there is room, else seqlen] += score;   optional whitening of rew over vmask, mean kept
//! GAE over ALL positions with values 0 outside of vmask:  d_t = rew_t + gamma V_{t+1} - V_t;  ret = A + V
//! A = (A - mean) / sqrt(var + 1e-8) over the mask, unbiased; 0 outside
//! loss = mean_mask max(-A r, -A clip(r, 0.8, 1.2)) + vf_coef 0.5 mean_vmask max((v - ret)^2, (v_clip - ret)^2)
//! ```
//!
//! The outcome lands one position after the last token, so the batch's `values` must be numbers that reach beyond its
//! mask (a tensor is cleaned there). No entropy bonus, no dual clip.
//!
//! Source: minnesotanlp/mpo (TRL's PPO trainer). The scale of the scores grows with the number of rubric items and
//! returns are not normalised: the value head adapts anew after every change. `rubric_score` can divide by the number
//! of items (off in the code). Judges' scores are read as numbers, never evaluated as programs; `arithmetic` allows
//! the sums and products that the authors' fallback would evaluate.

pub mod rubric;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{Gae, gae, masked_standardise};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, TOKEN_REWARDS, VALUES};
use crate::block::{Advantage, Block, BlockKind, Kind, Reward};
use crate::checks::unit;
use crate::composition::Composition;
use crate::critic::{ClippedValue, ValueTargets, last_valid, one_longer, within};
use crate::error::{Error, Result};
use crate::kl::KlEstimator;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// The judge's answers on every sequence, one per rubric item, separated by [`rubric::SEPARATOR`].
pub const EVALUATIONS: Input =
    Input::new("evaluations", "[B]", "the judge's answers, one per rubric item, separated by U+001E");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "mpo",
    title: "Toward Evaluative Thinking: Meta Policy Optimization with Evolving Reward Models",
    arxiv: "2504.20157",
    summary: "PPO under a judge whose rubric a second judge rewrites as training goes on.",
    blocks: &[
        BlockKind::reward::<RubricScore>(),
        BlockKind::reward::<KlAndScore>(),
        BlockKind::advantage::<PaddedGae>(),
    ],
    recipe,
    vectors: Some(("mpo.json", 10)),
    end_to_end: None,
};

/// Rubric totals, KL in the reward, GAE over all positions, PPO's ratio, clipped value loss.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: None };
    let targets = ValueTargets { gamma: 1.0, lambda: 0.95, one_longer: true };
    let value = ClippedValue { coef: 0.1, clip: 0.2, aggregation: Some(Aggregation::TokenMean) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&RubricScore::default())
        .reward(&KlAndScore::default())
        .advantage(&PaddedGae::default())
        .weight(&targets)
        .regularizer(&value)
}

/// Outcome of every sequence: the total of the judge's scores over the rubric's items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RubricScore {
    /// Also read sums, products and the like of numbers ("3+1").
    pub arithmetic: bool,
    /// Divide by the number of items, so that a longer rubric does not change the scale.
    pub per_item: bool,
}

impl Block for RubricScore {
    fn needs(&self) -> Vec<Input> {
        vec![EVALUATIONS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn describe(&self) -> String {
        if self.per_item {
            "mean score over rubric items".into()
        } else {
            "sum of scores over rubric items".into()
        }
    }
}

impl Kind for RubricScore {
    const KIND: &'static str = "rubric_score";
}

impl Reward for RubricScore {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let total = |text: &String| {
            // No answer at all has no items.
            let items: Vec<&str> = text.split(rubric::SEPARATOR).filter(|_| !text.is_empty()).collect();
            let by = if self.per_item { items.len().max(1) as f64 } else { 1.0 };
            rubric::total(&items, self.arithmetic) / by
        };
        let rewards: Vec<f64> = batch.texts(EVALUATIONS)?.iter().map(total).collect();
        batch.set(REWARDS, rewards)
    }
}

/// Token rewards: the KL to the reference, and the outcome one position after the last token where there is room.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlAndScore {
    /// Factor on the KL, 0 or more.
    pub kl_coef: f64,
    /// Which estimate. As in TRL nothing is cut off.
    pub estimator: KlEstimator,
    /// Divide the rewards by their standard deviation; their mean is kept.
    pub whiten: bool,
}

impl Default for KlAndScore {
    fn default() -> Self {
        Self { kl_coef: 0.02, estimator: KlEstimator::K1, whiten: false }
    }
}

impl KlAndScore {
    /// [B, T], 0 behind the position after the last token. `scores` [B]; the log-probabilities are read inside of the
    /// mask only.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn rewards(&self, scores: &[f64], old: &Table, reference: &Table, mask: &Table) -> Result<Table> {
        old.same_shape("old_log_probs", mask)?;
        reference.same_shape("ref_log_probs", mask)?;
        if scores.len() != mask.rows {
            let expected = format!("[{}], one per row", mask.rows);
            return Err(Error::Shape { name: "scores", got: vec![scores.len()], expected });
        }
        let kl = |x: f64| match self.estimator {
            KlEstimator::K1 | KlEstimator::K1Plus => -x,
            KlEstimator::Abs => x.abs(),
            KlEstimator::K2 => x * x / 2.0,
            KlEstimator::K3 | KlEstimator::K3Plus | KlEstimator::K3Unclamped => x.exp_m1() - x,
        };
        let mut out = mask.filled(0.0);
        for i in (0..mask.values.len()).filter(|&i| mask.values[i] != 0.0) {
            out.values[i] = -self.kl_coef * kl(reference.values[i] - old.values[i]);
        }
        for (row, score) in scores.iter().enumerate().filter(|_| mask.cols > 0) {
            let at = last_valid(mask.row(row)).map_or(0, |last| (last + 1).min(mask.cols - 1));
            out.values[row * mask.cols + at] += score;
        }
        if self.whiten {
            let learnt = one_longer(mask);
            let count = learnt.values.iter().sum::<f64>();
            let pairs = || out.values.iter().zip(&learnt.values);
            let mean = pairs().map(|(x, m)| x * m).sum::<f64>() / count.max(1.0);
            let white = masked_standardise(&out, &learnt, 1e-8, true)?;
            out = within(&Table { values: white.values.iter().map(|x| x + mean).collect(), ..out }, &learnt)?;
        }
        Ok(out)
    }
}

impl Block for KlAndScore {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS, OLD_LOG_PROBS, REF_LOG_PROBS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS]
    }

    fn validate(&self) -> Result<()> {
        if self.kl_coef >= 0.0 && self.kl_coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "kl_coef", got: self.kl_coef, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let whiten = if self.whiten { ", whitened" } else { "" };
        format!("outcome behind the last token, less {} KL to the reference{whiten}", self.kl_coef)
    }
}

impl Kind for KlAndScore {
    const KIND: &'static str = "kl_and_score";
}

impl Reward for KlAndScore {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (old, reference) = (batch.table(OLD_LOG_PROBS)?, batch.table(REF_LOG_PROBS)?);
        let rewards = self.rewards(&batch.numbers(REWARDS)?, &old, &reference, batch.mask())?;
        batch.set(TOKEN_REWARDS, rewards)
    }
}

/// GAE over all positions, whatever the mask: behind the last token stand one more value and the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PaddedGae {
    /// Discount per token, 0 to 1.
    pub gamma: f64,
    /// Trace decay, 0 to 1.
    pub lambda: f64,
    /// Whiten over the valid tokens.
    pub whiten: bool,
}

impl Default for PaddedGae {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 0.95, whiten: true }
    }
}

impl PaddedGae {
    /// Advantages, 0 outside of the mask, and returns; both [B, T]. `values` count up to the position after the last
    /// token and are 0 behind it.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn compute(&self, rewards: &Table, values: &Table, mask: &Table) -> Result<(Table, Table)> {
        let settings = Gae { gamma: self.gamma, lambda: self.lambda, whiten: false };
        let values = within(values, &one_longer(mask))?;
        let (raw, returns) = gae(rewards, &values, &mask.filled(1.0), &settings)?;
        let white = if self.whiten { masked_standardise(&raw, mask, 1e-8, true)? } else { raw };
        Ok((within(&white, mask)?, returns))
    }
}

impl Block for PaddedGae {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, VALUES]
    }

    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)
    }

    fn describe(&self) -> String {
        let whiten = if self.whiten { ", whitened" } else { "" };
        format!("GAE over all positions (gamma {}, lambda {}{whiten})", self.gamma, self.lambda)
    }
}

impl Kind for PaddedGae {
    const KIND: &'static str = "padded_gae";
}

impl Advantage for PaddedGae {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        Ok(self.compute(&batch.table(TOKEN_REWARDS)?, &batch.table(VALUES)?, batch.mask())?.0)
    }
}

/// An answer as it is scored and trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// The tokens, `pad` behind the first end token.
    pub tokens: Vec<u64>,
    /// Tokens before the first pad: the valid ones.
    pub length: usize,
    /// Whether there is an end token.
    pub ended: bool,
}

/// Cuts an answer behind its first end token.
pub fn truncate(tokens: &[u64], end: u64, pad: u64) -> Truncated {
    let stop = tokens.iter().position(|&t| t == end);
    let kept = |(i, &t): (usize, &u64)| if stop.is_some_and(|stop| i > stop) { pad } else { t };
    let tokens: Vec<u64> = tokens.iter().enumerate().map(kept).collect();
    let length = tokens.iter().position(|&t| t == pad).unwrap_or(tokens.len());
    Truncated { length, ended: stop.is_some(), tokens }
}

/// Mask of the valid tokens of truncated answers, [B, `cols`].
pub fn response_mask(answers: &[Truncated], cols: usize) -> Table {
    let row = |a: &Truncated| {
        let length = a.length;
        (0..cols).map(move |t| f64::from(u8::from(t < length)))
    };
    Table { rows: answers.len(), cols, values: answers.iter().flat_map(row).collect() }
}

/// A score, less `penalty` for an answer without an end.
pub fn penalise_missing_end(score: f64, ended: bool, penalty: f64) -> f64 {
    if ended { score } else { score - penalty }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::LOG_PROBS;
    use crate::batch::VALUE_PREDICTIONS;
    use crate::objective::Objective;
    use candle_core::{DType, Device, Tensor, Var};

    fn table(rows: &[&[f64]]) -> Table {
        Table::from_rows(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>()).unwrap()
    }

    fn numbers(mask: &Table, scale: f64) -> Table {
        Table { values: (0..mask.values.len()).map(|i| -((i * 7 % 5) as f64) * scale).collect(), ..*mask }
    }

    fn old_values(mask: &Table) -> Table {
        numbers(mask, 0.2)
    }

    fn batch(mask: &Table, log_probs: &Tensor, value_preds: &Tensor) -> Batch {
        let some = |scale| numbers(mask, scale);
        let texts = (0..mask.rows).map(|i| format!("<score>{}</score>\u{1e}<score>1</score>", i + 1));
        Batch::new(mask.clone())
            .with(LOG_PROBS, log_probs.clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, some(0.1)))
            .and_then(|b| b.with(REF_LOG_PROBS, some(0.11)))
            .and_then(|b| b.with(VALUES, old_values(mask)))
            .and_then(|b| b.with(VALUE_PREDICTIONS, value_preds.clone()))
            .and_then(|b| b.with(EVALUATIONS, texts.collect::<Vec<_>>()))
            .unwrap()
    }

    fn run(objective: &Objective, parts: &[&[usize]], whole: &Batch) -> f64 {
        let mut state = State::default();
        let ready = objective.prepare(whole.clone(), &mut state).unwrap();
        let norm = ready.batch.normaliser();
        let part = |rows: &&[usize]| {
            let (batch, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let loss = objective.loss(&batch, &signals, &norm, &state).unwrap().loss;
            loss.to_scalar::<f64>().unwrap()
        };
        parts.iter().map(part).sum()
    }

    /// Policy and critic together: micro-batches add up, the position behind the last token is learnt, and an answer
    /// without any token does no harm.
    #[test]
    fn the_recipe_runs_and_micro_batches_add_up() {
        let objective = recipe().build().unwrap();
        let mask = table(&[&[1.0, 1.0, 0.0, 0.0], &[1.0; 4], &[0.0; 4], &[1.0, 0.0, 0.0, 0.0]]);
        let x = Tensor::ones((4, 4), DType::F64, &Device::Cpu).unwrap();
        // Close to the old values, where nothing is clipped.
        let near = (old_values(&mask).to_tensor(&x).unwrap() + 0.1).unwrap();
        let (log_probs, preds) = ((&x * -0.3).unwrap(), Var::from_tensor(&near).unwrap());
        let whole = batch(&mask, &log_probs, preds.as_tensor());
        let all = run(&objective, &[&[0, 1, 2, 3]], &whole);
        let split = run(&objective, &[&[3, 0], &[2], &[1]], &whole);
        assert!(all.is_finite() && (all - split).abs() < 1e-12, "{all} {split}");
        let mut state = State::default();
        let ready = objective.prepare(whole, &mut state).unwrap();
        let loss = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state).unwrap();
        let grads = loss.loss.backward().unwrap();
        let grad = Table::from_tensor(grads.get(preds.as_tensor()).unwrap()).unwrap();
        let learnt: Vec<bool> = grad.values.iter().map(|g| *g != 0.0).collect();
        let t = true;
        let f = false;
        assert_eq!(learnt, [t, t, t, f, t, t, t, t, f, f, f, f, t, t, f, f]);
    }

    #[test]
    fn cutting_answers() {
        let cut = truncate(&[7, 2, 9, 2], 2, 0);
        assert_eq!((cut.tokens.as_slice(), cut.length, cut.ended), (&[7, 2, 0, 0][..], 2, true));
        let open = truncate(&[7, 8], 2, 0);
        assert_eq!((open.length, open.ended, penalise_missing_end(3.0, open.ended, 1.0)), (2, false, 2.0));
        assert_eq!(truncate(&[0, 8], 2, 0).length, 0);
        let mask = response_mask(&[cut, open], 4);
        assert_eq!(mask.values, [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(one_longer(&mask).row_sums(), [3.0, 3.0]);
    }

    /// The outcome's scale does not matter once advantages are whitened, up to the epsilon.
    #[test]
    fn whitened_advantages_ignore_the_scale_of_a_rubric() {
        let mask = table(&[&[1.0, 1.0, 1.0, 0.0], &[1.0, 1.0, 0.0, 0.0]]);
        let zero = mask.filled(0.0);
        let of = |scores: &[f64]| {
            let rewards = KlAndScore { kl_coef: 0.0, ..KlAndScore::default() };
            let rewards = rewards.rewards(scores, &zero, &zero, &mask).unwrap();
            PaddedGae::default().compute(&rewards, &zero, &mask).unwrap().0
        };
        let (small, large) = (of(&[1.0, 3.0]), of(&[10.0, 30.0]));
        for (a, b) in small.values.iter().zip(&large.values) {
            assert!((a - b).abs() < 1e-6);
        }
        let equal = KlAndScore::default().rewards(&[1.0], &zero, &zero, &mask).unwrap_err().to_string();
        assert!(equal.contains("scores"), "{equal}");
    }
}
