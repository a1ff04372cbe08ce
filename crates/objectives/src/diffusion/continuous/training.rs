//! What the network is trained on. Losses are scalars whose gradient flows through the network's output.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::schedule::NoiseTable;
use super::{per_sample, sampler::check_signal};
use crate::diffusion::same_dims;
use crate::error::Result;

/// What the network's output means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise eps.
    #[default]
    Epsilon,
    /// v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.
    VPrediction,
    /// The clean sample x_0.
    Sample,
}

/// The two parts that a noisy sample is made of, as the network sees them.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// x_0.
    pub clean: Tensor,
    /// eps.
    pub noise: Tensor,
}

impl Prediction {
    /// What the output should be. `clean` and `noise` [B, ...], `timesteps` [B].
    ///
    /// # Errors
    /// Shapes that differ, unknown timesteps.
    pub fn target(
        self,
        table: &NoiseTable,
        clean: &Tensor,
        noise: &Tensor,
        timesteps: &[usize],
    ) -> Result<Tensor> {
        same_dims("noise", noise, clean.dims())?;
        match self {
            Self::Epsilon => Ok(noise.clone()),
            Self::VPrediction => velocity(table, clean, noise, timesteps),
            Self::Sample => Ok(clean.clone()),
        }
    }

    /// x_0 and eps of `x_t` at a signal share of `alpha_bar`, from the output; one shape.
    ///
    /// ```text
    /// epsilon   x_0 = (x_t - sqrt(1 - alpha_bar) output) / sqrt(alpha_bar)
    ///           eps = output
    /// sample    x_0 = output
    ///           eps = (x_t - sqrt(alpha_bar) output) / sqrt(1 - alpha_bar)
    /// v         x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) output
    ///           eps = sqrt(alpha_bar) output + sqrt(1 - alpha_bar) x_t
    /// ```
    ///
    /// # Errors
    /// Shapes that differ, an `alpha_bar` outside (0, 1).
    pub fn split(self, x_t: &Tensor, output: &Tensor, alpha_bar: f64) -> Result<Estimate> {
        same_dims("output", output, x_t.dims())?;
        check_signal(alpha_bar)?;
        let (signal, spread) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (clean, noise) = match self {
            Self::Epsilon => (((x_t - (output * spread)?)? / signal)?, output.clone()),
            Self::Sample => (output.clone(), ((x_t - (output * signal)?)? / spread)?),
            Self::VPrediction => {
                (((x_t * signal)? - (output * spread)?)?, ((output * signal)? + (x_t * spread)?)?)
            }
        };
        Ok(Estimate { clean, noise })
    }
}

/// sqrt(alpha_bar) a + `sign` sqrt(1 - alpha_bar) b with each sample's own timestep.
fn mix(table: &NoiseTable, a: &Tensor, b: &Tensor, timesteps: &[usize], sign: f64) -> Result<Tensor> {
    same_dims("noise", b, a.dims())?;
    let alpha_bar = timesteps.iter().map(|&t| table.alpha_bar(t)).collect::<Result<Vec<f64>>>()?;
    let signal: Vec<f64> = alpha_bar.iter().map(|x| x.sqrt()).collect();
    let spread: Vec<f64> = alpha_bar.iter().map(|x| sign * (1.0 - x).sqrt()).collect();
    let signal = a.broadcast_mul(&per_sample("timesteps", &signal, a)?)?;
    Ok((signal + b.broadcast_mul(&per_sample("timesteps", &spread, b)?)?)?)
}

/// x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps. `clean` and `noise` [B, ...], `timesteps` [B].
///
/// # Errors
/// Shapes that differ, unknown timesteps.
pub fn add_noise(table: &NoiseTable, clean: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor> {
    mix(table, clean, noise, timesteps, 1.0)
}

/// v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0. `clean` and `noise` [B, ...], `timesteps` [B].
///
/// # Errors
/// Shapes that differ, unknown timesteps.
pub fn velocity(table: &NoiseTable, clean: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor> {
    mix(table, noise, clean, timesteps, -1.0)
}

/// mean((output - target)^2) over all numbers; the target has no gradient.
///
/// # Errors
/// Shapes that differ.
pub fn squared_error(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    same_dims("target", target, output.dims())?;
    Ok((output - target.detach())?.sqr()?.mean_all()?)
}

/// The training loss of a diffusion network: [`squared_error`] to [`Prediction::target`], every number alike, channels
/// that are constant included (3DFlowAction masks nothing). `output`, `clean`, `noise` [B, ...], `timesteps` [B].
///
/// # Errors
/// Shapes that differ, unknown timesteps.
pub fn diffusion_loss(
    table: &NoiseTable,
    prediction: Prediction,
    output: &Tensor,
    clean: &Tensor,
    noise: &Tensor,
    timesteps: &[usize],
) -> Result<Tensor> {
    squared_error(output, &prediction.target(table, clean, noise, timesteps)?)
}

/// Input and target of flow matching.
#[derive(Clone, Debug)]
pub struct FlowPair {
    /// (1 - t) x_0 + t eps.
    pub x_t: Tensor,
    /// eps - x_0, the velocity of the straight path. [`squared_error`] to it is the loss.
    pub target: Tensor,
}

/// Flow matching at times `t` [B] in [0, 1], 0 clean and 1 noise; a common draw is t = sigmoid(z), z ~ N(0, 1), which
/// visits the middle more often. `clean` and `noise` [B, ...].
///
/// # Errors
/// Shapes that differ.
pub fn flow_matching_pair(clean: &Tensor, noise: &Tensor, t: &[f64]) -> Result<FlowPair> {
    same_dims("noise", noise, clean.dims())?;
    let rest: Vec<f64> = t.iter().map(|t| 1.0 - t).collect();
    let kept = clean.broadcast_mul(&per_sample("t", &rest, clean)?)?;
    let x_t = (kept + noise.broadcast_mul(&per_sample("t", t, noise)?)?)?;
    Ok(FlowPair { x_t, target: (noise - clean)? })
}
