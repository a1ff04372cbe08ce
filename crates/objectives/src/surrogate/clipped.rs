//! The clipped importance ratio of PPO (1707.06347) with asymmetric bounds (DAPO, 2503.14476) and dual clip
//! (1912.09729).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{check_clip, larger, log_ratio, smaller};
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::error::{Error, Result};
use crate::table::Table;

/// Bounds of the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClippedRatio {
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; 0 turns dual clip off.
    #[serde(with = "off_is_zero")]
    pub dual_clip: Option<f64>,
}

impl Default for ClippedRatio {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, dual_clip: Some(3.0) }
    }
}

/// What the clipped surrogate computed.
pub struct ClipOutcome {
    /// Loss per token, [B, T], with gradient.
    pub per_token: Tensor,
    /// 1 where the clipped branch was strictly larger, [B, T].
    pub clipped: Tensor,
    /// 1 where dual clip cut a negative-advantage token, [B, T].
    pub dual_clipped: Tensor,
    /// -d, whose masked mean is the usual estimate of KL(old || new), [B, T].
    pub neg_log_ratio: Tensor,
}

impl ClippedRatio {
    /// l = max(-A r, -A clamp(r, 1 - low, 1 + high)); where A < 0, l = min(l, -A c). All inputs [B, T].
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn loss(
        &self,
        log_probs: &Tensor,
        old_log_probs: &Tensor,
        advantages: &Tensor,
    ) -> Result<ClipOutcome> {
        let edge = |x: f64| Ok::<_, Error>((advantages.ones_like()?.detach() * x)?);
        let (low, high) = (edge(1.0 - self.clip_low)?, edge(1.0 + self.clip_high)?);
        self.loss_between(log_probs, old_log_probs, advantages, &low, &high)
    }

    /// The same with bounds of the ratio for every token, [B, T] each, in place of `clip_low` and `clip_high`.
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn loss_between(
        &self,
        log_probs: &Tensor,
        old_log_probs: &Tensor,
        advantages: &Tensor,
        low: &Tensor,
        high: &Tensor,
    ) -> Result<ClipOutcome> {
        self.loss_of_log_ratio(&log_ratio(log_probs, old_log_probs)?, advantages, low, high)
    }

    /// The same from log-ratios `d` that the caller has limited; all inputs of one shape, [B, T] or [B].
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn loss_of_log_ratio(
        &self,
        d: &Tensor,
        advantages: &Tensor,
        low: &Tensor,
        high: &Tensor,
    ) -> Result<ClipOutcome> {
        self.validate()?;
        let ratio = d.exp()?;
        let negative = advantages.detach().neg()?;
        let plain = (&negative * &ratio)?;
        let bounded = (&negative * clamp_between(&ratio, low, high)?)?;
        let clipped = bounded.gt(&plain)?.to_dtype(plain.dtype())?;
        let worst = larger(&plain, &bounded)?;
        let (per_token, dual_clipped) = match self.dual_clip {
            None => (worst, clipped.zeros_like()?),
            Some(c) => {
                let cap = (&negative * c)?;
                let bad = negative.gt(0.0)?;
                let cut = worst.gt(&cap)?.mul(&bad)?.to_dtype(plain.dtype())?;
                (bad.where_cond(&smaller(&worst, &cap)?, &worst)?, cut)
            }
        };
        Ok(ClipOutcome { per_token, clipped, dual_clipped, neg_log_ratio: d.detach().neg()? })
    }
}

/// `x` inside [low, high], elementwise; the gradient is that of `x` inside (edges included) and 0 outside.
pub(crate) fn clamp_between(x: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
    let bounded = x.lt(low)?.where_cond(&low.detach(), x)?;
    Ok(x.gt(high)?.where_cond(&high.detach(), &bounded)?)
}

impl Block for ClippedRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        check_clip(self.clip_low, self.clip_high)?;
        match self.dual_clip {
            Some(got) if !(got > 1.0 && got.is_finite()) => {
                Err(Error::Setting { name: "dual_clip", got, expected: "greater than 1" })
            }
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let dual = self.dual_clip.map_or(String::new(), |c| format!(", dual clip {c}"));
        format!("clipped ratio [1 - {}, 1 + {}]{dual}", self.clip_low, self.clip_high)
    }
}

impl Kind for ClippedRatio {
    const KIND: &'static str = "clipped_ratio";
}

impl Surrogate for ClippedRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let old = batch.tensor(OLD_LOG_PROBS)?;
        let advantages = signals.advantages.to_tensor(&log_probs)?;
        let outcome = match &signals.bounds {
            None => Self::loss(self, &log_probs, &old, &advantages)?,
            Some((low, high)) => {
                let (low, high) = (low.to_tensor(&log_probs)?, high.to_tensor(&log_probs)?);
                self.loss_between(&log_probs, &old, &advantages, &low, &high)?
            }
        };
        outcome.into_loss()
    }
}

impl ClipOutcome {
    /// For an objective.
    ///
    /// # Errors
    /// Another rank than [B, T].
    pub fn into_loss(self) -> Result<SurrogateLoss> {
        let stats = vec![
            ("clip_frac", Table::from_tensor(&self.clipped)?),
            ("clip_frac_lower", Table::from_tensor(&self.dual_clipped)?),
            ("approx_kl", Table::from_tensor(&self.neg_log_ratio)?),
        ];
        Ok(SurrogateLoss { terms: Terms::Tokens(self.per_token), stats })
    }
}

/// TOML has no null: a number that is absent is written as 0.
pub(crate) mod off_is_zero {
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::ref_option)]
    pub(crate) fn serialize<S: Serializer>(x: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(x.unwrap_or(0.0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        Ok(Some(f64::deserialize(d)?).filter(|&c| c != 0.0))
    }
}
