//! Episode storage and readers of other people's demonstration files.
//!
//! [`Episode`] is one recorded attempt at a task. [`EpisodeWriter`] adds episodes to a folder, [`EpisodeStore`]
//! reads them back and says precisely what is wrong with a damaged one. [`atomic`] is the one way the whole
//! project writes files that must never be half there.

pub mod atomic;
pub mod codec;
pub mod episode;
mod error;
pub mod flow;
mod index;
pub mod libero;
pub mod robomimic;
pub mod store;

pub use episode::{ACTION_DIM, Episode, EpisodeMeta, Invalid, PROPRIO_DIM, Source, States};
pub use error::{Error, Result};
pub use image::RgbImage;
pub use robomimic::{Demo, EnvInfo, ImportError, RobomimicFile};
pub use store::{Entry, EpisodeStore, EpisodeWriter, Episodes, OnCorrupt};
