//! Moves of the hand, and the law that turns them into actions.

use nalgebra::{Matrix3, Quaternion, Rotation3, UnitQuaternion, Vector2, Vector3};

use super::super::{LiberoSim, Result};

/// Gripper command that opens.
pub(super) const OPEN: f64 = -1.0;
/// Gripper command that closes.
pub(super) const CLOSE: f64 = 1.0;

/// What an action of 1 moves the goal by: metres, radians.
const METRES: f64 = 0.05;
const RADIANS: f64 = 0.5;
/// Proportional gains; with 3 the hand follows fast and does not overshoot.
const GAIN_POSITION: f64 = 3.0;
const GAIN_ROTATION: f64 = 2.0;
/// A hand that moves less per step, for so many steps, is blocked.
const STALL_M: f64 = 0.0012;
const STALL_STEPS: usize = 7;

/// Where the hand should be, in world coordinates; things that move are asked for at every step.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A place.
    At(Vector3<f64>),
    /// Relative to an object's root.
    Of { object: String, offset: Vector3<f64> },
    /// Where the carried object's root comes to be at `goal`.
    Carry { object: String, goal: Vector3<f64> },
    /// Where the carried object's root comes to be over `xy`, with the hand at height `z`.
    Over { object: String, xy: Vector2<f64>, z: f64 },
    /// Relative to where the hand is when the move starts.
    Shift(Vector3<f64>),
}

/// One move.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) target: Target,
    /// Orientation of the grip site.
    pub(super) rotation: Rotation3<f64>,
    /// Turn about the vertical added per step, and its end (radians): for knobs.
    pub(super) spin: f64,
    pub(super) spin_end: f64,
    pub(super) gripper: f64,
    /// Reached within (metres, radians); `None` lasts `steps` steps.
    pub(super) within: Option<(f64, f64)>,
    /// The most steps, or the exact number.
    pub(super) steps: usize,
    /// The largest translation command.
    pub(super) speed: f64,
    /// Whether being blocked ends the move.
    pub(super) stall: bool,
}

impl Move {
    /// To a place, roughly.
    pub(super) fn transit(target: Target, rotation: Rotation3<f64>, gripper: f64) -> Self {
        Self {
            target,
            rotation,
            spin: 0.0,
            spin_end: 0.0,
            gripper,
            within: Some((0.02, 0.1)),
            steps: 70,
            speed: 1.0,
            stall: true,
        }
    }

    /// To a place, precisely.
    pub(super) fn exact(target: Target, rotation: Rotation3<f64>, gripper: f64) -> Self {
        Self { within: Some((0.007, 0.08)), steps: 60, ..Self::transit(target, rotation, gripper) }
    }

    /// Stay and hold a gripper command.
    pub(super) fn hold(rotation: Rotation3<f64>, gripper: f64, steps: usize) -> Self {
        let target = Target::Shift(Vector3::zeros());
        Self { within: None, steps, ..Self::transit(target, rotation, gripper) }
    }

    /// At most this share of the largest command.
    pub(super) fn slow(self, speed: f64) -> Self {
        Self { speed, ..self }
    }
}

/// Moves one after the other; the place in them.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    moves: Vec<Move>,
    at: usize,
    steps: usize,
    start: Vector3<f64>,
    last: Vector3<f64>,
    still: usize,
}

impl Script {
    pub(super) fn new(moves: Vec<Move>) -> Self {
        Self { moves, ..Self::default() }
    }

    /// Adds the moves of another script.
    pub(super) fn extend(&mut self, other: &Self) {
        self.moves.extend(other.moves.iter().cloned());
    }

    /// Back to the first move.
    pub(super) fn rewind(&mut self) {
        (self.at, self.steps, self.still) = (0, 0, 0);
    }

    /// The next action; `None` when all moves are done.
    pub(super) fn next(&mut self, sim: &LiberoSim) -> Result<Option<[f64; 7]>> {
        loop {
            let Some(now) = self.moves.get(self.at) else { return Ok(None) };
            let hand = Hand::of(sim);
            if self.steps == 0 {
                (self.start, self.last, self.still) = (hand.position, hand.position, 0);
            }
            let target = resolve(sim, &now.target, &hand, self.start)?;
            let spun = (now.spin * self.steps as f64).abs().min(now.spin_end.abs());
            let turn = Rotation3::from_axis_angle(&Vector3::z_axis(), spun.copysign(now.spin));
            let rotation = turn * now.rotation;
            let away = target - hand.position;
            let turned = (rotation * hand.rotation.inverse()).scaled_axis();
            let moved = (hand.position - self.last).norm() + 0.03 * 0.0_f64.max(turned.norm() - 0.3);
            self.still = if moved < STALL_M { self.still + 1 } else { 0 };
            self.last = hand.position;
            let over = match now.within {
                None => self.steps >= now.steps,
                Some((metres, radians)) => {
                    let there = away.norm() < metres && turned.norm() < radians;
                    there || self.steps >= now.steps || (now.stall && self.still >= STALL_STEPS)
                }
            };
            if over {
                (self.at, self.steps) = (self.at + 1, 0);
                continue;
            }
            self.steps += 1;
            let push = away * (GAIN_POSITION / METRES);
            let push = push.map(|v| v.clamp(-now.speed, now.speed));
            let turn = (turned * (GAIN_ROTATION / RADIANS)).map(|v| v.clamp(-1.0, 1.0));
            return Ok(Some([push.x, push.y, push.z, turn.x, turn.y, turn.z, now.gripper]));
        }
    }
}

/// The grip site.
pub(super) struct Hand {
    pub(super) position: Vector3<f64>,
    pub(super) rotation: Rotation3<f64>,
}

impl Hand {
    pub(super) fn of(sim: &LiberoSim) -> Self {
        let pose = sim.eef_pose();
        Self { position: pose.position_m.into(), rotation: rotation_of(pose.quat_wxyz) }
    }
}

fn resolve(sim: &LiberoSim, target: &Target, hand: &Hand, start: Vector3<f64>) -> Result<Vector3<f64>> {
    let place = |object: &str| -> Result<Vector3<f64>> { Ok(Vector3::from(sim.object_pose(object)?.position_m)) };
    Ok(match target {
        Target::At(place) => *place,
        Target::Shift(by) => start + by,
        Target::Of { object, offset } => place(object)? + offset,
        Target::Carry { object, goal } => goal + hand.position - place(object)?,
        Target::Over { object, xy, z } => {
            let held = hand.position - place(object)?;
            Vector3::new(xy.x + held.x, xy.y + held.y, *z)
        }
    })
}

pub(super) fn rotation_of([w, x, y, z]: [f64; 4]) -> Rotation3<f64> {
    UnitQuaternion::from_quaternion(Quaternion::new(w, x, y, z)).to_rotation_matrix()
}

/// Fingers down, opening along (-sin yaw, cos yaw).
pub(super) fn down(yaw: f64) -> Rotation3<f64> {
    let base = Matrix3::new(0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0);
    Rotation3::from_axis_angle(&Vector3::z_axis(), yaw) * Rotation3::from_matrix_unchecked(base)
}

/// Fingers pointing along the horizontal direction `ahead`, dipped: turned by `tilt` (radians) from straight down; they
/// open along the vertical.
pub(super) fn tilted(ahead: Vector3<f64>, tilt: f64) -> Rotation3<f64> {
    let yaw = half_turn(ahead.y.atan2(ahead.x) - std::f64::consts::FRAC_PI_2);
    let axis = nalgebra::Unit::new_normalize(Vector3::z_axis().cross(&-ahead));
    Rotation3::from_axis_angle(&axis, tilt) * down(yaw)
}

/// The same direction of opening with the smallest turn of the hand: between -90 and 90 degrees.
pub(super) fn half_turn(yaw: f64) -> f64 {
    use std::f64::consts::{FRAC_PI_2, PI};
    (yaw + FRAC_PI_2).rem_euclid(PI) - FRAC_PI_2
}
