//! Diffusion over real numbers: noise schedules, losses, samplers, and the likelihood of a sampled chain.
//!
//! A network that removes Gaussian noise from actions, point flow or images. The forward process adds noise, the
//! sampler walks back from pure noise over fewer timesteps than training used:
//!
//! ```text
//! beta_t          noise added at timestep t = 0 .. T-1,   alpha_bar_t = prod_{s <= t} (1 - beta_s)      (schedule)
//! x_t           = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,   eps ~ N(0, 1)                    (training)
//! loss          = mean (output - target)^2;   target: eps, v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, or x_0
//! x_prev        = sqrt(alpha_bar_prev) x0_hat + sqrt(1 - alpha_bar_prev - std^2) eps_hat + std z        (DDIM)
//! log pi(x_prev | x_t) = log N(x_prev; mean, std^2), averaged over the numbers of a sample              (policy)
//! ```
//!
//! Flow matching replaces the schedule by a straight path, x_t = (1 - t) x_0 + t eps with t in [0, 1], and the target
//! by eps - x_0.
//!
//! | what | where |
//! |---|---|
//! | betas, alpha_bar, signal-to-noise ratio | [`NoiseSchedule`], [`NoiseTable`] |
//! | timesteps of a sampler | [`Spacing`], [`previous_timestep`] |
//! | training targets and losses | [`Prediction`], [`add_noise`], [`diffusion_loss`], [`flow_matching_pair`] |
//! | samplers | [`Ddim`], [`Ddpm`], [`ddim_sample`], [`flow_sample`], [`guide`] |
//! | policy optimisation of the sampler | [`denoising_policy`], [`denoising_policy_loss`] |
//! | around the network | [`timestep_embedding`], [`grid_embedding_3d`], [`EmaDecay`] |
//!
//! Nothing here runs a network or draws random numbers: outputs and noise are given. Timesteps count from 0 (almost
//! clean) to T - 1 (almost pure noise). Tensors have the batch first and any further dimensions.
//!
//! Sources: 2006.11239 (DDPM), 2010.02502 (DDIM), 2202.00512 (v prediction), 2207.12598 (guidance), 2210.02747 (flow
//! matching), 2305.13301 (DDPO), 2506.06199 (3DFlowAction, whose world model this is), the schedulers of diffusers.

mod policy;
mod position;
mod sampler;
mod schedule;
mod training;

pub use policy::{DenoisingPolicy, PolicyLoss, denoising_policy, denoising_policy_loss};
pub use position::{Frequencies, grid_embedding_2d, grid_embedding_3d};
pub use sampler::{Ddim, Ddpm, Integrator, Step, Variance, ddim_sample, flow_sample, guide};
pub use schedule::{
    BetaSchedule, EmaDecay, NoiseSchedule, NoiseTable, Precision, Spacing, previous_timestep,
    timestep_embedding,
};
pub use training::{
    Estimate, FlowPair, Prediction, add_noise, diffusion_loss, flow_matching_pair, squared_error, velocity,
};

use candle_core::Tensor;

use crate::error::Result;

/// One number per sample, shaped to broadcast over `x` [B, ...].
fn per_sample(name: &'static str, values: &[f64], x: &Tensor) -> Result<Tensor> {
    let batch = x.dims().first().copied().unwrap_or(1);
    super::same_len(name, values.len(), batch)?;
    let mut dims = vec![1; x.rank()];
    if let Some(first) = dims.first_mut() {
        *first = batch;
    }
    Ok(Tensor::from_slice(values, dims, x.device())?.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests;
