//! Log-likelihood of soft tokens under the current logits, with gradient.

use candle_core::{D, Device, Tensor};
use efference_ops::token_scores;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kl::clamp;

/// What the perturbed entries are made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Noise {
    /// x = ln q + Gumbel(0, 1): the paper.
    Gumbel {
        /// Noise is cut off below this,
        clamp_low: f64,
        /// and above this.
        clamp_high: f64,
        /// Added to probabilities before their logarithm.
        prob_eps: f64,
        /// Entries of a smaller log-probability do not count.
        mask_log_threshold: f64,
    },
    /// x ~ Gamma(alpha q, 1), whose normalised form is a Dirichlet sample: ablation.
    Dirichlet {
        /// Factor on the concentrations, more than 0.
        alpha: f64,
        /// An entry's log-density is cut off below this,
        clamp_low: f64,
        /// and above this.
        clamp_high: f64,
        /// Entries of a smaller probability do not count.
        prob_threshold: f64,
    },
    /// x ~ N(q, std): ablation.
    Normal {
        /// Standard deviation, more than 0.
        std: f64,
        /// x is cut off this far from q.
        clamp: f64,
        /// Entries of a smaller probability do not count.
        prob_threshold: f64,
    },
}

impl Default for Noise {
    fn default() -> Self {
        Self::Gumbel { clamp_low: -1.5, clamp_high: 3.0, prob_eps: 1e-6, mask_log_threshold: -3.0 }
    }
}

/// Likelihood of soft tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SoftLikelihood {
    /// Which noise made them.
    pub noise: Noise,
}

/// N positions as they were sampled.
#[derive(Clone, Copy, Debug)]
pub struct SoftTokens<'a> {
    /// Ids of the mixtures, [N, K], u32.
    pub ids: &'a Tensor,
    /// Their perturbed entries in the same order, [N, K].
    pub perturbed: &'a Tensor,
    /// The output tokens, [N], u32; they score the discrete positions.
    pub labels: &'a Tensor,
    /// Which positions are ordinary tokens, [N].
    pub discrete: &'a [bool],
}

impl SoftLikelihood {
    /// Refuses settings that no number can be made of.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        let ordered = |low: f64, high: f64| {
            let expected = "below `clamp_high`";
            if low < high { Ok(()) } else { Err(Error::Setting { name: "clamp_low", got: low, expected }) }
        };
        let positive = |name, got: f64| {
            let fine = got > 0.0 && got.is_finite();
            if fine { Ok(()) } else { Err(Error::Setting { name, got, expected: "more than 0" }) }
        };
        match self.noise {
            Noise::Gumbel { clamp_low, clamp_high, prob_eps, .. } => {
                ordered(clamp_low, clamp_high)?;
                positive("prob_eps", prob_eps)
            }
            Noise::Dirichlet { alpha, clamp_low, clamp_high, .. } => {
                ordered(clamp_low, clamp_high)?;
                positive("alpha", alpha)
            }
            Noise::Normal { std, clamp, .. } => {
                positive("std", std)?;
                positive("clamp", clamp)
            }
        }
    }

    /// Log-likelihood of every position, [N], with gradient through `logits` [N, V] (already divided by the
    /// temperature).
    ///
    /// # Errors
    /// Shapes that do not fit, ids outside of the vocabulary, settings out of range.
    pub fn log_probs(&self, logits: &Tensor, tokens: SoftTokens<'_>) -> Result<Tensor> {
        self.validate()?;
        let (n, v) = logits.dims2()?;
        let (_, k) = tokens.ids.dims2()?;
        let shape = |name, got: Vec<usize>, expected: String| Err(Error::Shape { name, got, expected });
        for (name, x) in [("ids", tokens.ids), ("perturbed", tokens.perturbed)] {
            if x.dims() != [n, k] || k == 0 {
                return shape(name, x.dims().to_vec(), format!("[{n}, K], one row per row of the logits"));
            }
        }
        if tokens.discrete.len() != n {
            return shape("discrete", vec![tokens.discrete.len()], format!("[{n}]"));
        }
        let ids: Vec<u32> = tokens.ids.flatten_all()?.to_vec1()?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= v) {
            return Err(Error::Invalid { what: "ids", reason: format!("{id} is outside of {v} tokens") });
        }
        let plain = token_scores(logits, tokens.labels, 1.0)?.log_probs;
        let soft = self.mean_density(&softmax_of(logits, &ids, k)?, tokens.perturbed)?;
        let flags: Vec<u8> = tokens.discrete.iter().map(|&d| u8::from(d)).collect();
        Ok(Tensor::from_vec(flags, n, logits.device())?.where_cond(&plain, &soft)?)
    }

    /// Mean log-density of the entries that count, [N]. `q` [N, K] the renormalised probabilities, with gradient.
    fn mean_density(&self, q: &Tensor, perturbed: &Tensor) -> Result<Tensor> {
        let x = perturbed.detach().to_dtype(q.dtype())?;
        let (density, counts) = match self.noise {
            Noise::Gumbel { clamp_low, clamp_high, prob_eps, mask_log_threshold } => {
                let l = (q + prob_eps)?.log()?;
                let e = clamp(&(x - &l)?, clamp_low, clamp_high)?;
                ((e.neg()? - e.neg()?.exp()?)?, l.gt(mask_log_threshold)?)
            }
            Noise::Dirichlet { alpha, clamp_low, clamp_high, prob_threshold } => {
                let shape = (q * alpha)?;
                // A draw that underflowed: its logarithm must stay finite, or 0 * infinity reaches the gradient.
                let x = x.clamp(1e-30, 3e38)?;
                let f = (((&shape - 1.0)? * x.log()?)? - x)?;
                let f = (f - log_gamma(&shape)?)?;
                (clamp(&f, clamp_low, clamp_high)?, q.gt(prob_threshold)?)
            }
            Noise::Normal { std, clamp: far, prob_threshold } => {
                let d = clamp(&(x - q)?, -far, far)?;
                let scale = std.ln() + 0.5 * std::f64::consts::TAU.ln();
                (((d.sqr()? * (-0.5 / (std * std)))? - scale)?, q.gt(prob_threshold)?)
            }
        };
        // Entries that do not count reach neither the mean nor the gradient, infinite or not.
        let kept = counts.where_cond(&density, &density.zeros_like()?)?;
        let n = counts.to_dtype(q.dtype())?.sum(D::Minus1)?.clamp(1.0, f64::INFINITY)?;
        Ok((kept.sum(D::Minus1)? / n)?)
    }
}

/// softmax over the stored ids of every row, [N, K] with gradient. Equal to the vocabulary's softmax renormalised.
fn softmax_of(logits: &Tensor, ids: &[u32], k: usize) -> Result<Tensor> {
    let (n, v) = logits.dims2()?;
    // Places in the flat logits, which may be more than 32 bits count.
    let place = |(i, &id): (usize, &u32)| (i / k * v) as i64 + i64::from(id);
    let places: Vec<i64> = ids.iter().enumerate().map(place).collect();
    let places = Tensor::from_vec(places, n * k, logits.device())?;
    let z = logits.flatten_all()?.index_select(&places, 0)?.reshape((n, k))?;
    let top = z.detach().max_keepdim(D::Minus1)?;
    let exp = z.broadcast_sub(&top)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?;
    Ok(exp.broadcast_div(&sum)?)
}

/// ln Gamma elementwise for positive numbers; its gradient is digamma.
fn log_gamma(x: &Tensor) -> Result<Tensor> {
    let host = x.detach().to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F64)?;
    let values: Vec<f64> = host.flatten_all()?.to_vec1()?;
    let back = |f: fn(f64) -> f64| -> Result<Tensor> {
        let mapped: Vec<f64> = values.iter().map(|&x| f(x)).collect();
        Ok(Tensor::from_vec(mapped, x.dims(), &Device::Cpu)?.to_device(x.device())?.to_dtype(x.dtype())?)
    };
    let slope = (back(digamma)? * (x - x.detach())?)?;
    Ok((back(ln_gamma)? + slope)?)
}

/// Shifts a positive argument up to 10 or more, where the asymptotic series is exact to the last digits. Below the
/// smallest positive number it would not end well: probabilities that underflowed count as that.
fn shifted(x: f64, mut each: impl FnMut(f64)) -> f64 {
    let mut x = x.max(f64::MIN_POSITIVE);
    while x < 10.0 {
        each(x);
        x += 1.0;
    }
    x
}

/// ln Gamma(x) for x > 0: recurrence and Stirling's series.
fn ln_gamma(x: f64) -> f64 {
    let mut below = 0.0;
    let x = shifted(x, |x| below += x.ln());
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y * (1.0 / 1680.0 - y / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - below
}

/// d/dx ln Gamma(x) for x > 0.
fn digamma(x: f64) -> f64 {
    let mut below = 0.0;
    let x = shifted(x, |x| below += 1.0 / x);
    let y = 1.0 / (x * x);
    let series = y
        * (1.0 / 12.0
            - y * (1.0 / 120.0
                - y * (1.0 / 252.0 - y * (1.0 / 240.0 - y * (1.0 / 132.0 - y * 691.0 / 32760.0)))));
    x.ln() - 0.5 / x - series - below
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Var;
    use proptest::prelude::*;

    fn matrix<const R: usize, const C: usize>(rows: &[[f64; C]; R]) -> Tensor {
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn gamma_functions_at_known_points() {
        let half = 0.5 * std::f64::consts::PI.ln();
        for (x, want) in [(1.0, 0.0), (0.5, half), (5.0, 24f64.ln()), (11.0, 3_628_800f64.ln())] {
            assert!((ln_gamma(x) - want).abs() < 1e-13, "{x}");
        }
        let euler = 0.577_215_664_901_532_9;
        for (x, want) in [(1.0, -euler), (0.5, -euler - 2.0 * 2f64.ln()), (2.0, 1.0 - euler)] {
            assert!((digamma(x) - want).abs() < 1e-13, "{x}");
        }
        assert!(ln_gamma(0.0).is_finite());
    }

    /// Discrete rows read the vocabulary and soft rows the stored ids; masked or absurd entries never make a NaN.
    #[test]
    fn rows_of_both_kinds_and_no_nan() {
        let logits =
            Var::from_tensor(&matrix(&[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [-900.0, 0.0, 900.0]])).unwrap();
        let ids = Tensor::new(&[[2u32, 1], [2, 0], [0, 1]], &Device::Cpu).unwrap();
        let perturbed = matrix(&[[0.3, -0.9], [0.3, 0.0], [f64::NEG_INFINITY, 0.2]]);
        let labels = Tensor::new(&[2u32, 2, 2], &Device::Cpu).unwrap();
        for noise in [
            Noise::default(),
            Noise::Dirichlet { alpha: 1.0, clamp_low: -5.0, clamp_high: 3.0, prob_threshold: 0.05 },
            Noise::Normal { std: 0.05, clamp: 0.15, prob_threshold: 0.05 },
        ] {
            let tokens = SoftTokens {
                ids: &ids,
                perturbed: &perturbed,
                labels: &labels,
                discrete: &[false, true, false],
            };
            let log_probs = SoftLikelihood { noise }.log_probs(logits.as_tensor(), tokens).unwrap();
            let values: Vec<f64> = log_probs.to_vec1().unwrap();
            let plain = 2.0 - (1.0 + 1f64.exp() + 2f64.exp()).ln();
            assert!((values[1] - plain).abs() < 1e-12);
            let grads = log_probs.sum_all().unwrap().backward().unwrap();
            let grad = grads.get(logits.as_tensor()).unwrap().flatten_all().unwrap();
            let grad: Vec<f64> = grad.to_vec1().unwrap();
            assert!(grad.iter().all(|x| x.is_finite()), "{noise:?}: {grad:?}");
        }
        let far = Tensor::new(&[[3u32, 1], [2, 0], [2, 1]], &Device::Cpu).unwrap();
        let tokens = SoftTokens { ids: &far, perturbed: &perturbed, labels: &labels, discrete: &[false; 3] };
        let refused =
            SoftLikelihood::default().log_probs(logits.as_tensor(), tokens).unwrap_err().to_string();
        assert!(refused.contains("ids"), "{refused}");
    }

    proptest! {
        /// A shift of all logits changes nothing: the gradient of a row sums to 0.
        #[test]
        fn a_shift_of_the_logits_changes_nothing(
            z in proptest::collection::vec(-2.0f64..2.0, 4),
            g in proptest::collection::vec(-3.0f64..2.0, 3),
        ) {
            let logits = Var::from_tensor(&Tensor::from_slice(&z, (1, 4), &Device::Cpu).unwrap()).unwrap();
            let ids = Tensor::new(&[[3u32, 0, 1]], &Device::Cpu).unwrap();
            let perturbed = Tensor::from_slice(&g, (1, 3), &Device::Cpu).unwrap();
            let labels = Tensor::new(&[3u32], &Device::Cpu).unwrap();
            let tokens = SoftTokens { ids: &ids, perturbed: &perturbed, labels: &labels, discrete: &[false] };
            let log_probs = SoftLikelihood::default().log_probs(logits.as_tensor(), tokens).unwrap();
            let grads = log_probs.sum_all().unwrap().backward().unwrap();
            let grad: Vec<f64> = grads.get(logits.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            prop_assert!(grad.iter().sum::<f64>().abs() < 1e-10 && grad[2] == 0.0);
        }
    }
}
