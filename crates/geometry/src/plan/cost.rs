//! What a pose of the hand costs.

use nalgebra::{Isometry3, Matrix3, Point3, Vector3};
use serde::{Deserialize, Serialize};

use crate::pose::pose_distance;
use crate::sdf::SdfGrid;
use crate::{Error, Result};

/// How the distance of a point from its target counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowNorm {
    /// Squared: smooth, with the closed form of Kabsch.
    #[default]
    Squared,
    /// As it is.
    Plain,
}

/// Sum over points of the (squared) distance from where the flow wants them.
///
/// # Errors
/// Lengths that disagree.
pub fn flow_distance(points: &[Point3<f64>], targets: &[Point3<f64>], norm: FlowNorm) -> Result<f64> {
    if targets.len() != points.len() {
        return Err(Error::Length { what: "targets", got: targets.len(), want: points.len() });
    }
    let one = |(p, q): (&Point3<f64>, &Point3<f64>)| match norm {
        FlowNorm::Squared => (p - q).norm_squared(),
        FlowNorm::Plain => (p - q).norm(),
    };
    Ok(points.iter().zip(targets).map(one).sum())
}

/// Mean squared distance over visible points, weighted by visibility; 0 where none is visible.
///
/// # Errors
/// Lengths that disagree.
pub fn visible_mean_squared(
    points: &[Point3<f64>],
    targets: &[Point3<f64>],
    visibility: &[f64],
) -> Result<f64> {
    for (what, got) in [("targets", targets.len()), ("visibility", visibility.len())] {
        if got != points.len() {
            return Err(Error::Length { what, got, want: points.len() });
        }
    }
    let (mut sum, mut weight) = (0.0, 0.0);
    for ((p, q), v) in points.iter().zip(targets).zip(visibility) {
        sum += v * (p - q).norm_squared();
        weight += v;
    }
    Ok(if weight > 0.0 { sum / weight } else { 0.0 })
}

/// What inverse kinematics says of a pose.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    /// Whether the arm gets there.
    pub success: bool,
    /// Iterations used: many mean a pose that is hard to reach.
    pub iterations: usize,
    /// Joints of the arm there, without the gripper's.
    pub joints: Vec<f64>,
}

/// Can the arm reach this pose? See [`crate::ik::ChainReach`].
pub trait Reach {
    /// Tries.
    fn reach(&self, pose: &Isometry3<f64>) -> Reached;
}

/// Weights of [`Subgoal`]; the defaults are ReKep's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubgoalWeights {
    /// Of the depth of points in obstacles.
    pub collision: f64,
    /// Distance kept from obstacles, metres.
    pub collision_margin_m: f64,
    /// Of the distance from the present pose.
    pub init_pose: f64,
    /// Of its angle, metres per radian.
    pub init_pose_rotation: f64,
    /// Of the share of iterations that inverse kinematics uses.
    pub ik: f64,
    /// All of them.
    pub ik_max_iterations: usize,
    /// Of the distance of the joints from their rest.
    pub reset: f64,
    /// Largest distance counted, and the distance where no joints are found, radians.
    pub reset_cap: f64,
    /// Of the approach: 1 - x axis of the hand against straight down. Only when choosing a grasp.
    pub grasp: f64,
    /// Of the flow.
    pub constraint: f64,
}

impl Default for SubgoalWeights {
    fn default() -> Self {
        Self {
            collision: 0.8,
            collision_margin_m: 0.10,
            init_pose: 1.0,
            init_pose_rotation: 1.5,
            ik: 20.0,
            ik_max_iterations: 20,
            reset: 0.2,
            reset_cap: 3.0,
            grasp: 10.0,
            constraint: 200.0,
        }
    }
}

impl SubgoalWeights {
    /// Only the flow counts.
    #[must_use]
    pub fn flow_only() -> Self {
        Self {
            collision: 0.0,
            init_pose: 0.0,
            ik: 0.0,
            reset: 0.0,
            grasp: 0.0,
            constraint: 1.0,
            ..Self::default()
        }
    }
}

/// Where should the hand go so that the points it carries get to their targets?
#[derive(Clone, Copy)]
pub struct Subgoal<'a> {
    /// Weights.
    pub weights: SubgoalWeights,
    /// The present pose of the hand, world frame.
    pub start: Isometry3<f64>,
    /// Points of the held object in the hand's frame.
    pub keypoints: &'a [Point3<f64>],
    /// Where the flow wants them, world frame.
    pub targets: &'a [Point3<f64>],
    /// How much each counts; `None` is 1 for all. Weights of the squared or plain distances.
    pub target_weights: Option<&'a [f64]>,
    /// How distances count.
    pub norm: FlowNorm,
    /// Points of hand and object that must not touch anything, in the hand's frame.
    pub collision_points: &'a [Point3<f64>],
    /// Obstacles; `None` is free space.
    pub sdf: Option<&'a SdfGrid>,
    /// The arm; `None` reaches everything without effort.
    pub reach: Option<&'a dyn Reach>,
    /// Joints at rest, as many as the arm has.
    pub reset_joints: &'a [f64],
    /// Whether a grasp is being chosen.
    pub grasp_stage: bool,
}

/// The terms of [`Subgoal::terms`], weighted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubgoalTerms {
    /// Sum of all.
    pub total: f64,
    /// Obstacles.
    pub collision: f64,
    /// Distance from the present pose.
    pub init_pose: f64,
    /// Effort of inverse kinematics.
    pub ik: f64,
    /// Distance from the joints at rest.
    pub reset: f64,
    /// Approach.
    pub grasp: f64,
    /// Distance from the flow.
    pub flow: f64,
    /// What inverse kinematics said, if it was asked.
    pub reached: Option<Reached>,
}

impl<'a> Subgoal<'a> {
    /// Only a flow to follow, in free space, with an arm that reaches everything.
    #[must_use]
    pub fn flow_only(
        start: Isometry3<f64>,
        keypoints: &'a [Point3<f64>],
        targets: &'a [Point3<f64>],
    ) -> Self {
        Self {
            weights: SubgoalWeights::flow_only(),
            start,
            keypoints,
            targets,
            target_weights: None,
            norm: FlowNorm::Squared,
            collision_points: &[],
            sdf: None,
            reach: None,
            reset_joints: &[],
            grasp_stage: false,
        }
    }

    /// Refuses lengths that disagree and numbers that are not finite.
    ///
    /// # Errors
    /// Says which.
    pub fn check(&self) -> Result<()> {
        let n = self.keypoints.len();
        if self.targets.len() != n {
            return Err(Error::Length { what: "targets", got: self.targets.len(), want: n });
        }
        for (what, points) in [
            ("keypoints", self.keypoints),
            ("targets", self.targets),
            ("collision points", self.collision_points),
        ] {
            crate::rigid::finite(what, points)?;
        }
        if let Some(weights) = self.target_weights {
            if weights.len() != n {
                return Err(Error::Length { what: "target weights", got: weights.len(), want: n });
            }
            if let Some(index) = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
                return Err(Error::NotFinite { what: "target weights", index });
            }
        }
        let start = self.start.to_homogeneous();
        match start.iter().position(|x| !x.is_finite()) {
            Some(index) => Err(Error::NotFinite { what: "start", index }),
            None => Ok(()),
        }
    }

    /// What a pose costs, term by term. Asks the arm, if there is one.
    #[must_use]
    pub fn terms(&self, pose: &Isometry3<f64>) -> SubgoalTerms {
        let mut terms = self.smooth(pose, None);
        if let Some(arm) = self.reach {
            let reached = arm.reach(pose);
            let w = &self.weights;
            terms.ik = w.ik * (reached.iterations as f64 / w.ik_max_iterations.max(1) as f64);
            terms.reset = w.reset * reset_distance(&reached, self.reset_joints, w.reset_cap);
            terms.total += terms.ik + terms.reset;
            terms.reached = Some(reached);
        }
        terms
    }

    /// All terms but the arm's; adds the gradient with respect to a shift of the hand and a turn about its origin, both in
    /// the world frame.
    pub(super) fn smooth(
        &self,
        pose: &Isometry3<f64>,
        gradient: Option<(&mut Vector3<f64>, &mut Vector3<f64>)>,
    ) -> SubgoalTerms {
        let w = &self.weights;
        let rotation = pose.rotation.to_rotation_matrix();
        let (turn, shift) = (rotation.matrix(), &pose.translation.vector);
        let (mut push, mut twist) = (Vector3::zeros(), Vector3::zeros());
        let flow = w.constraint * self.flow(turn, shift, w.constraint, &mut push, &mut twist);
        let mut collision = 0.0;
        if let (Some(sdf), true) = (self.sdf, w.collision > 0.0) {
            for point in self.collision_points {
                let arm = turn * point.coords;
                let (distance, slope) = sdf.with_gradient(&Point3::from(arm + shift));
                let depth = distance + w.collision_margin_m;
                if depth > 0.0 {
                    collision += depth;
                    push += slope * w.collision;
                    twist += arm.cross(&slope) * w.collision;
                }
            }
        }
        let mut init_pose = 0.0;
        if w.init_pose > 0.0 {
            let (distance, angle) = pose_distance(&self.start, pose);
            init_pose = w.init_pose * (distance + w.init_pose_rotation * angle);
            let way = shift - self.start.translation.vector;
            push += way.try_normalize(1e-12).unwrap_or_default() * w.init_pose;
            let turned = self.start.rotation.rotation_to(&pose.rotation).scaled_axis();
            twist += turned.try_normalize(1e-12).unwrap_or_default() * (w.init_pose * w.init_pose_rotation);
        }
        let mut grasp = 0.0;
        if self.grasp_stage {
            let x: Vector3<f64> = turn.column(0).into_owned();
            grasp = w.grasp * (1.0 + x.z);
            twist += x.cross(&Vector3::z()) * w.grasp;
        }
        if let Some((dp, dr)) = gradient {
            *dp += push;
            *dr += twist;
        }
        let collision = w.collision * collision;
        let total = collision + init_pose + grasp + flow;
        SubgoalTerms { total, collision, init_pose, grasp, flow, ..SubgoalTerms::default() }
    }

    fn flow(
        &self,
        turn: &Matrix3<f64>,
        shift: &Vector3<f64>,
        scale: f64,
        push: &mut Vector3<f64>,
        twist: &mut Vector3<f64>,
    ) -> f64 {
        let mut sum = 0.0;
        for (i, (point, target)) in self.keypoints.iter().zip(self.targets).enumerate() {
            let weight = self.target_weights.map_or(1.0, |weights| weights[i]);
            let arm = turn * point.coords;
            let off = arm + shift - target.coords;
            let force = match self.norm {
                FlowNorm::Squared => {
                    sum += weight * off.norm_squared();
                    off * (2.0 * weight)
                }
                FlowNorm::Plain => {
                    sum += weight * off.norm();
                    off.try_normalize(1e-12).unwrap_or_default() * weight
                }
            };
            *push += force * scale;
            *twist += arm.cross(&force) * scale;
        }
        sum
    }
}

/// Distance of the joints from their rest, capped; the cap where there are no joints.
pub(super) fn reset_distance(reached: &Reached, rest: &[f64], cap: f64) -> f64 {
    if !reached.success {
        return cap;
    }
    let squared: f64 = reached.joints.iter().zip(rest).map(|(q, r)| (q - r) * (q - r)).sum();
    squared.sqrt().clamp(0.0, cap)
}
