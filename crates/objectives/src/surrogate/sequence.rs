//! Surrogates whose ratio belongs to the whole sequence: GSPO (2507.18071) and GMPO (2507.20673), in verl's forms.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Limits, approx_kl, check_clip, smaller};
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::error::Result;
use crate::fused::pointwise;
use crate::table::Table;

/// GSPO: one ratio per sequence, whose gradient is spread over the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gspo {
    /// Ratios below 1 - low do not profit further. 0 to 1; far smaller than for token ratios.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
}

impl Default for Gspo {
    fn default() -> Self {
        Self { clip_low: 3e-4, clip_high: 4e-4 }
    }
}

/// s = sg(mean_t d) + log p - sg(log p), at most 10; max(-A exp(s), -A clamp(exp(s), 1 - low, 1 + high)). Inputs and
/// result [B, T].
///
/// # Errors
/// Shapes that differ.
pub fn gspo(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    (clip_low, clip_high): (f64, f64),
) -> Result<Tensor> {
    let advantages = Table::from_tensor(&advantages.detach())?;
    let old = Table::from_tensor(&old_log_probs.detach())?;
    let (low, high) = (1.0 - clip_low, 1.0 + clip_high);
    Ok(gspo_within(log_probs, &old, &advantages, mask, |_| (low, high))?.0)
}

/// Loss per token, 1 where the clipped branch was strictly larger, and -d; masked tokens get 0.
fn gspo_within(
    log_probs: &Tensor,
    old: &Table,
    advantages: &Table,
    mask: &Table,
    limits: impl Fn(usize) -> (f64, f64),
) -> Result<(Tensor, Table, Table)> {
    let now = Table::from_tensor(&log_probs.detach())?;
    now.same_shape("log_probs", mask)?;
    old.same_shape("old_log_probs", mask)?;
    advantages.same_shape("advantages", mask)?;
    let (mut values, mut slopes) = (mask.filled(0.0), mask.filled(0.0));
    let (mut clipped, mut gaps) = (mask.filled(0.0), mask.filled(0.0));
    for row in 0..mask.rows {
        let cells = row * mask.cols..(row + 1) * mask.cols;
        let valid = || cells.clone().filter(|&i| mask.values[i] != 0.0);
        let length = mask.row(row).iter().sum::<f64>().max(1.0);
        let mean = valid().map(|i| (now.values[i] - old.values[i]) * mask.values[i]).sum::<f64>() / length;
        // The gradient of s is that of log p, at every token of the sequence; none beyond the cap.
        let ratio = mean.min(10.0).exp();
        let slope = if mean <= 10.0 { ratio } else { 0.0 };
        for i in valid() {
            let (low, high) = limits(i);
            let negative = -advantages.values[i];
            let (plain, bounded) = (negative * ratio, negative * ratio.min(high).max(low));
            let cut = bounded > plain;
            values.values[i] = if cut { bounded } else { plain };
            slopes.values[i] = if cut { 0.0 } else { negative * slope };
            clipped.values[i] = f64::from(u8::from(cut));
            gaps.values[i] = (old.values[i] - now.values[i]).clamp(-20.0, 20.0);
        }
    }
    Ok((pointwise(log_probs, &values.values, &slopes.values)?, clipped, gaps))
}

impl Block for Gspo {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        check_clip(self.clip_low, self.clip_high)
    }

    fn describe(&self) -> String {
        format!("ratio of the sequence, clipped to [1 - {}, 1 + {}]", self.clip_low, self.clip_high)
    }
}

impl Kind for Gspo {
    const KIND: &'static str = "gspo";
}

impl Surrogate for Gspo {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (p, old, mask) = (batch.tensor(LOG_PROBS)?, batch.table(OLD_LOG_PROBS)?, batch.mask());
        let (same_low, same_high) = (1.0 - self.clip_low, 1.0 + self.clip_high);
        if let Some((low, high)) = &signals.bounds {
            low.same_shape("bounds", mask)?;
            high.same_shape("bounds", mask)?;
        }
        let limits = |i: usize| match &signals.bounds {
            Some((low, high)) => (low.values[i], high.values[i]),
            None => (same_low, same_high),
        };
        let (per_token, clipped, gaps) = gspo_within(&p, &old, &signals.advantages, mask, limits)?;
        let stats = vec![("clip_frac", clipped), ("approx_kl", gaps)];
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats })
    }

    fn uses_bounds(&self) -> bool {
        true
    }
}

/// GMPO: the geometric mean of clipped token ratios, one loss per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeoMean {
    /// Smallest log-ratio that still profits, as a positive number.
    pub clip_low: f64,
    /// Largest log-ratio that still profits.
    pub clip_high: f64,
}

impl Default for GeoMean {
    fn default() -> Self {
        Self { clip_low: 0.4, clip_high: 0.4 }
    }
}

/// k = sgn(A) min(sgn(A) d, sgn(A) clamp(d, -low, high)), ratio = exp(sum k m / (L + 1e-8)); the mean over ALL sequences
/// of -mean_m(A) ratio, a scalar. Inputs [B, T].
///
/// # Errors
/// Shapes that differ.
pub fn geo_mean(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    (clip_low, clip_high): (f64, f64),
) -> Result<Tensor> {
    let limits = Limits::Same(-clip_low, clip_high);
    Ok(geo_mean_within(log_probs, old_log_probs, advantages, mask, &limits)?.mean_all()?)
}

/// Loss per sequence, [B]; `limits` are those of the log-ratio.
fn geo_mean_within(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    limits: &Limits,
) -> Result<Tensor> {
    let d = (log_probs - old_log_probs.detach())?;
    let advantages = advantages.detach();
    let sign = advantages.sign()?;
    let k = (&sign * smaller(&(&sign * &d)?, &(&sign * limits.clamp(&d)?)?)?)?;
    let lengths: Vec<f64> = mask.row_sums().iter().map(|l| l + 1e-8).collect();
    let lengths = Tensor::from_vec(lengths, mask.rows, log_probs.device())?.to_dtype(log_probs.dtype())?;
    let mask = mask.to_tensor(log_probs)?;
    let ratio = ((k * &mask)?.sum(1)? / &lengths)?.exp()?;
    let mean_advantage = ((advantages * &mask)?.sum(1)? / &lengths)?;
    Ok((mean_advantage.neg()? * ratio)?)
}

impl Block for GeoMean {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        super::at_least("clip_low", self.clip_low, 0.0, "0 or more")?;
        super::at_least("clip_high", self.clip_high, 0.0, "0 or more")
    }

    fn describe(&self) -> String {
        format!("geometric mean of ratios, log-ratios clipped to [-{}, {}]", self.clip_low, self.clip_high)
    }
}

impl Kind for GeoMean {
    const KIND: &'static str = "geo_mean";
}

impl Surrogate for GeoMean {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (p, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let advantages = signals.advantages.to_tensor(&p)?;
        // Bounds that a rule sets are those of the ratio.
        let limits = match Limits::of(signals, &p, -self.clip_low, self.clip_high)? {
            Limits::PerToken(low, high) => Limits::PerToken(low.log()?, high.log()?),
            same => same,
        };
        let per_sequence = geo_mean_within(&p, &old, &advantages, batch.mask(), &limits)?;
        Ok(SurrogateLoss { terms: Terms::Sequences(per_sequence), stats: vec![approx_kl(&p, &old)?] })
    }

    fn uses_bounds(&self) -> bool {
        true
    }
}
