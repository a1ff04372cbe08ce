//! Hand poses that carry a firmly held object along a flow.

use nalgebra::Isometry3;

use crate::rigid::{FlowFit, FlowFitOptions, fit_flow, fit_rigid};
use crate::{Flow3d, Result};

/// End-effector poses for the frames of a flow.
#[derive(Clone, Debug, PartialEq)]
pub struct EeChunk {
    /// One per frame, in the flow's frame; the first is the present pose.
    pub poses: Vec<Isometry3<f64>>,
    /// How the object moves, and how far from rigid the flow is.
    pub fit: FlowFit,
}

/// The poses of a hand that holds the object without slip: E_t = T(0 to t) E_0, where T is the rigid motion of the flow.
/// `ee_pose` is the present pose in the flow's frame.
///
/// # Errors
/// As [`fit_flow`].
pub fn flow_to_ee_chunk(
    flow: &Flow3d,
    ee_pose: &Isometry3<f64>,
    options: &FlowFitOptions,
) -> Result<EeChunk> {
    let fit = fit_flow(flow, options)?;
    Ok(EeChunk { poses: fit.poses.iter().map(|motion| motion * ee_pose).collect(), fit })
}

/// Motions from frame to frame.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainedMotions {
    /// From frame t to frame t + 1; one fewer than frames.
    pub steps: Vec<Isometry3<f64>>,
    /// From frame 0 to frame t; the first is the identity.
    pub chained: Vec<Isometry3<f64>>,
}

/// The motion of each frame from the one before (least squares), and their products from frame 0 on. Errors add up along
/// the chain; [`fit_flow`] fits every frame to frame 0 instead.
///
/// # Errors
/// None on a valid flow.
pub fn chained_motions(flow: &Flow3d) -> Result<ChainedMotions> {
    let mut steps = Vec::with_capacity(flow.frames() - 1);
    let mut chained = vec![Isometry3::identity()];
    let mut now = Isometry3::identity();
    for t in 1..flow.frames() {
        let step = fit_rigid(flow.at(t - 1), flow.at(t), None)?.pose;
        now = step * now;
        steps.push(step);
        chained.push(now);
    }
    Ok(ChainedMotions { steps, chained })
}
