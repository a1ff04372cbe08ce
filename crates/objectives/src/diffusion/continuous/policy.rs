//! A sampler as a policy: every denoising step is an action drawn from a Gaussian whose mean the network decides
//! (DDPO, 2305.13301).

use std::f64::consts::PI;

use candle_core::Tensor;

use super::sampler::Ddim;
use super::schedule::NoiseTable;
use crate::diffusion::{Clip, same_dims, same_len};
use crate::error::{Error, Result};

/// The distribution of one denoising step, and how likely the recorded result was.
#[derive(Clone, Debug)]
pub struct DenoisingPolicy {
    /// Mean of the next sample, [B, ...].
    pub mean: Tensor,
    /// Its standard deviation, the same for every number.
    pub std: f64,
    /// log N(x_prev; mean, std^2), averaged over the numbers of a sample, [B]. The average, not the sum: ratios stay
    /// near 1 whatever the size of a sample, which is why their clip range is as small as 1e-4.
    pub log_probs: Tensor,
}

/// Log-probability of having gone from `x_t` at timestep `t` to `x_prev` at `previous`. `x_t`, `output`, `x_prev`
/// [B, ...]; the gradient flows through `output` alone.
///
/// It is one column of the [B, T] log-probabilities that the clipped-ratio surrogate reads: T denoising steps take the
/// place of tokens, the advantage of a sample holds for all of them, and group-relative advantages apply as they are.
///
/// # Errors
/// Shapes that differ, unknown timesteps, a step that is not random (eta 0, or to the clean sample): it has no
/// density.
pub fn denoising_policy(
    sampler: &Ddim,
    table: &NoiseTable,
    x_t: &Tensor,
    output: &Tensor,
    x_prev: &Tensor,
    (t, previous): (usize, Option<usize>),
) -> Result<DenoisingPolicy> {
    same_dims("x_prev", x_prev, x_t.dims())?;
    let (mean, std, _) = sampler.mean(table, &x_t.detach(), output, t, previous)?;
    if std <= 0.0 {
        let reason =
            format!("the step from timestep {t} to {previous:?} at eta {} is not random", sampler.eta);
        return Err(Error::Invalid { what: "log-probability of a denoising step", reason });
    }
    let squared = ((x_prev.detach() - &mean)?.sqr()? * (-0.5 / (std * std)))?;
    let per_number = (squared - (std.ln() + 0.5 * (2.0 * PI).ln()))?;
    // Rank 1: one number per sample.
    let log_probs = if x_t.rank() > 1 { per_number.flatten_from(1)?.mean(1)? } else { per_number };
    Ok(DenoisingPolicy { mean, std, log_probs })
}

/// Loss of a denoising step.
#[derive(Clone, Debug)]
pub struct PolicyLoss {
    /// exp(log_probs - old_log_probs), [B].
    pub ratio: Tensor,
    /// Scalar.
    pub loss: Tensor,
}

/// mean over samples of max(-A ratio, -A clip(ratio, 1 - low, 1 + high)). All [B]; the gradient flows through
/// `log_probs`.
///
/// # Errors
/// Shapes that differ, an empty batch.
pub fn denoising_policy_loss(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &[f64],
    clip: Clip,
) -> Result<PolicyLoss> {
    let samples = log_probs.dims1()?;
    same_dims("old_log_probs", old_log_probs, log_probs.dims())?;
    same_len("advantages", advantages.len(), samples)?;
    if samples == 0 {
        return Err(Error::Shape { name: "log_probs", got: vec![0], expected: "[B], B at least 1".into() });
    }
    let ratio = (log_probs - old_log_probs.detach())?.exp()?;
    let weights = Tensor::from_slice(advantages, samples, ratio.device())?.to_dtype(ratio.dtype())?;
    let loss = clip.loss(&ratio, &weights)?.mean_all()?;
    Ok(PolicyLoss { ratio, loss })
}
