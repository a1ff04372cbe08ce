//! The best pose of the hand: in closed form, by local search, or by sampling where the arm or obstacles reject both.

use nalgebra::{Isometry3, Matrix3, Point3, Translation3, Unit, UnitQuaternion, Vector3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slsqp::{StopTols, minimize};

use super::cost::{FlowNorm, Subgoal, SubgoalTerms};
use crate::pose::PoseBounds;
use crate::rigid::fit_rigid;
use crate::{Error, Flow3d, Result};

/// A direction of the hand that must stay near a direction of the world: "fingers down".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToolLimit {
    /// In the hand's frame.
    pub axis: Unit<Vector3<f64>>,
    /// In the world frame.
    pub towards: Unit<Vector3<f64>>,
    /// Largest angle between them, radians; pi/2 is a half space.
    pub max_angle_rad: f64,
}

impl ToolLimit {
    /// Above 0 where violated.
    fn excess(&self, rotation: &UnitQuaternion<f64>) -> f64 {
        self.max_angle_rad.cos() - (rotation * self.axis).dot(&self.towards)
    }
}

/// Limits and effort of the solvers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolveOptions {
    /// Where the hand may be. Only positions are limited here.
    pub bounds: PoseBounds,
    /// How the hand may be turned.
    pub tool: Option<ToolLimit>,
    /// Most evaluations of one local search.
    pub local_evaluations: usize,
    /// Poses sampled where the first answer is rejected.
    pub samples: usize,
    /// Best samples that are searched locally.
    pub refined: usize,
    /// Deepest point in an obstacle that is accepted, metres.
    pub max_depth_m: f64,
    /// Of the samples.
    pub seed: u64,
}

impl SolveOptions {
    /// 200 evaluations per local search, 256 samples of which 4 are refined, no contact.
    #[must_use]
    pub fn new(bounds: PoseBounds) -> Self {
        Self {
            bounds,
            tool: None,
            local_evaluations: 200,
            samples: 256,
            refined: 4,
            max_depth_m: 0.0,
            seed: 0,
        }
    }
}

/// Which solver found a pose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solved {
    /// Kabsch's closed form, unchanged.
    ClosedForm,
    /// Sequential quadratic programming from the closed form.
    Local,
    /// Sampling, then local search.
    Sampled,
}

/// The best pose found.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Of the hand, world frame.
    pub pose: Isometry3<f64>,
    /// What it costs.
    pub terms: SubgoalTerms,
    /// Who found it.
    pub solved: Solved,
    /// The arm reaches it, no point lies in an obstacle, and all limits are kept. A pose that is not accepted must not be
    /// executed.
    pub accepted: bool,
    /// Evaluations of the cost.
    pub evaluations: usize,
}

/// The pose that carries the keypoints as near to their targets as any (least squares), obstacles and limits aside.
///
/// # Errors
/// As [`Subgoal::check`]; no keypoints.
pub fn closed_form(problem: &Subgoal) -> Result<Isometry3<f64>> {
    problem.check()?;
    let now: Vec<Point3<f64>> = problem.keypoints.iter().map(|p| problem.start * p).collect();
    Ok(fit_rigid(&now, problem.targets, problem.target_weights)?.pose * problem.start)
}

/// Finds the cheapest pose. Starts from the closed form; where only the flow counts, that is the answer. Otherwise local
/// search by SLSQP with exact gradients; where the arm or an obstacle rejects its result, poses around it are sampled,
/// too. An impossible problem gives the best pose found, not accepted.
///
/// # Errors
/// As [`closed_form`].
pub fn solve_subgoal(problem: &Subgoal, options: &SolveOptions) -> Result<Solution> {
    let exact = closed_form(problem)?;
    let mut evaluations = 1;
    let only_flow = problem.reach.is_none() && {
        let terms = problem.smooth(&exact, None);
        let w = &problem.weights;
        problem.norm == FlowNorm::Squared
            && w.init_pose == 0.0
            && !problem.grasp_stage
            && terms.collision == 0.0
    };
    if only_flow && inside(&exact, options) {
        let terms = problem.terms(&exact);
        // Obstacles may reject it although nothing is paid for them.
        if accepted(problem, options, &exact, &terms) {
            return Ok(Solution {
                pose: exact,
                terms,
                solved: Solved::ClosedForm,
                accepted: true,
                evaluations,
            });
        }
    }
    let pose = local(problem, options, &exact, &mut evaluations);
    let terms = problem.terms(&pose);
    let accepted = accepted(problem, options, &pose, &terms);
    let mut best = Solution { pose, terms, solved: Solved::Local, accepted, evaluations };
    if !best.accepted && options.samples > 0 {
        sample(problem, options, &mut best);
    }
    Ok(best)
}

/// Hand poses for a chunk of frames: `targets[t]` are where the flow wants the keypoints at frame t + 1. Each frame is
/// solved from the pose found for the one before, which is also what its distance term is measured from.
///
/// # Errors
/// As [`solve_subgoal`].
pub fn solve_chunk(
    problem: &Subgoal,
    targets: &[Vec<Point3<f64>>],
    options: &SolveOptions,
) -> Result<Vec<Solution>> {
    let mut out: Vec<Solution> = Vec::with_capacity(targets.len());
    for targets in targets {
        let start = out.last().map_or(problem.start, |solution| solution.pose);
        out.push(solve_subgoal(&Subgoal { start, targets, ..*problem }, options)?);
    }
    Ok(out)
}

/// Where a flow wants some of its points at each frame after the present.
///
/// # Errors
/// An index past the points.
pub fn targets_of(flow: &Flow3d, keypoints: &[usize]) -> Result<Vec<Vec<Point3<f64>>>> {
    if let Some(bad) = keypoints.iter().find(|i| **i >= flow.points()) {
        return Err(Error::Range { what: "keypoint", value: *bad as f64, range: "below the points" });
    }
    Ok((1..flow.frames()).map(|t| keypoints.iter().map(|&i| flow.at(t)[i]).collect()).collect())
}

fn inside(pose: &Isometry3<f64>, options: &SolveOptions) -> bool {
    options.bounds.contains(&pose.translation.vector)
        && options.tool.is_none_or(|tool| tool.excess(&pose.rotation) <= 1e-6)
}

fn accepted(problem: &Subgoal, options: &SolveOptions, pose: &Isometry3<f64>, terms: &SubgoalTerms) -> bool {
    let reached = terms.reached.as_ref().is_none_or(|reached| reached.success);
    let free = problem.sdf.is_none_or(|sdf| {
        problem.collision_points.iter().all(|p| sdf.at(&(pose * p)) <= options.max_depth_m)
    });
    reached && free && inside(pose, options)
}

/// Six numbers about a pose: position in the workspace, -1 to 1, and the turn from it as a rotation vector over pi. Unlike
/// Euler angles they have no poles and no edge where a hand that points down would lie.
struct Local<'a> {
    problem: &'a Subgoal<'a>,
    options: &'a SolveOptions,
    about: UnitQuaternion<f64>,
}

impl Local<'_> {
    fn pose(&self, x: &[f64]) -> Isometry3<f64> {
        let (low, high) = (self.options.bounds.low(), self.options.bounds.high());
        let position = Vector3::from_fn(|i, _| low[i] + 0.5 * (x[i] + 1.0) * (high[i] - low[i]));
        Isometry3::from_parts(
            Translation3::from(position),
            UnitQuaternion::from_scaled_axis(turn(x)) * self.about,
        )
    }

    /// From derivatives with respect to a shift and a turn in the world frame to those with respect to the six numbers.
    fn gradient(&self, x: &[f64], push: &Vector3<f64>, twist: &Vector3<f64>, out: &mut [f64]) {
        let (low, high) = (self.options.bounds.low(), self.options.bounds.high());
        let turned = left_jacobian(&turn(x)).tr_mul(twist) * std::f64::consts::PI;
        for i in 0..3 {
            out[i] = push[i] * 0.5 * (high[i] - low[i]);
            out[3 + i] = turned[i];
        }
    }
}

fn turn(x: &[f64]) -> Vector3<f64> {
    Vector3::new(x[3], x[4], x[5]) * std::f64::consts::PI
}

/// d exp(phi) exp(-phi) / d phi: how a change of a rotation vector turns the world.
fn left_jacobian(phi: &Vector3<f64>) -> Matrix3<f64> {
    let angle = phi.norm();
    let cross = phi.cross_matrix();
    let (a, b) = if angle < 1e-4 {
        (0.5 - angle * angle / 24.0, 1.0 / 6.0 - angle * angle / 120.0)
    } else {
        ((1.0 - angle.cos()) / (angle * angle), (angle - angle.sin()) / angle.powi(3))
    };
    Matrix3::identity() + cross * a + cross * cross * b
}

/// SLSQP (Kraft 1988) on the smooth terms, from one pose.
fn local(
    problem: &Subgoal,
    options: &SolveOptions,
    from: &Isometry3<f64>,
    evaluations: &mut usize,
) -> Isometry3<f64> {
    let about = from.rotation;
    let chart = Local { problem, options, about };
    let (low, high) = (options.bounds.low(), options.bounds.high());
    let start = options.bounds.clamp(&from.translation.vector);
    let mut x = [0.0; 6];
    for i in 0..3 {
        x[i] = (2.0 * (start[i] - low[i]) / (high[i] - low[i]) - 1.0).clamp(-1.0, 1.0);
    }
    let count = std::cell::Cell::new(0usize);
    let cost = |x: &[f64], gradient: Option<&mut [f64]>, _: &mut ()| {
        count.set(count.get() + 1);
        let pose = chart.pose(x);
        let (mut push, mut twist) = (Vector3::zeros(), Vector3::zeros());
        let total = chart.problem.smooth(&pose, Some((&mut push, &mut twist))).total;
        if let Some(out) = gradient {
            chart.gradient(x, &push, &twist, out);
        }
        total
    };
    let limit = |x: &[f64], gradient: Option<&mut [f64]>, _: &mut ()| {
        let Some(tool) = &options.tool else { return -1.0 };
        let pose = chart.pose(x);
        if let Some(out) = gradient {
            let axis = (pose.rotation * tool.axis).into_inner();
            chart.gradient(x, &Vector3::zeros(), &-axis.cross(&tool.towards), out);
        }
        tool.excess(&pose.rotation)
    };
    let limits: Vec<&dyn slsqp::Func<()>> = if options.tool.is_some() { vec![&limit] } else { Vec::new() };
    let stop = StopTols { ftol_rel: 1e-6, xtol_abs: vec![1e-7; 6], ..StopTols::default() };
    let found = minimize(cost, &x, &[(-1.0, 1.0); 6], &limits, (), options.local_evaluations, Some(stop));
    *evaluations += count.get();
    let (Ok((_, x, _)) | Err((_, x, _))) = found;
    if x.iter().all(|x| x.is_finite()) { chart.pose(&x) } else { *from }
}

/// Poses around the best so far, farther and farther; the best few are searched locally.
fn sample(problem: &Subgoal, options: &SolveOptions, best: &mut Solution) {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let (low, high) = (options.bounds.low(), options.bounds.high());
    let (middle, about) = (best.pose.translation.vector, best.pose.rotation);
    let mut found: Vec<(bool, f64, Isometry3<f64>)> = Vec::with_capacity(options.samples);
    for n in 0..options.samples {
        let reach = (n + 1) as f64 / options.samples as f64;
        let mut uniform = || rng.random_range(-1.0..=1.0f64);
        let shift = Vector3::from_fn(|i, _| 0.5 * reach * uniform() * (high[i] - low[i]));
        let turned = Vector3::from_fn(|_, _| reach * uniform()) * std::f64::consts::FRAC_PI_2;
        let position = options.bounds.clamp(&(middle + shift));
        let rotation = UnitQuaternion::from_scaled_axis(turned) * about;
        let pose = Isometry3::from_parts(Translation3::from(position), rotation);
        let terms = problem.terms(&pose);
        found.push((accepted(problem, options, &pose, &terms), terms.total, pose));
    }
    best.evaluations += options.samples;
    found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)));
    let mut candidates: Vec<Isometry3<f64>> =
        found.iter().take(options.refined.max(1)).map(|f| f.2).collect();
    for i in 0..candidates.len().min(options.refined) {
        candidates.push(local(problem, options, &candidates[i], &mut best.evaluations));
    }
    for pose in candidates {
        let terms = problem.terms(&pose);
        let ok = accepted(problem, options, &pose, &terms);
        if (ok && !best.accepted) || (ok == best.accepted && terms.total < best.terms.total) {
            (best.pose, best.terms, best.accepted, best.solved) = (pose, terms, ok, Solved::Sampled);
        }
    }
}
