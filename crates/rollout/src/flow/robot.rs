//! What a planner and an executor need of a robot and its scene.

use efference_envs::{Action, Outcome};
use efference_geometry::{Isometry3, Point3};

use super::{GraspShape, Gripper, Result};

/// A robot at work: the only things that happen to it are 7-number actions.
pub trait Robot {
    /// One control step.
    ///
    /// # Errors
    /// The environment failed, or its episode is over.
    fn step(&mut self, action: &Action) -> Result<Outcome>;

    /// World from gripper; the gripper looks along its -z and closes along y, and points down at the identity.
    fn grip(&self) -> Isometry3<f64>;

    /// Distance between the fingers, metres.
    fn opening_m(&self) -> f64;

    /// Where the points of the query are now, world frame, in the query's order. A tracker's answer on a real robot.
    ///
    /// # Errors
    /// They cannot be observed.
    fn observe(&mut self) -> Result<Vec<Point3<f64>>>;
}

/// Where an inverse kinematics ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    /// Joint angles without the fingers, radians, within their limits.
    pub joints: Vec<f64>,
    /// Distance that is left, metres.
    pub left_m: f64,
    /// Angle that is left, radians.
    pub left_rad: f64,
}

/// What can be asked about a robot without moving it.
pub trait Kinematics {
    /// The present joint angles, radians.
    fn joints(&self) -> Vec<f64>;

    /// Joint angles for a gripper pose, from these; the nearest that is found if it is out of reach.
    ///
    /// # Errors
    /// The model refused.
    fn reach(&mut self, from: &[f64], grip: &Isometry3<f64>) -> Result<Reached>;

    /// What the arm would touch with these joint angles and this opening, with the object at `object` (world from object):
    /// a pair of names, or nothing. `held`: the fingers may touch the object.
    ///
    /// # Errors
    /// The model refused.
    fn touches(
        &mut self,
        joints: &[f64],
        opening_m: f64,
        object: &Isometry3<f64>,
        held: bool,
    ) -> Result<Option<String>>;

    /// Sizes of the gripper.
    fn gripper(&self) -> Gripper;

    /// The parts of the object that may be held, in its own frame.
    fn parts(&self) -> Vec<(GraspShape, Isometry3<f64>)>;

    /// World from object, now.
    fn object(&self) -> Isometry3<f64>;
}
