//! What may be changed in a loaded model: looks, places of fixed things, friction, the timestep.
//!
//! Each setter writes plain numbers that MuJoCo reads afresh at every step or frame, so no change can break the model's
//! structure. What is set here lies in the model's own layer (`LAYERED` in `csrc/shim.c`). Give each environment its own copy ([`Model::try_clone`], or [`Data::model_mut`](crate::Data::model_mut)).

use crate::{Error, Model, Result, model::check};
use std::ffi::c_int;

/// MuJoCo's compiler marks geoms and sites whose frame is their body's, or partly so, and then does not read their own
/// place or orientation; this (`mjSAMEFRAME_NONE`) takes the mark away.
const FRAME_OF_ITS_OWN: u8 = 0;

macro_rules! setters {
    ($($(#[$doc:meta])* $function:ident: [$type:ty; $n:literal], $array:ident of $count:ident;)*) => {$(
        $(#[$doc])*
        pub fn $function(&mut self, index: usize, value: [$type; $n]) {
            self.write(self.view.$array, self.view.$count, index, value);
        }
    )*};
}

impl Model {
    setters! {
        /// Colour of a geom, each in 0..=1. A material's texture is multiplied with it.
        set_geom_rgba: [f32; 4], geom_rgba of ngeom;
        /// Colour of a site, each in 0..=1.
        set_site_rgba: [f32; 4], site_rgba of nsite;
        /// Colour of a material, each in 0..=1. Geoms with a material take their colour from it.
        set_material_rgba: [f32; 4], mat_rgba of nmat;
        /// Sliding (unitless), torsional (m) and rolling (m) friction of a geom.
        set_geom_friction: [f64; 3], geom_friction of ngeom;
        /// Place of a body in its parent's frame, metres. Moves bodies that are fixed to the world.
        set_body_pos: [f64; 3], body_pos of nbody;
        /// Orientation of a body in its parent's frame, wxyz, unit length.
        set_body_quat: [f64; 4], body_quat of nbody;
        /// Place of a camera in its body's frame, metres.
        set_camera_pos: [f64; 3], cam_pos of ncam;
        /// Orientation of a camera in its body's frame, wxyz, unit length.
        set_camera_quat: [f64; 4], cam_quat of ncam;
        /// Place of a light in its body's frame, metres.
        set_light_pos: [f64; 3], light_pos of nlight;
        /// Direction of a light in its body's frame, unit length.
        set_light_dir: [f64; 3], light_dir of nlight;
        /// Ambient colour of a light, each in 0..=1.
        set_light_ambient: [f32; 3], light_ambient of nlight;
        /// Diffuse colour of a light, each in 0..=1.
        set_light_diffuse: [f32; 3], light_diffuse of nlight;
        /// Specular colour of a light, each in 0..=1.
        set_light_specular: [f32; 3], light_specular of nlight;
    }

    /// Place of a geom in its body's frame, metres. Inertia is not recomputed.
    pub fn set_geom_pos(&mut self, geom: usize, pos: [f64; 3]) {
        self.write(self.view.geom_pos, self.view.ngeom, geom, pos);
        self.write(self.view.geom_sameframe, self.view.ngeom, geom, [FRAME_OF_ITS_OWN]);
    }

    /// Orientation of a geom in its body's frame, wxyz, unit length. Inertia is not recomputed.
    pub fn set_geom_quat(&mut self, geom: usize, quat: [f64; 4]) {
        self.write(self.view.geom_quat, self.view.ngeom, geom, quat);
        self.write(self.view.geom_sameframe, self.view.ngeom, geom, [FRAME_OF_ITS_OWN]);
    }

    /// Place of a site in its body's frame, metres.
    pub fn set_site_pos(&mut self, site: usize, pos: [f64; 3]) {
        self.write(self.view.site_pos, self.view.nsite, site, pos);
        self.write(self.view.site_sameframe, self.view.nsite, site, [FRAME_OF_ITS_OWN]);
    }

    /// Orientation of a site in its body's frame, wxyz, unit length.
    pub fn set_site_quat(&mut self, site: usize, quat: [f64; 4]) {
        self.write(self.view.site_quat, self.view.nsite, site, quat);
        self.write(self.view.site_sameframe, self.view.nsite, site, [FRAME_OF_ITS_OWN]);
    }

    /// Size of a sphere, capsule, cylinder or box in metres, as [`Model::geom_size`]. Inertia is not recomputed, nor the
    /// tree of boxes with which MuJoCo sorts out a body's many geoms: scenes whose colliding geoms change their size
    /// switch that off, `<flag midphase="disable"/>`.
    ///
    /// # Errors
    /// [`Error::Value`] for another kind of geom, or a size that is not positive and finite.
    pub fn set_geom_size(&mut self, geom: usize, size: [f64; 3]) -> Result<()> {
        let [a, b, c] = size;
        let (used, bound, half) = match self.geom_type(geom) {
            2 => (1, a, [a; 3]),
            3 => (2, a + b, [a, a, a + b]),
            5 => (2, a.hypot(b), [a, a, b]),
            6 => (3, a.hypot(b).hypot(c), size),
            other => {
                let expected = "a sphere, capsule, cylinder or box";
                return Err(Error::Value { what: "geom to resize", expected, got: format!("type {other}") });
            }
        };
        if !size[..used].iter().all(|s| *s > 0.0 && s.is_finite()) {
            let expected = "positive numbers of metres";
            return Err(Error::Value { what: "geom size", expected, got: format!("{size:?}") });
        }
        let [x, y, z] = half;
        self.write(self.view.geom_size, self.view.ngeom, geom, size);
        self.write(self.view.geom_aabb, self.view.ngeom, geom, [0.0, 0.0, 0.0, x, y, z]);
        self.write(self.view.geom_rbound, self.view.ngeom, geom, [bound]);
        Ok(())
    }

    /// Vertical field of view of a camera in degrees, between 0 and 180.
    ///
    /// # Errors
    /// [`Error::Value`] outside that range.
    pub fn set_camera_fovy_deg(&mut self, camera: usize, fovy_deg: f64) -> Result<()> {
        if !(fovy_deg > 0.0 && fovy_deg < 180.0) {
            return Err(Error::Value {
                what: "field of view",
                expected: "between 0 and 180 degrees",
                got: fovy_deg.to_string(),
            });
        }
        self.write(self.view.cam_fovy, self.view.ncam, camera, [fovy_deg]);
        Ok(())
    }

    /// Switches a light on or off.
    pub fn set_light_active(&mut self, light: usize, active: bool) {
        self.write(self.view.light_active, self.view.nlight, light, [u8::from(active)]);
    }

    /// Whether a light throws shadows (a renderer without shadows ignores it). The first such light costs most of a
    /// small frame's time.
    pub fn set_light_casts_shadow(&mut self, light: usize, casts: bool) {
        self.write(self.view.light_castshadow, self.view.nlight, light, [u8::from(casts)]);
    }

    /// Ambient, diffuse and specular colour of the light that sits on the camera, each in 0..=1.
    pub fn set_headlight(&mut self, ambient: [f32; 3], diffuse: [f32; 3], specular: [f32; 3]) {
        self.write(self.view.head_ambient, 1, 0, ambient);
        self.write(self.view.head_diffuse, 1, 0, diffuse);
        self.write(self.view.head_specular, 1, 0, specular);
    }

    /// Physics step in seconds.
    ///
    /// # Errors
    /// [`Error::Value`] when not a positive number.
    pub fn set_timestep_secs(&mut self, timestep_secs: f64) -> Result<()> {
        if !(timestep_secs > 0.0 && timestep_secs.is_finite()) {
            return Err(Error::Value {
                what: "timestep",
                expected: "a positive number of seconds",
                got: timestep_secs.to_string(),
            });
        }
        self.write(self.view.timestep, 1, 0, [timestep_secs]);
        Ok(())
    }

    /// Whether sensors are computed (they are at first). Without, their readings stay as they are, and nothing else
    /// changes.
    pub fn set_compute_sensors(&mut self, on: bool) {
        // SAFETY: `&mut self` makes us the only user of the model; the flag is a number of its own.
        unsafe { crate::ffi::em_model_compute_sensors(self.raw_mut(), c_int::from(on)) }
    }

    fn write<T: Copy, const N: usize>(&mut self, array: *mut T, count: c_int, index: usize, value: [T; N]) {
        check(index, count);
        // SAFETY: callers pass one of the view's arrays with its number of rows and row length; `&mut self` makes us
        // the only user of the model.
        unsafe { array.cast::<[T; N]>().add(index).write(value) }
    }
}
