//! T-PPO: Truncated Proximal Policy Optimization (arXiv 2506.15050).
//!
//! Base: PPO with a critic. New: updates never wait for complete responses. In every step each slot generates at most
//! `window` tokens ([`schedule`]); finished sequences leave, unfinished ones go on in the next step. Two pieces make
//! that work:
//!
//! ```text
//! EGAE over the l = step_end tokens so far:
//!   delta_t     = r_t + gamma V(s_{t+1}) - V(s_t)                       t < l - 1
//!   delta_{l-1} = r_{l-1} - V(s_{l-1})                                  finished: terminal value 0
//!   delta_{l-1} = r_{l-1} + gamma V(s_{l-1}) - V(s_{l-1})               unfinished: V(s_l) := V(s_{l-1})
//!   A_t = delta_t + gamma lambda A_{t+1}
//! token sets:
//!   policy: the tokens of this step, [start, end), of all sequences     (each token trains the policy once)
//!   critic: all tokens [0, end) of sequences that finished in this step, towards their Monte-Carlo return
//! policy loss: token mean of max(-A rho, -A clip(rho, 0.8, 1.28)); optional whitening of A
//! critic loss: token mean of 0.5 max((v - R)^2, (clip(v, v_old +- 0.2) - R)^2)
//! ```
//!
//! At gamma 1 the last delta of an unfinished sequence is 0: nothing is learnt about the cut itself.
//!
//! Two objectives, because their batches and their frequencies differ. [`recipe`] trains the policy: the batch's mask
//! is [`policy_mask`] and the rows carry `finished`. [`critic_recipe`] trains the critic: the mask is [`value_mask`].
//! The bootstrap needs no value beyond the mask, so a policy batch may hold this step's tokens only. Values of
//! earlier tokens must come from the current critic, old log-probabilities from the policy that generated THIS step's
//! tokens.
//!
//! Source: the paper's abstract and public reviews; there is no public code. The recursion, the exact token sets and
//! the losses are a reconstruction, the hyperparameters those of sibling PPO recipes. A sequence cut off at the
//! length limit counts as finished (with its reward by rule), not as truncated. Train the critic alone for some 50
//! steps first: with values near 0 unfinished sequences give almost no signal.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::WhitenAdvantages;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, TOKEN_REWARDS, VALUES};
use crate::block::{Advantage, Block, BlockKind, Kind};
use crate::checks::unit;
use crate::composition::Composition;
use crate::critic::{ClippedValue, ValueTargets, last_valid};
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Whether a sequence ended (or hit the length limit) in this step, 0 or 1.
pub const FINISHED: Input =
    Input::new("finished", "[B]", "whether a sequence ended in this step of generation, 0 or 1");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "tppo",
    title: "Truncated Proximal Policy Optimization",
    arxiv: "2506.15050",
    summary: "PPO on unfinished responses: the value before a cut stands for the one behind it.",
    blocks: &[BlockKind::advantage::<Egae>()],
    recipe,
    vectors: Some(("tppo.json", 7)),
    end_to_end: None,
};

/// The policy's objective: EGAE, whitened, clip-higher without dual clip, token mean over this step's tokens.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: None };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .advantage(&Egae::default())
        .weight(&WhitenAdvantages::default())
}

/// The critic's objective: clipped regression on Monte-Carlo returns of finished sequences.
pub fn critic_recipe() -> Composition {
    Composition::new(&ClippedValue::default(), Aggregation::TokenMean).weight(&ValueTargets::default())
}

/// GAE for responses that may be unfinished. The cut of a row is after its last valid token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egae {
    /// Discount per token, 0 to 1. Below 1 the cut of an unfinished sequence pushes by (gamma - 1) V.
    pub gamma: f64,
    /// Trace decay, 0 to 1.
    pub lambda: f64,
    /// Whether the value before a cut stands for the one behind it. Without (an ablation that must be worse) a cut
    /// looks like a failure: the value behind it is 0.
    pub bootstrap: bool,
}

impl Default for Egae {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 0.95, bootstrap: true }
    }
}

impl Block for Egae {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, VALUES, FINISHED]
    }

    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)
    }

    fn describe(&self) -> String {
        format!("GAE of unfinished responses (gamma {}, lambda {})", self.gamma, self.lambda)
    }
}

impl Kind for Egae {
    const KIND: &'static str = "egae";
}

impl Advantage for Egae {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let mask = batch.mask();
        let ends: Vec<usize> = mask.iter().map(|row| last_valid(row).map_or(0, |last| last + 1)).collect();
        let finished: Vec<bool> = batch.numbers(FINISHED)?.iter().map(|&x| x != 0.0).collect();
        let mut a = egae(&batch.table(TOKEN_REWARDS)?, &batch.table(VALUES)?, &ends, &finished, self)?;
        a.values.iter_mut().zip(&mask.values).filter(|(_, m)| **m == 0.0).for_each(|(a, _)| *a = 0.0);
        Ok(a)
    }
}

/// EGAE of the tokens [0, end) of every row, [B, T]; 0 from `ends` on. `ends` and `finished` [B].
///
/// # Errors
/// Shapes differ, an end behind the last column.
pub fn egae(
    rewards: &Table,
    values: &Table,
    ends: &[usize],
    finished: &[bool],
    settings: &Egae,
) -> Result<Table> {
    values.same_shape("values", rewards)?;
    check_rows(rewards, "step_end", ends)?;
    check_rows(rewards, "finished", finished)?;
    let mut out = rewards.filled(0.0);
    for (row, (&end, &finished)) in ends.iter().zip(finished).enumerate() {
        in_range("step_end", end, rewards.cols)?;
        let (r, v) = (rewards.row(row), values.row(row));
        let mut next = match end.checked_sub(1) {
            Some(last) if settings.bootstrap && !finished => v[last],
            _ => 0.0,
        };
        let mut trace = 0.0;
        for t in (0..end).rev() {
            trace = r[t] + settings.gamma * next - v[t] + settings.gamma * settings.lambda * trace;
            next = v[t];
            out.values[row * rewards.cols + t] = trace;
        }
    }
    Ok(out)
}

/// Discounted rewards-to-go of finished sequences, the critic's targets; 0 elsewhere. [B, T].
///
/// # Errors
/// Shapes differ, an end behind the last column.
pub fn value_targets(rewards: &Table, ends: &[usize], finished: &[bool], gamma: f64) -> Result<Table> {
    let nothing = rewards.filled(0.0);
    let monte_carlo = Egae { gamma, lambda: 1.0, ..Egae::default() };
    let ends: Vec<usize> = ends.iter().zip(finished).map(|(&end, &f)| if f { end } else { 0 }).collect();
    // Without values the lambda = 1 recursion is the reward-to-go.
    egae(rewards, &nothing, &ends, finished, &monte_carlo)
}

/// 1 on the tokens generated in this step, [start, end) of every row; [B, `cols`].
///
/// # Errors
/// Lengths differ, a start behind its end, an end behind the last column.
pub fn policy_mask(starts: &[usize], ends: &[usize], cols: usize) -> Result<Table> {
    let mut mask = Table { rows: ends.len(), cols, values: vec![0.0; ends.len() * cols] };
    check_rows(&mask, "step_start", starts)?;
    for (row, (&start, &end)) in starts.iter().zip(ends).enumerate() {
        in_range("step_end", end, cols)?;
        in_range("step_start", start, end)?;
        mask.values[row * cols + start..row * cols + end].fill(1.0);
    }
    Ok(mask)
}

/// 1 on all tokens of sequences that finished in this step; [B, `cols`].
///
/// # Errors
/// Lengths differ, an end behind the last column.
pub fn value_mask(ends: &[usize], finished: &[bool], cols: usize) -> Result<Table> {
    let learnt: Vec<usize> = ends.iter().zip(finished).map(|(&end, &f)| if f { end } else { 0 }).collect();
    if finished.len() != ends.len() {
        let expected = format!("[{}], one per row", ends.len());
        return Err(Error::Shape { name: "finished", got: vec![finished.len()], expected });
    }
    policy_mask(&vec![0; learnt.len()], &learnt, cols)
}

fn check_rows<T>(table: &Table, name: &'static str, rows: &[T]) -> Result<()> {
    if rows.len() == table.rows {
        return Ok(());
    }
    Err(Error::Shape { name, got: vec![rows.len()], expected: format!("[{}], one per row", table.rows) })
}

fn in_range(what: &'static str, got: usize, most: usize) -> Result<()> {
    if got <= most {
        return Ok(());
    }
    Err(Error::Invalid { what, reason: format!("{got} is more than {most}") })
}

/// What one sequence generates in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Step of generation, from 1.
    pub step: usize,
    /// The sequence, by its place in the queue.
    pub sequence: usize,
    /// First token generated in this step.
    pub start: usize,
    /// One past the last token generated in this step.
    pub end: usize,
    /// Whether the sequence ended, by itself or at `max_len`.
    pub finished: bool,
}

/// Who generates what: `slots` sequences at a time from a queue in which sequence i would end after `lengths[i]`
/// tokens. Every step each slot generates until `window` new tokens, the sequence's end or `max_len`; who finished
/// leaves and the next of the queue follows. Chunks by step, those longest in flight first.
///
/// # Errors
/// A window or slot count of 0.
pub fn schedule(
    lengths: &[usize],
    window: usize,
    slots: usize,
    max_len: usize,
    steps: usize,
) -> Result<Vec<Chunk>> {
    for (name, got) in [("window", window), ("slots", slots), ("max_len", max_len)] {
        if got == 0 {
            return Err(Error::Setting { name, got: 0.0, expected: "1 or more" });
        }
    }
    let mut queue = lengths.iter().map(|&len| len.min(max_len)).enumerate();
    let mut flying: Vec<(usize, usize, usize)> = Vec::new(); // sequence, its length, tokens so far
    let mut chunks = Vec::new();
    for step in 1..=steps {
        while flying.len() < slots {
            let Some((sequence, len)) = queue.next() else { break };
            flying.push((sequence, len, 0));
        }
        for (sequence, len, so_far) in &mut flying {
            let start = *so_far;
            let end = (start + window).min(*len);
            *so_far = end;
            chunks.push(Chunk { step, sequence: *sequence, start, end, finished: end == *len });
        }
        flying.retain(|(_, len, so_far)| so_far < len);
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::advantage::{Gae, gae};
    use crate::batch::VALUE_PREDICTIONS;
    use crate::batch::{LOG_PROBS, OLD_LOG_PROBS};
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    fn table(row: &[f64]) -> Table {
        Table::from_rows(&[row.to_vec()]).unwrap()
    }

    proptest! {
        /// A finished sequence's EGAE is plain GAE; at gamma 1 and without rewards the last token of an unfinished
        /// one gets exactly 0 and a common shift of all values changes nothing.
        #[test]
        fn gae_in_the_limit_and_nothing_at_the_cut(
            values in proptest::collection::vec(-2.0f64..2.0, 1..9),
            reward in -1.0f64..1.0,
            shift in -1.0f64..1.0,
        ) {
            let n = values.len();
            let v = table(&values);
            let mut r = v.filled(0.0);
            r.values[n - 1] = reward;
            let s = Egae { gamma: 0.97, lambda: 0.9, ..Egae::default() };
            let plain = Gae { gamma: 0.97, lambda: 0.9, whiten: false };
            let full = egae(&r, &v, &[n], &[true], &s).unwrap();
            let (expected, _) = gae(&r, &v, &v.filled(1.0), &plain).unwrap();
            for (a, b) in full.values.iter().zip(&expected.values) {
                prop_assert!((a - b).abs() < 1e-12);
            }
            let s = Egae { gamma: 1.0, lambda: 0.9, ..Egae::default() };
            let cut = egae(&v.filled(0.0), &v, &[n], &[false], &s).unwrap();
            prop_assert_eq!(cut.values[n - 1], 0.0);
            let shifted = table(&values.iter().map(|x| x + shift).collect::<Vec<_>>());
            let moved = egae(&v.filled(0.0), &shifted, &[n], &[false], &s).unwrap();
            for (a, b) in cut.values.iter().zip(&moved.values) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }

        /// Every token is generated once, by whatever window; finished sequences are complete.
        #[test]
        fn chunks_tile_their_sequences(
            lengths in proptest::collection::vec(1usize..20, 1..8),
            window in 1usize..6,
            slots in 1usize..4,
        ) {
            let chunks = schedule(&lengths, window, slots, 16, 200).unwrap();
            for (i, &len) in lengths.iter().enumerate() {
                let mine: Vec<&Chunk> = chunks.iter().filter(|c| c.sequence == i).collect();
                prop_assert_eq!(mine[0].start, 0);
                prop_assert!(mine.windows(2).all(|w| w[0].end == w[1].start && w[0].step + 1 == w[1].step));
                let last = mine.last().unwrap();
                prop_assert!(last.finished && last.end == len.min(16));
            }
        }
    }

    #[test]
    fn the_block_reads_its_cut_from_the_mask() {
        let mask = Table::from_rows(&[vec![0.0, 1.0, 1.0, 0.0], vec![0.0; 4]]).unwrap();
        let v = Table::from_rows(&[vec![9.0, 1.0, 3.0, 7.0], vec![1.0; 4]]).unwrap();
        let batch = Batch::new(mask.clone()).with(TOKEN_REWARDS, mask.filled(0.0)).unwrap();
        let batch = batch.with(VALUES, v).unwrap().with(FINISHED, vec![0.0, 1.0]).unwrap();
        let a = Egae::default().advantages(&batch, &mut State::default()).unwrap();
        assert_eq!(a.values, [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let bad = policy_mask(&[3], &[2], 4).unwrap_err().to_string();
        assert!(bad.contains("step_start"), "{bad}");
        assert!(schedule(&[1], 0, 1, 1, 1).unwrap_err().to_string().contains("window"));
    }

    /// Nobody finished: the critic learns nothing, and a policy without tokens has loss 0.
    #[test]
    fn empty_token_sets_give_zero() {
        let x = Tensor::zeros((1, 3), candle_core::DType::F64, &Device::Cpu).unwrap();
        let none = Table { rows: 1, cols: 3, values: vec![0.0; 3] };
        let mut batch = Batch::new(none.clone());
        for input in [LOG_PROBS, OLD_LOG_PROBS, VALUE_PREDICTIONS] {
            batch.set(input, x.clone()).unwrap();
        }
        batch.set(TOKEN_REWARDS, none.clone()).unwrap();
        batch.set(VALUES, none).unwrap();
        batch.set(FINISHED, vec![0.0]).unwrap();
        for recipe in [recipe(), critic_recipe()] {
            let (objective, mut state) = (recipe.build().unwrap(), State::default());
            let ready = objective.prepare(batch.clone(), &mut state).unwrap();
            let whole = ready.batch.normaliser();
            let parts = objective.loss(&ready.batch, &ready.signals, &whole, &state).unwrap();
            assert_eq!(parts.loss.to_scalar::<f64>().unwrap(), 0.0);
        }
    }
}
