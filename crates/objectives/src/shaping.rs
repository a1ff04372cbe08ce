//! Rewards made of other rewards.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, REWARDS};
use crate::block::{Block, Kind, Reward};
use crate::error::{Error, Result};
use crate::kl::KlEstimator;
use crate::state::State;
use crate::table::Table;

/// DAPO's overlong penalty: min(-(len - (max - buffer)) / buffer * factor, 0), to be added to the score.
pub fn dapo_overlong(length: f64, max: f64, buffer: f64, factor: f64) -> f64 {
    (-(length - (max - buffer)) / buffer * factor).min(0.0)
}

/// TRL's soft overlong punishment: 0 up to max - cache, then linear down to -1 at max and beyond.
pub fn soft_overlong(length: f64, max: f64, cache: f64) -> f64 {
    if length <= max - cache {
        0.0
    } else if length <= max {
        (max - cache - length) / cache
    } else {
        -1.0
    }
}

/// An outcome per sequence placed on its last executed action token (SRPO, siiRL `engine/reward_manager`): index
/// `finish_steps * tokens_per_step - 1`, times `coefficient`. A sequence without steps gets nothing.
pub fn place_terminal(
    scores: &[f64],
    finish_steps: &[usize],
    tokens_per_step: usize,
    coefficient: f64,
    len: usize,
) -> Table {
    let mut out = Table { rows: scores.len(), cols: len, values: vec![0.0; scores.len() * len] };
    for (row, (score, steps)) in scores.iter().zip(finish_steps).enumerate() {
        let tokens = (steps * tokens_per_step).min(len);
        if tokens > 0 {
            out.values[row * len + tokens - 1] = score * coefficient;
        }
    }
    out
}

/// Token rewards less `coefficient` times the KL estimate between the rollout policy and the reference.
///
/// # Errors
/// Shapes differ.
pub fn kl_in_reward(
    scores: &Tensor,
    old_log_probs: &Tensor,
    ref_log_probs: &Tensor,
    estimator: KlEstimator,
    coefficient: f64,
) -> Result<Tensor> {
    let kl = estimator.estimate(&old_log_probs.detach(), &ref_log_probs.detach())?;
    Ok((scores - (kl * coefficient)?)?)
}

/// DAPO's soft overlong penalty as a block: [`dapo_overlong`] of the number of valid tokens is added to the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OverlongPenalty {
    /// Longest response in tokens.
    pub max_len: f64,
    /// Length of the ramp before it in tokens, more than 0.
    pub buffer: f64,
    /// Penalty at `max_len`, 0 or more.
    pub factor: f64,
}

impl Default for OverlongPenalty {
    fn default() -> Self {
        Self { max_len: 8192.0, buffer: 4096.0, factor: 1.0 }
    }
}

impl Block for OverlongPenalty {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(self.max_len > 0.0 && self.max_len.is_finite()) {
            return wrong("max_len", self.max_len, "more than 0");
        }
        if !(self.buffer > 0.0 && self.buffer.is_finite()) {
            return wrong("buffer", self.buffer, "more than 0");
        }
        if !(self.factor >= 0.0 && self.factor.is_finite()) {
            return wrong("factor", self.factor, "0 or more");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("up to -{} over the last {} of {} tokens", self.factor, self.buffer, self.max_len)
    }
}

impl Kind for OverlongPenalty {
    const KIND: &'static str = "overlong_penalty";
}

impl Reward for OverlongPenalty {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let penalty = |len: &f64| dapo_overlong(*len, self.max_len, self.buffer, self.factor);
        let lengths = batch.mask().row_sums();
        let rewards = batch.numbers(REWARDS)?;
        let shaped: Vec<f64> = rewards.iter().zip(&lengths).map(|(r, len)| r + penalty(len)).collect();
        batch.set(REWARDS, shaped)
    }
}
