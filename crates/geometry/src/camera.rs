//! A pinhole camera and its place in the world.

use nalgebra::{Isometry3, Point3, Rotation3, Translation3, UnitQuaternion, Vector3};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which way the axes of somebody's camera frame point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CameraAxes {
    /// x right, y down, z forward (OpenCV, this crate).
    OpenCv,
    /// x right, y up, z backward (OpenGL, MuJoCo).
    OpenGl,
}

/// Focal lengths and centre, in pixels. The middle of the first pixel is (0.5, 0.5), so the centre of a picture is at
/// half its width and height.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intrinsics {
    /// Focal length along u.
    pub fx: f64,
    /// Focal length along v.
    pub fy: f64,
    /// Principal point, u.
    pub cx: f64,
    /// Principal point, v.
    pub cy: f64,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Intrinsics {
    /// Square pixels, centred, from the vertical angle of view (MuJoCo's `fovy`).
    ///
    /// # Errors
    /// The angle is not within 0 to 180 degrees, both excluded, or a side is 0.
    pub fn from_fovy_deg(fovy_deg: f64, width: usize, height: usize) -> Result<Self> {
        if !(fovy_deg > 0.0 && fovy_deg < 180.0) {
            return Err(Error::Range { what: "fovy_deg", value: fovy_deg, range: "between 0 and 180" });
        }
        if width == 0 || height == 0 {
            return Err(Error::Range { what: "width and height", value: 0.0, range: "at least 1" });
        }
        let f = 0.5 * height as f64 / (0.5 * fovy_deg.to_radians()).tan();
        Ok(Self { fx: f, fy: f, cx: 0.5 * width as f64, cy: 0.5 * height as f64, width, height })
    }

    /// Square pixels, centred, from the horizontal angle of view (55 degrees are assumed for videos from the internet).
    ///
    /// # Errors
    /// As [`Intrinsics::from_fovy_deg`].
    pub fn from_fovx_deg(fovx_deg: f64, width: usize, height: usize) -> Result<Self> {
        let turned = Self::from_fovy_deg(fovx_deg, height, width)?;
        Ok(Self { cx: turned.cy, cy: turned.cx, width, height, ..turned })
    }

    /// The same camera with pictures of another size.
    #[must_use]
    pub fn resized(&self, width: usize, height: usize) -> Self {
        let (sx, sy) = (width as f64 / self.width as f64, height as f64 / self.height as f64);
        Self { fx: self.fx * sx, fy: self.fy * sy, cx: self.cx * sx, cy: self.cy * sy, width, height }
    }

    /// (u px, v px, depth m) of a point in the camera frame (OpenCV axes); `None` at or behind the camera.
    #[must_use]
    pub fn project(&self, p: &Point3<f64>) -> Option<[f64; 3]> {
        (p.z > 0.0).then(|| [self.fx * p.x / p.z + self.cx, self.fy * p.y / p.z + self.cy, p.z])
    }

    /// The point in the camera frame (OpenCV axes) that is seen at (u, v) at this depth (metres along the optical axis).
    #[must_use]
    pub fn lift(&self, u: f64, v: f64, depth: f64) -> Point3<f64> {
        Point3::new((u - self.cx) * depth / self.fx, (v - self.cy) * depth / self.fy, depth)
    }
}

/// A calibrated camera.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Camera {
    /// Focal lengths and centre.
    pub intrinsics: Intrinsics,
    /// World from camera, OpenCV axes.
    pub world_from_camera: Isometry3<f64>,
}

impl Camera {
    /// From a pose whose axes follow `axes`.
    #[must_use]
    pub fn new(intrinsics: Intrinsics, world_from_camera: Isometry3<f64>, axes: CameraAxes) -> Self {
        let turn = match axes {
            CameraAxes::OpenCv => UnitQuaternion::identity(),
            // Half a turn about x: y and z change their signs.
            CameraAxes::OpenGl => UnitQuaternion::from_axis_angle(&Vector3::x_axis(), std::f64::consts::PI),
        };
        Self { intrinsics, world_from_camera: world_from_camera * turn }
    }

    /// From MuJoCo's `cam_xpos` and `cam_xmat` (row-major, camera looks along -z) and `fovy`.
    ///
    /// # Errors
    /// As [`Intrinsics::from_fovy_deg`].
    pub fn from_mujoco(
        position_m: [f64; 3],
        rotation: [f64; 9],
        fovy_deg: f64,
        width: usize,
        height: usize,
    ) -> Result<Self> {
        let rotation = Rotation3::from_matrix_unchecked(nalgebra::Matrix3::from_row_slice(&rotation));
        let pose = Isometry3::from_parts(
            Translation3::from(Vector3::from(position_m)),
            UnitQuaternion::from_rotation_matrix(&rotation),
        );
        Ok(Self::new(Intrinsics::from_fovy_deg(fovy_deg, width, height)?, pose, CameraAxes::OpenGl))
    }

    /// (u px, v px, depth m) of a point of the world; `None` at or behind the camera.
    #[must_use]
    pub fn project(&self, world: &Point3<f64>) -> Option<[f64; 3]> {
        self.intrinsics.project(&self.world_from_camera.inverse_transform_point(world))
    }

    /// The point of the world that is seen at (u, v) at this depth (metres along the optical axis).
    #[must_use]
    pub fn lift(&self, u: f64, v: f64, depth: f64) -> Point3<f64> {
        self.world_from_camera * self.intrinsics.lift(u, v, depth)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mujoco_camera_looks_along_its_minus_z_with_y_up() {
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let camera = Camera::from_mujoco([0.0, 0.0, 2.0], identity, 90.0, 64, 64).unwrap();
        let [u, v, depth] = camera.project(&Point3::new(0.5, 0.25, 1.0)).unwrap();
        // f = 32: right of the centre, above it, one metre away.
        assert!((u - 48.0).abs() < 1e-12 && (v - 24.0).abs() < 1e-12 && (depth - 1.0).abs() < 1e-12);
        let back = camera.lift(u, v, depth);
        assert!((back - Point3::new(0.5, 0.25, 1.0)).norm() < 1e-12);
        assert_eq!(camera.project(&Point3::new(0.0, 0.0, 3.0)), None);
    }
}
