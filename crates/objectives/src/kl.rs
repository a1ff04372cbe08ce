//! Estimates of the KL divergence from a reference, per token (Schulman's k1, k2, k3; verl `kl_penalty`).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Which estimate, with x = reference log-probability - log-probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KlEstimator {
    /// -x: unbiased, may be negative. Its gradient is not the gradient of the KL.
    #[serde(rename = "k1")]
    K1,
    /// |x|
    #[serde(rename = "abs")]
    Abs,
    /// x^2 / 2: biased, its gradient is right.
    #[serde(rename = "k2")]
    K2,
    /// exp(x) - x - 1, with x cut to +-20 and the result to +-10: a token cut off there has no gradient.
    #[serde(rename = "k3", alias = "low_var_kl")]
    K3,
    /// exp(x) - x - 1 as it is, no cut (TRL and the diffusion trainers).
    #[serde(rename = "k3_unclamped")]
    K3Unclamped,
    /// Value of k1, gradient of k2.
    #[serde(rename = "k1+")]
    K1Plus,
    /// Value of k3, gradient of k2.
    #[serde(rename = "k3+", alias = "low_var_kl+")]
    K3Plus,
}

impl KlEstimator {
    /// Per-token estimate, [B, T], differentiable in `log_probs`.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn estimate(self, log_probs: &Tensor, ref_log_probs: &Tensor) -> Result<Tensor> {
        let x = (ref_log_probs - log_probs)?;
        let k2 = || x.sqr()? * 0.5;
        Ok(match self {
            KlEstimator::K1 => x.neg()?,
            KlEstimator::Abs => x.abs()?,
            KlEstimator::K2 => k2()?,
            KlEstimator::K3 => {
                let x = clamp(&x, -20.0, 20.0)?;
                clamp(&((x.exp()? - &x)? - 1.0)?, -10.0, 10.0)?
            }
            KlEstimator::K3Unclamped => ((x.exp()? - &x)? - 1.0)?,
            KlEstimator::K1Plus => straight_through(&x.neg()?, &k2()?)?,
            KlEstimator::K3Plus => {
                straight_through(&KlEstimator::K3.estimate(log_probs, ref_log_probs)?, &k2()?)?
            }
        })
    }
}

/// The value of `value` with the gradient of `gradient`.
fn straight_through(value: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok(((gradient - gradient.detach())? + value.detach())?)
}

/// min(max(x, low), high) whose gradient is 1 on the closed interval and 0 outside, PyTorch's convention. (candle's own
/// `clamp` splits the gradient at the ends.)
pub(crate) fn clamp(x: &Tensor, low: f64, high: f64) -> Result<Tensor> {
    let inside = x.ge(low)?.mul(&x.le(high)?)?;
    let ends = x.detach().clamp(low, high)?;
    Ok(inside.where_cond(x, &ends)?)
}

/// Keeps the KL near a target by scaling its coefficient (verl `AdaptiveKLController`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// Coefficient now.
    pub coefficient: f64,
    /// Where the KL should be.
    pub target: f64,
    /// Samples over which the coefficient may change by its own size.
    pub horizon: f64,
}

impl AdaptiveKl {
    /// coefficient *= 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon.
    pub fn update(&mut self, kl: f64, samples: f64) {
        let error = (kl / self.target - 1.0).clamp(-0.2, 0.2);
        self.coefficient *= 1.0 + error * samples / self.horizon;
    }
}
