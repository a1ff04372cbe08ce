//! Names to indices and back.

use crate::{Error, Model, Result, ffi};
use std::ffi::{CString, c_int};

/// What can have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// A rigid body.
    Body,
    /// A joint.
    Joint,
    /// A shape.
    Geom,
    /// A marked frame on a body.
    Site,
    /// A camera.
    Camera,
    /// A light.
    Light,
    /// A material.
    Material,
    /// An actuator.
    Actuator,
    /// A sensor.
    Sensor,
    /// A stored state.
    Keyframe,
}

impl Kind {
    /// The word for messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Joint => "joint",
            Self::Geom => "geom",
            Self::Site => "site",
            Self::Camera => "camera",
            Self::Light => "light",
            Self::Material => "material",
            Self::Actuator => "actuator",
            Self::Sensor => "sensor",
            Self::Keyframe => "keyframe",
        }
    }
}

macro_rules! by_name {
    ($($function:ident: $kind:ident, $word:literal;)*) => {$(
        #[doc = concat!("Index of the ", $word, " with this name.")]
        ///
        /// # Errors
        /// [`Error::Name`] with the nearest name there is.
        pub fn $function(&self, name: &str) -> Result<usize> {
            self.id(Kind::$kind, name)
        }
    )*};
}

impl Model {
    by_name! {
        body_id: Body, "body";
        joint_id: Joint, "joint";
        geom_id: Geom, "geom";
        site_id: Site, "site";
        camera_id: Camera, "camera";
        light_id: Light, "light";
        material_id: Material, "material";
        actuator_id: Actuator, "actuator";
        sensor_id: Sensor, "sensor";
        keyframe_id: Keyframe, "keyframe";
    }

    /// Index of a named thing.
    ///
    /// # Errors
    /// [`Error::Name`] with the nearest name there is.
    pub fn id(&self, kind: Kind, name: &str) -> Result<usize> {
        let found = CString::new(name).map_or(-1, |c_name| {
            // SAFETY: valid model, terminated name.
            unsafe { ffi::em_name_id(self.raw(), kind as c_int, c_name.as_ptr()) }
        });
        usize::try_from(found).map_err(|_| Error::Name {
            kind: kind.word(),
            name: name.to_owned(),
            hint: self.hint(kind, name),
        })
    }

    /// Name of a thing; `None` when it has none or the index is past the end.
    pub fn name(&self, kind: Kind, index: usize) -> Option<String> {
        if index >= self.count(kind) {
            return None;
        }
        // SAFETY: valid model and index; the text lives in the model and is copied.
        let name = unsafe { ffi::text(ffi::em_id_name(self.raw(), kind as c_int, index as c_int)) };
        (!name.is_empty()).then_some(name)
    }

    /// All names of a kind, in order of their indices; nameless things are left out.
    pub fn names(&self, kind: Kind) -> Vec<String> {
        (0..self.count(kind)).filter_map(|index| self.name(kind, index)).collect()
    }

    fn hint(&self, kind: Kind, name: &str) -> String {
        let names = self.names(kind);
        let nearest =
            names.iter().map(|n| (strsim::jaro_winkler(n, name), n)).max_by(|a, b| a.0.total_cmp(&b.0));
        match nearest {
            None => format!("; it has no named {}", kind.word()),
            Some((score, nearest)) if score > 0.8 => format!("; did you mean `{nearest}`?"),
            Some(_) => format!("; there are: {}", names.join(", ")),
        }
    }
}
