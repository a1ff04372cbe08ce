//! DR-PO: Dataset Reset Policy Optimization for RLHF (arXiv 2404.08495).
//!
//! Base: PPO with a critic, a KL penalty per token and a score at the end. New: with probability beta a rollout does not
//! begin at the prompt; the generator is RESET to a random prefix of a preferred answer from the offline data and only
//! writes the rest. The forced prefix is left out of the policy loss, and of nothing else:
//!
//! ```text
//! n = tokens of the reference answer;  flag ~ Bernoulli(beta);  k ~ Uniform{1, .., n - 1}   (n < 2: no reset)
//! forced[t]  = flag and t < k                                                                [`forced_tokens`]
//! response   cut after its first end token; scored there; without padding behind it: `penalty`     [`truncate`]
//! r          = -kl_coef (old_log_probs - ref_log_probs) everywhere, + score at the score index [`TerminalScore`]
//! r          = (r - mean)/sqrt(var + 1e-8) + mean;  A by GAE, V after the end = 0; A whitened likewise without the mean
//! pg_loss    = sum over tokens that were not forced of the clipped ratio's loss / their number [`ResetMask`]
//! loss       = pg_loss + vf_coef vf_loss,  vf_loss = 0.5 mean over ALL tokens of the clipped value error
//! ```
//!
//! As in the authors' code, KL, whitening (population variance), GAE and the value loss include forced tokens and the
//! padding behind the end: give a mask that is 1 on all L positions. The masked variant is a mask that stops at the end
//! token with `valid_only` and the shared `gae`. The policy loss is normalised over the whole batch, where the code
//! averages each micro-batch by itself. beta = 0 is PPO. With beta = 1 the first token is always forced and never
//! trained: keep beta below 1 where answers from scratch matter.
//!
//! Source: Cornell-RL/drpo and tril. Temperature 0.7 also divides the logits of all log-probabilities; 4 epochs.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{StreamGae, StreamReturns};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, Signals, TOKEN_REWARDS, TRUNCATED};
use crate::block::{Block, BlockKind, Kind, Reward, TokenRule};
use crate::composition::Composition;
use crate::critic::ClippedValue;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Where the outcome is placed.
pub const SCORE_INDEX: Input = Input::new("score_index", "[B]", "position that the outcome belongs to");
/// Tokens that were not sampled.
pub const FORCED: Input =
    Input::new("forced", "[B, T]", "1 on tokens that were forced from a reference answer");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "drpo_reset",
    title: "Dataset Reset Policy Optimization for RLHF",
    arxiv: "2404.08495",
    summary: "PPO whose rollouts begin at random prefixes of preferred answers; forced tokens are not trained.",
    blocks: &[BlockKind::reward::<TerminalScore>(), BlockKind::weight::<ResetMask>()],
    recipe,
    vectors: Some(("drpo_reset.json", 9)),
    end_to_end: None,
};

/// Whitened token rewards, GAE 0.95, clip 0.2, value loss 0.1.
pub fn recipe() -> Composition {
    let gae = StreamGae { gamma: 1.0, lambda: 0.95, streams: false, whiten: true, epsilon: WHITEN_EPSILON };
    Composition::new(&ClippedRatio { dual_clip: None, ..ClippedRatio::default() }, Aggregation::TokenMean)
        .reward(&TerminalScore::default())
        .reward(&StreamReturns { gamma: gae.gamma, lambda: gae.lambda, streams: false })
        .advantage(&gae)
        .weight(&ResetMask::default())
        .regularizer(&ClippedValue { coef: 0.1, clip: 0.2, aggregation: Some(Aggregation::TokenMean) })
}

/// Added to variances before their root.
const WHITEN_EPSILON: f64 = 1e-8;

/// A score at the end of every response and a KL penalty on every token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TerminalScore {
    /// Weight of the log-ratio between the policy that sampled and the reference.
    pub kl_coef: f64,
    /// Replaces the score of a response without an end.
    pub penalty: f64,
    /// Divide by the standard deviation of all positions, mean kept.
    pub whiten: bool,
    /// Count valid tokens only, in the penalty and in the whitening.
    pub valid_only: bool,
}

impl Default for TerminalScore {
    fn default() -> Self {
        Self { kl_coef: 0.05, penalty: -1.0, whiten: true, valid_only: false }
    }
}

impl Block for TerminalScore {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, TRUNCATED, SCORE_INDEX]
    }

    fn gives(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("kl_coef", self.kl_coef), ("penalty", self.penalty)] {
            if !got.is_finite() {
                return Err(Error::Setting { name, got, expected: "a finite number" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("score at the end, {} without one, less {} KL per token", self.penalty, self.kl_coef)
    }
}

impl Kind for TerminalScore {
    const KIND: &'static str = "terminal_score";
}

impl Reward for TerminalScore {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (old, reference) = (batch.table(OLD_LOG_PROBS)?, batch.table(REF_LOG_PROBS)?);
        let truncated = batch.numbers(TRUNCATED)?;
        let (scores, index) = (batch.numbers(REWARDS)?, batch.ids(SCORE_INDEX)?);
        let (mask, cols) = (batch.mask(), batch.cols());
        let counts: Vec<bool> = mask.values.iter().map(|&m| !self.valid_only || m != 0.0).collect();
        let mut rewards = mask.filled(0.0);
        for (i, r) in rewards.values.iter_mut().enumerate().filter(|(i, _)| counts[*i]) {
            *r = -self.kl_coef * (old.values[i] - reference.values[i]);
        }
        for (row, &at) in index.iter().enumerate() {
            if at as usize >= cols {
                let reason = format!("{at} in row {row}, the responses have {cols} positions");
                return Err(Error::Invalid { what: "score_index", reason });
            }
            let score = if truncated[row] == 0.0 { scores[row] } else { self.penalty };
            rewards.values[row * cols + at as usize] += score;
        }
        if let Some(i) = rewards.values.iter().position(|r| !r.is_finite()) {
            return Err(Error::NotFinite { name: "token_rewards", index: i, got: rewards.values[i] });
        }
        if self.whiten {
            whiten(&mut rewards, &counts);
        }
        batch.set(TOKEN_REWARDS, rewards)
    }
}

/// (x - mean)/sqrt(population variance + 1e-8) + mean over the positions that count.
fn whiten(x: &mut Table, counts: &[bool]) {
    let n = counts.iter().filter(|&&c| c).count().max(1) as f64;
    let over = |f: &dyn Fn(f64) -> f64| -> f64 {
        x.values.iter().zip(counts).filter(|(_, c)| **c).map(|(x, _)| f(*x)).sum::<f64>() / n
    };
    let mean = over(&|x| x);
    let scale = (over(&|x| (x - mean) * (x - mean)) + WHITEN_EPSILON).sqrt();
    for (x, _) in x.values.iter_mut().zip(counts).filter(|(_, c)| **c) {
        *x = (*x - mean) / scale + mean;
    }
}

/// Takes forced tokens out of the policy loss and its denominator: token-mean over the tokens that were sampled. A batch
/// in which every token was forced has policy loss 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResetMask {}

impl Block for ResetMask {
    fn needs(&self) -> Vec<Input> {
        vec![FORCED]
    }

    fn describe(&self) -> String {
        "sampled tokens only".into()
    }
}

impl Kind for ResetMask {
    const KIND: &'static str = "reset_mask";
}

impl TokenRule for ResetMask {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let (forced, mask) = (batch.table(FORCED)?, batch.mask());
        let sampled = |i: usize| if forced.values[i] == 0.0 { mask.values[i] } else { 0.0 };
        let kept: f64 = (0..mask.values.len()).map(sampled).sum();
        // token-mean divides by all valid tokens.
        let scale = if kept > 0.0 { mask.values.iter().sum::<f64>() / kept } else { 0.0 };
        for (i, weight) in signals.weights.values.iter_mut().enumerate() {
            *weight *= if forced.values[i] == 0.0 { scale } else { 0.0 };
        }
        Ok(())
    }
}

/// Tokens of a reference answer: up to its first padding.
pub fn reference_length(tokens: &[u64], pad: u64) -> usize {
    tokens.iter().position(|&t| t == pad).unwrap_or(tokens.len())
}

/// Longest prefix that a reference of `n` tokens may be reset to: n - 1, and 0 (no reset) below two tokens.
pub fn longest_prefix(n: usize) -> usize {
    if n < 2 { 0 } else { n - 1 }
}

/// Prefix length uniform on 1..=n - 1 from a uniform draw in 0..1; 0 where there can be no reset. The authors draw it for
/// every answer, also for those whose flag says no.
pub fn draw_prefix(n: usize, uniform: f64) -> usize {
    let longest = longest_prefix(n);
    if longest == 0 { 0 } else { 1 + ((uniform * longest as f64) as usize).min(longest - 1) }
}

/// Which of `reference.len()` positions are forced, for a drawn flag and prefix length.
pub fn forced_tokens(reference: &[u64], pad: u64, flag: bool, prefix: usize) -> Vec<bool> {
    let prefix = prefix.min(longest_prefix(reference_length(reference, pad)));
    (0..reference.len()).map(|t| flag && t < prefix).collect()
}

/// A response cut after its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Tokens with padding behind the first end token.
    pub tokens: Vec<u64>,
    /// Position that is scored: before the first padding, the last one without padding, none if it begins with padding.
    pub score_index: Option<usize>,
    /// Whether there is padding. An end token at the last position leaves none: such a response counts as unfinished.
    pub finished: bool,
}

/// Cuts a response after its first end token.
pub fn truncate(tokens: &[u64], end: u64, pad: u64) -> Truncated {
    let keep = tokens.iter().position(|&t| t == end).map_or(tokens.len(), |i| i + 1);
    let tokens: Vec<u64> = tokens.iter().enumerate().map(|(i, &t)| if i < keep { t } else { pad }).collect();
    let first_pad = tokens.iter().position(|&t| t == pad);
    let score_index = first_pad.unwrap_or(tokens.len()).checked_sub(1);
    Truncated { tokens, score_index, finished: first_pad.is_some() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Tensor, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::advantage::standardise;
    use crate::batch::{LOG_PROBS, RETURNS, VALUE_PREDICTIONS, VALUES};
    use crate::objective::Objective;

    #[test]
    fn prefixes_are_never_empty_and_never_whole() {
        assert_eq!([0, 1, 2, 9].map(longest_prefix), [0, 0, 1, 8]);
        assert_eq!([0.0, 0.5, 0.999].map(|u| draw_prefix(5, u)), [1, 3, 4]);
        assert_eq!(draw_prefix(1, 0.9), 0);
        assert_eq!(forced_tokens(&[5, 6, 7, 0], 0, true, 2), [true, true, false, false]);
        assert!(forced_tokens(&[5, 0, 0], 0, true, 1).iter().all(|f| !f));
        let cut = truncate(&[4, 1, 7], 1, 0);
        assert_eq!((cut.tokens, cut.score_index, cut.finished), (vec![4, 1, 0], Some(1), true));
        assert!(!truncate(&[4, 7, 1], 1, 0).finished);
        assert_eq!(truncate(&[], 1, 0).score_index, None);
    }

    #[test]
    fn a_score_outside_of_the_response_is_refused() {
        let zeros = Table { rows: 1, cols: 2, values: vec![0.0; 2] };
        let mut batch = Batch::new(zeros.filled(1.0))
            .with(OLD_LOG_PROBS, zeros.clone())
            .and_then(|b| b.with(REF_LOG_PROBS, zeros))
            .and_then(|b| b.with(REWARDS, vec![1.0]))
            .and_then(|b| b.with(TRUNCATED, vec![0.0]))
            .and_then(|b| b.with(SCORE_INDEX, vec![2u64]))
            .unwrap();
        let refused = TerminalScore::default().shape(&mut batch, &mut State::default()).unwrap_err();
        assert!(refused.to_string().contains("score_index"));
    }

    /// Loss and gradient in micro-batches of `per_part` rows.
    fn run(objective: &Objective, p: &[f64], a: &[f64], forced: &[f64], per_part: usize) -> (f64, Vec<f64>) {
        let mask = Table { rows: 4, cols: 3, values: vec![1.0; 12] };
        let policy = Var::from_tensor(&Tensor::from_slice(p, (4, 3), &Device::Cpu).unwrap()).unwrap();
        let table = |x: &[f64]| Table { values: x.to_vec(), ..mask };
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, policy.as_tensor().clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, table(p)))
            .and_then(|b| b.with(FORCED, table(forced)))
            .and_then(|b| b.with(VALUE_PREDICTIONS, policy.as_tensor().detach()))
            .and_then(|b| b.with(VALUES, table(a)))
            .and_then(|b| b.with(RETURNS, table(&standardise(a, 0.0))))
            .unwrap();
        let mut signals = Signals::new(table(a));
        for rule in &objective.weights {
            rule.prepare(&batch, &mut signals, &mut State::default()).unwrap();
        }
        let whole = batch.normaliser();
        let mut total = Tensor::new(0f64, &Device::Cpu).unwrap();
        for start in (0..4).step_by(per_part) {
            let rows: Vec<usize> = (start..(start + per_part).min(4)).collect();
            let (part, signals) = (batch.select(&rows).unwrap(), signals.select(&rows));
            total =
                (total + objective.loss(&part, &signals, &whole, &State::default()).unwrap().loss).unwrap();
        }
        let grads = total.backward().unwrap();
        let grad = grads.get(policy.as_tensor()).map(|g| g.flatten_all().unwrap().to_vec1().unwrap());
        (total.to_scalar().unwrap(), grad.unwrap_or(vec![0.0; 12]))
    }

    proptest! {
        #[test]
        fn forced_tokens_have_no_policy_gradient_and_micro_batches_add_up(
            p in proptest::collection::vec(-2.0f64..0.0, 12),
            a in proptest::collection::vec(-2.0f64..2.0, 12),
            forced in proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0)], 12),
        ) {
            let objective = recipe().build().unwrap();
            let (loss, grad) = run(&objective, &p, &a, &forced, 4);
            let (cut, cut_grad) = run(&objective, &p, &a, &forced, 1);
            prop_assert!((loss - cut).abs() < 1e-12);
            let kept = forced.iter().filter(|&&f| f == 0.0).count() as f64;
            for i in 0..12 {
                prop_assert!((grad[i] - cut_grad[i]).abs() < 1e-12);
                // At ratio 1 the gradient is -A over the number of sampled tokens.
                let expected = if forced[i] == 0.0 { -a[i] / kept } else { 0.0 };
                prop_assert!((grad[i] - expected).abs() < 1e-12);
            }
        }
    }
}
