//! Rewards made of other rewards.

use crate::error::Result;
use crate::kl::KlEstimator;
use crate::table::Table;
use candle_core::Tensor;

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
