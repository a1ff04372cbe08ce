//! How good predicted flows and tracks are.

mod displacement;
mod report;
mod tapvid;

pub use displacement::{Displacement, PoseError, displacement, diversity_m, pose_error};
pub use report::{AJ_RADII_M, FlowReport, FlowSummary, evaluate, flow_tapvid};
pub use tapvid::{Queries2d, Radii, TapVid, TrackScaling, Tracks, tapvid_2d, tapvid_3d};

#[cfg(test)]
mod tests;
