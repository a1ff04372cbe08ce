//! Action bins from logits.

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Draws one bin for every token of every row.
///
/// `logits` [B, T, V]; `seeds` [B], one per row, so that a row's draw does not depend on its batch. Temperature 0 takes
/// the most likely bin (the first of equals). Returns [B][T].
///
/// # Errors
/// Shapes that do not fit, or a temperature that is negative or not finite.
pub fn sample_bins(logits: &Tensor, temperature: f64, seeds: &[u64]) -> Result<Vec<Vec<u32>>> {
    let (b, t, v) = logits.dims3()?;
    if seeds.len() != b || v == 0 {
        let expected = format!("[{}, T, V] to go with {} seeds", seeds.len(), seeds.len());
        return Err(Error::Input { name: "logits", got: vec![b, t, v], expected });
    }
    if !(temperature.is_finite() && temperature >= 0.0) {
        let expected = "0 or a positive number".into();
        return Err(Error::Config { field: "temperature", got: temperature.to_string(), expected });
    }
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let rows = values.par_chunks(t * v).zip(seeds);
    Ok(rows
        .map(|(row, &seed)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            row.chunks_exact(v)
                .map(
                    |logits| {
                        if temperature == 0.0 { arg_max(logits) } else { draw(logits, temperature, &mut rng) }
                    },
                )
                .collect()
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

/// Inverse transform in f64: one uniform number per token.
fn draw(logits: &[f32], temperature: f64, rng: &mut ChaCha8Rng) -> u32 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |&x: &f32| ((f64::from(x) - max) / temperature).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let mut left = rng.random::<f64>() * total;
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
            for bin in sample_bins(&logits(rows), temperature, &seeds).unwrap().concat() {
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
        assert_eq!(sample_bins(&logits(2), 0.0, &[5, 6]).unwrap(), [[2, 2, 2], [2, 2, 2]]);
        let all = sample_bins(&logits(3), 1.0, &[5, 6, 7]).unwrap();
        let alone = sample_bins(&logits(1), 1.0, &[6]).unwrap();
        assert_eq!(all[1], alone[0]);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(sample_bins(&logits(2), 1.0, &[1]).is_err());
        assert!(sample_bins(&logits(1), f64::NAN, &[1]).is_err());
        assert!(sample_bins(&logits(1), -1.0, &[1]).is_err());
    }
}
