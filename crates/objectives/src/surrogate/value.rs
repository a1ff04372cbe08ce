//! The critic's loss, clipped around its rollout-time prediction (verl `compute_value_loss`).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::larger;
use crate::advantage::RETURNS;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, Signals, VALUES};
use crate::block::{Block, Kind, Regularizer, Terms};
use crate::error::{Error, Result};
use crate::state::State;

/// The critic's rollout-time values, where [`VALUES`] are its current ones with gradient.
pub const OLD_VALUES: Input =
    Input::new("old_values", "[B, T]", "critic's values when the batch was sampled");

/// Per-token 0.5 max((v - R)^2, (clamp(v, v_old - c, v_old + c) - R)^2), and 1 where the clipped branch was strictly
/// larger; both [B, T]. Gradient through `values` only.
///
/// # Errors
/// A negative range, shapes that differ.
pub fn clipped_value_loss(
    values: &Tensor,
    old: &Tensor,
    returns: &Tensor,
    range: f64,
) -> Result<(Tensor, Tensor)> {
    if !(range >= 0.0 && range.is_finite()) {
        return Err(Error::Setting { name: "value_clip", got: range, expected: "0 or more" });
    }
    let old = old.detach();
    let (low, high) = ((&old - range)?, (&old + range)?);
    let inside = values.ge(&low)?.mul(&values.le(&high)?)?;
    let ends = values.detach().maximum(&low)?.minimum(&high)?;
    let near = inside.where_cond(values, &ends)?;
    let returns = returns.detach();
    let plain = (values - &returns)?.sqr()?;
    let clipped = (near - &returns)?.sqr()?;
    let cut = clipped.gt(&plain)?.to_dtype(plain.dtype())?;
    Ok(((larger(&plain, &clipped)? * 0.5)?, cut))
}

/// The critic's loss as a regulariser: coef 0.5 max((v - R)^2, (clamp(v, v_old - c, v_old + c) - R)^2), token mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClippedValue {
    /// Weight, 0 or more; 2 undoes the 0.5.
    pub coef: f64,
    /// How far a value may move from its rollout-time prediction with profit, 0 or more.
    pub clip_range: f64,
}

impl Default for ClippedValue {
    fn default() -> Self {
        Self { coef: 0.5, clip_range: 0.2 }
    }
}

impl Block for ClippedValue {
    fn needs(&self) -> Vec<Input> {
        vec![VALUES, OLD_VALUES, RETURNS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("coef", self.coef), ("clip_range", self.clip_range)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{} value loss, clipped at {}", self.coef, self.clip_range)
    }
}

impl Kind for ClippedValue {
    const KIND: &'static str = "clipped_value";
}

impl Regularizer for ClippedValue {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        let values = batch.tensor(VALUES)?;
        let constant = |input| batch.table(input)?.to_tensor(&values);
        let (per_token, _) =
            clipped_value_loss(&values, &constant(OLD_VALUES)?, &constant(RETURNS)?, self.clip_range)?;
        Ok(Terms::Tokens((per_token * self.coef)?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        Some(Aggregation::TokenMean)
    }
}
