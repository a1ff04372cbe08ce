//! Writes an episode's sizes, colours and light into a copy of the scene's model.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, TAU};

use efference_geometry::{UnitQuaternion, Vector3};
use efference_mujoco::Model;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::scene::Scene;
use super::{Layout, Sizes};
use crate::Result;

/// Half the walls of cups and bowls, metres.
const CUP_WALL_M: f64 = 0.002;
const BOWL_WALL_M: f64 = 0.003;
/// Half the walls of the holder, its lips, and half the lips' length, metres.
const HOLDER_WALL_M: f64 = 0.004;
const LIP_M: [f64; 2] = [0.003, 0.011];
/// Half the radial thickness of the ring, metres.
pub(crate) const RING_M: f64 = 0.0045;
/// Radius of the stand's peg, metres.
pub(crate) const PEG_RADIUS_M: f64 = 0.006;
/// Half depth of the cabinet, metres.
pub(crate) const CABINET_DEPTH_M: f64 = 0.07;
/// Middle of the drawer's front in the cabinet's frame, metres.
pub(crate) const DRAWER_FRONT_M: f64 = 0.066;

/// Changes geoms of the model.
struct Tailor<'a> {
    scene: &'a Scene,
    model: &'a mut Model,
}

fn about(axis: Vector3<f64>, angle: f64) -> UnitQuaternion<f64> {
    UnitQuaternion::from_scaled_axis(axis * angle)
}

pub(crate) fn wxyz(q: &UnitQuaternion<f64>) -> [f64; 4] {
    [q.w, q.i, q.j, q.k]
}

impl Tailor<'_> {
    fn geom(&mut self, name: &str, size: [f64; 3], at: [f64; 3], turned: &UnitQuaternion<f64>) -> Result<()> {
        for geom in self.scene.geoms(name) {
            self.put(geom, size, at, turned)?;
        }
        Ok(())
    }

    fn put(&mut self, geom: usize, size: [f64; 3], at: [f64; 3], turned: &UnitQuaternion<f64>) -> Result<()> {
        self.model.set_geom_size(geom, size)?;
        self.model.set_geom_pos(geom, at);
        self.model.set_geom_quat(geom, wxyz(turned));
        Ok(())
    }

    /// Replicated geoms evenly around z: the given place and orientation are those of the one on the x axis.
    fn around(
        &mut self,
        name: &str,
        size: [f64; 3],
        at: [f64; 3],
        turned: &UnitQuaternion<f64>,
    ) -> Result<()> {
        let geoms: Vec<_> = self.scene.geoms(name).collect();
        for (i, geom) in geoms.iter().enumerate() {
            let turn = about(Vector3::z(), TAU * i as f64 / geoms.len() as f64);
            self.put(*geom, size, (turn * Vector3::from(at)).into(), &(turn * turned))?;
        }
        Ok(())
    }

    fn colour(&mut self, name: &str, rgb: [f32; 3], shade: f32) {
        let [r, g, b] = rgb.map(|c| (c * shade).min(1.0));
        for geom in self.scene.geoms(name) {
            self.model.set_geom_rgba(geom, [r, g, b, 1.0]);
        }
    }
}

/// Gives a model (a copy of the scene's) the looks of an episode.
pub(crate) fn apply(scene: &Scene, model: &mut Model, layout: &Layout) -> Result<()> {
    let mut tailor = Tailor { scene, model };
    sizes(&mut tailor, layout)?;
    colours(&mut tailor, layout);
    for (bystander, (_, geom)) in layout.bystanders.iter().zip(scene.bystanders) {
        let [r, g, b] = bystander.rgb;
        tailor.model.set_geom_size(geom, bystander.size_m)?;
        tailor.model.set_geom_rgba(geom, [r, g, b, 1.0]);
    }
    light(scene, tailor.model, layout);
    Ok(())
}

fn sizes(t: &mut Tailor, layout: &Layout) -> Result<()> {
    let straight = UnitQuaternion::identity();
    match layout.sizes {
        Sizes::Pour { radius_m: r, height_m: h, bowl_radius_m, bowl_height_m } => {
            let stave = r * (TAU / 24.0).tan();
            let middle = r - CUP_WALL_M;
            t.geom("cup_floor", [r - 0.002, 0.003, 0.0], [0.0, 0.0, 0.003 - 0.5 * h], &straight)?;
            t.around("cup_wall", [CUP_WALL_M, stave, 0.5 * h], [middle, 0.0, 0.0], &straight)?;
            let band = [CUP_WALL_M + 0.0003, stave + 0.0001, 0.07 * h];
            t.around("cup_band", band, [middle, 0.0, 0.30 * h], &straight)?;
            let foot = 0.62 * bowl_radius_m;
            let lean = (bowl_radius_m - foot).atan2(bowl_height_m);
            let wall = [BOWL_WALL_M, bowl_radius_m * (TAU / 32.0).tan(), 0.5 * bowl_height_m / lean.cos()];
            t.geom("bowl_floor", [foot, 0.004, 0.0], [0.0, 0.0, 0.004], &straight)?;
            let at = [0.5 * (foot + bowl_radius_m), 0.0, 0.5 * bowl_height_m + 0.002];
            t.around("bowl_wall", wall, at, &about(Vector3::y(), lean))
        }
        Sizes::Insert { half_width_m: w, half_length_m: l, holder_half_m: a, holder_height_m: h } => {
            t.geom("peg", [w, w, l], [0.0; 3], &straight)?;
            let band = [w + 0.0004, w + 0.0004, 0.09 * l];
            t.geom("peg_band_a", band, [0.0, 0.0, 0.8 * l], &straight)?;
            t.geom("peg_band_b", band, [0.0, 0.0, -0.8 * l], &straight)?;
            let outer = a + 2.0 * HOLDER_WALL_M;
            t.geom("holder_base", [outer + 0.012, outer + 0.012, 0.003], [0.0, 0.0, 0.003], &straight)?;
            let wall = [HOLDER_WALL_M, outer, 0.5 * h];
            t.around("holder_wall", wall, [a + HOLDER_WALL_M, 0.0, 0.5 * h], &straight)?;
            // The lip's inner face starts at the tube's inner edge and leans outwards by 45 degrees.
            let [thick, long] = LIP_M;
            let diagonal = std::f64::consts::FRAC_1_SQRT_2;
            let at = [a + diagonal * (long + thick), 0.0, h + diagonal * (long - thick)];
            let lip = [thick, a + 2.0 * diagonal * long, long];
            t.around("holder_lip", lip, at, &about(Vector3::y(), FRAC_PI_4))
        }
        Sizes::Hang {
            hole_radius_m: r,
            half_thickness_m: d,
            tab_half_m,
            peg_height_m,
            peg_length_m,
            peg_tilt_rad,
        } => {
            let outer = r + 2.0 * RING_M;
            t.around("ring", [RING_M, outer * (TAU / 24.0).tan(), d], [r + RING_M, 0.0, 0.0], &straight)?;
            t.geom("tab", [tab_half_m, 0.012, d], [outer - 0.003 + tab_half_m, 0.0, 0.0], &straight)?;
            let mark = [outer - 0.003 + 1.55 * tab_half_m, 0.0, 0.0];
            t.geom("tab_mark", [0.25 * tab_half_m, 0.0124, d + 0.0004], mark, &straight)?;
            let pole = 0.5 * (peg_height_m + 0.016);
            t.geom("stand_pole", [0.011, 0.011, pole], [0.0, 0.0, pole], &straight)?;
            let half = 0.5 * peg_length_m;
            let along = Vector3::new(peg_tilt_rad.cos(), 0.0, peg_tilt_rad.sin());
            let at = Vector3::new(0.0, 0.0, peg_height_m) + along * half;
            let lie = about(Vector3::y(), FRAC_PI_2 - peg_tilt_rad);
            t.geom("stand_peg", [PEG_RADIUS_M, half, 0.0], at.into(), &lie)
        }
        Sizes::Drawer { half_width_m: w, height_m: h, handle_reach_m } => {
            let (front, depth) = (DRAWER_FRONT_M, CABINET_DEPTH_M);
            let side = [0.005, depth, 0.5 * h];
            t.geom("cabinet_left", side, [-(w - 0.005), 0.0, 0.5 * h], &straight)?;
            t.geom("cabinet_right", side, [w - 0.005, 0.0, 0.5 * h], &straight)?;
            t.geom("cabinet_back", [w - 0.01, 0.005, 0.5 * h], [0.0, depth - 0.005, 0.5 * h], &straight)?;
            t.geom("cabinet_top", [w, depth, 0.005], [0.0, 0.0, h - 0.005], &straight)?;
            let (low, high) = (0.015, h - 0.013);
            let (middle, half) = (0.5 * (low + high), 0.5 * (high - low));
            let inner = w - 0.012;
            t.geom("drawer_front", [inner, 0.005, half], [0.0, -front, middle], &straight)?;
            t.geom("drawer_floor", [inner - 0.003, 0.058, 0.003], [0.0, -0.004, low + 0.005], &straight)?;
            let wall = (low + 0.03, 0.022);
            t.geom("drawer_left", [0.003, 0.058, wall.1], [0.006 - inner, -0.004, wall.0], &straight)?;
            t.geom("drawer_right", [0.003, 0.058, wall.1], [inner - 0.006, -0.004, wall.0], &straight)?;
            t.geom("drawer_back", [inner - 0.006, 0.003, wall.1], [0.0, 0.052, wall.0], &straight)?;
            let (grip, bar) = (-front - handle_reach_m, 0.5 * w);
            t.geom("handle", [0.007, bar, 0.0], [0.0, grip, middle], &about(Vector3::y(), FRAC_PI_2))?;
            let (lie, half) = (about(Vector3::x(), FRAC_PI_2), 0.5 * handle_reach_m);
            t.geom("handle_left", [0.006, half, 0.0], [-bar, grip + half, middle], &lie)?;
            t.geom("handle_right", [0.006, half, 0.0], [bar, grip + half, middle], &lie)
        }
        Sizes::Push { half_m, mark_radius_m: r } => {
            t.geom("block", half_m, [0.0; 3], &straight)?;
            for (name, share, thick) in
                [("mark_outer", 1.0, 0.0008), ("mark_middle", 0.68, 0.0010), ("mark_inner", 0.36, 0.0012)]
            {
                t.geom(name, [share * r, thick, 0.0], [0.0, 0.0, thick], &straight)?;
            }
            Ok(())
        }
    }
}

/// Names of the geoms in the object's colour, in the target's, and in that of the details, with a shade each.
type Names = &'static [(&'static str, f32)];

fn colours(t: &mut Tailor, layout: &Layout) {
    let (object, target, accent): (Names, Names, Names) = match layout.sizes {
        Sizes::Pour { .. } => (
            &[("cup_wall", 1.0), ("cup_floor", 0.8)],
            &[("bowl_wall", 1.0), ("bowl_floor", 0.85)],
            &[("cup_band", 1.0)],
        ),
        Sizes::Insert { .. } => (
            &[("peg", 1.0)],
            &[("holder_wall", 0.9), ("holder_base", 0.6), ("holder_lip", 1.1)],
            &[("peg_band_a", 1.0), ("peg_band_b", 1.0)],
        ),
        Sizes::Hang { .. } => (
            &[("ring", 1.0), ("tab", 0.95)],
            &[("stand_base", 0.6), ("stand_pole", 0.8)],
            &[("tab_mark", 1.0)],
        ),
        Sizes::Drawer { .. } => (
            &[
                ("drawer_front", 1.0),
                ("drawer_floor", 0.8),
                ("drawer_left", 0.9),
                ("drawer_right", 0.9),
                ("drawer_back", 0.9),
            ],
            &[("cabinet_left", 0.8), ("cabinet_right", 0.8), ("cabinet_back", 0.7), ("cabinet_top", 0.85)],
            &[("handle", 0.8), ("handle_left", 0.8), ("handle_right", 0.8)],
        ),
        Sizes::Push { .. } => (&[("block", 1.0)], &[("mark_outer", 1.0), ("mark_inner", 1.0)], &[]),
    };
    let groups =
        [(object, layout.object_colour.1), (target, layout.target_colour.1), (accent, layout.accent_rgb)];
    for (names, rgb) in groups {
        for (name, shade) in names {
            t.colour(name, rgb, *shade);
        }
    }
    let [r, g, b] = layout.table_rgb;
    t.model.set_geom_rgba(t.scene.table_top, [r, g, b, 1.0]);
}

fn light(scene: &Scene, model: &mut Model, layout: &Layout) {
    let rng = &mut ChaCha8Rng::seed_from_u64(layout.look);
    let [key, fill] = scene.lights;
    let from: [f64; 2] = std::array::from_fn(|_| rng.random_range(-0.7..=0.7));
    let along = Vector3::new(from[0], from[1], -1.1).normalize();
    model.set_light_dir(key, along.into());
    // Shadows are drawn around the light's place.
    model.set_light_pos(key, (Vector3::new(0.0, 0.0, 0.1) - along * 1.6).into());
    let strength = rng.random_range(0.45..=0.75f32);
    let tint: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.90..=1.0));
    model.set_light_diffuse(key, tint.map(|t| t * strength));
    model.set_light_diffuse(fill, [rng.random_range(0.08..=0.25); 3]);
    let (ambient, head) = (rng.random_range(0.28..=0.42f32), rng.random_range(0.2..=0.4f32));
    model.set_headlight([ambient; 3], [head; 3], [0.05; 3]);
}
