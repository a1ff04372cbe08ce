//! A state, read in the tasks' words.

use efference_mujoco::Data;
use nalgebra::{Vector2, Vector3};

use super::arm;
use super::layout::Thing;
use super::scene::Scene;

/// Pairs of touching geoms.
pub(crate) type Touches = Vec<[usize; 2]>;

/// Everything is in the world frame, metres and radians.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    pub scene: &'a Scene,
    pub data: &'a Data,
    pub touches: &'a Touches,
}

pub(crate) fn touches(data: &Data, out: &mut Touches) {
    out.clear();
    out.extend(data.contacts().filter(|contact| contact.dist_m <= 0.0).map(|contact| contact.geoms));
}

impl World<'_> {
    pub fn pos(&self, thing: Thing) -> Vector3<f64> {
        self.data.body_pos(self.scene.bodies[thing as usize]).into()
    }

    pub fn xy(&self, thing: Thing) -> Vector2<f64> {
        self.pos(thing).xy()
    }

    /// Angle of the thing's x axis about the vertical.
    pub fn yaw(&self, thing: Thing) -> f64 {
        let mat = self.data.body_mat(self.scene.bodies[thing as usize]);
        mat[3].atan2(mat[0])
    }

    /// Linear speed of a loose object, m/s.
    pub fn speed(&self, thing: Thing) -> f64 {
        match self.scene.handles[thing as usize] {
            super::scene::Handle::Free(joint) => {
                Vector3::from_column_slice(&self.data.joint_qvel(joint)[..3]).norm()
            }
            super::scene::Handle::Mocap(_) => 0.0,
        }
    }

    /// The point between the fingertips.
    pub fn grip(&self) -> Vector3<f64> {
        self.data.site_pos(self.scene.grip).into()
    }

    pub fn grip_yaw(&self) -> f64 {
        let rotation = arm::grip_rotation(self.scene, self.data);
        rotation[(1, 0)].atan2(rotation[(0, 0)])
    }

    /// Speed of the left finger, m/s.
    pub fn finger_speed(&self) -> f64 {
        self.data.qvel()[7]
    }

    /// How far the drawer is open.
    pub fn drawer(&self) -> f64 {
        self.data.joint_qpos(self.scene.drawer)[0]
    }

    /// How deep the button is pressed.
    pub fn button(&self) -> f64 {
        self.data.joint_qpos(self.scene.button)[0]
    }

    /// Middle of the drawer's handle.
    pub fn handle(&self) -> Vector3<f64> {
        self.data.site_pos(self.scene.handle_site).into()
    }

    /// Middle of the button's top.
    pub fn cap(&self) -> Vector3<f64> {
        Vector3::from(self.data.body_pos(self.scene.cap_body)) + Vector3::new(0.0, 0.0, 0.018)
    }

    pub fn touch(&self, a: usize, b: usize) -> bool {
        self.touches.iter().any(|pair| *pair == [a, b] || *pair == [b, a])
    }

    /// Both fingers touch it.
    pub fn pinched(&self, geom: usize) -> bool {
        self.scene.pads.iter().all(|pad| self.touch(*pad, geom))
    }

    /// Any part of the gripper touches it.
    pub fn handled(&self, geom: usize) -> bool {
        self.scene.robot_geoms.iter().any(|part| self.touch(*part, geom))
    }
}
