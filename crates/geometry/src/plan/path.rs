//! A way from one pose to another.

use nalgebra::{Isometry3, Point3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use slsqp::{StopTols, minimize};

use super::cost::{FlowNorm, Reach, reset_distance};
use super::solve::SolveOptions;
use crate::pose::{interpolate_poses, interpolation_steps, pose_distance, pose_from_euler, pose_to_euler};
use crate::sdf::SdfGrid;
use crate::{Error, Result};

/// Weights of [`Path`]; the defaults are ReKep's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathWeights {
    /// Of the depth of points in obstacles, summed over the poses between the ends.
    pub collision: f64,
    /// Distance kept from obstacles, metres.
    pub collision_margin_m: f64,
    /// Of the length.
    pub length: f64,
    /// Of the turning in it, metres per radian.
    pub rotation: f64,
    /// Of the share of iterations that inverse kinematics uses at each control point.
    pub ik: f64,
    /// All of them.
    pub ik_max_iterations: usize,
    /// Of the distance of the joints from rest, which is reported and not part of the total (as in ReKep).
    pub reset: f64,
    /// Largest such distance, radians.
    pub reset_cap: f64,
    /// Of the distance from the targets at each pose between the ends.
    pub constraint: f64,
    /// Poses along the way are so far apart, metres.
    pub step_m: f64,
    /// And so far turned, radians.
    pub step_rad: f64,
}

impl Default for PathWeights {
    fn default() -> Self {
        Self {
            collision: 0.5,
            collision_margin_m: 0.20,
            length: 4.0,
            rotation: 1.0,
            ik: 20.0,
            ik_max_iterations: 20,
            reset: 0.2,
            reset_cap: 3.0,
            constraint: 200.0,
            step_m: 0.02,
            step_rad: 0.1,
        }
    }
}

/// What a way costs.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// Weights.
    pub weights: PathWeights,
    /// First pose of the hand, world frame.
    pub start: Isometry3<f64>,
    /// Last pose of the hand, world frame.
    pub end: Isometry3<f64>,
    /// Points of hand and object that must not touch anything, in the hand's frame.
    pub collision_points: &'a [Point3<f64>],
    /// Obstacles; `None` is free space.
    pub sdf: Option<&'a SdfGrid>,
    /// Points that are to stay near `targets` on the way, in the hand's frame; none without such a wish.
    pub keypoints: &'a [Point3<f64>],
    /// World frame, one per keypoint.
    pub targets: &'a [Point3<f64>],
    /// How their distances count.
    pub norm: FlowNorm,
    /// The arm; `None` reaches everything without effort.
    pub reach: Option<&'a dyn Reach>,
    /// Joints at rest.
    pub reset_joints: &'a [f64],
}

/// The terms of [`Path::terms`], weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PathTerms {
    /// Sum of all but `reset_not_added`.
    pub total: f64,
    /// Poses along the way, both ends and the ends of each segment counted.
    pub poses: usize,
    /// Obstacles.
    pub collision: f64,
    /// Length.
    pub length: f64,
    /// Effort of inverse kinematics.
    pub ik: f64,
    /// Distance from the joints at rest.
    pub reset_not_added: f64,
    /// Distance from the targets.
    pub constraint: f64,
}

impl Path<'_> {
    /// What the way over these control points costs (without the ends, which are always part of it).
    ///
    /// # Errors
    /// Another number of targets than keypoints, or steps that are not above 0.
    pub fn terms(&self, control: &[Isometry3<f64>]) -> Result<PathTerms> {
        if self.targets.len() != self.keypoints.len() {
            return Err(Error::Length {
                what: "targets",
                got: self.targets.len(),
                want: self.keypoints.len(),
            });
        }
        let w = &self.weights;
        let way = self.way(control)?;
        let mut terms = PathTerms { poses: way.len(), ..PathTerms::default() };
        for pose in way.get(1..way.len() - 1).unwrap_or_default() {
            if let Some(sdf) = self.sdf {
                let depth = |p: &Point3<f64>| (sdf.at(&(pose * p)) + w.collision_margin_m).max(0.0);
                terms.collision += w.collision * self.collision_points.iter().map(depth).sum::<f64>();
            }
            for (point, target) in self.keypoints.iter().zip(self.targets) {
                let off = pose * point - target;
                terms.constraint += w.constraint
                    * match self.norm {
                        FlowNorm::Squared => off.norm_squared(),
                        FlowNorm::Plain => off.norm(),
                    };
            }
        }
        for pair in way.windows(2) {
            let (distance, angle) = pose_distance(&pair[0], &pair[1]);
            terms.length += w.length * (distance + w.rotation * angle);
        }
        if let Some(arm) = self.reach {
            for pose in self.corners(control) {
                let reached = arm.reach(&pose);
                terms.ik += w.ik * reached.iterations as f64 / w.ik_max_iterations.max(1) as f64;
                terms.reset_not_added += w.reset * reset_distance(&reached, self.reset_joints, w.reset_cap);
            }
        }
        terms.total = terms.collision + terms.constraint + terms.length + terms.ik;
        Ok(terms)
    }

    fn corners<'b>(&'b self, control: &'b [Isometry3<f64>]) -> impl Iterator<Item = Isometry3<f64>> + 'b {
        std::iter::once(self.start).chain(control.iter().copied()).chain(std::iter::once(self.end))
    }

    /// Poses along the way: each segment has its two ends and what is between, so that control points come twice.
    ///
    /// # Errors
    /// Steps that are not above 0.
    pub fn way(&self, control: &[Isometry3<f64>]) -> Result<Vec<Isometry3<f64>>> {
        let corners: Vec<_> = self.corners(control).collect();
        let mut way = Vec::new();
        for pair in corners.windows(2) {
            let n = interpolation_steps(&pair[0], &pair[1], self.weights.step_m, self.weights.step_rad)?;
            way.extend(interpolate_poses(&pair[0], &pair[1], n));
        }
        Ok(way)
    }

    /// Whether no point enters an obstacle by more than `max_depth_m` between the ends.
    ///
    /// # Errors
    /// As [`Path::way`].
    pub fn is_free(&self, control: &[Isometry3<f64>], max_depth_m: f64) -> Result<bool> {
        let Some(sdf) = self.sdf else { return Ok(true) };
        let free =
            |pose: &Isometry3<f64>| self.collision_points.iter().all(|p| sdf.at(&(pose * p)) <= max_depth_m);
        let way = self.way(control)?;
        Ok(way.get(1..way.len() - 1).unwrap_or_default().iter().all(free))
    }
}

/// Control points of a way from start to end that touches nothing: the straight one (no control points) if it is free and
/// nothing is wished of it; otherwise 1 to 4 control points by SLSQP with difference quotients, from the straight way and
/// from ways with seeded detours. `None` where no free way was found.
///
/// # Errors
/// As [`Path::terms`].
pub fn solve_path(path: &Path, options: &SolveOptions) -> Result<Option<Vec<Isometry3<f64>>>> {
    if path.keypoints.is_empty() && path.is_free(&[], options.max_depth_m)? {
        return Ok(Some(Vec::new()));
    }
    // ReKep: one control point per 20 cm or 45 degrees, both ends counted, 3 to 6.
    let corners = interpolation_steps(&path.start, &path.end, 0.20, 0.78)?.clamp(3, 6);
    let straight = interpolate_poses(&path.start, &path.end, corners);
    let straight = &straight[1..corners - 1];
    // Effort of the arm is a step function: it is no use to a search that follows slopes.
    let smooth = Path { reach: None, ..*path };
    let (low, high) = (options.bounds.low(), options.bounds.high());
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut best: Option<(f64, Vec<Isometry3<f64>>)> = None;
    for attempt in 0..=options.refined {
        let x0: Vec<f64> = straight
            .iter()
            .flat_map(|pose| {
                let mut numbers = options.bounds.normalise(&pose_to_euler(pose));
                for (i, x) in numbers.iter_mut().enumerate().take(3) {
                    // Detours go anywhere in the workspace, rather up than down.
                    let detour = if attempt == 0 { 0.0 } else { rng.random_range(-0.5..0.5f64) };
                    *x = (*x + if i == 2 { detour.abs() } else { detour }).clamp(-1.0, 1.0);
                }
                numbers.map(|x| x.clamp(-1.0, 1.0))
            })
            .collect();
        let poses = |x: &[f64]| -> Vec<Isometry3<f64>> {
            x.chunks_exact(6)
                .map(|c| pose_from_euler(&options.bounds.restore(&std::array::from_fn(|i| c[i]))))
                .collect()
        };
        let total = |x: &[f64]| smooth.terms(&poses(x)).map_or(f64::INFINITY, |terms| terms.total);
        let cost = |x: &[f64], gradient: Option<&mut [f64]>, _: &mut ()| {
            let here = total(x);
            if let Some(out) = gradient {
                let mut moved = x.to_vec();
                for i in 0..x.len() {
                    // Into the box.
                    let h = if x[i] > 0.0 { -1e-6 } else { 1e-6 };
                    moved[i] = x[i] + h;
                    out[i] = (total(&moved) - here) / h;
                    moved[i] = x[i];
                }
            }
            here
        };
        let bounds = vec![(-1.0, 1.0); x0.len()];
        let limits: [&dyn slsqp::Func<()>; 0] = [];
        let stop = StopTols { ftol_rel: 1e-5, ..StopTols::default() };
        let found = minimize(cost, &x0, &bounds, &limits, (), options.local_evaluations, Some(stop));
        let (Ok((_, x, _)) | Err((_, x, _))) = found;
        let control = poses(&x);
        let inside = control.iter().all(|pose| {
            let p = &pose.translation.vector;
            (0..3).all(|i| p[i] >= low[i] - 1e-9 && p[i] <= high[i] + 1e-9)
        });
        let reachable = || path.reach.is_none_or(|arm| control.iter().all(|pose| arm.reach(pose).success));
        if !inside || !path.is_free(&control, options.max_depth_m)? || !reachable() {
            continue;
        }
        let cost = path.terms(&control)?.total;
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, control));
        }
        if attempt == 0 {
            // The straight start is the shortest; detours are for when it fails.
            break;
        }
    }
    Ok(best.map(|(_, control)| control))
}
