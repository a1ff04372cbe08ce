//! Surrogates other than the clipped token ratio, in verl's forms. All inputs and outputs [B, T] unless said otherwise.

use candle_core::Tensor;

use super::{larger, log_ratio, smaller};
use crate::advantage::masked_mean;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::table::Table;

/// GSPO (2507.18071): the ratio of the sequence, s = sg(mean_t d) + log p - sg(log p), at most 10; plain clip.
///
/// # Errors
/// Shapes that differ.
pub fn gspo(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    (clip_low, clip_high): (f64, f64),
) -> Result<Tensor> {
    let d = Table::from_tensor(&(log_probs.detach() - old_log_probs.detach())?)?;
    d.same_shape("log_probs", mask)?;
    let mean = |row: usize| {
        let pairs = d.row(row).iter().zip(mask.row(row));
        pairs.map(|(d, m)| d * m).sum::<f64>() / mask.row(row).iter().sum::<f64>().max(1.0)
    };
    let means: Vec<f64> = (0..mask.rows).map(mean).collect();
    let sequence =
        Tensor::from_vec(means, (mask.rows, 1), log_probs.device())?.to_dtype(log_probs.dtype())?;
    let s = (log_probs - log_probs.detach())?.broadcast_add(&sequence)?;
    let ratio = clamp(&s, f64::NEG_INFINITY, 10.0)?.exp()?;
    let negative = advantages.detach().neg()?;
    let bounded = clamp(&ratio, 1.0 - clip_low, 1.0 + clip_high)?;
    larger(&(&negative * &ratio)?, &(&negative * bounded)?)
}

/// CISPO (2506.13585): -sg(clamp(r, 1 - low, 1 + high)) A log p: clipped tokens still teach.
///
/// # Errors
/// Shapes that differ.
pub fn cispo(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    (clip_low, clip_high): (f64, f64),
) -> Result<Tensor> {
    let ratio = log_ratio(&log_probs.detach(), old_log_probs)?.exp()?;
    let weight = (ratio.clamp(1.0 - clip_low, 1.0 + clip_high)? * advantages.detach())?;
    Ok((weight.neg()? * log_probs)?)
}

/// SAPO (2511.20347): -A sigmoid(tau (r - 1)) 4 / tau with a temperature for each sign of the advantage.
///
/// # Errors
/// A temperature that is not positive, shapes that differ.
pub fn sapo(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    (tau_pos, tau_neg): (f64, f64),
) -> Result<Tensor> {
    if !(tau_pos > 0.0 && tau_neg > 0.0) {
        return Err(Error::Setting { name: "tau", got: tau_pos.min(tau_neg), expected: "greater than 0" });
    }
    let ratio = log_ratio(log_probs, old_log_probs)?.exp()?;
    let advantages = advantages.detach();
    let ones = advantages.ones_like()?;
    let tau = advantages.gt(0.0)?.where_cond(&(&ones * tau_pos)?, &(&ones * tau_neg)?)?;
    let gate = (((ratio - 1.0)? * &tau)?.neg()?.exp()? + 1.0)?.recip()?;
    Ok((advantages.neg()? * ((gate * 4.0)? / tau)?)?)
}

/// GPG / REINFORCE: -A log p.
///
/// # Errors
/// Shapes that differ.
pub fn gpg(log_probs: &Tensor, advantages: &Tensor) -> Result<Tensor> {
    Ok((advantages.detach().neg()? * log_probs)?)
}

/// GMPO (2507.20673): the geometric mean of clipped token ratios, one loss per sequence; returns the mean over
/// sequences, a scalar. k = sgn(A) min(sgn(A) d, sgn(A) clamp(d, -low, high)), ratio = exp(sum k m / (L + 1e-8)), loss =
/// mean(-mean_m(A) ratio).
///
/// # Errors
/// Shapes that differ.
pub fn geo_mean(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    (clip_low, clip_high): (f64, f64),
) -> Result<Tensor> {
    let d = (log_probs - old_log_probs.detach())?;
    let advantages = advantages.detach();
    let sign = advantages.sign()?;
    let k = (&sign * smaller(&(&sign * &d)?, &(&sign * clamp(&d, -clip_low, clip_high)?)?)?)?;
    let lengths: Vec<f64> = mask.row_sums().iter().map(|l| l + 1e-8).collect();
    let lengths = Tensor::from_vec(lengths, mask.rows, log_probs.device())?.to_dtype(log_probs.dtype())?;
    let mask = mask.to_tensor(log_probs)?;
    let ratio = ((k * &mask)?.sum(1)? / &lengths)?.exp()?; // [B]
    let mean_advantage = ((advantages * &mask)?.sum(1)? / &lengths)?;
    Ok((mean_advantage.neg()? * ratio)?.mean_all()?)
}

/// KL-Cov: unclipped -A r, plus `kl_coef` |log p - log p_old| on the `share` of valid tokens (at least one) whose
/// advantage and log-probability co-vary most.
///
/// # Errors
/// Shapes that differ, no valid token.
pub fn kl_cov(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Table,
    share: f64,
    kl_coef: f64,
) -> Result<Tensor> {
    let raw = (log_probs - old_log_probs.detach())?;
    let negative = advantages.detach().neg()?;
    let plain = (negative * raw.exp()?)?;
    let (a, p) = (Table::from_tensor(&advantages.detach())?, Table::from_tensor(&log_probs.detach())?);
    let (mean_a, mean_p) = (masked_mean(&a, mask)?, masked_mean(&p, mask)?);
    let mut valid: Vec<usize> = (0..mask.values.len()).filter(|&i| mask.values[i] > 0.0).collect();
    let take = ((valid.len() as f64 * share) as usize).max(1);
    let covariance = |i: usize| (a.values[i] - mean_a) * (p.values[i] - mean_p);
    valid.sort_by(|&i, &j| covariance(j).total_cmp(&covariance(i)));
    let mut chosen = Table { values: vec![0.0; mask.values.len()], ..*mask };
    valid.iter().take(take).for_each(|&i| chosen.values[i] = kl_coef);
    Ok((plain + (raw.abs()? * chosen.to_tensor(log_probs)?)?)?)
}
