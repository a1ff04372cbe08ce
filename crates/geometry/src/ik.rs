//! Inverse kinematics: joints that bring a hand to a pose.

use nalgebra::{Isometry3, Matrix6, Matrix6xX, Unit, Vector3, Vector6};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::plan::{Reach, Reached};
use crate::{Error, Result};

/// An arm.
pub trait Chain {
    /// Joints.
    fn joints(&self) -> usize;

    /// Lower and upper limit of each joint, radians or metres.
    fn limits(&self) -> Vec<[f64; 2]>;

    /// Pose of the hand in the world for these joints, and its derivative: rows are the velocity of the hand's origin and
    /// its angular velocity, both in the world frame; one column per joint.
    fn forward(&self, q: &[f64]) -> (Isometry3<f64>, Matrix6xX<f64>);
}

/// When a pose is reached, and how hard it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IkOptions {
    /// Largest distance from the pose, metres.
    pub position_m: f64,
    /// Largest angle from the pose, radians.
    pub rotation_rad: f64,
    /// Most steps from each start.
    pub max_iterations: usize,
    /// Further starts after the given one: the middle of the limits, then seeded joints within them. 0 keeps to the given
    /// start, so that joints change little along a path.
    pub restarts: usize,
    /// Largest change of a joint in one step, radians or metres.
    pub max_step: f64,
    /// How many metres one radian counts.
    pub radius_m: f64,
    /// Of the restarts.
    pub seed: u64,
}

impl Default for IkOptions {
    /// 1 mm, half a degree, 60 steps of at most 0.5 rad, 8 restarts.
    fn default() -> Self {
        Self {
            position_m: 1e-3,
            rotation_rad: 0.009,
            max_iterations: 60,
            restarts: 8,
            max_step: 0.5,
            radius_m: 0.3,
            seed: 0,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct IkSolution {
    /// Within the limits; the nearest found where the pose is not reached.
    pub joints: Vec<f64>,
    /// Whether the pose is reached.
    pub reached: bool,
    /// Steps from the start that led to `joints`.
    pub iterations: usize,
    /// Starts tried, at least 1.
    pub starts: usize,
    /// Distance that is left, metres.
    pub position_error_m: f64,
    /// Angle that is left, radians.
    pub rotation_error_rad: f64,
}

/// Joints near `start` that bring the hand to `target`: damped least squares with a damping that follows success
/// (Levenberg-Marquardt), joints at a limit held there while they would leave it; then other starts.
///
/// # Errors
/// Another number of joints or limits than the chain has, limits that are empty or not finite, a step that is not above 0, a start or
/// target that is not finite. A pose out of reach is no error.
pub fn solve_ik(
    chain: &dyn Chain,
    target: &Isometry3<f64>,
    start: &[f64],
    options: &IkOptions,
) -> Result<IkSolution> {
    let (n, limits) = (chain.joints(), chain.limits());
    if start.len() != n {
        return Err(Error::Length { what: "start", got: start.len(), want: n });
    }
    if limits.len() != n {
        return Err(Error::Length { what: "limits", got: limits.len(), want: n });
    }
    if let Some([low, high]) = limits.iter().find(|[low, high]| !(low <= high && (high - low).is_finite())) {
        return Err(Error::Range {
            what: "length of a joint's range",
            value: high - low,
            range: "at least 0, finite",
        });
    }
    if options.max_step.is_nan() || options.max_step <= 0.0 {
        return Err(Error::Range { what: "max_step", value: options.max_step, range: "above 0" });
    }
    if let Some(index) = start.iter().position(|q| !q.is_finite()) {
        return Err(Error::NotFinite { what: "start", index });
    }
    if let Some(index) = target.to_homogeneous().iter().position(|x| !x.is_finite()) {
        return Err(Error::NotFinite { what: "target", index });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut best: Option<IkSolution> = None;
    for attempt in 0..=options.restarts {
        let from: Vec<f64> = match attempt {
            0 => start.to_vec(),
            1 => limits.iter().map(|[low, high]| 0.5 * (low + high)).collect(),
            _ => limits.iter().map(|[low, high]| rng.random_range(*low..=*high)).collect(),
        };
        let mut found = descend(chain, target, from, &limits, options);
        found.starts = attempt + 1;
        let off = |s: &IkSolution| s.position_error_m + options.radius_m * s.rotation_error_rad;
        let better = best.as_ref().is_none_or(|b| off(&found) < off(b));
        if found.reached {
            return Ok(found);
        }
        if better {
            best = Some(found);
        } else if let Some(best) = &mut best {
            best.starts = attempt + 1;
        }
    }
    best.ok_or(Error::Range { what: "starts", value: 0.0, range: "at least 1" })
}

/// How far a pose is from the target: shift and rotation vector, world frame.
fn error(pose: &Isometry3<f64>, target: &Isometry3<f64>) -> (Vector3<f64>, Vector3<f64>) {
    let shift = target.translation.vector - pose.translation.vector;
    (shift, pose.rotation.rotation_to(&target.rotation).scaled_axis())
}

fn descend(
    chain: &dyn Chain,
    target: &Isometry3<f64>,
    mut q: Vec<f64>,
    limits: &[[f64; 2]],
    options: &IkOptions,
) -> IkSolution {
    let n = q.len();
    for (q, [low, high]) in q.iter_mut().zip(limits) {
        *q = q.clamp(*low, *high);
    }
    let stack = |(shift, turn): &(Vector3<f64>, Vector3<f64>)| {
        let turn = turn * options.radius_m;
        Vector6::new(shift.x, shift.y, shift.z, turn.x, turn.y, turn.z)
    };
    let done = |(shift, turn): &(Vector3<f64>, Vector3<f64>)| {
        shift.norm() <= options.position_m && turn.norm() <= options.rotation_rad
    };
    let (pose, mut jacobian) = chain.forward(&q);
    let mut off = error(&pose, target);
    let mut damping = 1e-2;
    let mut iterations = 0;
    while iterations < options.max_iterations && !done(&off) {
        iterations += 1;
        let e = stack(&off);
        let mut weighted = jacobian.clone();
        weighted.rows_mut(3, 3).scale_mut(options.radius_m);
        // A joint at its limit that is pushed outwards is held: its column counts for nothing, and the others make up.
        let mut step = vec![0.0; n];
        for _ in 0..=n {
            let system = &weighted * weighted.transpose() + Matrix6::identity() * (damping * damping);
            let Some(factor) = system.cholesky() else { break };
            let y = factor.solve(&e);
            let mut held = false;
            for j in 0..n {
                let column = weighted.column(j);
                step[j] = column.dot(&y);
                let [low, high] = limits[j];
                let outwards = (step[j] > 0.0 && q[j] >= high) || (step[j] < 0.0 && q[j] <= low);
                if outwards && column.norm_squared() > 0.0 {
                    weighted.column_mut(j).fill(0.0);
                    step[j] = 0.0;
                    held = true;
                }
            }
            if !held {
                break;
            }
        }
        let longest = step.iter().fold(0.0f64, |longest, s| longest.max(s.abs()));
        let share = if longest > options.max_step { options.max_step / longest } else { 1.0 };
        step.iter_mut().for_each(|s| *s *= share);
        let moved: Vec<f64> =
            q.iter().zip(&step).zip(limits).map(|((q, s), [low, high])| (q + s).clamp(*low, *high)).collect();
        let (pose, derivative) = chain.forward(&moved);
        let next = error(&pose, target);
        let (now, then) = (e.norm_squared(), stack(&next).norm_squared());
        if then < now {
            (q, jacobian, off) = (moved, derivative, next);
            damping = (damping * 0.3).max(1e-6);
            if now - then < 1e-12 * now && !done(&off) {
                break;
            }
        } else if damping > 1e3 {
            break;
        } else {
            damping *= 4.0;
        }
    }
    IkSolution {
        joints: q,
        reached: done(&off),
        iterations,
        starts: 1,
        position_error_m: off.0.norm(),
        rotation_error_rad: off.1.norm(),
    }
}

/// An arm as the costs of [`crate::plan`] ask it.
pub struct ChainReach<'a> {
    /// The arm.
    pub chain: &'a dyn Chain,
    /// Joints from which each search starts.
    pub start: &'a [f64],
    /// How hard it is tried.
    pub options: IkOptions,
}

impl Reach for ChainReach<'_> {
    fn reach(&self, pose: &Isometry3<f64>) -> Reached {
        match solve_ik(self.chain, pose, self.start, &self.options) {
            Ok(found) => {
                Reached { success: found.reached, iterations: found.iterations, joints: found.joints }
            }
            // A pose that is not even finite is not reached.
            Err(_) => Reached {
                success: false,
                iterations: self.options.max_iterations,
                joints: self.start.to_vec(),
            },
        }
    }
}

/// How a joint moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JointKind {
    /// About its axis, radians.
    Revolute,
    /// Along its axis, metres.
    Prismatic,
}

/// One joint of a [`SerialChain`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SerialJoint {
    /// Turning or sliding.
    pub kind: JointKind,
    /// The joint's frame in the frame of the joint before (in the world for the first), at 0.
    pub origin: Isometry3<f64>,
    /// In the joint's frame.
    pub axis: Unit<Vector3<f64>>,
    /// Lower and upper limit, radians or metres.
    pub limits: [f64; 2],
}

/// An arm of joints one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SerialChain {
    /// From the base on.
    pub joints: Vec<SerialJoint>,
    /// The hand in the frame of the last joint.
    pub tool: Isometry3<f64>,
}

impl Chain for SerialChain {
    fn joints(&self) -> usize {
        self.joints.len()
    }

    fn limits(&self) -> Vec<[f64; 2]> {
        self.joints.iter().map(|joint| joint.limits).collect()
    }

    fn forward(&self, q: &[f64]) -> (Isometry3<f64>, Matrix6xX<f64>) {
        let mut pose = Isometry3::identity();
        let mut axes = Vec::with_capacity(self.joints.len());
        for (joint, q) in self.joints.iter().zip(q) {
            pose *= joint.origin;
            axes.push((joint.kind, pose.translation.vector, pose.rotation * joint.axis.into_inner()));
            pose *= match joint.kind {
                JointKind::Revolute => Isometry3::new(Vector3::zeros(), joint.axis.into_inner() * *q),
                JointKind::Prismatic => Isometry3::new(joint.axis.into_inner() * *q, Vector3::zeros()),
            };
        }
        pose *= self.tool;
        let mut jacobian = Matrix6xX::zeros(axes.len());
        for (mut column, (kind, at, axis)) in jacobian.column_iter_mut().zip(axes) {
            let (linear, angular) = match kind {
                JointKind::Revolute => (axis.cross(&(pose.translation.vector - at)), axis),
                JointKind::Prismatic => (axis, Vector3::zeros()),
            };
            column.fixed_rows_mut::<3>(0).copy_from(&linear);
            column.fixed_rows_mut::<3>(3).copy_from(&angular);
        }
        (pose, jacobian)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::pose::pose_distance;

    fn joint(x: f64, y: f64, z: f64, axis: Vector3<f64>, limit: f64) -> SerialJoint {
        let origin = Isometry3::translation(x, y, z);
        SerialJoint {
            kind: JointKind::Revolute,
            origin,
            axis: Unit::new_normalize(axis),
            limits: [-limit, limit],
        }
    }

    /// Six joints with a spherical wrist, about a metre long.
    fn arm() -> SerialChain {
        let (y, z, x) = (Vector3::y(), Vector3::z(), Vector3::x());
        let joints = vec![
            joint(0.0, 0.0, 0.3, z, 2.9),
            joint(0.0, 0.0, 0.1, y, 1.9),
            joint(0.0, 0.0, 0.35, y, 2.6),
            joint(0.05, 0.0, 0.1, x, 2.9),
            joint(0.25, 0.0, 0.0, y, 2.0),
            joint(0.0, 0.0, 0.0, x, 3.0),
        ];
        SerialChain { joints, tool: Isometry3::translation(0.1, 0.0, 0.0) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn poses_of_the_arm_are_reached_within_the_limits(share in prop::array::uniform6(0.05..0.95f64)) {
            let arm = arm();
            let q: Vec<f64> = arm.limits().iter().zip(share).map(|([l, h], s)| l + s * (h - l)).collect();
            let target = arm.forward(&q).0;
            // With 30 restarts a pose is missed now and then; with 300 none of 20 000 was.
            let options = IkOptions { restarts: 300, ..IkOptions::default() };
            let found = solve_ik(&arm, &target, &[0.1; 6], &options).unwrap();
            prop_assert!(found.reached, "{found:?}");
            let (distance, angle) = pose_distance(&arm.forward(&found.joints).0, &target);
            prop_assert!(distance <= 1e-3 && angle <= 0.009 + 1e-9);
            for (q, [low, high]) in found.joints.iter().zip(arm.limits()) {
                prop_assert!((low..=high).contains(q));
            }
        }

        #[test]
        fn the_jacobian_is_the_derivative(q in prop::array::uniform6(-1.5..1.5f64), j in 0..6usize) {
            let arm = arm();
            let (pose, jacobian) = arm.forward(&q);
            let mut moved = q;
            moved[j] += 1e-6;
            let (shift, turn) = error(&pose, &arm.forward(&moved).0);
            let column = jacobian.column(j);
            prop_assert!((shift / 1e-6 - column.fixed_rows::<3>(0)).norm() < 1e-4);
            prop_assert!((turn / 1e-6 - column.fixed_rows::<3>(3)).norm() < 1e-4);
        }
    }

    /// Two links of 1 m in a plane: the elbow angle is known.
    #[test]
    fn a_planar_arm_has_the_angles_of_the_law_of_cosines() {
        let joints = vec![joint(0.0, 0.0, 0.0, Vector3::z(), 3.0), joint(1.0, 0.0, 0.0, Vector3::z(), 3.0)];
        let arm = SerialChain { joints, tool: Isometry3::translation(1.0, 0.0, 0.0) };
        let target = arm.forward(&[0.4, 0.9]).0;
        let found = solve_ik(
            &arm,
            &target,
            &[0.0, 0.5],
            &IkOptions { position_m: 1e-9, rotation_rad: 1e-9, ..IkOptions::default() },
        );
        let found = found.unwrap();
        assert!(found.reached && found.iterations < 30 && found.starts == 1, "{found:?}");
        assert!((found.joints[0] - 0.4).abs() < 1e-6 && (found.joints[1] - 0.9).abs() < 1e-6);
        // Nearer is easier.
        let near = solve_ik(&arm, &target, &[0.39, 0.91], &IkOptions::default()).unwrap();
        assert!(near.iterations <= found.iterations);
    }

    #[test]
    fn out_of_reach_is_told_and_bad_input_refused() {
        let arm = arm();
        let far = Isometry3::translation(5.0, 0.0, 0.5);
        let found = solve_ik(&arm, &far, &[0.0; 6], &IkOptions::default()).unwrap();
        assert!(!found.reached && found.position_error_m > 3.5 && found.starts == 9, "{found:?}");
        assert!(found.joints.iter().all(|q| q.is_finite()));
        let reach = ChainReach { chain: &arm, start: &[0.0; 6], options: IkOptions::default() };
        assert!(!reach.reach(&far).success && reach.reach(&arm.forward(&[0.2; 6]).0).success);
        assert!(matches!(solve_ik(&arm, &far, &[0.0; 5], &IkOptions::default()), Err(Error::Length { .. })));
        assert!(solve_ik(&arm, &far, &[f64::NAN; 6], &IkOptions::default()).is_err());
        let nowhere = Isometry3::translation(f64::NAN, 0.0, 0.0);
        assert!(
            solve_ik(&arm, &nowhere, &[0.0; 6], &IkOptions::default()).is_err()
                && !reach.reach(&nowhere).success
        );
        let mut broken = arm.clone();
        broken.joints[2].limits = [1.0, -1.0];
        assert!(matches!(
            solve_ik(&broken, &far, &[0.0; 6], &IkOptions::default()),
            Err(Error::Range { .. })
        ));
    }
}
