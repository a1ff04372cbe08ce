//! What a predictor of flow may know.

use efference_geometry::{Camera, Point3};

use super::FlowEpisode;
use crate::RgbImage;

/// The present, as one camera sees it, and what is asked. Nothing of the future.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowQuery {
    /// What to do, in lower case.
    pub instruction: String,
    /// Calibrated for `image`.
    pub camera: Camera,
    /// The picture.
    pub image: RgbImage,
    /// Its depth [height, width]: metres along the optical axis, 0 where unknown.
    pub depth_m: Vec<f32>,
    /// The points to follow: on the object, in the world frame.
    pub points: Vec<Point3<f64>>,
}

impl FlowEpisode {
    /// The question that this episode answers: its first picture and the places of its points at frame 0.
    #[must_use]
    pub fn query(&self) -> FlowQuery {
        FlowQuery {
            instruction: self.instruction.clone(),
            camera: self.camera.clone(),
            image: self.image.clone(),
            depth_m: self.depth_m.clone(),
            points: self.flow.at(0).to_vec(),
        }
    }
}
