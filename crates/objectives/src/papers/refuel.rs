//! REFUEL: REgressing the RELative FUture (arXiv 2410.04612), with its single-turn base REBEL (2404.16767).
//!
//! Base: REBEL. For dialogues of several turns: from a shared prefix that ends at turn h, the current policy continues
//! twice to the end; the log-ratio difference of the two answers AT TURN h is regressed on the difference of the two
//! final returns. No critic, no clipping, real-valued returns; with one turn it is REBEL exactly.
//!
//! ```text
//! s_j  = sum over turn h of log p;  old_j likewise under the policy that sampled (constant)          [2P]
//! z    = (s_1 - old_1) - (s_2 - old_2)
//! loss = mean over pairs of (z - eta (R_1 - R_2))^2
//! R    = score - kl_coef (s_old - s_ref); a branch whose turn has no end token scores `penalty`      [`TurnReturn`]
//! ```
//!
//! The response mask is 1 on the branching turn's assistant tokens only, its end token included. The papers' form divides
//! z by eta; the code multiplies the returns, and is followed (the losses differ by eta^2). Log-probabilities are those of
//! logits / (temperature + 1e-7), the temperature that sampled. Equal returns still pull z to 0.
//!
//! Setting one (recipe here): offline, eta 1000 on rewards of about 0.1, a dialogue is cut at a random horizon g and
//! branches at a random h <= g ([`draw_turns`], [`compare`], [`keeps_pair`], [`turn_tokens`]). Setting two: online, eta 1,
//! [`TurnReturn`] as reward block. Pairs without tokens are dropped ([`ComparablePairs`]).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{
    Batch, Input, LOG_PROBS, OLD_LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, REWARDS, Signals, TRUNCATED,
};
use crate::block::{Block, BlockKind, Kind, Reward, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::pairs::{ComparablePairs, Pairs, row_sum_numbers, row_sums, tensor_like};
use crate::state::State;

/// Log-probability of every sequence's masked tokens under the policy that sampled, summed beforehand.
pub const OLD_SEQUENCE_LOG_PROBS: Input =
    Input::new("old_sequence_log_probs", "[B]", "summed log-probability under the policy that sampled");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "refuel",
    title: "Regressing the Relative Future: Efficient Policy Optimization for Multi-turn RLHF",
    arxiv: "2410.04612",
    summary: "Two continuations of one dialogue: the log-ratio difference is regressed on the return difference.",
    blocks: &[BlockKind::surrogate::<RelativeRegression>(), BlockKind::reward::<TurnReturn>()],
    recipe,
    vectors: Some(("refuel.json", 10)),
    end_to_end: None,
};

/// Setting one: eta 1000, returns as they are.
pub fn recipe() -> Composition {
    Composition::new(
        &RelativeRegression { eta: 1000.0, ..RelativeRegression::default() },
        Aggregation::TokenMean,
    )
    .filter(&ComparablePairs::default())
}

/// REBEL's and REFUEL's loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelativeRegression {
    /// Nats of log-ratio per unit of return, 0 or more.
    pub eta: f64,
    /// Read the policy that sampled from `old_sequence_log_probs` [B] instead of `old_log_probs` [B, T].
    pub presummed: bool,
}

impl Default for RelativeRegression {
    fn default() -> Self {
        Self { eta: 1.0, presummed: false }
    }
}

impl RelativeRegression {
    /// z - eta (R_1 - R_2) of every pair, [P], with gradient.
    ///
    /// # Errors
    /// A missing input, a torn pair, returns that are not finite.
    pub fn errors(&self, batch: &Batch, pairs: &Pairs) -> Result<Tensor> {
        let old = if self.presummed {
            batch.numbers(OLD_SEQUENCE_LOG_PROBS)?
        } else {
            row_sum_numbers(batch, OLD_LOG_PROBS)?
        };
        let (old1, old2) = pairs.split_numbers("old_log_probs", &old)?;
        let (r1, r2) = pairs.split_numbers("rewards", &batch.outcomes()?)?;
        let (now1, now2) = pairs.split(&row_sums(batch, LOG_PROBS)?)?;
        let fixed: Vec<f64> =
            (0..pairs.len()).map(|i| (old1[i] - old2[i]) + self.eta * (r1[i] - r2[i])).collect();
        if let Some(index) = fixed.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { name: "old_log_probs", index, got: fixed[index] });
        }
        let z = (now1 - now2)?;
        Ok((&z - tensor_like(&fixed, &z)?)?)
    }
}

impl Block for RelativeRegression {
    fn needs(&self) -> Vec<Input> {
        let old = if self.presummed { OLD_SEQUENCE_LOG_PROBS } else { OLD_LOG_PROBS };
        vec![LOG_PROBS, old, REWARDS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        if self.eta >= 0.0 && self.eta.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "eta", got: self.eta, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("log-ratio difference regressed on {} times the return difference", self.eta)
    }
}

impl Kind for RelativeRegression {
    const KIND: &'static str = "relative_regression";
}

impl Surrogate for RelativeRegression {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        self.validate()?;
        let pairs = Pairs::of(batch)?;
        Ok(Terms::Pairs(self.errors(batch, &pairs)?.sqr()?).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// Setting two's returns: scores of whole dialogues less the KL of the branching turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TurnReturn {
    /// Weight of the log-ratio to the reference. HH 0.05, UltraInteract 0 (the reference is not read then).
    pub kl_coef: f64,
    /// Replaces the score of a branch whose turn did not end. HH -10, UltraInteract -4.
    pub penalty: f64,
    /// Divide by the batch's standard deviation.
    pub whiten: bool,
    /// Whitened returns have mean 0; otherwise they keep their mean (which cancels in every difference).
    pub shift_mean: bool,
}

impl Default for TurnReturn {
    fn default() -> Self {
        Self { kl_coef: 0.05, penalty: -10.0, whiten: false, shift_mean: false }
    }
}

/// Whether the tokens that `turn_mask` marks hold the end token.
pub fn turn_ends(tokens: &[u64], turn_mask: &[f64], end: u64) -> bool {
    tokens.iter().zip(turn_mask).any(|(&token, &m)| m != 0.0 && token == end)
}

impl TurnReturn {
    /// Scores with the penalty where a turn did not end, [B].
    pub fn penalised(&self, scores: &[f64], ended: &[bool]) -> Vec<f64> {
        scores.iter().zip(ended).map(|(&score, &ended)| if ended { score } else { self.penalty }).collect()
    }

    /// Returns [B] of penalised scores and the turns' summed log-ratios to the reference `kl` [B].
    pub fn returns(&self, scores: &[f64], kl: &[f64]) -> Vec<f64> {
        let mut returns: Vec<f64> = scores.iter().zip(kl).map(|(s, kl)| s - self.kl_coef * kl).collect();
        if self.whiten && !returns.is_empty() {
            let n = returns.len() as f64;
            let mean = returns.iter().sum::<f64>() / n;
            let variance = returns.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n;
            let scale = 1.0 / (variance + 1e-8).sqrt();
            let back = if self.shift_mean { 0.0 } else { mean };
            returns.iter_mut().for_each(|r| *r = (*r - mean) * scale + back);
        }
        returns
    }
}

impl Block for TurnReturn {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![REWARDS, TRUNCATED];
        if self.kl_coef != 0.0 {
            needs.extend([OLD_LOG_PROBS, REF_LOG_PROBS]);
        }
        needs
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
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
        format!("score - {} KL of the turn, {} without an end", self.kl_coef, self.penalty)
    }
}

impl Kind for TurnReturn {
    const KIND: &'static str = "turn_return";
}

impl Reward for TurnReturn {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let ended: Vec<bool> = batch.numbers(TRUNCATED)?.iter().map(|&x| x == 0.0).collect();
        let scores = self.penalised(&batch.outcomes()?, &ended);
        let kl = if self.kl_coef == 0.0 {
            vec![0.0; scores.len()]
        } else {
            let old = row_sum_numbers(batch, OLD_LOG_PROBS)?;
            old.iter().zip(row_sum_numbers(batch, REF_LOG_PROBS)?).map(|(o, r)| o - r).collect()
        };
        batch.set(REWARDS, self.returns(&scores, &kl))
    }
}

/// Horizon g uniform over `turns`, branch h uniform over 0..=g, from two uniform draws in 0..1.
pub fn draw_turns(turns: usize, for_horizon: f64, for_branch: f64) -> (usize, usize) {
    let uniform = |n: usize, u: f64| ((u * n as f64) as usize).min(n.saturating_sub(1));
    let horizon = uniform(turns, for_horizon);
    (horizon, uniform(horizon + 1, for_branch))
}

/// Two dialogues from one prefix, compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Whether the second is preferred; it is at a tie.
    pub second: bool,
    /// Reward of the preferred one at the horizon.
    pub chosen_return: f64,
    /// Reward of the other.
    pub rejected_return: f64,
    /// Messages of a dialogue up to the horizon, the user's and the assistant's.
    pub messages: usize,
}

/// Compares the rewards that two dialogues have when they are cut after each turn, at turn `horizon` (0-based), although
/// both went on. The order matters for logs only: the loss is symmetric.
///
/// # Errors
/// [`Error::Shape`]: fewer rewards than the horizon needs.
pub fn compare(first: &[f64], second: &[f64], horizon: usize) -> Result<Comparison> {
    let at = |name, rewards: &[f64]| {
        let wrong = || Error::Shape {
            name,
            got: vec![rewards.len()],
            expected: format!("more than {horizon} turns, the horizon"),
        };
        rewards.get(horizon).copied().ok_or_else(wrong)
    };
    let (a, b) = (at("rewards_first", first)?, at("rewards_second", second)?);
    let second = a <= b;
    let (chosen_return, rejected_return) = if second { (b, a) } else { (a, b) };
    Ok(Comparison { second, chosen_return, rejected_return, messages: 2 * (horizon + 1) })
}

/// What the authors write for a reward that could not be computed.
pub const FAILED_REWARD: f64 = -99_999.0;

/// Whether a pair is trained on: no failed reward, different answers at the branching turn, nothing too long. `lengths`:
/// tokens of the first dialogue, and of the second up to the branching turn.
pub fn keeps_pair(
    rewards: &[f64],
    answers: (&[u64], &[u64]),
    lengths: (usize, usize),
    max_len: usize,
) -> bool {
    let usable = rewards.iter().all(|&r| r != FAILED_REWARD && r.is_finite());
    usable && answers.0 != answers.1 && lengths.0 <= max_len && lengths.1 <= max_len
}

/// Special tokens of a chat format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    /// Before a user's message.
    pub user_header: Vec<u64>,
    /// Before an assistant's message.
    pub assistant_header: Vec<u64>,
    /// After every message.
    pub end: u64,
    /// Fills up.
    pub pad: u64,
}

/// Tokens and mask for training turn `turn` (0-based) of a dialogue, `max_len` each: cut after that turn's answer and
/// filled up; the mask is 1 on the answer and its end token, not on its header. `messages`: content tokens, user first.
///
/// # Errors
/// [`Error::Shape`]: the dialogue has no such turn; [`Error::Invalid`]: it is longer than `max_len`.
pub fn turn_tokens(
    messages: &[Vec<u64>],
    turn: usize,
    format: &ChatFormat,
    max_len: usize,
) -> Result<(Vec<u64>, Vec<u64>)> {
    let needed = turn.saturating_mul(2).saturating_add(2);
    let Some(messages) = messages.get(..needed) else {
        let expected = format!("{needed} messages at least, for turn {turn}");
        return Err(Error::Shape { name: "messages", got: vec![messages.len()], expected });
    };
    let (mut tokens, mut mask) = (Vec::new(), Vec::new());
    for (i, content) in messages.iter().enumerate() {
        let header = if i % 2 == 0 { &format.user_header } else { &format.assistant_header };
        tokens.extend(header.iter().chain(content).chain([&format.end]));
        mask.resize(mask.len() + header.len(), 0);
        mask.resize(mask.len() + content.len() + 1, u64::from(i + 1 == needed));
    }
    if tokens.len() > max_len {
        let reason = format!("{} tokens up to turn {turn}, at most {max_len} fit", tokens.len());
        return Err(Error::Invalid { what: "dialogue", reason });
    }
    tokens.resize(max_len, format.pad);
    mask.resize(max_len, 0);
    Ok((tokens, mask))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::pairs::halves;
    use crate::table::Table;

    #[test]
    fn turns_are_drawn_from_the_whole_range_and_a_branch_is_not_behind_its_horizon() {
        assert_eq!(draw_turns(5, 0.0, 0.0), (0, 0));
        assert_eq!(draw_turns(5, 0.999, 0.999), (4, 4));
        assert_eq!(draw_turns(5, 0.5, 0.4), (2, 1));
        assert_eq!(draw_turns(0, 0.5, 0.5), (0, 0));
    }

    #[test]
    fn pairs_that_cannot_teach_are_not_kept() {
        let (a, b): (&[u64], &[u64]) = (&[1, 2], &[1, 3]);
        assert!(keeps_pair(&[0.1, 0.2], (a, b), (8, 8), 8));
        assert!(!keeps_pair(&[0.1, FAILED_REWARD], (a, b), (8, 8), 8));
        assert!(!keeps_pair(&[0.1, 0.2], (a, a), (8, 8), 8));
        assert!(!keeps_pair(&[0.1, 0.2], (a, b), (8, 9), 8));
        assert!(compare(&[0.1], &[0.1], 1).is_err());
        let format = ChatFormat { user_header: vec![1], assistant_header: vec![2], end: 3, pad: 0 };
        assert!(turn_tokens(&[vec![7]], 0, &format, 9).is_err());
        assert!(turn_tokens(&[vec![7], vec![8]], 0, &format, 5).is_err());
        let (tokens, mask) = turn_tokens(&[vec![7], vec![8]], 0, &format, 7).unwrap();
        assert_eq!((tokens, mask), (vec![1, 7, 3, 2, 8, 3, 0], vec![0, 0, 0, 0, 1, 1, 0]));
    }

    proptest! {
        #[test]
        fn a_return_shift_and_the_order_in_a_pair_do_not_matter_and_empty_pairs_are_dropped(
            p in proptest::collection::vec(-2.0f64..0.0, 12),
            old in proptest::collection::vec(-2.0f64..0.0, 12),
            returns in proptest::collection::vec(-1.0f64..1.0, 6),
            shift in -9.0f64..9.0,
        ) {
            let mut mask = Table { rows: 6, cols: 2, values: vec![1.0; 12] };
            mask.values[10..].fill(0.0);
            let run = |order: &[usize], shift: f64| -> (f64, Vec<f64>, usize) {
                let policy = Var::from_tensor(&Tensor::from_slice(&p, (6, 2), &Device::Cpu).unwrap()).unwrap();
                let old = Tensor::from_slice(&old, (6, 2), &Device::Cpu).unwrap();
                let batch = Batch::new(mask.clone())
                    .with(LOG_PROBS, policy.as_tensor().clone())
                    .and_then(|b| b.with(OLD_LOG_PROBS, old))
                    .and_then(|b| b.with(REWARDS, returns.iter().map(|r| r + shift).collect::<Vec<_>>()))
                    .and_then(|b| b.with(PAIR_IDS, halves(3)))
                    .and_then(|b| b.select(order))
                    .unwrap();
                let objective = recipe().with(&"[surrogate]\neta = 2.0".parse().unwrap()).unwrap().build().unwrap();
                let ready = objective.prepare(batch, &mut State::default()).unwrap();
                let whole = ready.batch.normaliser();
                let parts = objective.loss(&ready.batch, &ready.signals, &whole, &State::default()).unwrap();
                let grads = parts.loss.backward().unwrap();
                let grad = grads.get(policy.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                (parts.loss.to_scalar().unwrap(), grad, ready.kept.len())
            };
            let (loss, grad, kept) = run(&[0, 1, 2, 3, 4, 5], 0.0);
            prop_assert_eq!(kept, 4);
            for (other, other_grad, _) in [run(&[3, 4, 5, 0, 1, 2], 0.0), run(&[0, 1, 2, 3, 4, 5], shift)] {
                prop_assert!((loss - other).abs() < 1e-9);
                prop_assert!(grad.iter().zip(&other_grad).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }
    }
}
