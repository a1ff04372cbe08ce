//! Randomised lighting and colours, drawn from a seed.

use efference_mujoco::Model;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::scene::Scene;

/// What may be randomised.
#[derive(Clone, Copy)]
pub(crate) struct What {
    pub lighting: bool,
    pub distractor_colours: bool,
}

/// Gives a model (a copy of the scene's) the looks of a seed.
pub(crate) fn apply(scene: &Scene, model: &mut Model, seed: u64, what: What) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    if what.lighting {
        let [key, fill] = scene.lights;
        let unit = |v: [f64; 3]| {
            let n = v.iter().map(|c| c * c).sum::<f64>().sqrt();
            v.map(|c| c / n)
        };
        let from: [f64; 2] = std::array::from_fn(|_| rng.random_range(-0.8..=0.8));
        model.set_light_dir(key, unit([from[0], from[1], -1.1]));
        let strength = rng.random_range(0.35..=0.80f32);
        let tint: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.85..=1.0));
        model.set_light_diffuse(key, tint.map(|t| t * strength));
        model.set_light_diffuse(fill, [rng.random_range(0.05..=0.30); 3]);
        let ambient = rng.random_range(0.22..=0.46f32);
        let head = rng.random_range(0.15..=0.45f32);
        model.set_headlight([ambient; 3], [head; 3], [0.05; 3]);
    }
    if what.distractor_colours {
        for geom in &scene.distractor_geoms {
            let [r, g, b] = colour(rng.random_range(0.0..=1.0), rng.random_range(0.1..=0.8f32));
            model.set_geom_rgba(*geom, [r, g, b, 1.0]);
        }
    }
}

/// A colour of this hue (0..=1 goes once round) and saturation.
fn colour(hue: f32, saturation: f32) -> [f32; 3] {
    [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|shift| {
        let h = ((hue + shift).fract() * 6.0 - 3.0).abs() - 1.0;
        0.85 * (1.0 - saturation * (1.0 - h.clamp(0.0, 1.0)))
    })
}
