//! Per-token losses whose gradient improves the policy. The gradient flows through `log_probs` only.

mod clipped;
mod kl_cov;
mod preference;
mod sequence;
mod token;
mod value;

pub use clipped::{ClipOutcome, ClippedRatio};
pub(crate) use clipped::{clamp_between, off_is_zero};
pub use kl_cov::{KlCov, kl_cov};
pub use preference::{
    ALIGNED_LOG_PROBS, FDivergence, FreeLoss, PairLogProbs, PairLoss, Preference, ReferenceFree,
};
pub(crate) use preference::{log_sigmoid, relu};
pub use sequence::{GeoMean, Gspo, geo_mean, gspo};
pub(crate) use token::soft_gate;
pub use token::{Cispo, PolicyGradient, Sapo, cispo, gpg, sapo};
pub use value::clipped_value_loss;

use candle_core::Tensor;

use crate::batch::Signals;
use crate::checks::at_least;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::table::Table;

/// d = clamp(log_probs - old_log_probs, -20, 20): beyond that a token has no gradient (verl).
pub(crate) fn log_ratio(log_probs: &Tensor, old_log_probs: &Tensor) -> Result<Tensor> {
    clamp(&(log_probs - old_log_probs.detach())?, -20.0, 20.0)
}

/// What to log as `approx_kl`: -d per token, whose masked mean is the usual estimate of KL(old || new).
pub(crate) fn approx_kl(log_probs: &Tensor, old_log_probs: &Tensor) -> Result<(&'static str, Table)> {
    let (mut now, old) =
        (Table::from_tensor(&log_probs.detach())?, Table::from_tensor(&old_log_probs.detach())?);
    old.same_shape("old_log_probs", &now)?;
    now.values.iter_mut().zip(&old.values).for_each(|(now, old)| *now = (old - *now).clamp(-20.0, 20.0));
    Ok(("approx_kl", now))
}

/// Elementwise maximum; at a tie the gradient goes to `a`. The two branches of a clipped loss have equal gradients at
/// their tie, so this equals PyTorch's even split there.
pub(crate) fn larger(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(b.gt(a)?.where_cond(b, a)?)
}

/// Elementwise minimum; at a tie the gradient goes to `a`.
pub(crate) fn smaller(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(b.lt(a)?.where_cond(b, a)?)
}

/// Bounds of a ratio.
pub(crate) enum Limits {
    /// The same for every token.
    Same(f64, f64),
    /// [B, T] each.
    PerToken(Tensor, Tensor),
}

impl Limits {
    /// Those of the signals, else `low` and `high`.
    pub fn of(signals: &Signals, like: &Tensor, low: f64, high: f64) -> Result<Self> {
        Ok(match &signals.bounds {
            Some((low, high)) => Self::PerToken(low.to_tensor(like)?, high.to_tensor(like)?),
            None => Self::Same(low, high),
        })
    }

    /// `x` inside; gradient 1 inside (edges included), 0 outside.
    pub fn clamp(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Same(low, high) => clamp(x, *low, *high),
            Self::PerToken(low, high) => clamp_between(x, low, high),
        }
    }
}

/// Refuses ranges that no ratio can be clipped to.
pub(crate) fn check_clip(low: f64, high: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&low) {
        return Err(Error::Setting { name: "clip_low", got: low, expected: "0 to 1" });
    }
    at_least("clip_high", high, 0.0, "0 or more")
}
