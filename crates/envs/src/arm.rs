//! From a 7-number action to joint targets, for arms of any number of joints.
//!
//! As in robosuite's operational-space controller, the goal of a control step is the present pose plus the commanded
//! displacement. Here it becomes joint position targets by one damped least-squares step (resolved rate), with a pull
//! towards a comfortable posture in the null space; stiff servos and MuJoCo's gravity compensation do the rest.

use efference_mujoco::{Data, Model};
use nalgebra::{Matrix3, Rotation3, SMatrix, SVector, UnitQuaternion, Vector3};

use crate::{Action, Result};

/// Metres per unit of translation action.
pub(crate) const TRANSLATION_M: f64 = 0.05;
/// Radians per unit of rotation action.
pub(crate) const ROTATION_RAD: f64 = 0.5;
/// Finger joint position when open, metres.
pub(crate) const FINGER_OPEN_M: f64 = 0.045;
/// Damping of the inverse (metres and radians): bounds joint speeds near singular poses.
const DAMPING: f64 = 0.03;

type Twist = SVector<f64, 6>;

/// An arm of N joints with two fingers. Its joints are the model's first N, its fingers the next two; actuators stand in
/// the same order.
pub(crate) struct Arm<const N: usize> {
    /// The site between the fingertips.
    pub grip: usize,
    /// Lower and upper limit of each joint, radians.
    pub limits: [[f64; 2]; N],
    /// Elbow up, fingers down.
    pub posture: [f64; N],
    /// Share of the way to the posture that each joint is pulled in a control step, where the gripper does not feel it.
    pub pull: [f64; N],
    /// Largest pull, radians: near singular poses some of it is felt.
    pub pull_limit: f64,
    /// How readily each joint moves, relative to the others.
    pub ease: [f64; N],
}

impl<const N: usize> Arm<N> {
    /// The arm of a compiled scene with joints `joint1` to `jointN` and a site `grip`.
    /// All joints move equally readily, and are pulled by a tenth.
    pub fn find(model: &Model, posture: [f64; N]) -> Result<Self> {
        let mut limits = [[0.0; 2]; N];
        for (i, limits) in limits.iter_mut().enumerate() {
            let joint = model.joint_id(&format!("joint{}", i + 1))?;
            *limits = model.joint_limits(joint).unwrap_or([-3.0, 3.0]);
        }
        Ok(Self {
            grip: model.site_id("grip")?,
            limits,
            posture,
            pull: [0.1; N],
            pull_limit: f64::INFINITY,
            ease: [1.0; N],
        })
    }

    /// [6, N]: metres, then radians, per radian; world axes.
    pub fn jacobian(&self, data: &Data) -> Result<SMatrix<f64, 6, N>> {
        let nv = data.model().nv();
        let mut all = vec![0.0; 6 * nv];
        data.jac_site(self.grip, &mut all)?;
        Ok(SMatrix::from_fn(|row, column| all[row * nv + column]))
    }

    fn joints(data: &Data) -> SVector<f64, N> {
        SVector::from_column_slice(&data.qpos()[..N])
    }

    fn pull_to_posture(&self, now: &SVector<f64, N>) -> SVector<f64, N> {
        let limit = self.pull_limit;
        SVector::from_fn(|i, _| ((self.posture[i] - now[i]) * self.pull[i]).clamp(-limit, limit))
    }

    /// Orientation of the gripper; identity when it points down.
    pub fn grip_rotation(&self, data: &Data) -> Rotation3<f64> {
        Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(&data.site_mat(self.grip)))
    }

    /// Sets the controls for one control step. Poses must be up to date.
    pub fn command(&self, data: &mut Data, action: &Action) -> Result<()> {
        let a = action.map(|v| f64::from(v).clamp(-1.0, 1.0));
        let twist = Twist::from_fn(|i, _| a[i] * if i < 3 { TRANSLATION_M } else { ROTATION_RAD });
        let now = Self::joints(data);
        let pull = self.pull_to_posture(&now);
        let target = now + self.displacement(&self.jacobian(data)?, &twist, &pull, DAMPING);
        let finger = if a[6] < 0.0 { FINGER_OPEN_M } else { 0.0 };
        let ctrl = data.ctrl_mut();
        for (i, limits) in self.limits.iter().enumerate() {
            ctrl[i] = target[i].clamp(limits[0], limits[1]);
        }
        ctrl[N..N + 2].fill(finger);
        Ok(())
    }

    /// Puts the arm where the gripper is at `position_m` with this orientation, at rest, with the fingers at `finger_m`.
    /// Leaves poses up to date. Returns the distance that is left (metres and radians added up), tiny when in reach.
    pub fn pose(
        &self,
        data: &mut Data,
        position_m: [f64; 3],
        rotation: &Rotation3<f64>,
        finger_m: f64,
    ) -> Result<f64> {
        data.qpos_mut()[..N].copy_from_slice(&self.posture);
        data.qpos_mut()[N..N + 2].fill(finger_m);
        data.qvel_mut()[..N + 2].fill(0.0);
        let mut left = f64::INFINITY;
        for round in 0..30 {
            data.kinematics()?;
            let gap = Vector3::from(position_m) - Vector3::from(data.site_pos(self.grip));
            let turn = axis_angle(&(rotation * self.grip_rotation(data).inverse()));
            let twist = Twist::from_iterator(gap.iter().chain(turn.iter()).copied());
            left = gap.norm() + turn.norm();
            if left < 1e-6 && round >= 8 {
                break;
            }
            let now = Self::joints(data);
            // The first rounds choose among the poses that fit, the later ones only close the gap.
            let pull = if round < 8 { self.pull_to_posture(&now) } else { SVector::zeros() };
            let next = now + self.displacement(&self.jacobian(data)?, &twist, &pull, 1e-3);
            for (i, limits) in self.limits.iter().enumerate() {
                data.qpos_mut()[i] = next[i].clamp(limits[0], limits[1]);
            }
        }
        let targets = data.qpos()[..N + 2].to_vec();
        data.ctrl_mut()[..N + 2].copy_from_slice(&targets);
        Ok(left)
    }

    /// Joint displacement for a small displacement of the gripper.
    fn displacement(
        &self,
        jacobian: &SMatrix<f64, 6, N>,
        twist: &Twist,
        pull: &SVector<f64, N>,
        damping: f64,
    ) -> SVector<f64, N> {
        let eased = SMatrix::<f64, 6, N>::from_fn(|row, column| jacobian[(row, column)] * self.ease[column]);
        let normal = eased * jacobian.transpose() + SMatrix::<f64, 6, 6>::identity() * (damping * damping);
        // Positive definite by construction, unless the state is not finite.
        let Some(factor) = normal.cholesky() else { return SVector::zeros() };
        let along = eased.transpose() * factor.solve(twist);
        let null = pull - eased.transpose() * factor.solve(&(jacobian * pull));
        along + null
    }
}

/// Axis times angle. By way of a quaternion: from the trace of a matrix that is orthogonal up to rounding only, small
/// angles come out as NaN.
pub(crate) fn axis_angle(rotation: &Rotation3<f64>) -> Vector3<f64> {
    UnitQuaternion::from_rotation_matrix(rotation).scaled_axis()
}
