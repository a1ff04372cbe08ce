//! One position of a soft rollout: which tokens, which noise, and what is fed back.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::table::Table;

/// Settings of the rollout's noise. The likelihood assumes `noise_factor` 1 and the same clamp.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GumbelNoise {
    /// Temperature of the mixture, more than 0.
    pub tau: f64,
    /// Factor on the noise.
    pub noise_factor: f64,
    /// Noise is cut off below this,
    pub clamp_low: f64,
    /// and above this.
    pub clamp_high: f64,
    /// Added to probabilities before their logarithm.
    pub prob_eps: f64,
    /// Entries of a smaller log-probability do not count in the logged density.
    pub mask_log_threshold: f64,
}

impl Default for GumbelNoise {
    fn default() -> Self {
        Self {
            tau: 0.1,
            noise_factor: 1.0,
            clamp_low: -1.5,
            clamp_high: 3.0,
            prob_eps: 1e-6,
            mask_log_threshold: -3.0,
        }
    }
}

/// A soft token.
#[derive(Clone, Debug, PartialEq)]
pub struct Perturbed {
    /// Places in the candidates by falling weight (equal weights by falling perturbed entry), [K]. The first is the
    /// output token.
    pub order: Vec<usize>,
    /// Weights of the mixture in that order.
    pub weights: Vec<f64>,
    /// Perturbed log-probabilities in that order.
    pub perturbed: Vec<f64>,
    /// The noise, in the candidates' order.
    pub gumbels: Vec<f64>,
    /// Mean log-density of the noise over entries that count; 0 without any. For logs.
    pub log_prob: f64,
}

/// Top-k, then top-p, each renormalised: ids and probabilities of the K most probable tokens, falling. Entries that
/// top-p cut have probability 0; the token that crosses `top_p` stays. `probs` [V].
pub fn candidates(probs: &[f64], top_k: usize, top_p: f64) -> (Vec<usize>, Vec<f64>) {
    let mut ids: Vec<usize> = (0..probs.len()).collect();
    ids.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
    ids.truncate(top_k);
    let mut p: Vec<f64> = ids.iter().map(|&id| probs[id]).collect();
    renormalise(&mut p);
    let mut before = 0.0;
    for x in &mut p {
        let kept = before <= top_p;
        before += *x;
        if !kept {
            *x = 0.0;
        }
    }
    renormalise(&mut p);
    (ids, p)
}

fn renormalise(p: &mut [f64]) {
    let sum: f64 = p.iter().sum();
    if sum > 0.0 {
        p.iter_mut().for_each(|x| *x /= sum);
    }
}

/// Weights softmax(x / tau).
fn softmax(x: &[f64], tau: f64) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|x| ((x - top) / tau).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// Perturbs candidates of probabilities `probs` [K] with noise from `exponential` [K], draws of Exp(1).
///
/// # Errors
/// Lengths differ, no candidate, a temperature that is not positive.
pub fn perturb(probs: &[f64], exponential: &[f64], settings: &GumbelNoise) -> Result<Perturbed> {
    if exponential.len() != probs.len() || probs.is_empty() {
        let expected = format!("[{}], one per candidate, at least one", probs.len().max(1));
        return Err(Error::Shape { name: "exponential", got: vec![exponential.len()], expected });
    }
    let s = settings;
    check_tau(s.tau)?;
    if s.clamp_low.is_nan() || s.clamp_high.is_nan() || s.clamp_low >= s.clamp_high {
        return Err(Error::Setting { name: "clamp_low", got: s.clamp_low, expected: "below `clamp_high`" });
    }
    let gumbels: Vec<f64> = exponential.iter().map(|e| (-e.ln()).clamp(s.clamp_low, s.clamp_high)).collect();
    let logs: Vec<f64> = probs.iter().map(|p| (p + s.prob_eps).ln()).collect();
    let all: Vec<f64> = logs.iter().zip(&gumbels).map(|(l, g)| l + s.noise_factor * g).collect();
    let weights = softmax(&all, s.tau);
    let mut order: Vec<usize> = (0..probs.len()).collect();
    // The softmax rises with its argument, so this sorts by weight as well, and breaks the ties of underflow.
    order.sort_by(|&a, &b| all[b].total_cmp(&all[a]));
    let kept: Vec<f64> = logs
        .iter()
        .zip(&gumbels)
        .filter(|(l, _)| **l > s.mask_log_threshold)
        .map(|(_, g)| -g - (-g).exp())
        .collect();
    Ok(Perturbed {
        weights: order.iter().map(|&i| weights[i]).collect(),
        perturbed: order.iter().map(|&i| all[i]).collect(),
        log_prob: kept.iter().sum::<f64>() / (kept.len() as f64).max(1.0),
        order,
        gumbels,
    })
}

fn check_tau(tau: f64) -> Result<()> {
    if tau > 0.0 && tau.is_finite() {
        return Ok(());
    }
    Err(Error::Setting { name: "tau", got: tau, expected: "more than 0" })
}

/// Rows whose ids beyond the first are all 0: how the authors tell ordinary tokens from soft ones. Token 0 is a token
/// like others and a single id per row always looks discrete: keep a flag of your own. `ids` [N, K].
pub fn looks_discrete(ids: &Table) -> Vec<bool> {
    (0..ids.rows).map(|i| ids.row(i).iter().skip(1).all(|&id| id == 0.0)).collect()
}

/// Weights of the mixtures that are fed back, [N, K]: softmax(perturbed / tau), the first id alone in discrete rows.
///
/// # Errors
/// Lengths differ, a temperature that is not positive.
pub fn mixture_weights(perturbed: &Table, discrete: &[bool], tau: f64) -> Result<Table> {
    check_tau(tau)?;
    if discrete.len() != perturbed.rows {
        let expected = format!("[{}], one per row", perturbed.rows);
        return Err(Error::Shape { name: "discrete", got: vec![discrete.len()], expected });
    }
    let one_hot = || (0..perturbed.cols).map(|i| f64::from(u8::from(i == 0))).collect();
    let row = |i: usize| if discrete[i] { one_hot() } else { softmax(perturbed.row(i), tau) };
    let values = (0..perturbed.rows).flat_map(row).collect();
    Ok(Table { values, ..*perturbed })
}

/// Input embeddings of soft tokens, [N, E], without gradient: sum_k weights [N, K] times the rows `ids` [N, K] (u32)
/// of `embeddings` [V, E].
///
/// # Errors
/// Shapes that do not fit, ids outside of the table.
pub fn soft_embeddings(embeddings: &Tensor, ids: &Tensor, weights: &Table) -> Result<Tensor> {
    let embeddings = embeddings.detach();
    let (n, k) = ids.dims2()?;
    if (n, k) != (weights.rows, weights.cols) {
        let expected = format!("[{}, {}], like the weights", weights.rows, weights.cols);
        return Err(Error::Shape { name: "ids", got: vec![n, k], expected });
    }
    let rows =
        embeddings.index_select(&ids.flatten_all()?, 0)?.reshape((n, k, embeddings.dim(D::Minus1)?))?;
    let weights = weights.to_tensor(&embeddings)?.unsqueeze(D::Minus1)?;
    Ok(rows.broadcast_mul(&weights)?.sum(1)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn top_k_before_top_p() {
        let (ids, p) = candidates(&[0.1, 0.4, 0.2, 0.3], 3, 0.5);
        assert_eq!(ids, [1, 3, 2]);
        let want = [4.0 / 7.0, 3.0 / 7.0, 0.0]; // 4/9 alone is not above 0.5, 7/9 is
        assert!(p.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{p:?}");
        assert!(candidates(&[], 3, 0.5).0.is_empty());
    }

    #[test]
    fn bad_input_is_named() {
        let message = |e: Error| e.to_string();
        let s = GumbelNoise::default();
        assert!(message(perturb(&[], &[], &s).unwrap_err()).contains("exponential"));
        let cold = GumbelNoise { tau: 0.0, ..s };
        assert!(message(perturb(&[1.0], &[1.0], &cold).unwrap_err()).contains("tau"));
        let x = Table { rows: 1, cols: 2, values: vec![0.0, 1.0] };
        assert!(message(mixture_weights(&x, &[], 0.1).unwrap_err()).contains("discrete"));
    }

    proptest! {
        /// The output token is the arg max of the perturbed entries; weights fall and sum to 1.
        #[test]
        fn the_first_is_the_best(
            p in proptest::collection::vec(0.0f64..1.0, 2..8),
            e in proptest::collection::vec(0.001f64..5.0, 8),
        ) {
            let out = perturb(&p, &e[..p.len()], &GumbelNoise::default()).unwrap();
            prop_assert!(out.weights.windows(2).all(|w| w[0] >= w[1]));
            prop_assert!((out.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(out.perturbed.iter().all(|x| *x <= out.perturbed[0]));
            prop_assert!(out.gumbels.iter().all(|g| (-1.5..=3.0).contains(g)));
        }
    }
}
