//! Other light.

use efference_mujoco::{Kind, Model};
use nalgebra::{UnitQuaternion, Vector3};
use rand::Rng;

/// A change of all lights of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Light {
    /// Factor on their brightness.
    pub intensity: f32,
    /// Colour that their light is multiplied with.
    pub colour: [f32; 3],
    /// Turn of their direction about the world's x and y axes, degrees.
    pub tilt_deg: [f64; 2],
    /// Whether they throw shadows; LIBERO's lights do not.
    pub shadows: bool,
}

impl Light {
    /// Light number `n`: brightness 0.3 to 1.7, colour up to half off white, tilt up to 40 degrees, shadows in half of
    /// the cases.
    pub fn variant(n: u64) -> Self {
        let mut draws = super::draws(1, [n, 0, 0]);
        Self {
            intensity: draws.random_range(0.3..1.7),
            colour: std::array::from_fn(|_| draws.random_range(0.5..1.0)),
            tilt_deg: std::array::from_fn(|_| draws.random_range(-40.0..40.0)),
            shadows: draws.random(),
        }
    }

    pub(super) fn apply(&self, model: &mut Model) {
        let [x, y] = self.tilt_deg.map(f64::to_radians);
        let turn = UnitQuaternion::from_euler_angles(x, y, 0.0);
        for light in 0..model.count(Kind::Light) {
            let tint = |was: [f32; 3]| {
                std::array::from_fn(|i| (was[i] * self.intensity * self.colour[i]).clamp(0.0, 1.0))
            };
            let (diffuse, specular) = (tint(model.light_diffuse(light)), tint(model.light_specular(light)));
            model.set_light_diffuse(light, diffuse);
            model.set_light_specular(light, specular);
            model.set_light_dir(light, (turn * Vector3::from(model.light_dir(light))).into());
            model.set_light_casts_shadow(light, self.shadows);
        }
    }
}
