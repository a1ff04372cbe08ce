//! How the object of a flow moves as a whole.

use nalgebra::{Isometry3, Point3};

use super::{RansacOptions, check, fit_checked, ransac_rigid};
use crate::{Flow3d, Frame, Result, interpolate_isometry};

/// Which points of a frame count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FlowWeights {
    /// All alike: simulated and predicted flows say where hidden points are, too.
    #[default]
    Equal,
    /// By the product of the visibilities in frame 0 and in the frame: what a tracker says of hidden points is worthless.
    Visibility,
}

/// How each frame is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowFitOptions {
    /// Which points count.
    pub weights: FlowWeights,
    /// Weights below count as 0.
    pub min_weight: f64,
    /// `None` is the plain least-squares fit.
    pub ransac: Option<RansacOptions>,
    /// Of the drawn hypotheses.
    pub seed: u64,
}

impl Default for FlowFitOptions {
    fn default() -> Self {
        Self { weights: FlowWeights::Equal, min_weight: 0.5, ransac: Some(RansacOptions::default()), seed: 0 }
    }
}

/// The rigid motion of a flow, frame by frame.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowFit {
    /// The flow's.
    pub frame: Frame,
    /// From frame 0 to frame t, left-multiplied in the flow's frame: `at(t) = poses[t] * at(0)`. The first is the
    /// identity.
    pub poses: Vec<Isometry3<f64>>,
    /// Weighted rms over the inliers of each frame, metres; 0 where interpolated.
    pub rms_m: Vec<f64>,
    /// Rms over all points of the frame that have weight, metres: how far from rigid the flow is.
    pub rms_all_m: Vec<f64>,
    /// [frames][points]: which points follow the motion.
    pub inliers: Vec<Vec<bool>>,
    /// Frames whose points do not determine the rotation.
    pub degenerate: Vec<bool>,
    /// Frames without enough points that count, whose pose is taken from their neighbours.
    pub interpolated: Vec<bool>,
}

impl FlowFit {
    /// Frames including the present one.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.poses.len()
    }

    /// The motion from the present to the last frame.
    #[must_use]
    pub fn last(&self) -> Isometry3<f64> {
        self.poses.last().copied().unwrap_or_else(Isometry3::identity)
    }

    /// The largest [`FlowFit::rms_all_m`].
    #[must_use]
    pub fn worst_rms_m(&self) -> f64 {
        self.rms_all_m.iter().copied().fold(0.0, f64::max)
    }

    /// Share of the points of frame `t` that follow the motion.
    ///
    /// # Panics
    /// `t` is past the end.
    #[must_use]
    pub fn inlier_share(&self, t: usize) -> f64 {
        let inliers = &self.inliers[t];
        inliers.iter().filter(|x| **x).count() as f64 / inliers.len().max(1) as f64
    }

    /// Whether any frame is degenerate or interpolated.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        self.degenerate.iter().chain(&self.interpolated).any(|x| *x)
    }
}

/// Fits a rigid motion from frame 0 to every frame.
///
/// A frame in which fewer than three points count has its pose interpolated between its neighbours in time (positions
/// linearly, rotations along the shortest arc), or held from the last frame that has one.
///
/// # Errors
/// A RANSAC threshold that is not above 0.
pub fn fit_flow(flow: &Flow3d, options: &FlowFitOptions) -> Result<FlowFit> {
    let (frames, n) = (flow.frames(), flow.points());
    let first = flow.at(0);
    let mut out = FlowFit {
        frame: flow.frame(),
        poses: vec![Isometry3::identity(); frames],
        rms_m: vec![0.0; frames],
        rms_all_m: vec![0.0; frames],
        inliers: vec![vec![true; n]; frames],
        degenerate: vec![false; frames],
        interpolated: vec![false; frames],
    };
    for t in 1..frames {
        let weights = weights(flow, t, options);
        if weights.iter().filter(|w| **w > 0.0).count() < 3.min(n) {
            out.interpolated[t] = true;
            out.inliers[t] = vec![false; n];
            continue;
        }
        let fit = match &options.ransac {
            Some(ransac) => {
                // A seed of its own for each frame, so that frames do not depend on each other.
                let seed = options.seed ^ (t as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let found = ransac_rigid(first, flow.at(t), Some(&weights), ransac, seed)?;
                out.inliers[t] = found.inliers;
                found.fit
            }
            None => {
                check(first, flow.at(t), Some(&weights))?;
                out.inliers[t] = weights.iter().map(|w| *w > 0.0).collect();
                fit_checked(first, flow.at(t), |i| weights[i], 0.0)
            }
        };
        (out.poses[t], out.rms_m[t], out.degenerate[t]) = (fit.pose, fit.rms_m, fit.degenerate);
        out.rms_all_m[t] = rms(&fit.pose, first, flow.at(t), &weights);
    }
    fill(&mut out);
    Ok(out)
}

fn weights(flow: &Flow3d, t: usize, options: &FlowFitOptions) -> Vec<f64> {
    match options.weights {
        FlowWeights::Equal => vec![1.0; flow.points()],
        FlowWeights::Visibility => {
            let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
            let kept = |w: f64| if w < options.min_weight { 0.0 } else { w };
            flow.visibility_at(0).iter().zip(flow.visibility_at(t)).map(product).map(kept).collect()
        }
    }
}

fn rms(pose: &Isometry3<f64>, first: &[Point3<f64>], later: &[Point3<f64>], weights: &[f64]) -> f64 {
    let (mut left, mut total) = (0.0, 0.0);
    for ((a, b), w) in first.iter().zip(later).zip(weights) {
        left += w * (pose * a - b).norm_squared();
        total += w;
    }
    if total > 0.0 { (left / total).sqrt() } else { 0.0 }
}

/// Poses of interpolated frames from the nearest frames that have one. Frame 0 always has.
fn fill(fit: &mut FlowFit) {
    let known: Vec<usize> = (0..fit.poses.len()).filter(|&t| !fit.interpolated[t]).collect();
    for t in (0..fit.poses.len()).filter(|&t| fit.interpolated[t]) {
        let after = known.partition_point(|&k| k < t);
        let before = known[after - 1];
        fit.poses[t] = match known.get(after) {
            Some(&next) => {
                let share = (t - before) as f64 / (next - before) as f64;
                interpolate_isometry(&fit.poses[before], &fit.poses[next], share)
            }
            None => fit.poses[before],
        };
    }
}
