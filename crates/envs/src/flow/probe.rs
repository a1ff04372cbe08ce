//! A copy of the scene in which a planner may put arm and object anywhere, to see what touches what.

use std::sync::Arc;

use efference_geometry::{Isometry3, Vector3};
use efference_mujoco::{Data, JointKind};
use nalgebra::DMatrix;

use super::FlowEnv;
use super::scene::Scene;
use super::surface::body_pose;
use super::wear::wxyz;
use crate::{Error, Result};

/// How deep things are inside each other, metres; 0 where they only touch or are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Collision {
    /// Hand or fingers and the table, target or a bystander.
    pub arm_and_scene_m: f64,
    /// Hand or fingers and the object.
    pub arm_and_object_m: f64,
    /// The object and the table, target or a bystander.
    pub object_and_scene_m: f64,
}

/// A simulation of its own, without time. Made by [`FlowEnv::probe`]; it does not follow the environment.
///
/// Only hand and fingers of an arm collide, its links do not.
pub struct Probe {
    pub(crate) scene: Arc<Scene>,
    pub(crate) data: Data,
}

impl FlowEnv {
    /// A copy of the present scene for trying poses.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn probe(&self) -> Result<Probe> {
        let mut data = self.data.try_clone()?;
        data.forward_position()?;
        Ok(Probe { scene: Arc::clone(&self.scene), data })
    }
}

impl Probe {
    /// Joints of the arm without the fingers.
    #[must_use]
    pub fn joints(&self) -> usize {
        self.scene.arm.joints()
    }

    /// Lower and upper limit of each joint, radians.
    #[must_use]
    pub fn limits(&self) -> &[[f64; 2]] {
        self.scene.arm.limits()
    }

    /// A comfortable posture: elbow up, gripper down.
    #[must_use]
    pub fn rest(&self) -> &[f64] {
        self.scene.arm.posture()
    }

    /// Puts the arm somewhere: its joints (radians), and how far each finger is from the middle (metres).
    ///
    /// # Errors
    /// [`Error::Length`] for another number of joints, [`Error::Option`] for numbers that are not finite.
    pub fn place_arm(&mut self, joints: &[f64], finger_m: f64) -> Result<()> {
        let n = self.joints();
        if joints.len() != n {
            return Err(Error::Length { what: "joints of the arm", expected: n, got: joints.len() });
        }
        if !joints.iter().chain([&finger_m]).all(|x| x.is_finite()) {
            let got = format!("{joints:?}, fingers {finger_m}");
            return Err(Error::Option { field: "joints", expected: "finite numbers", got });
        }
        let qpos = self.data.qpos_mut();
        qpos[..n].copy_from_slice(joints);
        qpos[n..n + 2].fill(finger_m);
        Ok(())
    }

    /// Puts the arm where the gripper has this pose (as [`FlowEnv::grip_pose`]), from its comfortable posture, with the
    /// fingers at this distance from the middle. Returns what is left of the way, metres and radians added up: tiny when
    /// the pose is in reach. The joints are then [`Probe::placed_joints`].
    ///
    /// # Errors
    /// [`Error::Option`] for numbers that are not finite.
    pub fn reach(&mut self, world_from_grip: &Isometry3<f64>, finger_m: f64) -> Result<f64> {
        if !world_from_grip.to_homogeneous().iter().chain([&finger_m]).all(|x| x.is_finite()) {
            let got = format!("{world_from_grip}, fingers {finger_m}");
            return Err(Error::Option { field: "pose of the gripper", expected: "finite numbers", got });
        }
        let rotation = world_from_grip.rotation.to_rotation_matrix();
        let at = world_from_grip.translation.vector.into();
        self.scene.arm.pose(&mut self.data, at, &rotation, finger_m)
    }

    /// Joints of the arm as placed last, radians.
    #[must_use]
    pub fn placed_joints(&self) -> &[f64] {
        &self.data.qpos()[..self.joints()]
    }

    /// Puts the object somewhere; a drawer goes to the nearest place on its rails.
    ///
    /// # Errors
    /// [`Error::Option`] for numbers that are not finite.
    pub fn place_object(&mut self, pose: &Isometry3<f64>) -> Result<()> {
        place_object(&self.scene, &mut self.data, pose)
    }

    /// World from object, as placed last.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn object_pose(&mut self) -> Result<Isometry3<f64>> {
        self.data.kinematics()?;
        Ok(body_pose(&self.data, self.scene.object))
    }

    /// World from gripper, as placed last: the point between the fingertips; identity when it points down.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn grip_pose(&mut self) -> Result<Isometry3<f64>> {
        self.data.kinematics()?;
        Ok(self.scene.arm.grip_pose(&self.data))
    }

    /// Of the gripper by the joints, [6, joints], as placed last: linear (m), then angular (rad), world axes.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn jacobian(&mut self) -> Result<DMatrix<f64>> {
        self.data.kinematics()?;
        self.scene.arm.jacobian(&self.data)
    }

    /// What is inside what, as placed last.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn collision(&mut self) -> Result<Collision> {
        self.data.forward_position()?;
        Ok(collision(&self.scene, &self.data))
    }

    /// How deep the object would be inside the rest of the scene (the arm left out) at this pose, metres.
    ///
    /// # Errors
    /// As [`Probe::place_object`].
    pub fn object_depth(&mut self, pose: &Isometry3<f64>) -> Result<f64> {
        self.place_object(pose)?;
        Ok(self.collision()?.object_and_scene_m)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Arm,
    Object,
    Scene,
}

/// Contacts of the present state, sorted by who is involved.
pub(crate) fn collision(scene: &Scene, data: &Data) -> Collision {
    let model = data.model();
    let side = |geom: usize| {
        let body = model.geom_body(geom);
        if body == scene.object {
            Side::Object
        } else if scene.robot.contains(&geom) {
            Side::Arm
        } else {
            Side::Scene
        }
    };
    let mut all = Collision::default();
    for contact in data.contacts() {
        let deep = (-contact.dist_m).max(0.0);
        let worst = match contact.geoms.map(side) {
            [Side::Arm, Side::Scene] | [Side::Scene, Side::Arm] => &mut all.arm_and_scene_m,
            [Side::Arm, Side::Object] | [Side::Object, Side::Arm] => &mut all.arm_and_object_m,
            [Side::Object, Side::Scene] | [Side::Scene, Side::Object] => &mut all.object_and_scene_m,
            _ => continue,
        };
        *worst = worst.max(deep);
    }
    all
}

/// Puts the object somewhere, at rest; a drawer to the nearest place on its rails.
pub(crate) fn place_object(scene: &Scene, data: &mut Data, pose: &Isometry3<f64>) -> Result<()> {
    if !pose.to_homogeneous().iter().all(|x| x.is_finite()) {
        let got = format!("{pose}");
        return Err(Error::Option { field: "pose of the object", expected: "finite numbers", got });
    }
    let model = data.model();
    if model.joint_kind(scene.joint) == JointKind::Free {
        let at = pose.translation.vector.into();
        return Ok(data.place_free_joint(scene.joint, at, wxyz(&pose.rotation))?);
    }
    let (place, limits) = (model.joint_qpos(scene.joint).start, model.joint_limits(scene.joint));
    let dof = model.joint_dofs(scene.joint).start;
    let (from, to) = (3 * scene.target, 4 * scene.target);
    let cabinet = Vector3::from_column_slice(&data.mocap_pos()[from..from + 3]);
    let [w, x, y, z] = std::array::from_fn(|i| data.mocap_quat()[to + i]);
    let turn = nalgebra::UnitQuaternion::from_quaternion(nalgebra::Quaternion::new(w, x, y, z));
    let out = -turn.inverse_transform_vector(&(pose.translation.vector - cabinet)).y;
    let [low, high] = limits.unwrap_or([f64::MIN, f64::MAX]);
    data.qpos_mut()[place] = out.clamp(low, high);
    data.qvel_mut()[dof] = 0.0;
    Ok(())
}
