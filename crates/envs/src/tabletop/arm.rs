//! The scene's arm.

use efference_mujoco::Data;
use nalgebra::Rotation3;

use super::scene::Scene;
pub(crate) use crate::arm::{FINGER_OPEN_M, ROTATION_RAD, TRANSLATION_M, axis_angle};
use crate::{Action, Result};

/// Elbow up, fingers down.
pub(crate) const POSTURE: [f64; 7] = [0.0, 0.2, 0.0, 1.9, 0.0, 1.04, 0.0];

/// As [`crate::arm::Arm::grip_rotation`].
pub(crate) fn grip_rotation(scene: &Scene, data: &Data) -> Rotation3<f64> {
    scene.arm.grip_rotation(data)
}

/// As [`crate::arm::Arm::command`].
pub(crate) fn command(scene: &Scene, data: &mut Data, action: &Action) -> Result<()> {
    scene.arm.command(data, action)
}

/// As [`crate::arm::Arm::pose`].
pub(crate) fn pose_arm(
    scene: &Scene,
    data: &mut Data,
    position_m: [f64; 3],
    rotation: &Rotation3<f64>,
    finger_m: f64,
) -> Result<f64> {
    scene.arm.pose(data, position_m, rotation, finger_m)
}
