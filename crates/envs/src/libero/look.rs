//! Pictures of a simulation, and where its parts are.
//!
//! Renderers belong to threads: each thread keeps those it used last, and all simulations of a scene share one.

use std::cell::RefCell;

use efference_data::RgbImage;
use efference_mujoco::{Data, RenderQuality, Renderer};
use nalgebra::{Matrix3, Rotation3, UnitQuaternion};

use super::{Error, LiberoSim, Profile, Result};
use crate::Pose;

/// A renderer holds the scene's meshes and textures, up to some hundred megabytes for packs as exported.
const RENDERERS_PER_THREAD: usize = 4;

/// Geoms of this group are collision shapes, which LIBERO does not show.
const COLLISION_GROUP: usize = 0;

type Key = (u64, usize);

thread_local! {
    /// The one used last is at the end.
    static RENDERERS: RefCell<Vec<(Key, Renderer)>> = const { RefCell::new(Vec::new()) };
}

impl Profile {
    /// What the renderer spends time on.
    pub const fn quality(self) -> RenderQuality {
        match self {
            Self::Faithful => RenderQuality::FULL,
            Self::Fast => RenderQuality::FAST,
        }
    }
}

fn with_renderer<T>(
    data: &Data,
    side: usize,
    profile: Profile,
    draw: impl FnOnce(&mut Renderer) -> efference_mujoco::Result<T>,
) -> Result<T> {
    let key = (data.model().lineage(), side);
    RENDERERS.with_borrow_mut(|renderers| {
        match renderers.iter().position(|(there, _)| *there == key) {
            Some(place) => {
                let entry = renderers.remove(place);
                renderers.push(entry);
            }
            None => {
                if renderers.len() >= RENDERERS_PER_THREAD {
                    renderers.remove(0);
                }
                let mut renderer = Renderer::new(data.model(), side, side, profile.quality())?;
                renderer.show_geom_group(COLLISION_GROUP, false)?;
                renderers.push((key, renderer));
            }
        }
        // Just pushed.
        let (_, renderer) = renderers.last_mut().ok_or(efference_mujoco::Error::OtherModel)?;
        Ok(draw(renderer)?)
    })
}

impl LiberoSim {
    /// What a camera (name as in the scene) saw when the observation was taken, upright: row 0 is the top. LIBERO's own
    /// array is the vertical flip of it; the policy's picture of the usual evaluators is its left-right mirror image.
    ///
    /// # Errors
    /// [`Error::Name`] for an unknown camera, [`Error::Simulator`] without offscreen rendering.
    pub fn render(&mut self, camera: &str) -> Result<RgbImage> {
        let side = self.options.image_size;
        let mut rgb = vec![0; side * side * 3];
        self.render_into(camera, &mut rgb)?;
        let got = rgb.len();
        RgbImage::from_raw(side as u32, side as u32, rgb).ok_or_else(|| Error::Option {
            field: "image_size",
            expected: "the size of the drawn picture",
            got: got.to_string(),
        })
    }

    /// As [`LiberoSim::render`], into `out`: [S, S, 3] bytes.
    ///
    /// # Errors
    /// As [`LiberoSim::render`], and when `out` has another length.
    pub fn render_into(&mut self, camera: &str, out: &mut [u8]) -> Result<()> {
        self.draw(camera, |renderer, data, camera| renderer.render_rgb(data, camera, out))
    }

    /// Depth in metres along the camera's axis into `out`, [S, S], upright, at the same instant as [`LiberoSim::render`].
    ///
    /// # Errors
    /// As [`LiberoSim::render_into`].
    pub fn render_depth(&mut self, camera: &str, out: &mut [f32]) -> Result<()> {
        self.draw(camera, |renderer, data, camera| renderer.render_depth(data, camera, out))
    }

    /// Which geom is seen into `out`, [S, S], upright, at the same instant as [`LiberoSim::render`]: its index in the scene,
    /// -1 for background, -2 for what is no geom.
    ///
    /// # Errors
    /// As [`LiberoSim::render_into`].
    pub fn render_segmentation(&mut self, camera: &str, out: &mut [i32]) -> Result<()> {
        self.draw(camera, |renderer, data, camera| renderer.render_segmentation(data, camera, out))
    }

    fn draw<T>(
        &mut self,
        camera: &str,
        draw: impl FnOnce(&mut Renderer, &Data, usize) -> efference_mujoco::Result<T>,
    ) -> Result<T> {
        let model = self.data.model();
        let camera = model.camera_id(camera).map_err(|_| Error::Name {
            kind: "camera",
            name: camera.to_owned(),
            known: model.names(efference_mujoco::Kind::Camera).join(", "),
        })?;
        let now: Vec<f64> = self.data.qpos().to_vec();
        // Poses are those of another instant than the observation's: go there and come back.
        let elsewhere = self.pose_qpos != self.seen_qpos;
        if elsewhere {
            self.data.qpos_mut().copy_from_slice(&self.seen_qpos);
            self.data.kinematics()?;
        }
        self.show_flames()?;
        let (side, profile) = (self.options.image_size, self.options.profile);
        let drawn = with_renderer(&self.data, side, profile, |renderer| draw(renderer, &self.data, camera));
        if elsewhere {
            self.data.qpos_mut().copy_from_slice(&self.pose_qpos);
            self.data.kinematics()?;
            self.data.qpos_mut().copy_from_slice(&now);
        }
        drawn
    }

    fn show_flames(&mut self) -> Result<()> {
        for (burner, [_, seen]) in self.scene.burners.iter().zip(&self.flames) {
            let [r, g, b, alpha] = self.data.model().site_rgba(burner.site);
            if alpha != *seen {
                self.data.model_mut()?.set_site_rgba(burner.site, [r, g, b, *seen]);
            }
        }
        Ok(())
    }

    /// Simulated time in seconds.
    pub fn time_secs(&self) -> f64 {
        self.data.time_secs()
    }

    /// Positions now, [nq].
    pub fn qpos(&self) -> &[f64] {
        self.data.qpos()
    }

    /// Velocities now, [nv].
    pub fn qvel(&self) -> &[f64] {
        self.data.qvel()
    }

    /// The whole simulation, for what has no method here.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// State as [`LiberoSim::set_init_state`] takes it: time, qpos, qvel.
    pub fn init_state(&self) -> Vec<f64> {
        [&[self.data.time_secs()], self.data.qpos(), self.data.qvel()].concat()
    }

    /// Pose of a body (name as in the scene), world.
    ///
    /// # Errors
    /// [`Error::Simulator`] with the nearest name there is.
    pub fn body_pose(&self, body: &str) -> Result<Pose> {
        Ok(self.pose_of_body(self.data.model().body_id(body)?))
    }

    fn pose_of_body(&self, body: usize) -> Pose {
        Pose { position_m: self.data.body_pos(body), quat_wxyz: self.data.body_quat(body) }
    }

    /// Pose of an object or fixture (name as in `meta.objects`), world: that of its root body.
    ///
    /// # Errors
    /// [`Error::Name`] with all names.
    pub fn object_pose(&self, object: &str) -> Result<Pose> {
        Ok(self.pose_of_body(self.scene.things[self.scene.thing(object)?].body))
    }

    /// Pose of a site (name as in `meta.sites` or the scene), world.
    ///
    /// # Errors
    /// [`Error::Simulator`] with the nearest name there is.
    pub fn site_pose(&self, site: &str) -> Result<Pose> {
        let place = self.scene.places.iter().find(|place| place.name == site);
        let id = place.map_or_else(|| self.data.model().site_id(site), |place| Ok(place.site))?;
        Ok(self.pose_of_site(id))
    }

    fn pose_of_site(&self, site: usize) -> Pose {
        pose_of(self.data.site_pos(site), self.data.site_mat(site))
    }

    /// The grip site between the fingers, world.
    pub fn eef_pose(&self) -> Pose {
        self.pose_of_site(self.scene.eef_site)
    }

    /// Present positions of an object's hinges (radians) and slides (metres) in the order of `meta`.
    ///
    /// # Errors
    /// [`Error::Name`] with all names.
    pub fn joint_positions(&self, object: &str) -> Result<Vec<f64>> {
        let qpos = self.data.qpos();
        Ok(self.scene.things[self.scene.thing(object)?].joints.iter().map(|adr| qpos[*adr]).collect())
    }

    /// Present position of a joint with one number (name as in the scene).
    ///
    /// # Errors
    /// [`Error::Simulator`] with the nearest name there is.
    pub fn joint_position(&self, joint: &str) -> Result<f64> {
        let model = self.data.model();
        Ok(self.data.qpos()[model.joint_qpos(model.joint_id(joint)?).start])
    }

    /// Whether two things (names as in `meta.objects`) touch.
    ///
    /// # Errors
    /// [`Error::Name`] with all names.
    pub fn touching(&self, a: &str, b: &str) -> Result<bool> {
        Ok(self.scene.touch(&self.data, self.scene.thing(a)?, self.scene.thing(b)?))
    }

    /// Whether each finger's pad (left, right) touches a thing.
    ///
    /// # Errors
    /// [`Error::Name`] with all names.
    pub fn fingers_touch(&self, object: &str) -> Result<[bool; 2]> {
        let thing = Some(self.scene.thing(object)? as u16);
        let mut touch = [false; 2];
        for [a, b] in self.data.contact_geoms() {
            for (pad, other) in [(a, b), (b, a)] {
                if self.scene.geom_thing[other] == thing {
                    for (touch, pads) in touch.iter_mut().zip(&self.scene.pads) {
                        *touch |= pads.contains(&pad);
                    }
                }
            }
        }
        Ok(touch)
    }
}

pub(super) fn pose_of(position_m: [f64; 3], mat_row_major: [f64; 9]) -> Pose {
    let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(&mat_row_major));
    let q = UnitQuaternion::from_rotation_matrix(&rotation);
    Pose { position_m, quat_wxyz: [q.w, q.i, q.j, q.k] }
}
