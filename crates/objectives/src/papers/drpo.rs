//! DRPO: Decoupled Reward Policy Optimization for efficient reasoning (arXiv 2510.04474).
//!
//! A discriminative objective instead of GRPO's advantages (base: DisCO): raise the mean log-likelihood of the
//! right answers, lower a soft maximum over the wrong ones, inside a KL trust region that a squared hinge keeps.
//! Short answers are preferred among the right ones only, so a long right answer can get a small weight and
//! never a negative one.
//!
//! ```text
//! s_i = mean over tokens of log p;   x_i = length_i / C
//! w_i = exp((1 - x_i)/lambda) / sum over right answers of the same prompt         (no gradient)
//! G_q = sum_right w_i s_i - tau log mean_wrong exp(s_j/tau);   prompts all right or all wrong are dropped
//! loss = -(1/Q) sum_q G_q + sg(max(beta (kl - delta), 0)) kl;   Q counts all prompts, dropped ones too
//! kl  = token mean of old - new ("kl") or of exp(d) - d - 1, d = new - old ("low_var_kl")
//! ```
//!
//! Blocks: `discriminative` makes one term per sequence, `per_question` turns the mean over sequences into a
//! mean over prompts, `hinge_kl` is the trust region. `lambda = inf` is DisCO (all right answers weigh the
//! same).
//!
//! The code's loss value is not the objective: it prints tau S / sg(S), S the sum of exponentials. Gradients are
//! equal; `value` chooses what is printed. `max_len = 0` takes C from the padded length, as the code does; a
//! fixed C keeps the preference the same in every batch. Rewards other than exactly 0 and 1 fall out of both
//! sets.
//!
//! A micro-batch must hold whole prompts. The hinge looks at the KL of the micro-batch that it is given.
//! Source: Optimization-AI/DRPO `core_algos.py`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::members;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, LOG_PROBS, OLD_LOG_PROBS, OUTCOMES, Signals, keep_where};
use crate::block::{Block, BlockKind, Kind, Regularizer, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "drpo",
    title: "DRPO: Efficient Reasoning via Decoupled Reward Policy Optimization",
    arxiv: "2510.04474",
    summary: "Right answers against a soft maximum of wrong ones; short ones first, among right ones only.",
    blocks: &[
        BlockKind::surrogate::<Discriminative>(),
        BlockKind::weight::<PerQuestion>(),
        BlockKind::regularizer::<HingeKl>(),
    ],
    recipe,
    vectors: Some(("drpo.json", 8)),
    end_to_end: None,
};

/// Discriminative scores with a length preference, mean over prompts, squared-hinge KL.
pub fn recipe() -> Composition {
    Composition::new(&Discriminative::default(), Aggregation::SeqMeanTokenMean)
        .weight(&PerQuestion::default())
        .regularizer(&HingeKl::default())
}

/// What the loss reads; its gradient is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossValue {
    /// tau in place of tau log mean exp: the authors' code.
    #[default]
    Code,
    /// The objective itself.
    Objective,
}

/// Right answers up, a soft maximum of the wrong ones down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Discriminative {
    /// Temperature of the soft maximum over wrong answers, in nats per token; above 0.
    pub tau: f64,
    /// Strength of the preference for short right answers: smaller is shorter; above 0, `inf` for none.
    pub lambda: f64,
    /// Length C that counts as 1, in tokens; 0 for the padded length.
    pub max_len: usize,
    /// What the loss reads.
    pub value: LossValue,
}

impl Default for Discriminative {
    fn default() -> Self {
        Self { tau: 10.0, lambda: 0.1, max_len: 0, value: LossValue::Code }
    }
}

/// The loss of a sequence: `slope * (s - sg(s)) + value`, [B] each.
#[derive(Clone, Debug, PartialEq)]
pub struct RowTerms {
    /// Derivative by the sequence's score: -w for right answers, softmax(s / tau) for wrong ones, 0 in dropped
    /// prompts.
    pub slope: Vec<f64>,
    /// What it reads.
    pub value: Vec<f64>,
}

impl Discriminative {
    /// Length in units of C, [B].
    pub fn length_ratios(&self, mask: &Table) -> Vec<f64> {
        let longest = if self.max_len == 0 { mask.cols } else { self.max_len };
        mask.row_sums().iter().map(|l| l / longest.max(1) as f64).collect()
    }

    /// Terms before the division by the number of prompts. `scores` [B] mean log-probability, `ratios` [B] of
    /// [`Discriminative::length_ratios`] (0: an empty sequence, in neither set), `rewards` [B], `group_ids` [B].
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn row_terms(
        &self,
        scores: &[f64],
        ratios: &[f64],
        rewards: &[f64],
        group_ids: &[u64],
    ) -> Result<RowTerms> {
        let b = scores.len();
        for (name, got) in
            [("lengths", ratios.len()), ("rewards", rewards.len()), ("group_ids", group_ids.len())]
        {
            if got != b {
                return Err(Error::Shape { name, got: vec![got], expected: format!("[{b}]") });
            }
        }
        let mut out = RowTerms { slope: vec![0.0; b], value: vec![0.0; b] };
        for index in members(group_ids).values() {
            let of = |wanted: f64| -> Vec<usize> {
                index.iter().copied().filter(|&i| rewards[i] == wanted && ratios[i] > 0.0).collect()
            };
            let (right, wrong) = (of(1.0), of(0.0));
            if right.is_empty() || wrong.is_empty() {
                continue;
            }
            let (weights, _) = softmax(right.iter().map(|&i| (1.0 - ratios[i]) / self.lambda));
            for (&i, w) in right.iter().zip(weights) {
                (out.slope[i], out.value[i]) = (-w, -w * scores[i]);
            }
            let (weights, log_sum) = softmax(wrong.iter().map(|&j| scores[j] / self.tau));
            let printed = match self.value {
                LossValue::Code => self.tau,
                LossValue::Objective => self.tau * (log_sum - (wrong.len() as f64).ln()),
            };
            for (&j, p) in wrong.iter().zip(weights) {
                (out.slope[j], out.value[j]) = (p, p * printed);
            }
        }
        Ok(out)
    }
}

/// Softmax and the logarithm of the sum of exponentials.
fn softmax(x: impl Iterator<Item = f64>) -> (Vec<f64>, f64) {
    let x: Vec<f64> = x.collect();
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| (v - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    (exp.iter().map(|e| e / sum).collect(), top + sum.ln())
}

/// Mean log-probability of every sequence's valid tokens, [B], with gradient; 0 for a sequence without any.
///
/// # Errors
/// Shapes that differ.
pub fn mean_log_probs(log_probs: &Tensor, mask: &Table) -> Result<Tensor> {
    let lengths = mask.row_sums();
    let share = |(i, m): (usize, &f64)| if *m == 0.0 { 0.0 } else { m / lengths[i / mask.cols] };
    let shares = Table { values: mask.values.iter().enumerate().map(share).collect(), ..*mask };
    Ok((keep_where(log_probs, mask)? * shares.to_tensor(log_probs)?)?.sum(1)?)
}

impl Block for Discriminative {
    fn batch_wide(&self) -> Option<&'static str> {
        Some("it compares the answers to one prompt, whose groups must be whole")
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, GROUP_IDS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.tau > 0.0 && self.tau.is_finite()) {
            return Err(Error::Setting { name: "tau", got: self.tau, expected: "greater than 0" });
        }
        if self.lambda > 0.0 {
            return Ok(());
        }
        Err(Error::Setting { name: "lambda", got: self.lambda, expected: "greater than 0, inf allowed" })
    }

    fn describe(&self) -> String {
        let length = if self.lambda.is_finite() {
            format!("short ones first (lambda {})", self.lambda)
        } else {
            "all alike".into()
        };
        format!("right answers, {length}, against a soft maximum of the wrong ones (tau {})", self.tau)
    }
}

impl Kind for Discriminative {
    const KIND: &'static str = "discriminative";
}

impl Surrogate for Discriminative {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        let scores = mean_log_probs(&batch.tensor(LOG_PROBS)?, batch.mask())?;
        let fixed: Vec<f64> = scores.detach().to_dtype(candle_core::DType::F64)?.to_vec1()?;
        let ratios = self.length_ratios(batch.mask());
        let RowTerms { slope, value } =
            self.row_terms(&fixed, &ratios, &batch.outcomes()?, batch.ids(GROUP_IDS)?)?;
        let as_tensor = |x: &[f64]| -> Result<Tensor> {
            Ok(Tensor::from_slice(x, x.len(), scores.device())?.to_dtype(scores.dtype())?)
        };
        let moving = (as_tensor(&slope)? * (&scores - scores.detach())?)?;
        Ok(Terms::Sequences((moving + as_tensor(&value)?)?).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// Turns a mean over sequences into a sum over sequences divided by the number of prompts of the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerQuestion {}

impl Block for PerQuestion {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn describe(&self) -> String {
        "mean over prompts".into()
    }
}

impl Kind for PerQuestion {
    const KIND: &'static str = "per_question";
}

impl TokenRule for PerQuestion {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let questions = members(batch.ids(GROUP_IDS)?).len().max(1) as f64;
        let factor = batch.normaliser().sequences / questions;
        signals.row_weights.iter_mut().for_each(|w| *w *= factor);
        Ok(())
    }
}

/// Which estimate of KL(old || new).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustKl {
    /// old - new: signed, no penalty once it is negative.
    #[default]
    Kl,
    /// exp(d) - d - 1 with d = new - old: never negative.
    LowVarKl,
}

/// sg(max(beta (kl - delta), 0)) kl, kl the token mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HingeKl {
    /// Strength, 0 or more.
    pub beta: f64,
    /// Radius of the trust region in nats per token.
    pub delta: f64,
    /// Which estimate.
    pub kl: TrustKl,
}

impl Default for HingeKl {
    fn default() -> Self {
        Self { beta: 1e3, delta: 1e-4, kl: TrustKl::Kl }
    }
}

impl HingeKl {
    /// Estimate per token, [B, T], with gradient.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn per_token(&self, log_probs: &Tensor, old_log_probs: &Tensor) -> Result<Tensor> {
        let d = (log_probs - old_log_probs.detach())?;
        Ok(match self.kl {
            TrustKl::Kl => d.neg()?,
            TrustKl::LowVarKl => ((d.exp()? - &d)? - 1.0)?,
        })
    }

    /// Factor on the KL for its present token mean.
    pub fn strength(&self, kl: f64) -> f64 {
        (self.beta * (kl - self.delta)).max(0.0)
    }
}

impl Block for HingeKl {
    fn batch_wide(&self) -> Option<&'static str> {
        Some("the hinge is on the mean KL of the update")
    }

    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.beta >= 0.0 && self.beta.is_finite()) {
            return Err(Error::Setting { name: "beta", got: self.beta, expected: "0 or more" });
        }
        if self.delta.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "delta", got: self.delta, expected: "a finite number" })
    }

    fn describe(&self) -> String {
        format!("squared hinge on the KL to the old policy beyond {}", self.delta)
    }
}

impl Kind for HingeKl {
    const KIND: &'static str = "hinge_kl";
}

impl Regularizer for HingeKl {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        let kl = self.per_token(&batch.tensor(LOG_PROBS)?, &batch.tensor(OLD_LOG_PROBS)?)?;
        let mean = Aggregation::TokenMean.apply(&kl.detach(), batch.mask(), &batch.normaliser())?;
        let mean: f64 = mean.to_dtype(candle_core::DType::F64)?.to_scalar()?;
        Ok(Terms::Tokens((kl * self.strength(mean))?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        Some(Aggregation::TokenMean)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::REWARDS;
    use crate::registry::Algorithm;

    /// Gradient of the recipe over `parts` of the batch, one micro-batch each; log-probs equal the old ones.
    fn gradient(
        log_probs: &[Vec<f64>],
        lengths: &[usize],
        rewards: &[f64],
        groups: &[u64],
        parts: &[&[usize]],
    ) -> Vec<f64> {
        let t = log_probs[0].len();
        let mask: Vec<Vec<f64>> =
            lengths.iter().map(|&l| (0..t).map(|i| f64::from(u8::from(i < l))).collect()).collect();
        let var = Var::new(log_probs.to_vec(), &Device::Cpu).unwrap();
        let batch = Batch::new(Table::from_rows(&mask).unwrap())
            .with(LOG_PROBS, var.as_tensor().clone())
            .unwrap()
            .with(OLD_LOG_PROBS, var.as_tensor().detach())
            .unwrap()
            .with(REWARDS, rewards.to_vec())
            .unwrap()
            .with(GROUP_IDS, groups.to_vec())
            .unwrap();
        let objective = Algorithm::from_table("drpo", &toml::Table::new()).unwrap().objective;
        let ready = objective.prepare(batch, &mut State::default()).unwrap();
        let mut total = vec![0.0; var.elem_count()];
        for rows in parts {
            let (batch, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let parts =
                objective.loss(&batch, &signals, &ready.batch.normaliser(), &State::default()).unwrap();
            let grads = parts.loss.backward().unwrap();
            let grad: Vec<f64> =
                grads.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            total.iter_mut().zip(grad).for_each(|(a, b)| *a += b);
        }
        total
    }

    proptest! {
        #[test]
        fn gradients_balance_splits_add_up_and_right_answers_never_go_down(
            lp in proptest::collection::vec(proptest::collection::vec(-4.0f64..-0.01, 5), 8),
            lengths in proptest::collection::vec(1usize..6, 8),
            rewards in proptest::collection::vec(0u8..2, 8),
        ) {
            let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
            let groups = [0, 1, 0, 1, 0, 1, 0, 1];
            let all = gradient(&lp, &lengths, &rewards, &groups, &[&[0, 1, 2, 3, 4, 5, 6, 7]]);
            let split = gradient(&lp, &lengths, &rewards, &groups, &[&[0, 2, 4, 6], &[1, 3, 5, 7]]);
            // In a prompt the pushes up and down have the same sum, and a prompt that is all right or wrong has
            // none.
            prop_assert!(all.iter().sum::<f64>().abs() < 1e-12);
            for (i, (a, b)) in all.iter().zip(&split).enumerate() {
                prop_assert!((a - b).abs() < 1e-12);
                let direction = if rewards[i / 5] == 1.0 { -1.0 } else { 1.0 };
                prop_assert!(a * direction >= 0.0);
            }
        }
    }

    #[test]
    fn degenerate_prompts_and_empty_answers_are_exactly_zero() {
        let lp = vec![vec![-1.0, f64::NEG_INFINITY], vec![-2.0, -1.0], vec![f64::NEG_INFINITY; 2]];
        let all = [&[0usize, 1, 2][..]];
        assert_eq!(gradient(&lp, &[1, 2, 0], &[1.0, 1.0, 0.0], &[3; 3], &all), [0.0; 6]);
        assert_eq!(gradient(&lp, &[1, 2, 0], &[0.5, 0.0, 1.0], &[3; 3], &all), [0.0; 6]);
    }

    #[test]
    fn an_infinite_lambda_weighs_right_answers_alike_and_a_tiny_one_does_not_overflow() {
        let terms = |lambda| {
            let block = Discriminative { lambda, ..Discriminative::default() };
            block.row_terms(&[-1.0; 4], &[0.1, 0.9, 0.5, 0.5], &[1.0, 1.0, 0.0, 0.0], &[7; 4]).unwrap().slope
        };
        assert_eq!(terms(f64::INFINITY), [-0.5, -0.5, 0.5, 0.5]);
        let sharp = terms(1e-4);
        assert!((sharp[0] + 1.0).abs() < 1e-12 && sharp[1] > -1e-12, "{sharp:?}");
    }
}
