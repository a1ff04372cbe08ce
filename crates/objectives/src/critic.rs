//! What a critic learns: targets of its values, and the loss that pulls them there.
//!
//! [`ValueTargets`] makes returns once per batch, [`ClippedValue`] regresses on them: beside a policy loss as a
//! regulariser, or alone as the surrogate of an objective that trains nothing but the critic.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::advantage::{Gae, gae};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, RETURNS, Signals, TOKEN_REWARDS, VALUE_PREDICTIONS, VALUES, keep_where};
use crate::block::{Block, Kind, Regularizer, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::checks::unit;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::clipped_value_loss;
use crate::table::Table;

/// Name among [`Signals::extra`] of the factor on every position's value loss.
const WEIGHTS: &str = "value_weights";

/// Index of the last valid token of a row.
pub(crate) fn last_valid(mask: &[f64]) -> Option<usize> {
    mask.iter().rposition(|&m| m != 0.0)
}

/// 1 on all positions up to the one after the last valid token, [B, T]. That is the first position of a row without a
/// valid token.
pub fn one_longer(mask: &Table) -> Table {
    let row = |i: usize| {
        let end = last_valid(mask.row(i)).map_or(0, |last| last + 1);
        (0..mask.cols).map(move |t| f64::from(u8::from(t <= end)))
    };
    Table { values: (0..mask.rows).flat_map(row).collect(), ..*mask }
}

/// Returns for the critic: lambda-returns of `token_rewards` and `values`, A + V before any whitening.
///
/// Over valid tokens as in verl; with `one_longer` over all positions as in TRL, where the reward of an outcome
/// stands one position after the last token and that position's value is learnt as well. Give `values` as numbers
/// then: a tensor is cleaned outside of the mask.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValueTargets {
    /// Discount per token, 0 to 1.
    pub gamma: f64,
    /// Trace decay, 0 to 1; 1 makes Monte-Carlo returns.
    pub lambda: f64,
    /// Whether the position after the last token counts as well.
    pub one_longer: bool,
}

impl Default for ValueTargets {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 1.0, one_longer: false }
    }
}

impl Block for ValueTargets {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, VALUES]
    }

    fn gives(&self) -> Vec<Input> {
        vec![RETURNS]
    }

    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)
    }

    fn describe(&self) -> String {
        format!("critic's targets: lambda-returns (gamma {}, lambda {})", self.gamma, self.lambda)
    }
}

impl Kind for ValueTargets {
    const KIND: &'static str = "value_targets";
}

impl TokenRule for ValueTargets {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let mask = batch.mask();
        let (rewards, values) = (batch.table(TOKEN_REWARDS)?, batch.table(VALUES)?);
        let settings = Gae { gamma: self.gamma, lambda: self.lambda, whiten: false };
        let (learnt, returns) = if self.one_longer {
            let learnt = one_longer(mask);
            let values = within(&values, &learnt)?;
            (learnt, gae(&rewards, &values, &mask.filled(1.0), &settings)?.1)
        } else {
            (mask.clone(), gae(&rewards, &values, mask, &settings)?.1)
        };
        let count = |x: &Table| x.values.iter().filter(|&&m| m != 0.0).count() as f64;
        // The aggregation divides by valid tokens; the critic's mean is over its own positions.
        let factor = count(mask) / count(&learnt).max(1.0);
        let weights = learnt.values.iter().map(|m| m * factor).collect();
        signals.extra.insert(RETURNS.name.into(), returns);
        signals.extra.insert(WEIGHTS.into(), Table { values: weights, ..*mask });
        Ok(())
    }
}

/// `x` where the mask is not 0, else 0.
pub(crate) fn within(x: &Table, mask: &Table) -> Result<Table> {
    x.same_shape("values", mask)?;
    let pairs = x.values.iter().zip(&mask.values);
    Ok(Table { values: pairs.map(|(x, m)| if *m == 0.0 { 0.0 } else { *x }).collect(), ..*x })
}

/// coef * 0.5 max((v - R)^2, (clamp(v, v_old - clip, v_old + clip) - R)^2), gradient through the values only. R are
/// the returns of a [`ValueTargets`] before it, else those of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClippedValue {
    /// Factor, 0 or more.
    pub coef: f64,
    /// How far a value may move from its rollout-time prediction and still profit; 0 turns clipping off.
    pub clip: f64,
    /// Aggregation as a regulariser, where it is not the surrogate's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
}

impl Default for ClippedValue {
    fn default() -> Self {
        Self { coef: 1.0, clip: 0.2, aggregation: None }
    }
}

impl ClippedValue {
    /// Loss of every valid token, [B, T] with gradient, and 1 where the clipped branch was larger.
    ///
    /// # Errors
    /// A missing input, shapes that differ.
    pub fn per_token(&self, batch: &Batch, signals: &Signals) -> Result<(Tensor, Table)> {
        let mask = batch.mask();
        let predicted = batch.tensor(VALUE_PREDICTIONS)?;
        if predicted.dims() != [mask.rows, mask.cols] {
            let expected = format!("[{}, {}]", mask.rows, mask.cols);
            return Err(Error::Shape {
                name: VALUE_PREDICTIONS.name,
                got: predicted.dims().to_vec(),
                expected,
            });
        }
        let weights = signals.extra.get(WEIGHTS).unwrap_or(mask);
        weights.same_shape(WEIGHTS, mask)?;
        let returns = match signals.extra.get(RETURNS.name) {
            Some(returns) => returns.clone(),
            None => batch.table(RETURNS)?,
        };
        returns.same_shape(RETURNS.name, mask)?;
        let predicted = keep_where(&predicted, weights)?;
        let (old, returns) = (batch.table(VALUES)?, within(&returns, weights)?.to_tensor(&predicted)?);
        let old = within(&old, weights)?.to_tensor(&predicted)?;
        let (loss, cut) = if self.clip > 0.0 {
            clipped_value_loss(&predicted, &old, &returns, self.clip)?
        } else {
            (((predicted - &returns)?.sqr()? * 0.5)?, returns.zeros_like()?)
        };
        let loss = ((loss * weights.to_tensor(&returns)?)? * self.coef)?;
        Ok((fold(&loss, weights, mask)?, Table::from_tensor(&cut)?))
    }
}

/// Adds the loss of the position after a row's last token to that token, where the aggregation sees it.
fn fold(loss: &Tensor, weights: &Table, mask: &Table) -> Result<Tensor> {
    let mut last = mask.filled(0.0);
    for i in 0..mask.rows {
        if let Some(t) = last_valid(mask.row(i))
            && t + 1 < mask.cols
            && weights.row(i)[t + 1] != 0.0
        {
            last.values[i * mask.cols + t] = 1.0;
        }
    }
    if mask.cols < 2 || !last.values.contains(&1.0) {
        return Ok(loss.clone());
    }
    let next = loss.narrow(1, 1, mask.cols - 1)?.pad_with_zeros(1, 0, 1)?;
    Ok((loss + (next * last.to_tensor(loss)?)?)?)
}

impl Block for ClippedValue {
    fn needs(&self) -> Vec<Input> {
        vec![VALUE_PREDICTIONS, VALUES, RETURNS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("coef", self.coef), ("clip", self.clip)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{} squared value error, clip {}", self.coef, self.clip)
    }
}

impl Kind for ClippedValue {
    const KIND: &'static str = "clipped_value";
}

impl Surrogate for ClippedValue {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (loss, cut) = self.per_token(batch, signals)?;
        Ok(SurrogateLoss { terms: Terms::Tokens(loss), stats: vec![("clip_frac", cut)] })
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

impl Regularizer for ClippedValue {
    fn terms(&self, batch: &Batch, signals: &Signals, _state: &State) -> Result<Terms> {
        Ok(Terms::Tokens(self.per_token(batch, signals)?.0))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        self.aggregation
    }
}
