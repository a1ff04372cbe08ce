//! A workbench for flow: one object to move, one of two arms, everything exact.
//!
//! Four families of tasks are solved in physics ([`FlowTask::EXECUTED`]), a fifth gives data only. Each episode draws
//! sizes, places, colours, a calibrated camera, light, bystanders and the wording of the instruction from its seed; the
//! same seed is the same scene for both arms.
//!
//! - [`FlowEnv`]: the environment, with what only a simulator knows: the object's pose and surface, goal poses, a
//!   predicate on poses ([`FlowEnv::goal_reached`]) and on the running state.
//! - [`Motion`]: how the object moves by itself when it does the task; the oracle's flow.
//! - [`FlowEnv::record`]: an episode of exact point tracks, with depth, mask and visibility; [`generate`] makes many.
//! - [`Probe`]: where the arm touches something, for planners; forward kinematics and Jacobians of the arm.

mod arms;
mod camera;
mod chain;
mod draw;
mod env;
mod generate;
mod goal;
mod layout;
mod motion;
mod probe;
mod record;
mod scene;
mod surface;
mod task;
mod wear;
mod words;

pub use arms::ArmKind;
pub use chain::ProbeChain;
pub use env::{FlowEnv, FlowOptions};
pub use generate::{GenerateOptions, Generated, Recipe, generate};
pub use layout::{Bystander, Layout, Sizes};
pub use motion::Motion;
pub use probe::{Collision, Probe};
pub use record::View;
pub use surface::Part;
pub use task::FlowTask;

/// Frames of an episode, the present included.
pub const FRAMES: usize = 9;
/// Points of an episode.
pub const POINTS: usize = 128;
/// The calibrated camera that looks at the workbench; drawn anew in each episode.
pub const SCENE_CAMERA: &str = "scene";
/// The cameras of the scene: the calibrated one, and one in the hand.
pub const CAMERAS: [&str; 2] = [SCENE_CAMERA, "wrist"];

/// Evaluation seeds have this bit, training seeds do not.
const EVAL_BIT: u64 = 1 << 40;

/// Seed of evaluation scene `i`, disjoint from training. `i` is taken modulo 2^40.
pub const fn eval_seed(i: u64) -> u64 {
    EVAL_BIT | (i & (EVAL_BIT - 1))
}

/// Seed of training scene `i`, never an evaluation scene. `i` is taken modulo 2^40.
pub const fn train_seed(i: u64) -> u64 {
    i & (EVAL_BIT - 1)
}

/// Whether this is an evaluation seed.
pub const fn is_eval_seed(seed: u64) -> bool {
    seed & EVAL_BIT != 0
}
