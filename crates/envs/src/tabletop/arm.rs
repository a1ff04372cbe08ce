//! From a 7-number action to joint targets.
//!
//! As in robosuite's operational-space controller, the goal of a control step is the present pose plus the commanded
//! displacement. Here it becomes joint position targets by one damped least-squares step (resolved rate), with a pull
//! towards a comfortable posture in the null space; stiff servos and MuJoCo's gravity compensation do the rest.

use efference_mujoco::Data;
use nalgebra::{Matrix3, Rotation3, SMatrix, SVector, UnitQuaternion, Vector3};

use super::scene::Scene;
use crate::{Action, Result};

/// Metres per unit of translation action.
pub(crate) const TRANSLATION_M: f64 = 0.05;
/// Radians per unit of rotation action.
pub(crate) const ROTATION_RAD: f64 = 0.5;
/// Finger joint position when open, metres.
pub(crate) const FINGER_OPEN_M: f64 = 0.045;
/// Elbow up, fingers down.
pub(crate) const POSTURE: [f64; 7] = [0.0, 0.2, 0.0, 1.9, 0.0, 1.04, 0.0];
const POSTURE_GAIN: f64 = 0.1;
/// Damping of the inverse (metres and radians): bounds joint speeds near singular poses.
const DAMPING: f64 = 0.03;

type Jacobian = SMatrix<f64, 6, 7>;
type Twist = SVector<f64, 6>;
type Joints = SVector<f64, 7>;

/// The arm's joints are the model's first seven.
fn jacobian(scene: &Scene, data: &Data) -> Result<Jacobian> {
    let nv = scene.model.nv();
    let mut all = vec![0.0; 6 * nv];
    data.jac_site(scene.grip, &mut all)?;
    Ok(Jacobian::from_fn(|row, column| all[row * nv + column]))
}

/// Joint displacement for a small displacement of the gripper.
fn displacement(jacobian: &Jacobian, twist: &Twist, pull: &Joints, damping: f64) -> Joints {
    let normal = jacobian * jacobian.transpose() + SMatrix::<f64, 6, 6>::identity() * (damping * damping);
    // Positive definite by construction, unless the state is not finite.
    let Some(factor) = normal.cholesky() else { return Joints::zeros() };
    let along = jacobian.transpose() * factor.solve(twist);
    let null = pull - jacobian.transpose() * factor.solve(&(jacobian * pull));
    along + null
}

fn joints(data: &Data) -> Joints {
    Joints::from_column_slice(&data.qpos()[..7])
}

fn pull_to_posture(now: &Joints, gain: f64) -> Joints {
    (Joints::from_column_slice(&POSTURE) - now) * gain
}

/// Orientation of the gripper; identity when it points down.
pub(crate) fn grip_rotation(scene: &Scene, data: &Data) -> Rotation3<f64> {
    Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(&data.site_mat(scene.grip)))
}

/// Axis times angle. By way of a quaternion: from the trace of a matrix that is orthogonal up to rounding only, small
/// angles come out as NaN.
pub(crate) fn axis_angle(rotation: &Rotation3<f64>) -> Vector3<f64> {
    UnitQuaternion::from_rotation_matrix(rotation).scaled_axis()
}

/// Sets the controls for one control step. Poses must be up to date.
pub(crate) fn command(scene: &Scene, data: &mut Data, action: &Action) -> Result<()> {
    let a = action.map(|v| f64::from(v).clamp(-1.0, 1.0));
    let twist = Twist::from_fn(|i, _| a[i] * if i < 3 { TRANSLATION_M } else { ROTATION_RAD });
    let now = joints(data);
    let target =
        now + displacement(&jacobian(scene, data)?, &twist, &pull_to_posture(&now, POSTURE_GAIN), DAMPING);
    let finger = if a[6] < 0.0 { FINGER_OPEN_M } else { 0.0 };
    let ctrl = data.ctrl_mut();
    for (i, limits) in scene.limits.iter().enumerate() {
        ctrl[i] = target[i].clamp(limits[0], limits[1]);
    }
    ctrl[7..9].fill(finger);
    Ok(())
}

/// Puts the arm where the gripper is at `position_m` with this orientation, at rest, with the fingers at `finger_m`.
/// Leaves poses up to date. Returns the distance that is left (metres and radians added up), tiny when in reach.
pub(crate) fn pose_arm(
    scene: &Scene,
    data: &mut Data,
    position_m: [f64; 3],
    rotation: &Rotation3<f64>,
    finger_m: f64,
) -> Result<f64> {
    data.qpos_mut()[..7].copy_from_slice(&POSTURE);
    data.qpos_mut()[7..9].fill(finger_m);
    data.qvel_mut()[..9].fill(0.0);
    let mut left = f64::INFINITY;
    for round in 0..30 {
        data.kinematics()?;
        let gap = Vector3::from(position_m) - Vector3::from(data.site_pos(scene.grip));
        let turn = axis_angle(&(rotation * grip_rotation(scene, data).inverse()));
        let twist = Twist::from_iterator(gap.iter().chain(turn.iter()).copied());
        left = gap.norm() + turn.norm();
        if left < 1e-6 && round >= 8 {
            break;
        }
        let now = joints(data);
        // The first rounds choose among the poses that fit, the later ones only close the gap.
        let pull = if round < 8 { pull_to_posture(&now, POSTURE_GAIN) } else { Joints::zeros() };
        let next = now + displacement(&jacobian(scene, data)?, &twist, &pull, 1e-3);
        for (i, limits) in scene.limits.iter().enumerate() {
            data.qpos_mut()[i] = next[i].clamp(limits[0], limits[1]);
        }
    }
    let targets: [f64; 9] = std::array::from_fn(|i| data.qpos()[i]);
    data.ctrl_mut()[..9].copy_from_slice(&targets);
    Ok(left)
}
