//! Action bins from logits.

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// The random numbers of one row; temperature 0 needs none.
#[derive(Clone, Debug, PartialEq)]
pub enum Draw {
    /// Every token has its own, from this seed.
    Tokens(u64),
    /// The K steps of a chunk share one number in [0, 1] per action dimension, [A]: all of them come from the same
    /// quantile of their distributions, so that a chunk deviates in one direction instead of trembling around its mean.
    /// Each token alone is still drawn exactly from its distribution; tokens of one dimension are no longer independent.
    Chunk(Vec<f64>),
}

impl From<u64> for Draw {
    fn from(seed: u64) -> Self {
        Self::Tokens(seed)
    }
}

/// Draws one bin for every token of every row.
///
/// `logits` [B, K * A, V]; `draws` [B], one per row, so that a row's bins do not depend on its batch; `action_dim` A;
/// temperature 0 takes the most likely bin (the first of equals). Returns [B][K * A].
///
/// # Errors
/// Shapes that do not fit, or a temperature that is negative or not finite.
pub fn sample_bins(
    logits: &Tensor,
    temperature: f64,
    action_dim: usize,
    draws: &[Draw],
) -> Result<Vec<Vec<u32>>> {
    let (b, t, v) = logits.dims3()?;
    let odd = |draw: &Draw| matches!(draw, Draw::Chunk(numbers) if numbers.len() != action_dim);
    if draws.len() != b || v == 0 || action_dim == 0 || !t.is_multiple_of(action_dim) || draws.iter().any(odd)
    {
        let expected = format!("[{n}, K * {action_dim}, V] to go with {n} draws", n = draws.len());
        return Err(Error::Input { name: "logits", got: vec![b, t, v], expected });
    }
    if !(temperature.is_finite() && temperature >= 0.0) {
        let expected = "0 or a positive number".into();
        return Err(Error::Config { field: "temperature", got: temperature.to_string(), expected });
    }
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let rows = values.par_chunks(t * v).zip(draws);
    Ok(rows
        .map(|(row, numbers)| {
            let tokens = row.chunks_exact(v);
            if temperature == 0.0 {
                return tokens.map(arg_max).collect();
            }
            match numbers {
                Draw::Tokens(seed) => {
                    let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                    tokens.map(|logits| draw(logits, temperature, rng.random())).collect()
                }
                Draw::Chunk(numbers) => tokens
                    .zip(numbers.iter().cycle())
                    .map(|(logits, &u)| draw(logits, temperature, u))
                    .collect(),
            }
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

/// Inverse transform in f64 of a number in [0, 1].
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

    fn tokens(seeds: &[u64]) -> Vec<Draw> {
        seeds.iter().map(|&seed| seed.into()).collect()
    }

    #[test]
    fn frequencies_follow_the_temperature() {
        let rows = 4000;
        let seeds: Vec<u64> = (0..rows as u64).collect();
        for temperature in [0.5, 1.0, 1.6] {
            let mut counts = [0.0f64; 4];
            for bin in sample_bins(&logits(rows), temperature, 3, &tokens(&seeds)).unwrap().concat() {
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
        assert_eq!(sample_bins(&logits(2), 0.0, 3, &tokens(&[5, 6])).unwrap(), [[2, 2, 2], [2, 2, 2]]);
        let all = sample_bins(&logits(3), 1.0, 3, &tokens(&[5, 6, 7])).unwrap();
        let alone = sample_bins(&logits(1), 1.0, 3, &tokens(&[6])).unwrap();
        assert_eq!(all[1], alone[0]);
    }

    #[test]
    fn a_shared_number_keeps_every_tokens_distribution_and_moves_a_chunk_as_one() {
        let rows = 4000;
        let draws: Vec<Draw> = (0..rows).map(|i| Draw::Chunk(vec![(i as f64 + 0.5) / rows as f64])).collect();
        // Three tokens with the same logits are three steps of one dimension.
        let bins = sample_bins(&logits(rows), 1.0, 1, &draws).unwrap();
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
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(sample_bins(&logits(2), 1.0, 3, &tokens(&[1])).is_err());
        assert!(sample_bins(&logits(1), f64::NAN, 3, &tokens(&[1])).is_err());
        assert!(sample_bins(&logits(1), -1.0, 3, &tokens(&[1])).is_err());
        assert!(sample_bins(&logits(1), 1.0, 3, &[Draw::Chunk(vec![0.5])]).is_err());
    }
}
