//! 3DFlowAction: Learning Cross-Embodiment Manipulation from 3D Flow World Model (arXiv 2506.06199).
//!
//! A diffusion model predicts how the points of an object will move; a planner moves the gripper so that they do. The
//! paper trains the model by denoising and optimises no policy. Here are its parts that need no geometry, and what makes
//! it trainable by reward: the chain of denoising steps is the sequence of decisions.
//!
//! ```text
//! denoising    loss and samplers: crate::diffusion::continuous
//! policy       log pi(x_{k-1} | x_k) per denoising step is a column of `log_probs` [B, K]; a group is K flows of one
//!              scene; clipped ratio within 1e-4 of 1, because a step is the mean over thousands of numbers   (recipe)
//! reward       t* = argmin_t mean_i | x_i - P_t,i |                        (frame of the reference that points are at)
//!              r  = 0.75 t*/t_end + 0.25 (1 - tanh(10 | ee - mean_i x_i |))                         (tracking_reward)
//! track loss   lambda mean(w (p - g)^2), w = 1 where visible, else 0.1                              (atm_track_loss)
//! flow loss    25 |s - s'|^2 + |d - d'|^2 + KL(q || N(0, 1)) + |cumsum(d s) - cumsum(d' s)|^2     (general_flow_loss)
//! ```
//!
//! Positions and distances in metres. Sources: the paper's generator; the reward as reported for Dream2Flow
//! (2512.24766); the losses of ATM and of General Flow, its neighbours among flow world models.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "flow3d_action",
    title: "3DFlowAction: Learning Cross-Embodiment Manipulation from 3D Flow World Model",
    arxiv: "2506.06199",
    summary: "A flow generator is a policy whose decisions are its denoising steps.",
    blocks: &[],
    recipe,
    // Its file also holds geometry and networks; `conformance` says how many cases pass.
    vectors: None,
    end_to_end: None,
};

/// Flows of one scene are each other's baseline; ratio of every denoising step, clipped close to 1.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 1e-4, clip_high: 1e-4, dual_clip: None };
    Composition::new(&surrogate, Aggregation::SeqMeanTokenMean).advantage(&GroupNorm::default())
}

/// A point in metres.
pub type Point = [f64; 3];

/// Weights of [`tracking_reward`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackingReward {
    /// Of how far along the reference the object is.
    pub w_particle: f64,
    /// Of how close the gripper is.
    pub w_ee: f64,
    /// Sharpness of the gripper's term, 1/m.
    pub ee_gain: f64,
}

impl Default for TrackingReward {
    fn default() -> Self {
        Self { w_particle: 0.75, w_ee: 0.25, ee_gain: 10.0 }
    }
}

/// Frame of `reference` [F][P] that `points` [P] are closest to (the first of equals), the share of the reward for it, and
/// the reward with the gripper at `ee`. With one frame the object is at the end already.
///
/// # Errors
/// [`Error::Shape`]: no frame, no point, or frames of other points.
pub fn tracking_reward(
    reference: &[Vec<Point>],
    points: &[Point],
    ee: &Point,
    settings: &TrackingReward,
) -> Result<(usize, f64, f64)> {
    let fits = !points.is_empty() && !reference.is_empty();
    if let Some(odd) = reference.iter().find(|frame| frame.len() != points.len()).filter(|_| fits) {
        let expected = format!("[{}], as many as object points", points.len());
        return Err(Error::Shape { name: "reference_flow", got: vec![odd.len()], expected });
    }
    if !fits {
        let got = vec![reference.len(), points.len()];
        return Err(Error::Shape {
            name: "reference_flow",
            got,
            expected: "a frame and a point or more".into(),
        });
    }
    let distance = |a: &Point, b: &Point| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let n = points.len() as f64;
    let gap = |frame: &Vec<Point>| frame.iter().zip(points).map(|(a, b)| distance(a, b)).sum::<f64>() / n;
    let gaps: Vec<f64> = reference.iter().map(gap).collect();
    let at = (0..gaps.len()).fold(0, |best, t| if gaps[t] < gaps[best] { t } else { best });
    let progress = if gaps.len() == 1 { 1.0 } else { at as f64 / (gaps.len() - 1) as f64 };
    let centre: Point = std::array::from_fn(|d| points.iter().map(|p| p[d]).sum::<f64>() / n);
    let particle = settings.w_particle * progress;
    let near = 1.0 - (settings.ee_gain * distance(ee, &centre)).tanh();
    Ok((at, particle, particle + settings.w_ee * near))
}

/// By what General Flow divides the steps of a track.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrackScale {
    /// Length of the whole way.
    #[default]
    #[serde(rename = "TLN")]
    TotalLength,
    /// Distance from start to end.
    #[serde(rename = "TDN")]
    TotalDisplacement,
    /// Every step by its own length.
    #[serde(rename = "SDN")]
    Step,
}

/// Steps of a track divided by its scale, [T - 1], and the scale: one number, or one per step. A scale below `eps` counts
/// as 1, so that a track that stands still has steps of 0.
///
/// # Errors
/// [`Error::Shape`]: fewer than two points.
pub fn scale_track(track: &[Point], scale: TrackScale, eps: f64) -> Result<(Vec<Point>, Vec<f64>)> {
    let [first, .., last] = track else {
        return Err(Error::Shape {
            name: "track",
            got: vec![track.len()],
            expected: "2 points or more".into(),
        });
    };
    let minus = |a: &Point, b: &Point| -> Point { std::array::from_fn(|d| a[d] - b[d]) };
    let length = |v: &Point| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let steps: Vec<Point> = track.windows(2).map(|pair| minus(&pair[1], &pair[0])).collect();
    let lengths: Vec<f64> = steps.iter().map(length).collect();
    let scales = match scale {
        TrackScale::TotalLength => vec![lengths.iter().sum()],
        TrackScale::TotalDisplacement => vec![length(&minus(last, first))],
        TrackScale::Step => lengths,
    };
    let scales: Vec<f64> = scales.into_iter().map(|s| if s < eps { 1.0 } else { s }).collect();
    let by = |i: usize| if scales.len() == 1 { scales[0] } else { scales[i] };
    let divided = steps.iter().enumerate().map(|(i, v)| v.map(|x| x / by(i))).collect();
    Ok((divided, scales))
}

/// Weights of [`general_flow_loss`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneralFlowLoss {
    /// Of the scaled steps.
    pub step: f64,
    /// Of the scales.
    pub scale: f64,
    /// Of the latent's divergence from a standard normal.
    pub kl: f64,
    /// Of the positions that the steps add up to.
    pub accumulated: f64,
}

impl Default for GeneralFlowLoss {
    fn default() -> Self {
        Self { step: 1.0, scale: 25.0, kl: 1.0, accumulated: 1.0 }
    }
}

/// What General Flow predicts, or should have.
pub struct ScaledFlow<'a> {
    /// Steps divided by their scale, [B, Q, 3 (T - 1)].
    pub step: &'a Tensor,
    /// Scales, [B, Q, 1] or [B, Q, T - 1].
    pub scale: &'a Tensor,
}

impl ScaledFlow<'_> {
    /// Positions after every step relative to the start, [B, Q, T - 1, 3].
    fn positions(&self) -> Result<Tensor> {
        let (b, q, n) = self.step.dims3()?;
        let (_, _, scales) = self.scale.dims3()?;
        if n % 3 != 0 || !(scales == 1 || scales == n / 3) {
            let expected = "[B, Q, 3 (T - 1)] with [B, Q, 1] or [B, Q, T - 1] scales".into();
            return Err(Error::Shape { name: "step", got: self.step.dims().to_vec(), expected });
        }
        let steps = self.step.reshape((b, q, n / 3, 3))?.broadcast_mul(&self.scale.unsqueeze(D::Minus1)?)?;
        Ok(steps.cumsum(2)?)
    }
}

/// The four terms and their weighted sum, scalars with gradient.
pub struct GeneralFlowTerms {
    /// Weighted sum.
    pub loss: Tensor,
    /// Scaled steps.
    pub step: Tensor,
    /// Scales.
    pub scale: Tensor,
    /// Latent.
    pub kl: Tensor,
    /// Accumulated positions.
    pub accumulated: Tensor,
}

/// General Flow's conditional VAE loss; `mean` and `log_var` [B, Q, L] of the latent. Every term is a sum over a query's
/// numbers, averaged over queries and batch. Accumulated positions use each flow's own scale.
///
/// # Errors
/// Shapes that do not fit.
pub fn general_flow_loss(
    predicted: &ScaledFlow<'_>,
    target: &ScaledFlow<'_>,
    (mean, log_var): (&Tensor, &Tensor),
    weights: &GeneralFlowLoss,
) -> Result<GeneralFlowTerms> {
    let squared = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        let gap = (a - b.detach())?.sqr()?;
        let queries = (gap.dim(0)? * gap.dim(1)?).max(1) as f64;
        Ok((gap.sum_all()? / queries)?)
    };
    let step = squared(predicted.step, target.step)?;
    let scale = squared(predicted.scale, target.scale)?;
    let accumulated = squared(&predicted.positions()?, &target.positions()?)?;
    let divergence = (((mean.sqr()? + log_var.exp()?)? - log_var)? - 1.0)?;
    let queries = (mean.dim(0)? * mean.dim(1)?).max(1) as f64;
    let kl = (divergence.sum_all()? * (0.5 / queries))?;
    let loss = (((&step * weights.step)? + (&scale * weights.scale)?)?
        + ((&kl * weights.kl)? + (&accumulated * weights.accumulated)?)?)?;
    Ok(GeneralFlowTerms { loss, step, scale, kl, accumulated })
}

/// ATM's loss on tracks in the image plane, [B, T, N, 2]: the mean over ALL numbers of w (predicted - target)^2 with w 1
/// where `visibility` [B, T, N] is above 0 and `invisible_weight` elsewhere. Gradient through `predicted` only.
///
/// # Errors
/// Shapes that differ.
pub fn atm_track_loss(
    predicted: &Tensor,
    target: &Tensor,
    visibility: &Tensor,
    invisible_weight: f64,
) -> Result<Tensor> {
    let ones = visibility.ones_like()?;
    let weights = visibility.gt(0.0)?.where_cond(&ones, &(&ones * invisible_weight)?)?;
    let weights = weights.unsqueeze(D::Minus1)?.to_dtype(predicted.dtype())?.detach();
    Ok((predicted - target.detach())?.sqr()?.broadcast_mul(&weights)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    #[test]
    fn rigidly_shifting_everything_changes_no_reward_and_arriving_pays_most() {
        let frame = |x: f64| vec![[x, 0.0, 0.0], [x, 0.1, 0.0], [x, 0.0, 0.2]];
        let reference: Vec<Vec<Point>> = (0..5).map(|t| frame(f64::from(t) * 0.1)).collect();
        let settings = TrackingReward::default();
        let reward = |reference: &[Vec<Point>], points: &[Point], ee: &Point| {
            tracking_reward(reference, points, ee, &settings).unwrap()
        };
        let rewards: Vec<f64> = reference.iter().map(|p| reward(&reference, p, &[0.0; 3]).1).collect();
        assert!(rewards.windows(2).all(|w| w[1] > w[0]), "{rewards:?}");
        let shift = |p: &Point| [p[0] + 3.0, p[1] - 2.0, p[2] + 1.0];
        let moved: Vec<Vec<Point>> = reference.iter().map(|f| f.iter().map(shift).collect()).collect();
        let (a, b) =
            (reward(&reference, &reference[3], &[0.1; 3]), reward(&moved, &moved[3], &shift(&[0.1; 3])));
        assert!(a.0 == 3 && b.0 == 3 && (a.2 - b.2).abs() < 1e-9);
        assert!(tracking_reward(&[], &frame(0.0), &[0.0; 3], &settings).is_err());
        assert!(tracking_reward(&reference, &frame(0.0)[..2], &[0.0; 3], &settings).is_err());
    }

    #[test]
    fn scaled_steps_add_up_to_the_track_again() {
        let track = [[0.0, 0.0, 0.0], [0.3, 0.0, 0.4], [0.3, 1.0, 0.4], [0.3, 1.0, 0.4]];
        for scale in [TrackScale::TotalLength, TrackScale::TotalDisplacement, TrackScale::Step] {
            let (steps, scales) = scale_track(&track, scale, 1e-6).unwrap();
            let mut at = track[0];
            for (i, step) in steps.iter().enumerate() {
                let by = scales[i.min(scales.len() - 1)];
                at = std::array::from_fn(|d| at[d] + step[d] * by);
                assert!((0..3).all(|d| (at[d] - track[i + 1][d]).abs() < 1e-12), "{scale:?}");
            }
        }
        assert!(scale_track(&track[..1], TrackScale::Step, 1e-6).is_err());
    }

    #[test]
    fn a_perfect_prediction_with_a_standard_latent_costs_nothing() {
        let random = |dims: (usize, usize, usize)| Tensor::randn(0f64, 1.0, dims, &Device::Cpu).unwrap();
        let (step, scale) = (random((2, 3, 12)), random((2, 3, 4)));
        let flow = || ScaledFlow { step: &step, scale: &scale };
        let zeros = Tensor::zeros((2, 3, 5), candle_core::DType::F64, &Device::Cpu).unwrap();
        let loss = |latent: &Tensor| {
            let terms = general_flow_loss(&flow(), &flow(), (latent, &zeros), &GeneralFlowLoss::default());
            terms.unwrap().loss.to_scalar::<f64>().unwrap()
        };
        assert_eq!(loss(&zeros), 0.0);
        assert!(loss(&random((2, 3, 5))) > 0.1);
    }
}
