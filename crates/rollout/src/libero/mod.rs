//! LIBERO's evaluation: who plays ([`EvalPolicy`]), by which rules ([`Protocol`]), and a log from which an interrupted
//! evaluation goes on ([`Journal`]).
//!
//! An episode is a function of task, saved initial state, protocol and policy; so the result does not depend on the number
//! of workers or on the order in which they finish.

pub mod conformance;
mod episode;
mod evaluate;
mod images;
mod journal;
mod network;
mod policy;
mod protocol;
mod simulator;
pub mod worker;

#[cfg(test)]
mod tests;

pub use episode::{EpisodeError, Outcome, Place, Recording, Rules, play};
pub use evaluate::{Evaluation, Hooks, TaskEntry, TaskNote, evaluate};
pub use images::{CROP_AREA, ImageError, Images};
pub use journal::{Difference, EpisodeLine, Journal, JournalError, Verdict, differences};
pub use network::{Network, NetworkSettings};
pub use policy::{EvalPolicy, Idle, PolicyError, PolicySource, RemoteSource, Start, View};
pub use protocol::{Gripper, Instruction, Protocol, ProtocolError, Quaternion, half_turn_axis_angle};
pub use simulator::{Camera, Felt, Native, Packs, Simulator, SimulatorError, Stepped};
