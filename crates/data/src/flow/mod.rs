//! Sets of object flows in the manner of ManiFlow: what a scene looks like, what was asked, how the object moved.

mod episode;
mod query;

pub use episode::{FlowEpisode, FlowSource};
pub use query::FlowQuery;
