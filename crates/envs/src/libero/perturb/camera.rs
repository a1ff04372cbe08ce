//! Where `agentview` looks from.

use std::f64::consts::PI;

use efference_mujoco::{Kind, Model};
use nalgebra::{Quaternion, Unit, UnitQuaternion, Vector3};

use super::Error;
use crate::libero::Meta;

/// The camera that is moved.
pub(super) const NAME: &str = "agentview";

/// A move of the camera around the place on the table that it looks at, and a turn at its new place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Around the vertical through that place, degrees; 330 is -30.
    pub horizontal_deg: f64,
    /// Upwards, degrees; the camera stays below the vertical.
    pub vertical_deg: f64,
    /// Factor on the distance.
    pub distance: f64,
    /// Turn at the new place to the left, degrees.
    pub pan_deg: f64,
    /// Turn at the new place upwards, degrees.
    pub tilt_deg: f64,
}

impl Default for View {
    fn default() -> Self {
        Self { horizontal_deg: 0.0, vertical_deg: 0.0, distance: 1.0, pan_deg: 0.0, tilt_deg: 0.0 }
    }
}

impl View {
    pub(super) fn apply(&self, model: &mut Model, meta: &Meta) -> Result<(), Error> {
        if *self == Self::default() {
            return Ok(());
        }
        let missing = |what: String| Error::Scene { task: meta.name.clone(), what };
        let camera = model.id(Kind::Camera, NAME).map_err(|_| missing(format!("camera {NAME}")))?;
        // The robot stands at the height of what the objects stand on.
        let root = &meta.robot.root_body;
        let base = model.id(Kind::Body, root).map_err(|_| missing(format!("body {root}")))?;
        let [_, _, height] = model.body_pos(base);
        let (pos, quat) = self.moved(model.camera_pos(camera), model.camera_quat(camera), height);
        model.set_camera_pos(camera, pos);
        model.set_camera_quat(camera, quat);
        Ok(())
    }

    /// The new place and orientation (wxyz) of a camera that looks down on a plane at `height`.
    fn moved(&self, pos: [f64; 3], quat: [f64; 4], height: f64) -> ([f64; 3], [f64; 4]) {
        let place = Vector3::from(pos);
        let [w, x, y, z] = quat;
        let turn = UnitQuaternion::from_quaternion(Quaternion::new(w, x, y, z));
        let forward = turn * -Vector3::z();
        // A level camera turns about a point one metre ahead.
        let ahead = if forward.z < -0.05 { (height - place.z) / forward.z } else { 1.0 };
        let centre = place + forward * ahead.max(0.1);
        let around = UnitQuaternion::from_axis_angle(&Vector3::z_axis(), self.horizontal_deg.to_radians());
        let elevation = (-forward.z).clamp(-1.0, 1.0).asin();
        let up = self.vertical_deg.to_radians().clamp(0.05 - elevation, PI / 2.0 - 0.05 - elevation);
        // About the camera's own x axis, which is level; negative lifts it.
        let side = Unit::new_normalize(turn * Vector3::x());
        let orbit = around * UnitQuaternion::from_axis_angle(&side, -up);
        let new_place = centre + orbit * (place - centre) * self.distance;
        let pan = UnitQuaternion::from_axis_angle(&Vector3::y_axis(), self.pan_deg.to_radians());
        let tilt = UnitQuaternion::from_axis_angle(&Vector3::x_axis(), self.tilt_deg.to_radians());
        let q = orbit * turn * pan * tilt;
        (new_place.into(), [q.w, q.i, q.j, q.k])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POS: [f64; 3] = [0.6586, 0.0, 1.6104];
    const QUAT: [f64; 4] = [0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349];

    fn forward(quat: [f64; 4]) -> Vector3<f64> {
        UnitQuaternion::from_quaternion(Quaternion::new(quat[0], quat[1], quat[2], quat[3])) * -Vector3::z()
    }

    /// Where the axis meets the table.
    fn seen(pos: [f64; 3], quat: [f64; 4]) -> Vector3<f64> {
        let forward = forward(quat);
        Vector3::from(pos) + forward * ((0.912 - pos[2]) / forward.z)
    }

    #[test]
    fn the_camera_keeps_looking_at_its_place() {
        let centre = seen(POS, QUAT);
        let before = (Vector3::from(POS) - centre).norm();
        let view = View { horizontal_deg: 330.0, vertical_deg: 15.0, distance: 1.5, ..View::default() };
        let (pos, quat) = view.moved(POS, QUAT, 0.912);
        assert!((seen(pos, quat) - centre).norm() < 1e-9);
        let offset = Vector3::from(pos) - centre;
        assert!((offset.norm() - 1.5 * before).abs() < 1e-9);
        let elevation = |v: Vector3<f64>| (v.z / v.norm()).asin().to_degrees();
        assert!((elevation(offset) - elevation(Vector3::from(POS) - centre) - 15.0).abs() < 1e-6);
        assert!((offset.y.atan2(offset.x).to_degrees() + 30.0).abs() < 1e-3);
    }

    #[test]
    fn end_rotations_turn_it_at_its_place() {
        let view = View { pan_deg: 10.0, ..View::default() };
        let (pos, quat) = view.moved(POS, QUAT, 0.912);
        assert_eq!(pos.map(|x| (x * 1e9).round()), POS.map(|x| (x * 1e9).round()));
        let angle = forward(quat).angle(&forward(QUAT)).to_degrees();
        assert!((angle - 10.0).abs() < 1e-6);
        let up = View { tilt_deg: 5.0, ..View::default() }.moved(POS, QUAT, 0.912).1;
        assert!(forward(up).z > forward(QUAT).z);
    }

    #[test]
    fn it_never_passes_the_vertical() {
        let view = View { vertical_deg: 170.0, ..View::default() };
        assert!(forward(view.moved(POS, QUAT, 0.912).1).z > -1.0 + 1e-6);
    }
}
