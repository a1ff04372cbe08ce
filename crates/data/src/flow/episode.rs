//! One recorded motion of one object.

use efference_geometry::{Camera, Flow3d, Isometry3};
use serde::{Deserialize, Serialize};

use crate::RgbImage;

/// Where an episode comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowSource {
    /// A simulator's tabletop; everything is exact.
    Tabletop,
    /// A scene of LIBERO; everything is exact.
    Libero,
    /// A tracker's points lifted by a depth picture or network: no poses, and errors.
    Tracker,
}

/// One object, one instruction, one motion, seen by one camera that stands still.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowEpisode {
    /// What to do, in lower case.
    pub instruction: String,
    /// Family of the task, for tables by task; for example `insert`.
    pub task: String,
    /// Where it comes from.
    pub source: FlowSource,
    /// Seed of the scene and motion; 0 where there is none.
    pub seed: u64,
    /// Calibrated for `image`.
    pub camera: Camera,
    /// The first picture.
    pub image: RgbImage,
    /// Depth of the first picture [height, width]: metres along the optical axis, 0 where unknown.
    pub depth_m: Vec<f32>,
    /// The object in the first picture [height, width]: 255 on the object that moves, else 0.
    pub mask: Vec<u8>,
    /// Points on the object's surface in the world frame; frame 0 belongs to `image`, the others are evenly spaced in
    /// time to the end of the motion. Visibility is what the camera really sees (1 or 0).
    pub flow: Flow3d,
    /// World from object at each frame of the flow; empty where unknown.
    pub poses: Vec<Isometry3<f64>>,
}
