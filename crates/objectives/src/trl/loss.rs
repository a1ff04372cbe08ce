//! TRL's losses as blocks.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, LOG_PROBS, OLD_ENTROPY, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Regularizer, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::checks::at_least;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::state::State;
use crate::surrogate::{Limits, approx_kl, off_is_zero, smaller, soft_gate};
use crate::table::Table;

/// How the ratio enters the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrlForm {
    /// -min(min(r, delta) A, clamp(r, 1 - low, 1 + high) A).
    Clip,
    /// -sg(min(r, high)) A log p: `epsilon_high` is the cap itself.
    Cispo,
    /// -A sigmoid(tau (r - 1)) 4 / tau.
    Sapo,
    /// -phi A log p, phi = exp(lam + k ln w - lam w); w is the sequence's ratio cut to [1e-8, e^20], (k, lam) = (2, 3)
    /// where A >= 0, else (3, 2).
    Vespo,
}

/// TRL's surrogate: as verl's, but the log-ratio is not clamped and there is no dual clip.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrlSurrogate {
    /// Which.
    pub form: TrlForm,
    /// Lower clip range, 0 to 1.
    pub epsilon_low: f64,
    /// Upper clip range, at least 0; absolute cap for CISPO.
    pub epsilon_high: f64,
    /// Cap on the unclipped ratio, > 0; 0 is none.
    #[serde(with = "off_is_zero")]
    pub delta: Option<f64>,
    /// One ratio per sequence, exp(mean_t d), instead of per token.
    pub sequence_level: bool,
    /// SAPO's temperature for positive advantages, > 0.
    pub tau_pos: f64,
    /// SAPO's temperature for other advantages, > 0.
    pub tau_neg: f64,
}

impl Default for TrlSurrogate {
    fn default() -> Self {
        Self {
            form: TrlForm::Clip,
            epsilon_low: 0.2,
            epsilon_high: 0.2,
            delta: None,
            sequence_level: false,
            tau_pos: 1.0,
            tau_neg: 1.05,
        }
    }
}

/// exp(d), or exp(mean_t d) at every token of the sequence, [B, T].
fn ratio(p: &Tensor, old: &Tensor, mask: &Table, sequence_level: bool) -> Result<Tensor> {
    let d = (p - old.detach())?;
    if !sequence_level {
        return Ok(d.exp()?);
    }
    let lengths: Vec<f64> = mask.row_sums().iter().map(|l| l.max(1.0)).collect();
    let lengths = Tensor::from_vec(lengths, (mask.rows, 1), p.device())?.to_dtype(p.dtype())?;
    let mean = ((d * mask.to_tensor(p)?)?.sum_keepdim(1)? / lengths)?;
    Ok(mean.broadcast_as(p.shape())?.contiguous()?.exp()?)
}

/// VESPO's phi of every token, [B, T].
fn vespo_weights(d: &Table, advantages: &Table, mask: &Table) -> Table {
    let mut phi = advantages.clone();
    for row in 0..mask.rows {
        let valid = d.row(row).iter().zip(mask.row(row)).filter(|(_, m)| **m != 0.0);
        let sum: f64 = valid.map(|(d, m)| d.clamp(-20.0, 20.0) * m).sum();
        let log_w = sum.clamp(1e-8f64.ln(), 20.0);
        let weight = |a: f64| {
            let (k, lam) = if a >= 0.0 { (2.0, 3.0) } else { (3.0, 2.0) };
            (lam + k * log_w - lam * log_w.exp()).exp()
        };
        let (good, bad) = (weight(1.0), weight(-1.0));
        let cells = &mut phi.values[row * mask.cols..(row + 1) * mask.cols];
        cells.iter_mut().for_each(|x| *x = if *x >= 0.0 { good } else { bad });
    }
    phi
}

impl Block for TrlSurrogate {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.epsilon_low) {
            return Err(Error::Setting { name: "epsilon_low", got: self.epsilon_low, expected: "0 to 1" });
        }
        at_least("epsilon_high", self.epsilon_high, 0.0, "0 or more")?;
        at_least("delta", self.delta.unwrap_or(1.0), f64::MIN_POSITIVE, "greater than 0, or 0 for none")?;
        at_least("tau_pos", self.tau_pos, f64::MIN_POSITIVE, "greater than 0")?;
        at_least("tau_neg", self.tau_neg, f64::MIN_POSITIVE, "greater than 0")
    }

    fn describe(&self) -> String {
        let of = if self.sequence_level { " of the sequence" } else { "" };
        let Self { epsilon_low: low, epsilon_high: high, .. } = self;
        match self.form {
            TrlForm::Clip => {
                let cap = self.delta.map_or(String::new(), |d| format!(", unclipped at most {d}"));
                format!("TRL: ratio{of} clipped to [1 - {low}, 1 + {high}]{cap}")
            }
            TrlForm::Cispo => format!("TRL: log p weighted by its ratio{of}, at most {high}"),
            TrlForm::Sapo => {
                format!("TRL: sigmoid gate of the ratio{of} (tau {} / {})", self.tau_pos, self.tau_neg)
            }
            TrlForm::Vespo => "TRL: log p weighted by a gamma shape of the sequence's ratio".into(),
        }
    }
}

impl Kind for TrlSurrogate {
    const KIND: &'static str = "trl";
}

impl Surrogate for TrlSurrogate {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (p, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let a = signals.advantages.to_tensor(&p)?;
        let ratio = ratio(&p, &old, batch.mask(), self.sequence_level)?;
        let per_token = match self.form {
            TrlForm::Clip => {
                let limits = Limits::of(signals, &p, 1.0 - self.epsilon_low, 1.0 + self.epsilon_high)?;
                let capped = match self.delta {
                    Some(delta) => clamp(&ratio, f64::NEG_INFINITY, delta)?,
                    None => ratio.clone(),
                };
                smaller(&(capped * &a)?, &(limits.clamp(&ratio)? * &a)?)?.neg()?
            }
            TrlForm::Cispo => {
                let limits = Limits::of(signals, &p, f64::NEG_INFINITY, self.epsilon_high)?;
                ((limits.clamp(&ratio.detach())? * a)?.neg()? * &p)?
            }
            TrlForm::Sapo => soft_gate(&ratio, &a, (self.tau_pos, self.tau_neg))?,
            TrlForm::Vespo => {
                let d = Table::from_tensor(&(p.detach() - old.detach())?)?;
                let phi = vespo_weights(&d, &signals.advantages, batch.mask()).to_tensor(&p)?;
                ((phi * a)?.neg()? * &p)?
            }
        };
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats: vec![approx_kl(&p, &old)?] })
    }

    fn uses_bounds(&self) -> bool {
        matches!(self.form, TrlForm::Clip | TrlForm::Cispo)
    }
}

/// beta * (exp(x) - x - 1), x = reference - log p, not clamped; optionally times the ratio, which makes the estimate
/// unbiased off-policy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrlKl {
    /// Weight, 0 or more.
    pub beta: f64,
    /// Multiply by the ratio to the policy that sampled.
    pub bias_correction: bool,
    /// That ratio is the sequence's.
    pub sequence_level: bool,
}

impl Default for TrlKl {
    fn default() -> Self {
        Self { beta: 0.01, bias_correction: false, sequence_level: false }
    }
}

impl Block for TrlKl {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![LOG_PROBS, REF_LOG_PROBS];
        needs.extend(self.bias_correction.then_some(OLD_LOG_PROBS));
        needs
    }

    fn validate(&self) -> Result<()> {
        at_least("beta", self.beta, 0.0, "0 or more")
    }

    fn describe(&self) -> String {
        let ratio = if self.bias_correction { ", times the ratio" } else { "" };
        format!("TRL: {} KL to the reference (k3, unclamped{ratio})", self.beta)
    }
}

impl Kind for TrlKl {
    const KIND: &'static str = "trl_kl";
}

impl Regularizer for TrlKl {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        let p = batch.tensor(LOG_PROBS)?;
        let gap = (batch.tensor(REF_LOG_PROBS)?.detach() - &p)?;
        let mut k3 = ((gap.exp()? - &gap)? - 1.0)?;
        if self.bias_correction {
            k3 = (k3 * ratio(&p, &batch.tensor(OLD_LOG_PROBS)?, batch.mask(), self.sequence_level)?)?;
        }
        Ok(Terms::Tokens((k3 * self.beta)?))
    }
}

/// Only the tokens where the policy was least certain teach; the others still count in denominators.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopEntropy {
    /// Share of the batch's tokens with the highest entropy that is kept, 0 to 1.
    pub share: f64,
}

impl Default for TopEntropy {
    fn default() -> Self {
        Self { share: 0.2 }
    }
}

impl Block for TopEntropy {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_ENTROPY]
    }

    fn validate(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.share) {
            return Ok(());
        }
        Err(Error::Setting { name: "share", got: self.share, expected: "0 to 1" })
    }

    fn describe(&self) -> String {
        format!("only the share {} of tokens with the highest entropy", self.share)
    }
}

impl Kind for TopEntropy {
    const KIND: &'static str = "top_entropy";
}

impl TokenRule for TopEntropy {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let (entropy, mask) = (batch.table(OLD_ENTROPY)?, batch.mask());
        let pairs = entropy.values.iter().zip(&mask.values);
        let mut valid: Vec<f64> = pairs.filter(|(_, m)| **m != 0.0).map(|(e, _)| *e).collect();
        valid.sort_by(f64::total_cmp);
        let Some(last) = valid.len().checked_sub(1) else { return Ok(()) };
        let at = (1.0 - self.share) * last as f64;
        let (low, high) = ((at.floor() as usize).min(last), (at.ceil() as usize).min(last));
        let threshold = valid[low] + (valid[high] - valid[low]) * (at - low as f64);
        let weights = signals.weights.values.iter_mut().zip(&entropy.values);
        weights.filter(|(_, e)| **e < threshold).for_each(|(w, _)| *w = 0.0);
        Ok(())
    }
}

/// Sequences with a negative advantage that the policy has moved away from teach nothing more; they still count in
/// denominators.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OffPolicyMask {
    /// Largest mean of old - new log-probability that is kept.
    pub threshold: f64,
}

impl Default for OffPolicyMask {
    fn default() -> Self {
        Self { threshold: 0.1 }
    }
}

impl Block for OffPolicyMask {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        at_least("threshold", self.threshold, f64::MIN, "a finite number")
    }

    fn describe(&self) -> String {
        format!("no bad sequences further off than {} nats per token", self.threshold)
    }
}

impl Kind for OffPolicyMask {
    const KIND: &'static str = "off_policy_mask";
}

impl TokenRule for OffPolicyMask {
    fn update(&self, batch: &Batch, signals: &mut Signals, _state: &State) -> Result<()> {
        let mask = batch.mask();
        let (p, old) = (batch.table(LOG_PROBS)?, batch.table(OLD_LOG_PROBS)?);
        for row in 0..mask.rows {
            let at = row * mask.cols..(row + 1) * mask.cols;
            let valid: Vec<usize> = at.filter(|&i| mask.values[i] != 0.0).collect();
            let gap: f64 = valid.iter().map(|&i| old.values[i] - p.values[i]).sum();
            if gap / valid.len().max(1) as f64 > self.threshold {
                let bad = valid.into_iter().filter(|&i| signals.advantages.values[i] < 0.0);
                bad.for_each(|i| signals.weights.values[i] = 0.0);
            }
        }
        Ok(())
    }
}
