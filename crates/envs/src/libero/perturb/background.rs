//! Other colours of table, floor and walls.

use efference_mujoco::{Kind, Model};
use rand::Rng;

use crate::libero::Meta;

/// Colours that the textures of the scene's own materials are multiplied with. Robot and objects stay as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Background {
    /// Of what the objects stand on.
    pub table: [f32; 3],
    /// Of floor and walls.
    pub room: [f32; 3],
}

/// What materials of the robot begin with.
const ROBOT: [&str; 3] = ["robot0_", "gripper0_", "mount0_"];

impl Background {
    /// Background number `n`: each colour 0.2 to 1.
    pub fn variant(n: u64) -> Self {
        let mut draws = super::draws(2, [n, 0, 0]);
        let mut colour = || std::array::from_fn(|_| draws.random_range(0.2..1.0));
        Self { table: colour(), room: colour() }
    }

    pub(super) fn apply(&self, model: &mut Model, meta: &Meta) {
        for material in 0..model.count(Kind::Material) {
            let Some(name) = model.name(Kind::Material, material) else { continue };
            let of_thing = meta.objects.keys().any(|thing| name.starts_with(&format!("{thing}_")));
            if of_thing || ROBOT.iter().any(|robot| name.starts_with(robot)) {
                continue;
            }
            let table = ["table", "desk", "counter"].iter().any(|word| name.contains(word));
            let colour = if table { self.table } else { self.room };
            let [r, g, b, a] = model.material_rgba(material);
            model.set_material_rgba(material, [r * colour[0], g * colour[1], b * colour[2], a]);
        }
    }
}
