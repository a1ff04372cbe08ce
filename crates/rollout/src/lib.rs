//! Turns a policy and environments into trajectories.
//!
//! [`policy::VlaPolicy`] samples and scores action chunks through one forward path; [`collect::Collector`] plays planned
//! episodes on many environments; [`flow`] plans from predicted 3D flow; [`demonstrate()`] lets the scripted expert play; [`seeds`] is where every random number comes from.

pub mod collect;
pub mod demonstrate;
pub mod error;
pub mod flow;
pub mod libero;
pub mod noise;
pub mod policy;
pub mod remote;
pub mod seeds;
pub mod trajectory;

pub use collect::{CollectOptions, Collector, EnvSource};
pub use demonstrate::demonstrate;
pub use error::{Error, Result};
pub use noise::Noise;
pub use policy::{Look, VlaPolicy};
pub use seeds::{Purpose, seed_for};
pub use trajectory::{Decision, EpisodePlan, Prompt, Trajectory};
