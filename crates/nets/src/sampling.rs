//! Action bins from logits.

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// How the random numbers of a chunk hang together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noise {
    /// Every token has its own.
    #[default]
    Token,
    /// The K steps of a chunk share one random number per action dimension: all of them come from the same quantile of
    /// their distributions, so that a chunk deviates in one direction instead of trembling around its mean. Each token
    /// alone is still drawn exactly from its distribution; tokens of one dimension are no longer independent.
    Chunk,
}

/// How to choose bins. A bare temperature means independent tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely bin (the first of equals).
    pub temperature: f64,
    /// Ignored at temperature 0.
    pub noise: Noise,
}

impl From<f64> for Sampling {
    fn from(temperature: f64) -> Self {
        Self { temperature, noise: Noise::Token }
    }
}

/// Draws one bin for every token of every row.
///
/// `logits` [B, K * A, V]; `seeds` [B], one per row, so that a row's draw does not depend on its batch; `action_dim` A.
/// Returns [B][K * A].
///
/// # Errors
/// Shapes that do not fit, or a temperature that is negative or not finite.
pub fn sample_bins(
    logits: &Tensor,
    sampling: Sampling,
    action_dim: usize,
    seeds: &[u64],
) -> Result<Vec<Vec<u32>>> {
    let (b, t, v) = logits.dims3()?;
    if seeds.len() != b || v == 0 || action_dim == 0 || !t.is_multiple_of(action_dim) {
        let expected = format!("[{}, K * {action_dim}, V] to go with {} seeds", seeds.len(), seeds.len());
        return Err(Error::Input { name: "logits", got: vec![b, t, v], expected });
    }
    let temperature = sampling.temperature;
    if !(temperature.is_finite() && temperature >= 0.0) {
        let expected = "0 or a positive number".into();
        return Err(Error::Config { field: "temperature", got: temperature.to_string(), expected });
    }
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let rows = values.par_chunks(t * v).zip(seeds);
    Ok(rows
        .map(|(row, &seed)| {
            let tokens = row.chunks_exact(v);
            if temperature == 0.0 {
                return tokens.map(arg_max).collect();
            }
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let numbers = match sampling.noise {
                Noise::Token => t,
                Noise::Chunk => action_dim,
            };
            let uniform: Vec<f64> = (0..numbers).map(|_| rng.random()).collect();
            tokens.zip(uniform.iter().cycle()).map(|(logits, &u)| draw(logits, temperature, u)).collect()
        })
        .collect())
}

fn arg_max(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Inverse transform in f64 of a number in [0, 1).
fn draw(logits: &[f32], temperature: f64, uniform: f64) -> u32 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |&x: &f32| ((f64::from(x) - max) / temperature).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let mut left = uniform * total;
    let mut last = arg_max(logits);
    for (i, x) in logits.iter().enumerate() {
        let w = weight(x);
        if w > 0.0 {
            last = i as u32;
            if left < w {
                return last;
            }
        }
        left -= w;
    }
    last // rounding left a crumb: the last bin with any weight
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    fn logits(rows: usize) -> Tensor {
        let one = [0.0f32, 1.0, 2.0, f32::NEG_INFINITY];
        Tensor::from_vec(one.repeat(rows * 3), (rows, 3, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn frequencies_follow_the_temperature() {
        let rows = 4000;
        let seeds: Vec<u64> = (0..rows as u64).collect();
        for temperature in [0.5, 1.0, 1.6] {
            let mut counts = [0.0f64; 4];
            for bin in sample_bins(&logits(rows), (temperature).into(), 3, &seeds).unwrap().concat() {
                counts[bin as usize] += 1.0;
            }
            let n: f64 = counts.iter().sum();
            let z: f64 = (0..3).map(|i| (f64::from(i) / temperature).exp()).sum();
            for (i, &count) in counts.iter().enumerate().take(3) {
                let p = (i as f64 / temperature).exp() / z;
                let spread = (p * (1.0 - p) / n).sqrt();
                assert!(
                    (count / n - p).abs() < 5.0 * spread,
                    "{i} at {temperature}: {} against {p}",
                    count / n
                );
            }
            assert_eq!(counts[3], 0.0);
        }
    }

    #[test]
    fn greedy_takes_the_top_and_a_row_does_not_depend_on_its_batch() {
        assert_eq!(sample_bins(&logits(2), (0.0).into(), 3, &[5, 6]).unwrap(), [[2, 2, 2], [2, 2, 2]]);
        let all = sample_bins(&logits(3), (1.0).into(), 3, &[5, 6, 7]).unwrap();
        let alone = sample_bins(&logits(1), (1.0).into(), 3, &[6]).unwrap();
        assert_eq!(all[1], alone[0]);
    }

    #[test]
    fn a_shared_number_keeps_every_tokens_distribution_and_moves_a_chunk_as_one() {
        let rows = 4000;
        let seeds: Vec<u64> = (0..rows as u64).collect();
        let sampling = Sampling { temperature: 1.0, noise: Noise::Chunk };
        // Three tokens with the same logits are three steps of one dimension.
        let bins = sample_bins(&logits(rows), sampling, 1, &seeds).unwrap();
        assert!(bins.iter().all(|row| row[0] == row[1] && row[1] == row[2]));
        let z: f64 = (0..3).map(|i| f64::from(i).exp()).sum();
        for i in 0..3u32 {
            let p = f64::from(i).exp() / z;
            let count = bins.iter().filter(|row| row[0] == i).count() as f64 / rows as f64;
            assert!(
                (count - p).abs() < 5.0 * (p * (1.0 - p) / rows as f64).sqrt(),
                "{i}: {count} against {p}"
            );
        }
        // With three dimensions nothing is shared, and the draw is that of independent tokens.
        let alone = sample_bins(&logits(rows), 1.0.into(), 3, &seeds).unwrap();
        assert_eq!(sample_bins(&logits(rows), sampling, 3, &seeds).unwrap(), alone);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(sample_bins(&logits(2), (1.0).into(), 3, &[1]).is_err());
        assert!(sample_bins(&logits(1), (f64::NAN).into(), 3, &[1]).is_err());
        assert!(sample_bins(&logits(1), (-1.0).into(), 3, &[1]).is_err());
    }
}
