//! Token surrogates without a hard clip of the objective: CISPO (2506.13585), SAPO (2511.20347) and plain REINFORCE, in
//! verl's forms. All inputs and outputs [B, T].

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Limits, approx_kl, log_ratio};
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::checks::at_least;
use crate::error::{Error, Result};
use crate::table::Table;

/// CISPO: the clipped ratio weighs log p without gradient, so clipped tokens still teach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cispo {
    /// The weight is at least 1 - low. 0 to 1; 1 leaves it free below.
    pub clip_low: f64,
    /// The weight is at most 1 + high. At least 0.
    pub clip_high: f64,
}

impl Default for Cispo {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.28 }
    }
}

/// -sg(clamp(r, 1 - low, 1 + high)) A log p.
///
/// # Errors
/// Shapes that differ.
pub fn cispo(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    (clip_low, clip_high): (f64, f64),
) -> Result<Tensor> {
    let limits = Limits::Same(1.0 - clip_low, 1.0 + clip_high);
    cispo_within(log_probs, &log_ratio(&log_probs.detach(), old_log_probs)?.exp()?, advantages, &limits)
}

fn cispo_within(log_probs: &Tensor, ratio: &Tensor, advantages: &Tensor, limits: &Limits) -> Result<Tensor> {
    let weight = (limits.clamp(ratio)? * advantages.detach())?;
    Ok((weight.neg()? * log_probs)?)
}

impl Block for Cispo {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        super::check_clip(self.clip_low, self.clip_high)
    }

    fn describe(&self) -> String {
        format!("log p weighted by its ratio, clipped to [1 - {}, 1 + {}]", self.clip_low, self.clip_high)
    }
}

impl Kind for Cispo {
    const KIND: &'static str = "cispo";
}

impl Surrogate for Cispo {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (p, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let ratio = log_ratio(&p.detach(), &old)?.exp()?;
        let limits = Limits::of(signals, &p, 1.0 - self.clip_low, 1.0 + self.clip_high)?;
        let per_token = cispo_within(&p, &ratio, &signals.advantages.to_tensor(&p)?, &limits)?;
        let clipped = limits.clamp(&ratio)?.ne(&ratio)?.to_dtype(p.dtype())?;
        let stats = vec![("clip_frac", Table::from_tensor(&clipped)?), approx_kl(&p, &old)?];
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats })
    }

    fn uses_bounds(&self) -> bool {
        true
    }
}

/// SAPO: a soft gate in place of the clip.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sapo {
    /// Temperature where the advantage is positive, > 0.
    pub tau_pos: f64,
    /// Temperature elsewhere, > 0; the larger, the sooner a token is let go.
    pub tau_neg: f64,
}

impl Default for Sapo {
    fn default() -> Self {
        Self { tau_pos: 1.0, tau_neg: 1.05 }
    }
}

/// -A sigmoid(tau (r - 1)) 4 / tau with a temperature for each sign of the advantage.
///
/// # Errors
/// A temperature that is not positive, shapes that differ.
pub fn sapo(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    (tau_pos, tau_neg): (f64, f64),
) -> Result<Tensor> {
    soft_gate(&log_ratio(log_probs, old_log_probs)?.exp()?, advantages, (tau_pos, tau_neg))
}

/// The same on a ratio.
pub(crate) fn soft_gate(
    ratio: &Tensor,
    advantages: &Tensor,
    (tau_pos, tau_neg): (f64, f64),
) -> Result<Tensor> {
    if !(tau_pos > 0.0 && tau_neg > 0.0) {
        return Err(Error::Setting { name: "tau", got: tau_pos.min(tau_neg), expected: "greater than 0" });
    }
    let advantages = advantages.detach();
    let ones = advantages.ones_like()?;
    let tau = advantages.gt(0.0)?.where_cond(&(&ones * tau_pos)?, &(&ones * tau_neg)?)?;
    let gate = (((ratio - 1.0)? * &tau)?.neg()?.exp()? + 1.0)?.recip()?;
    Ok((advantages.neg()? * ((gate * 4.0)? / tau)?)?)
}

impl Block for Sapo {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        at_least("tau_pos", self.tau_pos, f64::MIN_POSITIVE, "greater than 0")?;
        at_least("tau_neg", self.tau_neg, f64::MIN_POSITIVE, "greater than 0")
    }

    fn describe(&self) -> String {
        format!("sigmoid gate of the ratio (tau {} / {})", self.tau_pos, self.tau_neg)
    }
}

impl Kind for Sapo {
    const KIND: &'static str = "sapo";
}

impl Surrogate for Sapo {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (p, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let advantages = signals.advantages.to_tensor(&p)?;
        let per_token = sapo(&p, &old, &advantages, (self.tau_pos, self.tau_neg))?;
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats: vec![approx_kl(&p, &old)?] })
    }
}

/// REINFORCE: -A log p, without a ratio; right where every batch is used for one update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyGradient {}

/// -A log p.
///
/// # Errors
/// Shapes that differ.
pub fn gpg(log_probs: &Tensor, advantages: &Tensor) -> Result<Tensor> {
    Ok((advantages.detach().neg()? * log_probs)?)
}

impl Block for PolicyGradient {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS]
    }

    fn describe(&self) -> String {
        "-A log p".into()
    }
}

impl Kind for PolicyGradient {
    const KIND: &'static str = "policy_gradient";
}

impl Surrogate for PolicyGradient {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let p = batch.tensor(LOG_PROBS)?;
        Ok(Terms::Tokens(gpg(&p, &signals.advantages.to_tensor(&p)?)?).into())
    }
}
