//! Per-token losses whose gradient improves the policy. The gradient flows through `log_probs` only.

mod clipped;
mod others;
mod preference;
mod value;

pub(crate) use clipped::clamp_between;
pub use clipped::{ClipOutcome, ClippedRatio};
pub use others::{cispo, geo_mean, gpg, gspo, kl_cov, sapo};
pub(crate) use preference::relu;
pub use preference::{
    ALIGNED_LOG_PROBS, FDivergence, FreeLoss, PairLogProbs, PairLoss, Preference, ReferenceFree,
};
pub use value::{ClippedValue, OLD_VALUES, clipped_value_loss};

use candle_core::Tensor;

use crate::error::Result;
use crate::kl::clamp;

/// d = clamp(log_probs - old_log_probs, -20, 20): beyond that a token has no gradient (verl).
pub(crate) fn log_ratio(log_probs: &Tensor, old_log_probs: &Tensor) -> Result<Tensor> {
    clamp(&(log_probs - old_log_probs.detach())?, -20.0, 20.0)
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
