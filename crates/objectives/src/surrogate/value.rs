//! The critic's loss, clipped around its rollout-time prediction (verl `compute_value_loss`), and the returns that it
//! learns.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::check_at_least;
use crate::advantage::{Gae, gae};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, Signals, TOKEN_REWARDS, VALUES};
use crate::block::{Block, Kind, Regularizer, Terms, TokenRule};
use crate::error::{Error, Result};
use crate::fused::pointwise;
use crate::state::State;
use crate::table::Table;

/// The critic's values now, with gradient; [`VALUES`] are those of the rollout.
pub const VALUE_PREDICTIONS: Input =
    Input::new("value_predictions", "[B, T]", "a critic's value of every position now, with gradient");
/// What the critic should have said.
pub const RETURNS: Input = Input::new("returns", "[B, T]", "returns that the critic learns");

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
    let now = Table::from_tensor(&values.detach())?;
    let (old, returns) = (Table::from_tensor(&old.detach())?, Table::from_tensor(&returns.detach())?);
    old.same_shape("values", &now)?;
    returns.same_shape("returns", &now)?;
    let (mut losses, mut slopes, mut cut) = (now.filled(0.0), now.filled(0.0), now.filled(0.0));
    for (i, &v) in now.values.iter().enumerate() {
        let (before, target) = (old.values[i], returns.values[i]);
        let (plain, near) = (v - target, v.max(before - range).min(before + range) - target);
        let further = near * near > plain * plain;
        // Only a value outside of the range can be further off inside: it has no slope.
        losses.values[i] = 0.5 * if further { near * near } else { plain * plain };
        slopes.values[i] = if further { 0.0 } else { plain };
        cut.values[i] = f64::from(u8::from(further));
    }
    Ok((pointwise(values, &losses.values, &slopes.values)?, cut.to_tensor(values)?))
}

/// GAE's returns, A + V before whitening, for [`ValueLoss`]. Use the settings of the advantage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Returns {
    /// Discount per token.
    pub gamma: f64,
    /// Trace decay.
    pub lambda: f64,
}

impl Default for Returns {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 1.0 }
    }
}

impl Block for Returns {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, VALUES]
    }

    fn gives(&self) -> Vec<Input> {
        vec![RETURNS]
    }

    fn describe(&self) -> String {
        format!("returns of GAE (gamma {}, lambda {})", self.gamma, self.lambda)
    }
}

impl Kind for Returns {
    const KIND: &'static str = "gae_returns";
}

impl TokenRule for Returns {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let settings = Gae { gamma: self.gamma, lambda: self.lambda, whiten: false };
        let (_, returns) = gae(&batch.table(TOKEN_REWARDS)?, &batch.table(VALUES)?, batch.mask(), &settings)?;
        signals.extra.insert(RETURNS.name.into(), returns);
        Ok(())
    }
}

/// coef * the clipped value loss, for a critic that is trained together with the policy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValueLoss {
    /// Weight, 0 or more.
    pub coef: f64,
    /// How far a value may profit from moving away from that of the rollout, 0 or more.
    pub clip: f64,
    /// Aggregation, where it is not the surrogate's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
}

impl Default for ValueLoss {
    fn default() -> Self {
        Self { coef: 1.0, clip: 0.5, aggregation: None }
    }
}

impl Block for ValueLoss {
    fn needs(&self) -> Vec<Input> {
        vec![VALUE_PREDICTIONS, VALUES, RETURNS]
    }

    fn validate(&self) -> Result<()> {
        check_at_least("coef", self.coef, 0.0, "0 or more")?;
        check_at_least("clip", self.clip, 0.0, "0 or more")
    }

    fn describe(&self) -> String {
        format!("{} value loss, clipped at {}", self.coef, self.clip)
    }
}

impl Kind for ValueLoss {
    const KIND: &'static str = "value_loss";
}

impl Regularizer for ValueLoss {
    fn terms(&self, batch: &Batch, signals: &Signals, _state: &State) -> Result<Terms> {
        let values = batch.tensor(VALUE_PREDICTIONS)?;
        let returns = match signals.extra.get(RETURNS.name) {
            Some(returns) => returns.to_tensor(&values)?,
            None => batch.tensor(RETURNS)?,
        };
        let old = batch.tensor(VALUES)?.to_dtype(values.dtype())?;
        let (per_token, _) = clipped_value_loss(&values, &old, &returns, self.clip)?;
        Ok(Terms::Tokens((per_token * self.coef)?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        self.aggregation
    }
}
