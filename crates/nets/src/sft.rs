//! The loss of behaviour cloning on action tokens.

use candle_core::Tensor;
use efference_ops as ops;

use crate::error::{Error, Result};
use crate::vla::expect;

/// Negative log-likelihood in nats of the demonstrated bins, one number per token: [B, T].
///
/// `logits` [B, T, V], `bins` [B][T]. `smoothing_bins` belong to the action dimensions, token t to entry t modulo their
/// number; one entry serves all. With s > 0 the target is not one bin but a Gaussian over bins with standard deviation s,
/// cut at the ends: neighbouring bins are nearly the same action.
///
/// # Errors
/// Shapes that do not fit, a bin beyond V, or a standard deviation that is negative or not finite.
pub fn action_nll(logits: &Tensor, bins: &[&[u32]], smoothing_bins: &[f64]) -> Result<Tensor> {
    let (b, t, v) = logits.dims3()?;
    let got = [bins.len(), bins.first().map_or(0, |row| row.len())];
    let fits = bins.len() == b && bins.iter().all(|row| row.len() == t);
    expect("bins", &got, fits, &format!("[{b}, {t}] to go with the logits"))?;
    if let Some(bad) = smoothing_bins.iter().find(|s| !(**s >= 0.0 && s.is_finite())) {
        let expected = "0 or a positive number of bins".into();
        return Err(Error::Config { field: "label_smoothing_bins", got: bad.to_string(), expected });
    }
    if smoothing_bins.is_empty() || !t.is_multiple_of(smoothing_bins.len()) {
        let expected = format!("one for all, or one for each of the action dimensions of {t} tokens");
        let got = format!("{} numbers", smoothing_bins.len());
        return Err(Error::Config { field: "label_smoothing_bins", got, expected });
    }
    let flat = logits.reshape((b * t, v))?;
    let ids = bins.concat();
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= v) {
        expect("bins", &[id as usize], false, &format!("bins below {v}"))?;
    }
    let nll = if smoothing_bins.iter().all(|&s| s == 0.0) {
        let ids = Tensor::from_vec(ids, b * t, logits.device())?;
        ops::cross_entropy(&flat, &ids, None)?
    } else {
        let of = |s: &f64| (0..v).map(|centre| gaussian(centre, *s, v)).collect::<Vec<Vec<f32>>>();
        let rows: Vec<Vec<Vec<f32>>> = smoothing_bins.iter().map(of).collect();
        let targets = ids.iter().zip(rows.iter().cycle()).flat_map(|(&id, rows)| &rows[id as usize]);
        let targets: Vec<f32> = targets.copied().collect();
        let targets = Tensor::from_vec(targets, (b * t, v), logits.device())?.to_dtype(logits.dtype())?;
        ops::cross_entropy_soft(&flat, &targets)?
    };
    Ok(nll.reshape((b, t))?)
}

/// exp(-(i - centre)^2 / 2 std^2) over 0..v, scaled to sum 1.
fn gaussian(centre: usize, std: f64, v: usize) -> Vec<f32> {
    if std == 0.0 {
        return (0..v).map(|i| if i == centre { 1.0 } else { 0.0 }).collect();
    }
    let weight = |i: usize| (-0.5 * ((i as f64 - centre as f64) / std).powi(2)).exp();
    let total: f64 = (0..v).map(weight).sum();
    (0..v).map(|i| (weight(i) / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    fn logits() -> Tensor {
        Tensor::new(&[[[0.0f32, 1.0, 2.0, 0.5], [3.0, -1.0, 0.0, 0.0]]], &Device::Cpu).unwrap()
    }

    #[test]
    fn hard_targets_are_minus_log_softmax() {
        let nll = action_nll(&logits(), &[&[2, 1]], &[0.0]).unwrap().to_vec2::<f32>().unwrap();
        let want = |row: [f32; 4], id: usize| row.iter().map(|x| x.exp()).sum::<f32>().ln() - row[id];
        assert!((nll[0][0] - want([0.0, 1.0, 2.0, 0.5], 2)).abs() < 1e-5);
        assert!((nll[0][1] - want([3.0, -1.0, 0.0, 0.0], 1)).abs() < 1e-5);
    }

    #[test]
    fn smoothing_tends_to_hard_targets_and_spreads_to_neighbours() {
        let hard = action_nll(&logits(), &[&[2, 1]], &[0.0]).unwrap().to_vec2::<f32>().unwrap();
        let nearly = action_nll(&logits(), &[&[2, 1]], &[0.05]).unwrap().to_vec2::<f32>().unwrap();
        assert!((hard[0][0] - nearly[0][0]).abs() < 1e-5 && (hard[0][1] - nearly[0][1]).abs() < 1e-5);
        let p = gaussian(1, 1.0, 4);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(p[1] > p[0] && (p[0] - p[2]).abs() < 1e-7 && p[2] > p[3]);
        // A very wide Gaussian is flat: the loss is the mean over all bins.
        let soft = action_nll(&logits(), &[&[2, 1]], &[1e6]).unwrap().to_vec2::<f32>().unwrap();
        let mean: f32 = (0..4u32)
            .map(|i| action_nll(&logits(), &[&[i, i]], &[0.0]).unwrap().to_vec2::<f32>().unwrap()[0][0])
            .sum::<f32>()
            / 4.0;
        assert!((soft[0][0] - mean).abs() < 1e-4);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(action_nll(&logits(), &[&[2]], &[0.0]).is_err());
        assert!(action_nll(&logits(), &[&[2, 4]], &[1.0]).is_err());
        assert!(action_nll(&logits(), &[&[2, 1]], &[f64::NAN]).is_err());
        assert!(action_nll(&logits(), &[&[2, 1]], &[-1.0]).is_err());
    }
}
