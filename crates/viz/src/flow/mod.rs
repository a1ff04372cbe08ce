//! Seeing 3D flow: how an object moves, how it was predicted to move, what an arm made of it.
//!
//! [`FlowScene`] holds what is to be shown; fill in what you have. Then
//! - [`page`]: one episode on one page (a picture; no GPU, no display),
//! - [`sheet`]: several tasks side by side,
//! - [`movie`]: the same over time, as animated PNG, GIF or MP4,
//! - [`FlowRecorder`]: a recording for the rerun viewer, or JSON lines.
//!
//! One point has one colour everywhere ([`point_colors`]): its hue tells the angle round the vertical through the
//! object's middle, its lightness the height; predictions are paler.

mod chart;
mod colors;
mod errors;
mod jsonl;
mod look;
mod movie;
mod page;
mod picture;
mod record;
mod relief;
mod scene;
mod sheet;
mod space;
mod trails;

// What the recordings share with the pictures.
#[cfg(feature = "rerun")]
pub(crate) use {
    look::{BAD_M, verdict as verdict_color},
    space::{finger_lines, spectator_of as spectator},
    trails::spread,
};

pub use colors::{PREDICTED, error_color, mix, point_colors};
pub use errors::FlowErrors;
pub use movie::{MovieOptions, movie};
pub use page::page;
pub use record::{FlowRecorder, FlowSink};
pub use scene::{Curve, FlowScene, Grasp, GraspState, Phase, Prediction, TimedPose, Verdict};
pub use sheet::sheet;

#[cfg(test)]
mod tests;
