//! Scripted solutions, through the same seven numbers that a policy has.
//!
//! Each expert looks only at the present state (it keeps no phase), so it also recovers from wherever noise or a
//! policy has led. Motions are straight lines with proportional slowing; approaches are funnels: the gripper comes
//! down as far as it is already above the target.

use nalgebra::{Rotation3, Vector2, Vector3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::arm::{self, ROTATION_RAD, TRANSLATION_M};
use super::layout::Thing;
use super::task::{in_tray, stacked};
use super::world::World;
use super::{TabletopEnv, Task};
use crate::Action;

/// Solves a task.
#[derive(Clone, Debug)]
pub struct Expert {
    task: Task,
    /// Length of the translation command at most.
    speed: f64,
    noise: f64,
    rng: ChaCha8Rng,
}

const OPEN: f64 = -1.0;
const CLOSE: f64 = 1.0;
const DOWN: Vector3<f64> = Vector3::new(0.0, 0.0, -1.0);

impl Expert {
    /// Share of the largest command that it uses by default.
    pub const SPEED: f64 = 0.6;

    /// Without noise, at the default speed.
    pub fn new(task: Task) -> Self {
        Self { task, speed: Self::SPEED, noise: 0.0, rng: ChaCha8Rng::seed_from_u64(0) }
    }

    /// Another speed: the share of the largest command, in 0.1..=1.
    #[must_use]
    pub fn with_speed(mut self, speed: f64) -> Self {
        self.speed = speed.clamp(0.1, 1.0);
        self
    }

    /// Adds noise of this amplitude to the six motion commands (a tenth as much to the two tilts, a third to the
    /// turn), uniform, from this seed.
    #[must_use]
    pub fn with_noise(mut self, amplitude: f64, seed: u64) -> Self {
        self.noise = amplitude;
        self.rng = ChaCha8Rng::seed_from_u64(seed);
        self
    }

    /// The next action, in the environment's present state.
    pub fn act(&mut self, env: &TabletopEnv) -> Action {
        let hand = Hand { w: env.world(), speed: self.speed };
        let mut action = match self.task {
            Task::PickRedCube => hand.pick(),
            Task::CylinderInTray => hand.cylinder(),
            Task::StackRedOnBlue => hand.stack(),
            Task::OpenDrawer => hand.drawer(),
            Task::PushBlockToMark => hand.push(),
            Task::PressButton => hand.press(),
        };
        if self.noise > 0.0 {
            for (value, share) in action.iter_mut().zip([1.0, 1.0, 1.0, 0.1, 0.1, 0.3]) {
                *value += share * self.noise * self.rng.random_range(-1.0..=1.0);
            }
        }
        action.map(|v| v.clamp(-1.0, 1.0) as f32)
    }
}

/// The gripper, a state, and how fast to move.
struct Hand<'a> {
    w: World<'a>,
    speed: f64,
}

type Command = [f64; 7];

impl Hand<'_> {
    /// Towards a place and a yaw.
    fn go(&self, to: Vector3<f64>, yaw: f64, gripper: f64) -> Command {
        let w = &self.w;
        let mut step = (to - w.grip()) / TRANSLATION_M;
        let length = step.norm();
        if length > self.speed {
            step *= self.speed / length;
        }
        let turn = Rotation3::from_axis_angle(&Vector3::z_axis(), yaw)
            * arm::grip_rotation(w.scene, w.data).inverse();
        let turn = arm::axis_angle(&turn).map(|v| (0.8 * v / ROTATION_RAD).clamp(-0.4, 0.4));
        [step.x, step.y, step.z, turn.x, turn.y, turn.z, gripper]
    }

    fn stay(&self, gripper: f64) -> Command {
        self.go(self.w.grip(), self.w.grip_yaw(), gripper)
    }

    /// Down a funnel onto a point.
    fn descend(&self, onto: Vector3<f64>, slope: f64, top: f64, yaw: f64, gripper: f64) -> Command {
        let off = (onto - self.w.grip()).xy().norm();
        let hover = (slope * (off - 0.012)).clamp(0.0, top);
        let mut to = onto - DOWN * hover;
        if self.w.grip().z < to.z - 0.025 {
            // Below the funnel something may stand in between: up first.
            let level = self.w.grip().xy() * 0.8 + to.xy() * 0.2;
            to = Vector3::new(level.x, level.y, to.z);
        }
        self.go(to, yaw, gripper)
    }

    /// Fingers around an object, then closed. `above` is where to grasp relative to its centre.
    fn grasp(&self, thing: Thing, above: f64) -> Command {
        let onto = self.w.pos(thing) - DOWN * above;
        // The nearest of a cube's four equal orientations.
        let quarter = std::f64::consts::FRAC_PI_2;
        let yaw = match thing {
            Thing::GreenCylinder => 0.0,
            _ => (self.w.yaw(thing) + 0.5 * quarter).rem_euclid(quarter) - 0.5 * quarter,
        };
        let gap = onto - self.w.grip();
        if gap.xy().norm() < 0.010 && gap.z > -0.012 {
            return self.go(onto, yaw, CLOSE);
        }
        self.descend(onto, 3.0, 0.09, yaw, OPEN)
    }

    /// Pinched, and the fingers have come to rest.
    fn has(&self, geom: usize) -> bool {
        self.w.pinched(geom) && self.w.finger_speed().abs() < 0.03
    }

    /// Carries what is held to `goal` (where its centre must be), and lets go there.
    fn carry(&self, thing: Thing, goal: Vector3<f64>, tolerance: f64) -> Command {
        let (grip, held) = (self.w.grip(), self.w.pos(thing));
        let off = (goal - held).xy().norm();
        if off < tolerance && held.z < goal.z + 0.006 {
            return self.go(grip, 0.0, OPEN);
        }
        let hover = (1.5 * (off - 0.6 * tolerance)).clamp(0.0, 0.08);
        let mut to = goal - DOWN * hover + (grip - held);
        let low = held.z < goal.z + hover.min(0.05) - 0.02;
        if low && off > 0.03 {
            // Up first, or it would drag over what stands in between.
            let level = grip.xy() + (to - grip).xy() * 0.25;
            to = Vector3::new(level.x, level.y, to.z);
        }
        self.go(to, 0.0, CLOSE)
    }

    fn retreat(&self) -> Command {
        let grip = self.w.grip();
        self.go(Vector3::new(grip.x, grip.y, 0.22), 0.0, OPEN)
    }

    fn pick(&self) -> Command {
        if self.has(self.w.scene.red) {
            let grip = self.w.grip();
            return self.go(Vector3::new(grip.x, grip.y, 0.14), self.w.grip_yaw(), CLOSE);
        }
        self.grasp(Thing::RedCube, 0.0)
    }

    fn cylinder(&self) -> Command {
        if self.has(self.w.scene.green) {
            let goal = self.w.pos(Thing::Tray) - DOWN * (0.006 + Thing::GreenCylinder.rest_z_m() + 0.004);
            return self.carry(Thing::GreenCylinder, goal, 0.025);
        }
        if in_tray(&self.w) { self.retreat() } else { self.grasp(Thing::GreenCylinder, 0.010) }
    }

    fn stack(&self) -> Command {
        if self.has(self.w.scene.red) {
            let top = Thing::BlueBlock.rest_z_m() + Thing::RedCube.rest_z_m() + 0.001;
            return self.carry(Thing::RedCube, self.w.pos(Thing::BlueBlock) - DOWN * top, 0.008);
        }
        if stacked(&self.w) { self.retreat() } else { self.grasp(Thing::RedCube, 0.0) }
    }

    fn drawer(&self) -> Command {
        let (grip, handle) = (self.w.grip(), self.w.handle());
        if self.w.pinched(self.w.scene.handle_geom) {
            return self.go(grip + Vector3::new(0.0, -0.06, 0.0), 0.0, CLOSE);
        }
        // Off the middle, so that the open finger fits between handle and drawer.
        let onto = handle + Vector3::new(0.0, -0.027, -0.002);
        let gap = grip - handle;
        if gap.x.abs() < 0.03 && gap.z < 0.012 && gap.y.abs() < 0.042 {
            return self.go(Vector3::new(grip.x, grip.y, onto.z), 0.0, CLOSE);
        }
        self.descend(onto, 3.0, 0.075, 0.0, OPEN)
    }

    fn push(&self) -> Command {
        const LOW: f64 = 0.026; // height of the pusher
        const TOUCH: f64 = 0.042; // its distance from the block's centre when they touch
        let (grip, block) = (self.w.grip(), self.w.xy(Thing::YellowBlock));
        let way = self.w.xy(Thing::Mark) - block;
        let left = way.norm();
        let ahead = way / left.max(1e-9);
        let behind: Vector2<f64> = grip.xy() - block;
        let along = behind.dot(&ahead);
        let aside = behind - ahead * along;
        let in_place = along < -0.03 && aside.norm() < 0.015 && grip.z < LOW + 0.01;
        // Good enough is better than another approach.
        if left < if in_place { 0.014 } else { 0.025 } {
            return self.stay(CLOSE);
        }
        if in_place {
            let to = block + ahead * (left.min(0.06) - TOUCH) - aside * 0.6;
            return self.go(Vector3::new(to.x, to.y, LOW), 0.0, CLOSE);
        }
        let start = block - ahead * (TOUCH + 0.022);
        self.descend(Vector3::new(start.x, start.y, LOW), 2.0, 0.09, 0.0, CLOSE)
    }

    fn press(&self) -> Command {
        let button = self.w.pos(Thing::Button);
        self.descend(button - DOWN * 0.024, 2.0, 0.07, 0.0, CLOSE)
    }
}
