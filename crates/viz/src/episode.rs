//! The plain types of a recorded episode.
//!
//! Time: frame 0 is the state after reset, frame `t` the state after `t` control steps. An episode of `T`
//! steps has `F = T + 1` frames; per-frame lists have `F` entries, per-step lists `T` (entry `t` belongs to
//! the step that ends at frame `t + 1`). Lists marked "1 or F" hold one entry when it never changes.

use crate::error::{Error, Result};
use image::RgbImage;
use nalgebra::{Isometry3, Matrix3, Quaternion, Rotation3, Translation3, UnitQuaternion};

/// Rigid transform `world_from_thing`: metres, rotation as a unit quaternion.
pub type Pose = Isometry3<f32>;

/// Pose from MuJoCo's `xpos` (metres) and `xquat` (`w, x, y, z`; need not be normalised).
#[must_use]
pub fn pose_from_mujoco(position_m: [f64; 3], quat_wxyz: [f64; 4]) -> Pose {
    let [w, x, y, z] = quat_wxyz.map(|c| c as f32);
    Pose::from_parts(translation(position_m), UnitQuaternion::from_quaternion(Quaternion::new(w, x, y, z)))
}

/// Pose from MuJoCo's `xpos` (metres) and `xmat` (3x3, row by row).
#[must_use]
pub fn pose_from_mujoco_mat(position_m: [f64; 3], mat_row_major: [f64; 9]) -> Pose {
    let rotation = Matrix3::from_row_slice(&mat_row_major.map(|c| c as f32));
    let rotation = Rotation3::from_matrix_unchecked(rotation);
    Pose::from_parts(translation(position_m), UnitQuaternion::from_rotation_matrix(&rotation))
}

fn translation(position_m: [f64; 3]) -> Translation3<f32> {
    let [x, y, z] = position_m.map(|c| c as f32);
    Translation3::new(x, y, z)
}

/// One episode to show.
#[derive(Debug, Clone, Default)]
pub struct EpisodeRecord {
    /// Part of the run, one tab each, in order of first appearance: `"before RL"`, `"during RL"`, `"after RL"`.
    pub stage: String,
    /// Short name inside the stage, the same in every stage that should be compared (the task's name).
    pub name: String,
    /// What the policy was told.
    pub instruction: String,
    /// Seed of the reset.
    pub seed: u64,
    /// Training step at which it was recorded.
    pub update: u64,
    /// Control steps per second, > 0.
    pub control_hz: f64,
    /// The environment's verdict.
    pub success: bool,
    /// `world_from_gripper`, `[F]`; gives the number of frames. X of the gripper drawn red, Y green, Z blue.
    pub gripper: Vec<Pose>,
    /// Reward of each step, `[T]`.
    pub rewards: Vec<f32>,
    /// Progress score of the whole episode (SRPO), if there is one.
    pub progress: Option<f32>,
    /// Further curves over the frames.
    pub signals: Vec<Signal>,
    /// Predicted action chunks, in order of their frames.
    pub plans: Vec<Plan>,
    /// Bodies of the scene.
    pub scene: Vec<SceneGeom>,
    /// Cameras and their images; the first one is shown in comparisons.
    pub cameras: Vec<CameraRecord>,
    /// Further lines for the card: what and value.
    pub notes: Vec<(String, String)>,
}

/// A curve over the frames of an episode, such as the gripper's opening or a distance to the goal.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// Name with unit, for instance `gripper_opening_m`.
    pub name: String,
    /// `[F]`; values that are not finite leave a gap.
    pub values: Vec<f32>,
}

/// What the policy intended at one frame: the gripper positions its action chunk leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Frame at which the chunk was predicted, `< F`.
    pub frame: usize,
    /// World positions in metres, `[K + 1]` with the current position first.
    pub points: Vec<[f32; 3]>,
}

/// Shape of a body, sized as in MuJoCo (half sizes, centred, long axis Z).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeomKind {
    /// `size` = half extents x, y, z.
    Box,
    /// `size` = radius.
    Sphere,
    /// `size` = radii x, y, z.
    Ellipsoid,
    /// `size` = radius, half length.
    Cylinder,
    /// `size` = radius, half length of the straight part.
    Capsule,
    /// `size` = half extents x, y; 0 means without end and is drawn 1 m to each side.
    Plane,
}

/// A body of the scene and where it was.
#[derive(Debug, Clone)]
pub struct SceneGeom {
    /// Name, unique in the episode.
    pub name: String,
    /// Shape.
    pub kind: GeomKind,
    /// Metres; see [`GeomKind`].
    pub size: [f32; 3],
    /// Red, green, blue, opacity in `[0, 1]`.
    pub rgba: [f32; 4],
    /// `world_from_geom`, 1 or `F`.
    pub poses: Vec<Pose>,
}

/// Which way the axes of a camera's frame point in its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CameraAxes {
    /// X right, Y up, looking along -Z: MuJoCo, OpenGL ("RUB").
    OpenGl,
    /// X right, Y down, looking along +Z: OpenCV ("RDF").
    OpenCv,
}

/// Pinhole model in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Intrinsics {
    /// Image width in pixels.
    pub width: u32,
    /// Image height in pixels.
    pub height: u32,
    /// Focal length along x in pixels.
    pub fx: f32,
    /// Focal length along y in pixels.
    pub fy: f32,
    /// Principal point from the left edge in pixels.
    pub cx: f32,
    /// Principal point from the upper edge in pixels.
    pub cy: f32,
}

impl Intrinsics {
    /// Square pixels, centred, from the vertical field of view (radians; MuJoCo's `fovy` is in degrees).
    #[must_use]
    pub fn from_fovy(fovy_rad: f32, width: u32, height: u32) -> Self {
        let f = 0.5 * height as f32 / (0.5 * fovy_rad).tan();
        Self { width, height, fx: f, fy: f, cx: 0.5 * width as f32, cy: 0.5 * height as f32 }
    }
}

/// Where a camera is and how it projects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CameraPose {
    /// Pinhole model.
    pub intrinsics: Intrinsics,
    /// `world_from_cam`, in the axes named beside it.
    pub world_from_cam: Pose,
    /// Convention of the camera's frame.
    pub axes: CameraAxes,
}

impl CameraPose {
    /// Pixel (x right, y down) of a world point, or `None` behind the camera.
    #[must_use]
    pub fn project(&self, world_m: [f32; 3]) -> Option<[f32; 2]> {
        let p = self.world_from_cam.inverse_transform_point(&world_m.into());
        let (x, y, depth) = match self.axes {
            CameraAxes::OpenGl => (p.x, -p.y, -p.z),
            CameraAxes::OpenCv => (p.x, p.y, p.z),
        };
        let k = &self.intrinsics;
        (depth > 0.0).then(|| [k.fx * x / depth + k.cx, k.fy * y / depth + k.cy])
    }
}

/// One camera of an episode.
#[derive(Debug, Clone)]
pub struct CameraRecord {
    /// Name, unique in the episode.
    pub name: String,
    /// Pinhole model of the images.
    pub intrinsics: Intrinsics,
    /// Convention of `poses`.
    pub axes: CameraAxes,
    /// `world_from_cam`, 1 or `F`.
    pub poses: Vec<Pose>,
    /// Images and their frames, rising; usually one per decision of the policy.
    pub frames: Vec<(usize, RgbImage)>,
}

impl CameraRecord {
    /// Where the camera is at `frame`; the last known pose if the list is shorter, `None` without poses.
    #[must_use]
    pub fn at(&self, frame: usize) -> Option<CameraPose> {
        let world_from_cam = *self.poses.get(frame).or(self.poses.last())?;
        Some(CameraPose { intrinsics: self.intrinsics, world_from_cam, axes: self.axes })
    }
}

impl EpisodeRecord {
    /// Number of frames `F`.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.gripper.len()
    }

    /// Sum of the rewards.
    #[must_use]
    pub fn total_reward(&self) -> f32 {
        self.rewards.iter().sum()
    }

    /// Checks that all lists fit together.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the first field that does not fit.
    pub fn validate(&self) -> Result<()> {
        let frames = self.frames();
        let check = |ok: bool, field: &dyn Fn() -> String, got: String, expected: String| {
            let episode = || format!("{}/{}", self.stage, self.name);
            if ok { Ok(()) } else { Err(Error::Shape { episode: episode(), field: field(), got, expected }) }
        };
        let one_or_all = |n: usize, field: &dyn Fn() -> String| {
            check(n == 1 || n == frames, field, format!("{n} poses"), format!("1 or {frames}"))
        };
        let named = |name: &str, field: &str| {
            check(!name.trim().is_empty(), &|| field.into(), "no text".into(), "a name".into())
        };

        named(&self.stage, "stage")?;
        named(&self.name, "name")?;
        check(frames > 0, &|| "gripper".into(), "0 poses".into(), "at least one frame".into())?;
        check(
            self.rewards.len() + 1 == frames,
            &|| "rewards".into(),
            format!("{} entries", self.rewards.len()),
            format!("one per step ({})", frames - 1),
        )?;
        check(
            self.control_hz > 0.0 && self.control_hz.is_finite(),
            &|| "control_hz".into(),
            self.control_hz.to_string(),
            "a positive number".into(),
        )?;
        for signal in &self.signals {
            let n = signal.values.len();
            let field = || format!("signal `{}`", signal.name);
            check(n == frames, &field, format!("{n} values"), format!("one per frame ({frames})"))?;
        }
        for plan in &self.plans {
            let expected = || format!("below {frames}");
            check(plan.frame < frames, &|| "plans".into(), format!("frame {}", plan.frame), expected())?;
        }
        for geom in &self.scene {
            named(&geom.name, "scene")?;
            one_or_all(geom.poses.len(), &|| format!("geom `{}`", geom.name))?;
        }
        for camera in &self.cameras {
            named(&camera.name, "cameras")?;
            one_or_all(camera.poses.len(), &|| format!("camera `{}`", camera.name))?;
            let field = || format!("camera `{}`", camera.name);
            for (frame, image) in &camera.frames {
                check(*frame < frames, &field, format!("frame {frame}"), format!("below {frames}"))?;
                let (k, got) = (&camera.intrinsics, image.dimensions());
                let expected = format!("{}x{} pixels", k.width, k.height);
                check(got == (k.width, k.height), &field, format!("{}x{} pixels", got.0, got.1), expected)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::f32::consts::FRAC_PI_2;

    #[test]
    fn mujoco_quaternions_come_w_first() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let from_quat = pose_from_mujoco([1.0, 2.0, 3.0], [half, 0.0, 0.0, half]); // 90 degrees about Z
        let from_mat = pose_from_mujoco_mat([1.0, 2.0, 3.0], [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        for pose in [from_quat, from_mat] {
            let p = pose.transform_point(&[1.0, 0.0, 0.0].into());
            assert!((p - nalgebra::Point3::new(1.0, 3.0, 3.0)).norm() < 1e-6, "{p}");
        }
    }

    #[test]
    fn both_camera_conventions_see_the_same_pixel() {
        // A camera 2 m above the origin looking down, image up = world +Y. MuJoCo: identity rotation.
        let intrinsics = Intrinsics::from_fovy(FRAC_PI_2, 64, 64);
        assert!((intrinsics.fx - 32.0).abs() < 1e-4);
        let gl = Pose::from_parts(Translation3::new(0.0, 0.0, 2.0), UnitQuaternion::identity());
        let flip = UnitQuaternion::from_euler_angles(std::f32::consts::PI, 0.0, 0.0); // diag(1, -1, -1)
        let cv = Pose::from_parts(gl.translation, gl.rotation * flip);
        for (world_from_cam, axes) in [(gl, CameraAxes::OpenGl), (cv, CameraAxes::OpenCv)] {
            let camera = CameraPose { intrinsics, world_from_cam, axes };
            let [x, y] = camera.project([0.5, 1.0, 0.0]).unwrap();
            assert!((x - 40.0).abs() < 1e-3 && (y - 16.0).abs() < 1e-3, "{axes:?}: {x} {y}");
            assert!(camera.project([0.0, 0.0, 3.0]).is_none(), "behind the camera");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let good = EpisodeRecord {
            stage: "before".into(),
            name: "pick".into(),
            control_hz: 20.0,
            gripper: vec![Pose::identity(); 3],
            rewards: vec![0.0; 2],
            ..Default::default()
        };
        good.validate().unwrap();

        let message = |change: &dyn Fn(&mut EpisodeRecord)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.validate().unwrap_err().to_string()
        };
        let text = message(&|e| e.rewards.push(1.0));
        assert_eq!(text, "episode `before/pick`: rewards has 3 entries, expected one per step (2)");
        assert!(message(&|e| e.name.clear()).contains("name"));
        assert!(message(&|e| e.gripper.clear()).contains("at least one frame"));
        assert!(message(&|e| e.control_hz = 0.0).contains("control_hz"));
        assert!(message(&|e| e.plans.push(Plan { frame: 3, points: vec![] })).contains("below 3"));
        let short = |e: &mut EpisodeRecord| e.signals.push(Signal { name: "d".into(), values: vec![0.0] });
        assert!(message(&short).contains("signal `d`"));
        let camera = CameraRecord {
            name: "front".into(),
            intrinsics: Intrinsics::from_fovy(1.0, 8, 8),
            axes: CameraAxes::OpenGl,
            poses: vec![Pose::identity()],
            frames: vec![(0, RgbImage::new(4, 4))],
        };
        assert!(message(&|e| e.cameras.push(camera.clone())).contains("4x4 pixels, expected 8x8"));
    }
}
