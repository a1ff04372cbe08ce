//! What a viewer needs to draw the present state.

use efference_mujoco::Kind;

use super::LiberoSim;
use super::look::pose_of;
use crate::{CameraView, GeomShape, NamedPose, SceneState, ShapeKind};

/// Names under which policies know the two cameras, and which of the task's observation cameras they are.
pub(super) const CAMERAS: [&str; 2] = ["agentview", "wrist"];

impl LiberoSim {
    /// Named poses, primitive shapes and the observation cameras, as of the last physics step's start.
    pub fn scene_state(&self) -> SceneState {
        let (data, model) = (self.data(), self.model());
        let meta = &self.pack().meta;
        let things = meta.objects.keys().filter_map(|name| {
            let pose = self.object_pose(name).ok()?;
            Some(NamedPose { name: name.clone(), pose })
        });
        let (mut geoms, mut last_body, mut index) = (Vec::new(), usize::MAX, 0);
        for geom in 0..model.count(Kind::Geom) {
            let owner = model.geom_body(geom);
            index = if owner == last_body { index + 1 } else { 0 };
            last_body = owner;
            let kind = match model.geom_type(geom) {
                2 => ShapeKind::Sphere,
                3 => ShapeKind::Capsule,
                5 => ShapeKind::Cylinder,
                6 => ShapeKind::Box,
                // Meshes have no shape that a viewer of primitives could draw; their collision shapes have.
                _ => continue,
            };
            let name = model.name(Kind::Body, owner).unwrap_or_default();
            geoms.push(GeomShape {
                name: format!("{name}/{index}"),
                kind,
                size_m: model.geom_size(geom),
                rgba: model.geom_rgba(geom),
                pose: pose_of(data.geom_pos(geom), data.geom_mat(geom)),
            });
        }
        let side = self.options().image_size;
        let cameras = CAMERAS.iter().zip(&meta.obs_cameras).filter_map(|(name, in_scene)| {
            let id = model.camera_id(in_scene).ok()?;
            Some(CameraView {
                name: (*name).to_owned(),
                size_px: [side, side],
                intrinsics_px: model.camera_intrinsics_px(id, side, side),
                pose: pose_of(data.camera_pos(id), data.camera_mat(id)),
            })
        });
        let fingers = meta.gripper.joints.iter().map(|joint| self.qpos()[joint.qpos_adr].abs());
        SceneState {
            time_secs: self.time_secs(),
            gripper: self.eef_pose(),
            finger_opening_m: fingers.sum(),
            things: things.collect(),
            geoms,
            cameras: cameras.collect(),
        }
    }
}
