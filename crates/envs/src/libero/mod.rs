//! The LIBERO benchmark itself: the same physics, controller, observations and success tests as the Python original,
//! step for step, without Python.
//!
//! A task is a *pack*: a folder with the compiled-from-Python scene (`model.xml`), what it means (`meta.json`) and the
//! saved initial states (`init_states.npy`), written once by `cargo xtask libero`. [`LiberoSim`] is the benchmark bit for
//! bit; [`LiberoEnv`] puts the [`Env`](crate::Env) trait on it.
//!
//! Conventions: metres, radians, seconds; quaternions in observations are xyzw (as LIBERO gives them), elsewhere wxyz
//! (as MuJoCo does). Pictures are upright, top row first; LIBERO's own arrays are upside down, and the picture that the
//! usual evaluators give to a policy is the upright one mirrored left to right.

pub mod bddl;
mod clock;
mod compiled;
pub mod conformance;
mod controller;
mod demonstrate;
mod env;
mod error;
pub mod expert;
mod facts;
mod flow;
mod look;
mod meta;
mod npy;
mod observation;
mod pack;
pub mod perturb;
pub mod predicates;
mod scene;
mod sim;
mod snapshot;
pub mod suite;

pub use demonstrate::demonstrate;
pub use env::{LiberoEnv, LiberoOptions, eval_seed, train_seed};
pub use error::{Error, Result};
pub use flow::{LiberoFlow, LiberoRecipe};
pub use meta::{
    Comparison, ControllerMeta, FixturePose, FixturePoses, GripperMeta, InitStatesMeta, JointMeta, Meta,
    ObjectKind, ObjectMeta, Quantifier, RegionMeta, RobotMeta, SiteMeta, Threshold, Versions,
};
pub use observation::{LiberoObservation, ObjectObservation, axis_angle};
pub use pack::{Pack, packs_dir};
pub use sim::{IDLE_ACTION, IDLE_STEPS, LiberoSim, Profile, SimOptions, Step, SubstepOrder};
pub use snapshot::LiberoSnapshot;
