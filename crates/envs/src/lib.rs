//! Simulators behind one trait, and the scripted experts that solve them.
//!
//! - [`Env`]: reset, step, look, snapshot. Drawing is lazy: an image is made only when somebody asks for it.
//! - [`VecEnv`]: many of them over threads; the results do not depend on how many threads.
//! - [`tabletop`]: six manipulation tasks on one table, in MuJoCo.
//! - [`flow`]: tasks in which one object is moved, with either of two arms, and exact flows of that object.
//! - [`libero`]: the LIBERO benchmark, equal to the original step for step.
//! - [`robosuite`], [`robosuite_import`]: people's recorded demonstrations, replayed and made into episodes.
//!
//! ```no_run
//! # fn main() -> efference_envs::Result<()> {
//! use efference_envs::{Env, tabletop::{self, TabletopEnv, TabletopOptions}};
//!
//! let mut env = TabletopEnv::new("pick_red_cube", &TabletopOptions::default())?;
//! env.reset(tabletop::eval_seed(0))?;
//! let picture = env.render("agentview")?;
//! let outcome = env.step(&[0.5, 0.0, -0.5, 0.0, 0.0, 0.0, -1.0])?;
//! # Ok(())
//! # }
//! ```

mod arm;
mod env;
mod error;
pub mod flow;
pub mod libero;
pub mod robosuite;
pub mod robosuite_import;
mod shapes;
pub mod tabletop;
pub mod threads;
mod vec_env;

pub use efference_data::RgbImage;
pub use env::{ACTION_DIM, Action, Env, EnvSpec, Observation, Outcome, PROPRIO_DIM, Snapshot};
pub use env::{CameraView, GeomShape, NamedPose, Pose, SceneState, ShapeKind};
pub use error::{Error, Result};
pub use vec_env::{ChunkOutcome, VecEnv};

/// The version of MuJoCo that the environments run on, for example `3.3.2`. Results depend on it: store it with them.
pub fn mujoco_version() -> String {
    efference_mujoco::version()
}
