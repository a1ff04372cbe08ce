//! Six manipulation tasks on one table: a 7-joint arm with a parallel gripper, a third-person and a wrist camera.
//!
//! All tasks share one scene (`sims/tabletop`), in which every object is always present; the instruction decides what
//! to do. Initial states come from seeds: [`eval_seed`] gives the fixed evaluation states, [`train_seed`] all others.

mod arm;
mod draw;
mod env;
mod expert;
mod layout;
mod look;
mod play;
mod scene;
mod task;
mod world;

pub use draw::Quality;
pub use env::{Privileged, TabletopEnv, TabletopOptions};
pub use expert::Expert;
pub use layout::{Layout, Place, Region, Thing};
pub use play::{Play, PlaySample, Target};
pub use task::Task;

/// Fixed evaluation states per task: `eval_seed(0)` to `eval_seed(49)`.
pub const EVAL_STATES: usize = 50;

/// The cameras of the scene: from the front, and from the hand.
pub const CAMERAS: [&str; 2] = ["agentview", "wrist"];

/// Range of each proprioception number in this scene, with a margin: gripper position (metres), tilts and turn
/// (axis-angle, radians), finger positions (metres). Fixed, so that it is the same for every policy of the suite.
pub const PROPRIO_RANGE: [[f64; 2]; 8] = [
    [-0.20, 0.24],
    [-0.40, 0.34],
    [0.0, 0.30],
    [-0.3, 0.3],
    [-0.3, 0.3],
    [-0.6, 0.6],
    [0.0, 0.045],
    [-0.045, 0.0],
];

/// Evaluation seeds have this bit, training seeds do not.
const EVAL_BIT: u64 = 1 << 40;

/// Seed of evaluation state `i`. The fixed set is `i` in 0..[`EVAL_STATES`]; further ones exist and are disjoint from
/// training as well. `i` is taken modulo 2^40.
pub const fn eval_seed(i: usize) -> u64 {
    EVAL_BIT | (i as u64 & (EVAL_BIT - 1))
}

/// Seed of training state `i`, never an evaluation state. `i` is taken modulo 2^40.
pub const fn train_seed(i: u64) -> u64 {
    i & (EVAL_BIT - 1)
}
