//! Play data: reaching for named things from anywhere, to ground words, pictures and motion in each other before any
//! task is shown. Nothing is simulated: a random state is set, both cameras are drawn, and the straight way to the
//! target is the label. Costs little more than the two pictures.

use nalgebra::{Rotation3, Vector3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::arm::{self, ROTATION_RAD, TRANSLATION_M};
use super::layout::{Layout, Thing};
use super::{CAMERAS, Expert, TabletopEnv, TabletopOptions, Task};
use crate::{Action, Env, Observation, Result, RgbImage};

/// What can be reached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A thing on the table.
    Thing(Thing),
    /// The drawer's handle.
    Handle,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Thing(Thing::RedCube),
        Self::Thing(Thing::BlueBlock),
        Self::Thing(Thing::GreenCylinder),
        Self::Thing(Thing::YellowBlock),
        Self::Thing(Thing::Tray),
        Self::Thing(Thing::Mark),
        Self::Thing(Thing::Button),
        Self::Handle,
    ];

    /// What the robot is told.
    pub const fn instruction(self) -> &'static str {
        match self {
            Self::Thing(Thing::RedCube) => "move to the red cube",
            Self::Thing(Thing::BlueBlock) => "move to the blue block",
            Self::Thing(Thing::GreenCylinder) => "move to the green cylinder",
            Self::Thing(Thing::YellowBlock) => "move to the yellow block",
            Self::Thing(Thing::Tray) => "move to the tray",
            Self::Thing(Thing::Mark) => "move to the mark",
            Self::Thing(Thing::Button) => "move to the button",
            Self::Thing(Thing::Cabinet) => "move to the cabinet",
            Self::Handle => "move to the drawer",
        }
    }
}

/// One labelled look.
#[derive(Clone, Debug)]
pub struct PlaySample {
    /// One per camera, in the order of [`CAMERAS`].
    pub images: Vec<RgbImage>,
    /// As an environment would give it.
    pub observation: Observation,
    /// "move to the …".
    pub instruction: &'static str,
    /// What is meant.
    pub target: Target,
    /// The straight way there, [K].
    pub actions: Vec<Action>,
    /// The point above the target where the way ends, world frame, metres.
    pub goal_m: [f64; 3],
}

/// Makes play samples; keep one per thread.
pub struct Play {
    env: TabletopEnv,
    chunk: usize,
}

/// Share of a commanded displacement that the arm makes in one control step (measured: 0.72).
const TRACKING: f64 = 0.72;
/// How far above a target the way ends, metres.
const ABOVE_M: f64 = 0.03;

impl Play {
    /// `chunk` actions per sample.
    ///
    /// # Errors
    /// As [`TabletopEnv::new`].
    pub fn new(options: &TabletopOptions, chunk: usize) -> Result<Self> {
        Ok(Self { env: TabletopEnv::with_task(Task::PickRedCube, options)?, chunk })
    }

    /// The sample of a seed: the same seed gives the same sample.
    ///
    /// # Errors
    /// The simulator or the renderer refused.
    pub fn sample(&mut self, seed: u64) -> Result<PlaySample> {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let target = Target::ALL[rng.random_range(0..Target::ALL.len())];
        let mut layout = Layout::sample_play(rng);
        let turn = rng.random_range(-0.4..=0.4);
        let finger_m = if rng.random_bool(0.5) { arm::FINGER_OPEN_M } else { rng.random_range(0.0..=0.045) };
        if rng.random_bool(0.5) {
            // Half of the looks are from near the target, where precision matters.
            let goal = goal(target, &layout);
            let near = [0, 1, 2].map(|i| goal[i] + rng.random_range(-0.07..=0.07));
            layout.grip_m = [near[0], near[1], near[2].max(0.03)];
        }
        let look = self.env.draw_look(rng);
        let rotation = Rotation3::from_axis_angle(&Vector3::z_axis(), turn);
        self.env.arrange(&layout, &rotation, finger_m, look)?;
        self.env.look_only()?;
        let goal = goal(target, &layout);
        let observation = self.env.observe();
        let images = CAMERAS.iter().map(|camera| self.env.render(camera)).collect::<Result<_>>()?;
        let start = observation.proprio.map(f64::from);
        let actions = straight(Vector3::new(start[0], start[1], start[2]), start[5], goal, self.chunk);
        Ok(PlaySample {
            images,
            observation,
            instruction: target.instruction(),
            target,
            actions,
            goal_m: goal.into(),
        })
    }
}

/// Where a way to a target ends.
fn goal(target: Target, layout: &Layout) -> Vector3<f64> {
    let (thing, dy, z) = match target {
        Target::Thing(thing @ (Thing::Tray | Thing::Mark)) => (thing, 0.0, 0.03),
        Target::Thing(thing @ Thing::Button) => (thing, 0.0, 0.05),
        Target::Thing(thing) => (thing, 0.0, thing.rest_z_m()),
        // The handle sticks out 12.5 cm from the cabinet's middle; fingers come down in front of it.
        Target::Handle => (Thing::Cabinet, -0.152, 0.05),
    };
    let [x, y] = layout.places[thing as usize].xy_m;
    Vector3::new(x, y + dy, z + ABOVE_M)
}

/// The commands of an arm that follows as ours does, turning the gripper straight on the way.
fn straight(mut at: Vector3<f64>, mut yaw: f64, goal: Vector3<f64>, chunk: usize) -> Vec<Action> {
    let next = |_| {
        let mut step = (goal - at) / TRANSLATION_M;
        let length = step.norm();
        if length > Expert::SPEED {
            step *= Expert::SPEED / length;
        }
        let turn = (-0.8 * yaw / ROTATION_RAD).clamp(-0.4, 0.4);
        at += step * TRANSLATION_M * TRACKING;
        yaw += turn * ROTATION_RAD * TRACKING;
        [step.x, step.y, step.z, 0.0, 0.0, turn, -1.0].map(|v| v as f32)
    };
    (0..chunk).map(next).collect()
}
