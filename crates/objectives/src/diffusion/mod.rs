//! Masked diffusion language models: likelihood estimates, masks, decoding decisions and losses.
//!
//! The model is a bidirectional transformer that predicts all masked tokens of a response at once. Training raises an
//! evidence lower bound (ELBO) over random masks; log pi(response | prompt) itself has no closed form, so every
//! reinforcement learning method takes an estimate of it:
//!
//! ```text
//! logp_i(S)      log-probability of token i when the positions S (i among them) are masked
//! ELBO           E_{l ~ U{1..L}} E_{|S| = l} (L / l) sum_{i in S} logp_i(S)   = E_t (1/t) sum
//!                = mean over all orders of the any-order autoregressive log-likelihood
//! mean field     sum_i logp_i(all)            one forward pass, ignores how tokens depend on each other
//! ```
//!
//! | estimate | function | papers |
//! |---|---|---|
//! | mean field | [`token_log_probs`] of a fully masked response | d1, IGPO, wd1 |
//! | ELBO over masks | [`elbo_samples`], counts from [`mask_counts`] | LLaDA, VRPO, BGPO |
//! | coupled masks | [`coupled_log_probs`] | coupled-GRPO |
//! | complementary masks | [`complementary_elbo`] | ESPO |
//! | lower and upper bound | [`sandwich`] | SPG |
//! | recorded trajectory | [`trajectory_slices`] | TraceRL |
//!
//! Diffusion over real numbers (actions, point flow) is in [`continuous`].
//!
//! Nothing here runs a network: logits, masks and uniform draws are given. Shapes: B sequences, N masks per sequence, L
//! response tokens, V words; log-probabilities are natural; masks are `u8` tensors, 1 where a token is masked.
//!
//! Sources: 2502.09992 (LLaDA), 2505.22618 (Fast-dLLM), 2504.12216 (d1), 2505.15809 (UniGRPO), 2506.20639
//! (coupled-GRPO), 2505.19223 (VRPO), 2507.08838 (wd1), 2510.09541 (SPG), 2509.06949 (TraceRL), 2508.13148 (MDPO),
//! 2512.03759 (ESPO), 2406.07524 (MDLM).

pub mod continuous;
mod decode;
mod estimate;
mod loss;
mod masks;

pub use decode::{
    Choice, gumbel_argmax, gumbel_scores, select_by_factor, select_by_threshold, select_fixed,
    transfer_counts,
};
pub use estimate::{
    Negative, Sandwich, complementary_elbo, coupled_log_probs, elbo_samples, exact_elbo, mean_field_entropy,
    sandwich, shift_logits, token_log_probs,
};
pub use loss::{
    Clip, MdpoLoss, Wd1, denoising_loss, espo_loss, leave_one_out_scaled, mdpo_loss, population_norm,
    sandwich_loss, step_advantages, steps_to_train, token_ratio_loss, trace_loss, uni_grpo_loss, vrpo_loss,
    wd1_loss,
};
pub use masks::{
    LogLinear, Slices, bernoulli_masks, coupled_masks, log_linear, mask_at_ratio, mask_counts, mask_prompt,
    timesteps, trajectory_slices,
};

use candle_core::Tensor;

use crate::checks::same_len;
use crate::error::{Error, Result};

/// Refuses another shape.
fn same_dims(name: &'static str, x: &Tensor, dims: &[usize]) -> Result<()> {
    if x.dims() == dims {
        return Ok(());
    }
    Err(Error::Shape { name, got: x.dims().to_vec(), expected: format!("{dims:?}") })
}

/// `x` where the mask is not 0, else 0; selected, so that what is not kept has no gradient whatever its value.
fn keep(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    same_dims("mask", mask, x.dims())?;
    Ok(mask.where_cond(x, &x.zeros_like()?)?)
}

/// 1 / x, and 0 where x is 0 or less; no gradient.
fn inverse(x: &Tensor) -> Result<Tensor> {
    let x = x.detach();
    Ok(x.gt(0.0)?.where_cond(&x.recip()?, &x.zeros_like()?)?)
}
