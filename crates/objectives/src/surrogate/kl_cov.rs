//! KL-Cov (2505.22617): a few tokens, those whose advantage and log-probability co-vary most, drive the entropy down;
//! they alone are held back, and nothing is clipped. verl's form.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::approx_kl;
use crate::advantage::masked_mean;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::checks::at_least;
use crate::error::{Error, Result};
use crate::table::Table;

/// Settings of KL-Cov.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlCov {
    /// Share of the update's valid tokens that are held back, 0 to 1; at least one token is.
    pub share: f64,
    /// Weight of |log p - log p_old| on them, 0 or more.
    pub kl_coef: f64,
}

impl Default for KlCov {
    fn default() -> Self {
        Self { share: 2e-4, kl_coef: 1.0 }
    }
}

/// Unclipped -A r, plus `kl_coef` |log p - log p_old| on the `share` of valid tokens (at least one) with the largest
/// (A - mean A)(log p - mean log p). Inputs and result [B, T].
///
/// # Errors
/// Shapes that differ.
pub fn kl_cov(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    share: f64,
    kl_coef: f64,
) -> Result<Tensor> {
    let raw = (log_probs - old_log_probs.detach())?;
    let negative = advantages.detach().neg()?;
    let plain = (negative * raw.exp()?)?;
    let (a, p) = (Table::from_tensor(&advantages.detach())?, Table::from_tensor(&log_probs.detach())?);
    let (mean_a, mean_p) = (masked_mean(&a, mask)?, masked_mean(&p, mask)?);
    let covariance = |i: usize| (a.values[i] - mean_a) * (p.values[i] - mean_p);
    let mut valid: Vec<(f64, usize)> =
        (0..mask.values.len()).filter(|&i| mask.values[i] > 0.0).map(|i| (covariance(i), i)).collect();
    let take = ((valid.len() as f64 * share) as usize).max(1).min(valid.len());
    let mut chosen = mask.filled(0.0);
    if take > 0 {
        // Equal covariances in order of place, as a stable sort would leave them.
        valid.select_nth_unstable_by(take - 1, |x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
        valid[..take].iter().for_each(|&(_, i)| chosen.values[i] = kl_coef);
    }
    Ok((plain + (raw.abs()? * chosen.to_tensor(log_probs)?)?)?)
}

impl Block for KlCov {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn batch_wide(&self) -> Option<&'static str> {
        Some("the tokens that are held back are the largest covariances of the update")
    }

    fn validate(&self) -> Result<()> {
        at_least("kl_coef", self.kl_coef, 0.0, "0 or more")?;
        if (0.0..=1.0).contains(&self.share) {
            return Ok(());
        }
        Err(Error::Setting { name: "share", got: self.share, expected: "0 to 1" })
    }

    fn describe(&self) -> String {
        let Self { share, kl_coef } = self;
        format!(
            "unclipped ratio, {kl_coef} |log-ratio| on the share {share} of tokens with the largest covariance"
        )
    }
}

impl Kind for KlCov {
    const KIND: &'static str = "kl_cov";
}

impl Surrogate for KlCov {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (p, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let advantages = signals.advantages.to_tensor(&p)?;
        let per_token = kl_cov(&p, &old, &advantages, batch.mask(), self.share, self.kl_coef)?;
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats: vec![approx_kl(&p, &old)?] })
    }
}
