//! Surrogates whose ratio belongs to the whole sequence: GSPO (2507.18071) and GMPO (2507.20673), in verl's forms.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Limits, approx_kl, check_clip, larger, smaller};
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::error::Result;
use crate::kl::clamp;
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
    let limits = Limits::Same(1.0 - clip_low, 1.0 + clip_high);
    Ok(gspo_within(log_probs, old_log_probs, advantages, mask, &limits)?.0)
}

/// Loss per token, and 1 where the clipped branch was strictly larger.
fn gspo_within(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    limits: &Limits,
) -> Result<(Tensor, Tensor)> {
    let d = Table::from_tensor(&(log_probs.detach() - old_log_probs.detach())?)?;
    d.same_shape("log_probs", mask)?;
    let mean = |row: usize| {
        let pairs = d.row(row).iter().zip(mask.row(row)).filter(|(_, m)| **m != 0.0);
        pairs.map(|(d, m)| d * m).sum::<f64>() / mask.row(row).iter().sum::<f64>().max(1.0)
    };
    let means: Vec<f64> = (0..mask.rows).map(mean).collect();
    let sequence =
        Tensor::from_vec(means, (mask.rows, 1), log_probs.device())?.to_dtype(log_probs.dtype())?;
    let s = (log_probs - log_probs.detach())?.broadcast_add(&sequence)?;
    let ratio = clamp(&s, f64::NEG_INFINITY, 10.0)?.exp()?;
    let negative = advantages.detach().neg()?;
    let plain = (&negative * &ratio)?;
    let bounded = (&negative * limits.clamp(&ratio)?)?;
    let clipped = bounded.gt(&plain)?.to_dtype(plain.dtype())?;
    Ok((larger(&plain, &bounded)?, clipped))
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
        let (p, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let advantages = signals.advantages.to_tensor(&p)?;
        let limits = Limits::of(signals, &p, 1.0 - self.clip_low, 1.0 + self.clip_high)?;
        let (per_token, clipped) = gspo_within(&p, &old, &advantages, batch.mask(), &limits)?;
        let stats = vec![("clip_frac", Table::from_tensor(&clipped)?), approx_kl(&p, &old)?];
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats })
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
        super::check_at_least("clip_low", self.clip_low, 0.0, "0 or more")?;
        super::check_at_least("clip_high", self.clip_high, 0.0, "0 or more")
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
}
