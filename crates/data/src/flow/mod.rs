//! Sets of object flows in the manner of ManiFlow: what a scene looks like, what was asked, how the object moved.
//!
//! [`FlowEpisode`] is one motion, [`FlowQuery`] what a predictor may know of it. [`FlowWriter`] adds episodes to a folder
//! of shards, [`FlowStore`] reads them back one at a time; the format is in [`store`]. [`check`] measures whether an
//! episode agrees with its own pictures, [`Statistics`] says what a set consists of. [`tracker`] makes episodes from the
//! tracks of real videos.

pub mod check;
mod codec;
mod episode;
mod query;
mod statistics;
pub mod store;
pub mod tracker;

pub use check::{EpisodeCheck, Problem, check};
pub use codec::{DEPTH_UNIT_M, decode, encode};
pub use episode::{FlowEpisode, FlowSource, Invalid};
pub use query::FlowQuery;
pub use statistics::{Statistics, TaskStatistics};
pub use store::{FlowEntry, FlowStore, FlowWriter};
