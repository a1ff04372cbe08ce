//! Estimates of the KL divergence from a reference, per token (Schulman's k1, k2, k3; verl `kl_penalty`).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::fused::pointwise;
use crate::table::Table;

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

impl KlEstimator {
    /// `coef` times the estimate; where the mask is 0, the result may be anything.
    ///
    /// # Errors
    /// Shapes differ.
    pub(crate) fn penalty(
        self,
        coef: f64,
        log_probs: &Tensor,
        anchor: &Table,
        mask: &Table,
    ) -> Result<Tensor> {
        // Value and slope in log p; x = anchor - log p.
        let known: fn(f64) -> (f64, f64) = match self {
            KlEstimator::K1 => |x| (-x, 1.0),
            KlEstimator::K2 => |x| (x * x * 0.5, -x),
            KlEstimator::K3 => |x| {
                let inside = x.clamp(-20.0, 20.0);
                let k3 = inside.exp() - inside - 1.0;
                (k3.clamp(-10.0, 10.0), if x == inside && k3 <= 10.0 { 1.0 - inside.exp() } else { 0.0 })
            },
            _ => return Ok((self.estimate(log_probs, &anchor.to_tensor(log_probs)?)? * coef)?),
        };
        let now = Table::from_tensor(&log_probs.detach())?;
        now.same_shape("log_probs", mask)?;
        anchor.same_shape("ref_log_probs", mask)?;
        let (mut values, mut slopes) = (mask.filled(0.0), mask.filled(0.0));
        for (i, _) in mask.values.iter().enumerate().filter(|(_, m)| **m != 0.0) {
            let (value, slope) = known(anchor.values[i] - now.values[i]);
            (values.values[i], slopes.values[i]) = (coef * value, coef * slope);
        }
        pointwise(log_probs, &values.values, &slopes.values)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn a_penalty_is_the_estimate_times_its_weight() {
        let x = [0.0, 0.3, -0.4, 2.0, 2.6, -9.0, -11.5, 19.0, 21.0, -21.0, 20.0, -20.0];
        let anchor = Table { rows: 2, cols: 6, values: x.iter().map(|x| x - 30.0).collect() };
        let like = Tensor::zeros(1, DType::F64, &Device::Cpu).unwrap();
        let p = Var::from_tensor(&anchor.filled(-30.0).to_tensor(&like).unwrap()).unwrap();
        let numbers = |kl: Tensor| {
            let grads = kl.sum_all().unwrap().backward().unwrap();
            let read = |t: &Tensor| Table::from_tensor(&t.detach()).unwrap().values;
            [read(&kl), read(grads.get(p.as_tensor()).unwrap())].concat()
        };
        let all = ["k1", "abs", "k2", "k3", "k1+", "k3+"];
        for estimator in all.map(|name| serde_json::from_str::<KlEstimator>(&format!("\"{name}\"")).unwrap())
        {
            let graph = (estimator.estimate(&p, &anchor.to_tensor(&like).unwrap()).unwrap() * 0.7).unwrap();
            let here = estimator.penalty(0.7, &p, &anchor, &anchor.filled(1.0)).unwrap();
            for (a, b) in numbers(here).iter().zip(numbers(graph)) {
                assert!((a - b).abs() <= 1e-15 * (1.0 + b.abs()), "{estimator:?}: {a} and {b}");
            }
        }
    }
}
