//! The clipped importance ratio of PPO (1707.06347) with asymmetric bounds (DAPO, 2503.14476) and dual clip
//! (1912.09729).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{larger, log_ratio, smaller};
use crate::error::{Error, Result};
use crate::kl::clamp;

/// Bounds of the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClippedRatio {
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; absent turns dual clip off.
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
        self.validate()?;
        let d = log_ratio(log_probs, old_log_probs)?;
        let ratio = d.exp()?;
        let negative = advantages.detach().neg()?;
        let plain = (&negative * &ratio)?;
        let bounded = (&negative * clamp(&ratio, 1.0 - self.clip_low, 1.0 + self.clip_high)?)?;
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

    pub(crate) fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(0.0..=1.0).contains(&self.clip_low) {
            return wrong("clip_low", self.clip_low, "0 to 1");
        }
        if !(self.clip_high >= 0.0 && self.clip_high.is_finite()) {
            return wrong("clip_high", self.clip_high, "0 or more");
        }
        match self.dual_clip {
            Some(c) if !(c > 1.0 && c.is_finite()) => wrong("dual_clip", c, "greater than 1"),
            _ => Ok(()),
        }
    }
}
