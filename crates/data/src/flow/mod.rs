//! Sets of object flows in the manner of ManiFlow: what a scene looks like, what was asked, how the object moved.
//!
//! [`FlowEpisode`] is one motion, [`FlowQuery`] what a predictor may know of it. [`FlowWriter`] adds episodes to a folder
//! of shards, [`FlowStore`] reads them back one at a time; the format is in [`store`]. [`check`] measures whether an
//! episode agrees with its own pictures, [`Statistics`] says what a set consists of. [`video`] makes
//! episodes of real videos, from what a tracker and a depth network say of them.

pub mod check;
mod codec;
mod episode;
mod query;
mod statistics;
pub mod store;
pub mod video;

pub use check::{EpisodeCheck, Problem, check};
pub use codec::{DEPTH_UNIT_M, decode, encode};
pub use episode::{FlowEpisode, FlowSource, Invalid};
pub use query::FlowQuery;
pub use statistics::{Statistics, TaskStatistics};
pub use store::{FlowEntry, FlowStore, FlowWriter};
