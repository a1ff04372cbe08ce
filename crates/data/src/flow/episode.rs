//! One recorded motion of one object.

use efference_geometry::{Camera, Flow3d, Frame, Isometry3};
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

/// How a flow episode contradicts itself.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The instruction or the task is empty.
    #[error("`{field}` is empty")]
    Empty {
        /// Which.
        field: &'static str,
    },
    /// Two parts disagree in size.
    #[error("`{field}` has {got} entries, but {expected} are needed")]
    Length {
        /// Which part.
        field: &'static str,
        /// Its size.
        got: usize,
        /// The size that fits the others.
        expected: usize,
    },
    /// The positions are not in the world frame.
    #[error("the flow is in the camera's frame; episodes hold the world's")]
    Frame,
    /// There is no future.
    #[error("the flow has one frame only; a motion needs two at least")]
    OneFrame,
    /// A number that cannot be.
    #[error("`{field}` holds {value} at {index}; it must be {expected}")]
    Value {
        /// Which part.
        field: &'static str,
        /// Which entry.
        index: usize,
        /// The number.
        value: f64,
        /// What it may be, in words.
        expected: &'static str,
    },
}

/// Metres beyond which a depth is refused: 16 bits of half millimetres.
pub(crate) const MAX_DEPTH_M: f32 = 32.0;

impl FlowEpisode {
    /// Whether its parts fit together.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (field, text) in [("instruction", &self.instruction), ("task", &self.task)] {
            if text.trim().is_empty() {
                return Err(Invalid::Empty { field });
            }
        }
        let length = |field, got, expected| {
            if got == expected { Ok(()) } else { Err(Invalid::Length { field, got, expected }) }
        };
        let i = &self.camera.intrinsics;
        length("columns of the image", self.image.width() as usize, i.width)?;
        length("rows of the image", self.image.height() as usize, i.height)?;
        let pixels = i.width * i.height;
        length("depth_m", self.depth_m.len(), pixels)?;
        length("mask", self.mask.len(), pixels)?;
        if self.flow.frame() != Frame::World {
            return Err(Invalid::Frame);
        }
        if self.flow.frames() < 2 {
            return Err(Invalid::OneFrame);
        }
        if !self.poses.is_empty() {
            length("poses", self.poses.len(), self.flow.frames())?;
        }
        let numbers = |field, expected, values: &mut dyn Iterator<Item = f64>, good: &dyn Fn(f64) -> bool| {
            let bad = values.enumerate().find(|(_, value)| !good(*value));
            bad.map_or(Ok(()), |(index, value)| Err(Invalid::Value { field, index, value, expected }))
        };
        let finite = |x: f64| x.is_finite();
        let depth = |x: f64| (0.0..=f64::from(MAX_DEPTH_M)).contains(&x);
        numbers("camera", "finite, focal lengths above 0", &mut [i.fx, i.fy].into_iter(), &|x| {
            x > 0.0 && x.is_finite()
        })?;
        let pose = self.camera.world_from_camera.to_homogeneous();
        numbers("camera", "finite", &mut [i.cx, i.cy].into_iter().chain(pose.iter().copied()), &finite)?;
        numbers("depth_m", "within 0 and 32 m", &mut self.depth_m.iter().map(|d| f64::from(*d)), &depth)?;
        numbers("mask", "0 or 255", &mut self.mask.iter().map(|m| f64::from(*m)), &|x| {
            x == 0.0 || x == 255.0
        })?;
        let poses = self.poses.iter().flat_map(|p| p.to_homogeneous().iter().copied().collect::<Vec<_>>());
        numbers("poses", "finite", &mut poses.into_iter(), &finite)
    }
}

/// Episodes for the tests of this module.
#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_geometry::{CameraAxes, Intrinsics, Point3, UnitQuaternion, Vector3};

    /// A square of 20 cm, seen from 1 m above, that slides and turns; a camera of 32 pixels.
    pub(crate) fn episode(seed: u64, frames: usize) -> FlowEpisode {
        let intrinsics = Intrinsics::from_fovy_deg(60.0, 32, 32).unwrap();
        let above = Isometry3::translation(0.0, 0.0, 1.0);
        let camera = Camera::new(intrinsics, above, CameraAxes::OpenGl);
        let (mut mask, mut depth_m) = (vec![0; 32 * 32], vec![0.0; 32 * 32]);
        for (i, (mask, depth)) in mask.iter_mut().zip(&mut depth_m).enumerate() {
            let at = camera.lift((i % 32) as f64 + 0.5, (i / 32) as f64 + 0.5, 1.0);
            *depth = 1.0;
            *mask = if at.x.abs().max(at.y.abs()) < 0.1 { 255 } else { 0 };
        }
        let points: Vec<_> = (0..16)
            .map(|i| Point3::new(-0.075 + 0.05 * (i % 4) as f64, -0.075 + 0.05 * (i / 4) as f64, 0.0))
            .collect();
        let poses: Vec<_> = (0..frames)
            .map(|t| {
                let turn = UnitQuaternion::from_scaled_axis(Vector3::z() * 0.1 * t as f64);
                Isometry3::from_parts(Vector3::new(0.01 * t as f64, 0.0, 0.0).into(), turn)
            })
            .collect();
        let visibility = (0..16 * frames).map(|i| if i % 7 == 6 && i >= 16 { 0.0 } else { 1.0 }).collect();
        FlowEpisode {
            instruction: "push the square".into(),
            task: if seed.is_multiple_of(2) { "push".into() } else { "pour".into() },
            source: FlowSource::Tabletop,
            seed,
            camera,
            image: RgbImage::from_fn(32, 32, |x, y| {
                image::Rgb([x as u8 * 7, y as u8 * 5, (seed % 251) as u8])
            }),
            depth_m,
            mask,
            flow: Flow3d::rigid(Frame::World, &points, &poses, visibility).unwrap(),
            poses,
        }
    }

    #[test]
    fn a_good_episode_passes_and_contradictions_are_named() {
        episode(0, 3).validate().unwrap();
        let check = |spoil: fn(&mut FlowEpisode), expected: &str| {
            let mut e = episode(1, 3);
            spoil(&mut e);
            let message = e.validate().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(|e| e.instruction = " ".into(), "`instruction` is empty");
        check(|e| e.task.clear(), "`task` is empty");
        check(|e| e.depth_m.truncate(3), "`depth_m` has 3 entries, but 1024");
        check(|e| e.mask.push(0), "`mask` has 1025");
        check(|e| e.mask[5] = 7, "`mask` holds 7 at 5");
        check(|e| e.depth_m[9] = f32::INFINITY, "`depth_m` holds inf at 9");
        check(|e| e.depth_m[9] = f32::NAN, "`depth_m` holds NaN at 9");
        check(|e| e.image = RgbImage::new(32, 16), "`rows of the image` has 16");
        check(|e| e.camera.intrinsics.fx = 0.0, "`camera` holds 0");
        check(|e| e.poses.truncate(2), "`poses` has 2 entries, but 3");
        check(|e| e.flow = e.flow.transformed(Frame::Camera, &Isometry3::identity()), "camera's frame");
        check(|e| *e = FlowEpisode { poses: vec![], ..episode(0, 1) }, "one frame only");
    }
}
