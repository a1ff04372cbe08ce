//! The operational-space pose controller and the gripper's command.
//!
//! Torques from the pose error of the grip site through the arm's inertia as felt at the hand, position and orientation
//! decoupled, plus a posture task in the null space. Khatib, "A unified approach for motion and force control of robot
//! manipulators: the operational space formulation" (1987), with the settings of LIBERO's robosuite 1.4.

use efference_mujoco::Data;
use nalgebra::{Cholesky, Const, DMatrix, DimMin, Matrix3, SMatrix, SVector, Vector3};

use super::compiled::Compiled;
use super::meta::{ControllerMeta, Meta};

type Matrix6 = SMatrix<f64, 6, 6>;
type Matrix6x7 = SMatrix<f64, 6, 7>;
type Matrix7 = SMatrix<f64, 7, 7>;
type Vector6 = SVector<f64, 6>;
type Vector7 = SVector<f64, 7>;

/// What the controller knows of the arm.
#[derive(Clone, Debug)]
pub(crate) struct Arm {
    /// The grip site, world, metres.
    pub pos: Vector3<f64>,
    /// Its orientation, local to world.
    pub mat: Matrix3<f64>,
    /// Its velocity: linear (m/s), angular (rad/s), world axes.
    velocity: Vector6,
    jacobian: Matrix6x7,
    mass: Matrix7,
    q: Vector7,
    qd: Vector7,
}

/// Settings that do not change during a simulation.
#[derive(Clone, Debug)]
struct Settings {
    kp: Vector6,
    kd: Vector6,
    posture_kp: f64,
    posture_kd: f64,
    posture: Vector7,
    torque_low: Vector7,
    torque_high: Vector7,
    /// Middle and half width of each finger's control range.
    finger_mid: [f64; 2],
    finger_half: [f64; 2],
    finger_speed: [f64; 2],
    limits: ControllerMeta,
}

pub(crate) struct Controller {
    settings: Settings,
    arm: Arm,
    /// Whether `arm` was refreshed since the controller ran last; then it is not refreshed again. So the first physics
    /// step after a reset works with the arm as it was at the reset, whatever state was restored since.
    pub fresh: bool,
    pub goal_pos: Vector3<f64>,
    pub goal_mat: Matrix3<f64>,
    /// Commands of the two fingers, -1 to 1.
    pub gripper: [f64; 2],
    jacobian: Vec<f64>,
}

impl Controller {
    /// `data` shows the arm in its reset pose.
    pub fn new(meta: &Meta, scene: &Compiled, data: &Data) -> efference_mujoco::Result<Self> {
        let (robot, gripper) = (&meta.robot, &meta.gripper);
        let range = gripper.ctrlrange;
        let settings = Settings {
            kp: meta.controller.kp.into(),
            kd: meta.controller.kd.into(),
            posture_kp: meta.controller.nullspace_kp,
            posture_kd: 2.0 * meta.controller.nullspace_kp.sqrt(),
            posture: robot.init_qpos.into(),
            torque_low: robot.torque_low.into(),
            torque_high: robot.torque_high.into(),
            finger_mid: range.map(|[low, high]| 0.5 * (high + low)),
            finger_half: range.map(|[low, high]| 0.5 * (high - low)),
            finger_speed: gripper.sign.map(|sign| gripper.speed * sign),
            limits: meta.controller.clone(),
        };
        let mut jacobian = vec![0.0; 6 * meta.nv];
        let arm = Arm::look(scene, data, &mut jacobian)?;
        let (goal_pos, goal_mat) = (arm.pos, arm.mat);
        Ok(Self { settings, arm, fresh: true, goal_pos, goal_mat, gripper: [0.0; 2], jacobian })
    }

    /// As after a reset, with the arm as it was then.
    pub fn reset(&mut self, arm: &Arm) {
        self.arm = arm.clone();
        self.fresh = true;
        (self.goal_pos, self.goal_mat) = (arm.pos, arm.mat);
        self.gripper = [0.0; 2];
    }

    pub fn arm(&self) -> &Arm {
        &self.arm
    }

    pub fn set_arm(&mut self, arm: &Arm) {
        self.arm = arm.clone();
    }

    /// Looks at the arm, unless that has been done since the last torques.
    pub fn refresh(&mut self, scene: &Compiled, data: &Data) -> efference_mujoco::Result<()> {
        if !self.fresh {
            self.arm = Arm::look(scene, data, &mut self.jacobian)?;
        }
        Ok(())
    }

    /// Sets the goal of a control step from its action: relative to where the hand is now, rotation in world axes. The
    /// goal orientation stays when no rotation is asked for.
    pub fn set_goal(&mut self, action: &[f64; 7]) {
        let limits = &self.settings.limits;
        let [motion @ .., _] = *action;
        let (input, output) =
            ([limits.input_min, limits.input_max], [&limits.output_min, &limits.output_max]);
        let [dx, dy, dz, rotation @ ..] = scale_action(input, output, &motion);
        self.goal_pos = self.arm.pos + Vector3::new(dx, dy, dz);
        if rotation != [0.0; 3] {
            self.goal_mat = rotation_of(rotation) * self.arm.mat;
        }
    }

    /// Writes the controls of a physics step. Bias forces are read live.
    pub fn act(&mut self, scene: &Compiled, data: &mut Data, grip: f64) {
        let bias: Vector7 = scene.arm_dofs.map(|dof| data.qfrc_bias()[dof]).into();
        let torque = self.torque() + bias;
        self.fresh = false;
        let ctrl = data.ctrl_mut();
        for (i, motor) in scene.arm_motors.iter().enumerate() {
            ctrl[*motor] = torque[i].clamp(self.settings.torque_low[i], self.settings.torque_high[i]);
        }
        let direction = if grip > 0.0 {
            1.0
        } else if grip < 0.0 {
            -1.0
        } else {
            0.0
        };
        for (i, servo) in scene.finger_servos.iter().enumerate() {
            let settings = &self.settings;
            self.gripper[i] = (self.gripper[i] + settings.finger_speed[i] * direction).clamp(-1.0, 1.0);
            ctrl[*servo] = settings.finger_mid[i] + settings.finger_half[i] * self.gripper[i];
        }
    }

    /// Torques without bias forces.
    fn torque(&self) -> Vector7 {
        let (settings, arm) = (&self.settings, &self.arm);
        let position_error = self.goal_pos - arm.pos;
        let mut turn_error = Vector3::zeros();
        for c in 0..3 {
            turn_error += arm.mat.column(c).cross(&self.goal_mat.column(c));
        }
        turn_error *= 0.5;
        let mut error = Vector6::zeros();
        error.fixed_rows_mut::<3>(0).copy_from(&position_error);
        error.fixed_rows_mut::<3>(3).copy_from(&turn_error);
        let wanted = settings.kp.component_mul(&error) - settings.kd.component_mul(&arm.velocity);

        // Inertia at the hand: inverse of J M^-1 J^T, whole and of its two diagonal blocks.
        let by_inertia = solve(&arm.mass, &arm.jacobian.transpose());
        let mobility: Matrix6 = arm.jacobian * by_inertia;
        let force =
            solve(&mobility.fixed_view::<3, 3>(0, 0).into_owned(), &wanted.fixed_rows::<3>(0).into_owned());
        let moment =
            solve(&mobility.fixed_view::<3, 3>(3, 3).into_owned(), &wanted.fixed_rows::<3>(3).into_owned());
        let mut wrench = Vector6::zeros();
        wrench.fixed_rows_mut::<3>(0).copy_from(&force);
        wrench.fixed_rows_mut::<3>(3).copy_from(&moment);

        // N^T M p = M p - J^T L J p.
        let posture = settings.posture_kp * (settings.posture - arm.q) - settings.posture_kd * arm.qd;
        let seen_at_hand = solve(&mobility, &(arm.jacobian * posture));
        arm.jacobian.tr_mul(&(wrench - seen_at_hand)) + arm.mass * posture
    }
}

impl Arm {
    /// The arm as `data` shows it now.
    pub fn look(scene: &Compiled, data: &Data, scratch: &mut [f64]) -> efference_mujoco::Result<Self> {
        let nv = scratch.len() / 6;
        data.jac_site(scene.eef_site, scratch)?;
        let mut jacobian = Matrix6x7::zeros();
        for (row, values) in scratch.chunks_exact(nv).enumerate() {
            for (column, dof) in scene.arm_dofs.iter().enumerate() {
                jacobian[(row, column)] = values[*dof];
            }
        }
        let mut mass = [0.0; 49];
        data.mass_block(&scene.arm_dofs, &mut mass)?;
        let (qpos, qvel) = (data.qpos(), data.qvel());
        let qd: Vector7 = scene.arm_dofs.map(|dof| qvel[dof]).into();
        Ok(Self {
            pos: data.site_pos(scene.eef_site).into(),
            mat: Matrix3::from_row_slice(&data.site_mat(scene.eef_site)),
            // Nothing but the arm moves the grip site: the other columns are zero.
            velocity: jacobian * qd,
            jacobian,
            mass: Matrix7::from_row_slice(&mass),
            q: scene.arm_qpos.map(|adr| qpos[adr]).into(),
            qd,
        })
    }
}

/// `a^-1 b` for a symmetric positive matrix; by the pseudo-inverse where the arm is stretched out and it is singular.
fn solve<const N: usize, const M: usize>(a: &SMatrix<f64, N, N>, b: &SMatrix<f64, N, M>) -> SMatrix<f64, N, M>
where
    Const<N>: DimMin<Const<N>, Output = Const<N>>,
{
    match Cholesky::new(*a) {
        Some(factor) => factor.solve(b),
        None => {
            let svd = DMatrix::from_column_slice(N, N, a.as_slice()).svd(true, true);
            let cut = 1e-15 * svd.singular_values.max();
            let solved = svd.solve(&DMatrix::from_column_slice(N, M, b.as_slice()), cut);
            // Fails for NaN only, which MuJoCo then reports as an instability.
            let nan = || SMatrix::<f64, N, M>::repeat(f64::NAN);
            solved.map_or_else(|_| nan(), |x| SMatrix::from_column_slice(x.as_slice()))
        }
    }
}

/// What the six motion numbers of an action mean: clipped to the input's range, then mapped linearly to metres (3) and
/// radians (3).
pub(crate) fn scale_action([low, high]: [f64; 2], out: [&[f64; 6]; 2], action: &[f64; 6]) -> [f64; 6] {
    std::array::from_fn(|i| {
        let (out_low, out_high) = (out[0][i], out[1][i]);
        let scale = (out_high - out_low).abs() / (high - low).abs();
        let (out_mid, in_mid) = (0.5 * (out_high + out_low), 0.5 * (high + low));
        (action[i].clamp(low, high) - in_mid) * scale + out_mid
    })
}

/// Rotation matrix of an axis-angle vector (radians), through single precision as the original computes it: the
/// quaternion, its scaling and the products are rounded to float32, only the diagonal is finished in float64.
pub(crate) fn rotation_of(axis_angle: [f64; 3]) -> Matrix3<f64> {
    let [x, y, z] = axis_angle;
    let angle = (x * x + y * y + z * z).sqrt();
    if angle == 0.0 {
        return Matrix3::identity();
    }
    let sine = (angle / 2.0).sin();
    // wxyz
    let mut q = [(angle / 2.0).cos(), x / angle * sine, y / angle * sine, z / angle * sine].map(|v| v as f32);
    let squared = q.iter().map(|v| f64::from(v * v)).sum::<f64>() as f32;
    let scale = (2.0 / f64::from(squared)).sqrt();
    q = q.map(|v| (f64::from(v) * scale) as f32);
    let p = |i: usize, k: usize| q[i] * q[k];
    let diagonal = |i: usize, k: usize| 1.0 - f64::from(p(i, i)) - f64::from(p(k, k));
    Matrix3::new(
        diagonal(2, 3),
        f64::from(p(1, 2) - p(3, 0)),
        f64::from(p(1, 3) + p(2, 0)),
        f64::from(p(1, 2) + p(3, 0)),
        diagonal(1, 3),
        f64::from(p(2, 3) - p(1, 0)),
        f64::from(p(1, 3) - p(2, 0)),
        f64::from(p(2, 3) + p(1, 0)),
        diagonal(1, 2),
    )
}
