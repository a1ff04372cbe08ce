//! What the depth camera saw as coloured surfaces: the scene without the object, and the object.

use super::FlowScene;
use crate::draw::{Mesh, Vertex};
use crate::theme::Rgb;

/// Neighbouring pixels belong to different surfaces where their depths differ by more than this part of them.
const JUMP: f32 = 0.03;
/// Jumps up to this are drawn as shadows, metres; larger ones lead to the background.
const SHADOW_M: f32 = 0.4;
/// Rounds of smoothing where the object hides the scene.
const FILL_ROUNDS: usize = 300;

/// Surfaces as far as the camera saw them.
pub(crate) struct Relief {
    /// All but the object. What the object hides is filled in smoothly from around it: for the eye, not for planning.
    pub(crate) scene: Mesh,
    /// Dark surfaces across the jumps in depth: what no camera saw looks like a shadow, not like a hole.
    pub(crate) unseen: Mesh,
    /// The object where it is at frame 0; empty without a mask.
    pub(crate) object: Mesh,
}

impl Relief {
    /// `None` without depth.
    pub(crate) fn of(scene: &FlowScene) -> Option<Self> {
        if scene.depth_m.is_empty() {
            return None;
        }
        let (w, h) = (scene.picture.width() as usize, scene.picture.height() as usize);
        let colors: Vec<Rgb> = scene.picture.pixels().map(|p| p.0).collect();
        let depths: Vec<f32> =
            scene.depth_m.iter().map(|d| if d.is_finite() && *d > 0.0 { *d } else { 0.0 }).collect();
        let on_object: Vec<bool> = if scene.mask.is_empty() {
            vec![false; w * h]
        } else {
            scene.mask.iter().map(|m| *m > 127).collect()
        };

        let mut object_depths = depths.clone();
        object_depths.iter_mut().zip(&on_object).filter(|(_, on)| !**on).for_each(|(d, _)| *d = 0.0);
        let object = surface(scene, w, h, &object_depths, &colors);

        let hidden = grown(&on_object, w, h);
        let (filled_depths, filled_colors) = fill(&depths, &colors, &hidden, w, h);
        let unseen = shadows(scene, w, h, &filled_depths, &filled_colors);
        Some(Self { scene: surface(scene, w, h, &filled_depths, &filled_colors), unseen, object })
    }
}

/// Two triangles per square of four neighbouring pixels, but none across a jump.
fn surface(scene: &FlowScene, w: usize, h: usize, depths: &[f32], colors: &[Rgb]) -> Mesh {
    let joined = |z: [f32; 3]| {
        let (low, high) = range(z);
        low > 0.0 && high - low <= JUMP * low
    };
    let (vertices, triangles) = grid(scene, w, h, depths, colors, joined);
    Mesh { vertices, triangles }
}

/// The triangles across jumps up to [`SHADOW_M`], in the colour of their farthest corner, darkened.
fn shadows(scene: &FlowScene, w: usize, h: usize, depths: &[f32], colors: &[Rgb]) -> Mesh {
    let torn = |z: [f32; 3]| {
        let (low, high) = range(z);
        low > 0.0 && high - low > JUMP * low && high - low <= SHADOW_M
    };
    let (vertices, triangles) = grid(scene, w, h, depths, colors, torn);
    let mut mesh = Mesh::default();
    for corners in triangles {
        let far = corners.into_iter().max_by(|a, b| depths[*a as usize].total_cmp(&depths[*b as usize]));
        let color = crate::flow::mix(colors[far.unwrap_or(corners[0]) as usize], [14, 16, 20], 0.62);
        let first = mesh.vertices.len() as u32;
        mesh.vertices.extend(corners.map(|i| (vertices[i as usize].0, color)));
        mesh.triangles.push([first, first + 1, first + 2]);
    }
    mesh
}

fn range(z: [f32; 3]) -> (f32, f32) {
    (z[0].min(z[1]).min(z[2]), z[0].max(z[1]).max(z[2]))
}

/// The pixels as places in the world, and those of the triangles between them whose depths are `wanted`.
fn grid(
    scene: &FlowScene,
    w: usize,
    h: usize,
    depths: &[f32],
    colors: &[Rgb],
    wanted: impl Fn([f32; 3]) -> bool,
) -> (Vec<Vertex>, Vec<[u32; 3]>) {
    let place = |i: usize| {
        let (u, v) = ((i % w) as f64 + 0.5, (i / w) as f64 + 0.5);
        scene.camera.lift(u, v, f64::from(depths[i]))
    };
    // Pixels without depth keep their number but no triangle names them.
    let vertices: Vec<Vertex> = (0..w * h).map(|i| (place(i), colors[i])).collect();
    let mut triangles = Vec::new();
    for y in 0..h.saturating_sub(1) {
        for x in 0..w.saturating_sub(1) {
            let i = y * w + x;
            let halves = [[i, i + 1, i + w], [i + 1, i + w + 1, i + w]];
            let wanted = |c: &[usize; 3]| wanted(c.map(|i| depths[i]));
            triangles.extend(halves.into_iter().filter(wanted).map(|c| c.map(|i| i as u32)));
        }
    }
    (vertices, triangles)
}

/// The mask and a rim of two pixels, whose colours are mixed with the object's.
fn grown(mask: &[bool], w: usize, h: usize) -> Vec<bool> {
    let mut grown = mask.to_vec();
    for (i, _) in mask.iter().enumerate().filter(|(_, on)| **on) {
        let (x, y) = (i % w, i / w);
        for ny in y.saturating_sub(2)..(y + 3).min(h) {
            for nx in x.saturating_sub(2)..(x + 3).min(w) {
                grown[ny * w + nx] = true;
            }
        }
    }
    grown
}

/// Depths and colours with the hidden pixels filled in from their surroundings. Inverse depth is smoothed (Laplace's
/// equation), which continues planes exactly: on a plane it is linear in the picture.
fn fill(depths: &[f32], colors: &[Rgb], hidden: &[bool], w: usize, h: usize) -> (Vec<f32>, Vec<Rgb>) {
    // Inverse depth and colour; a weight of 0 says that nothing is known (yet).
    let mut field: Vec<[f32; 5]> = (0..w * h)
        .map(|i| {
            if hidden[i] || depths[i] <= 0.0 {
                return [0.0; 5];
            }
            let [r, g, b] = colors[i].map(f32::from);
            [1.0, 1.0 / depths[i], r, g, b]
        })
        .collect();
    let cells: Vec<usize> = (0..w * h).filter(|i| hidden[*i]).collect();
    for round in 0..FILL_ROUNDS {
        // Forth and back, so that what is known spreads fast.
        for n in 0..cells.len() {
            let i = if round % 2 == 0 { cells[n] } else { cells[cells.len() - 1 - n] };
            let (x, y) = (i % w, i / w);
            let neighbours = [
                (x > 0).then(|| i - 1),
                (x + 1 < w).then(|| i + 1),
                (y > 0).then(|| i - w),
                (y + 1 < h).then(|| i + w),
            ];
            let mut sum = [0.0_f32; 5];
            for k in neighbours.into_iter().flatten().filter(|k| field[*k][0] > 0.0) {
                sum.iter_mut().zip(field[k]).for_each(|(s, x)| *s += x);
            }
            if sum[0] > 0.0 {
                field[i] = sum.map(|s| s / sum[0]);
            }
        }
    }
    let known = |i: &usize| hidden[*i] && field[*i][0] > 0.0;
    let depth = |i: usize| {
        if known(&i) {
            1.0 / field[i][1]
        } else if hidden[i] {
            0.0
        } else {
            depths[i]
        }
    };
    let color = |i: usize| {
        if known(&i) { [2, 3, 4].map(|c| field[i][c].round().clamp(0.0, 255.0) as u8) } else { colors[i] }
    };
    ((0..w * h).map(depth).collect(), (0..w * h).map(color).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plane_is_continued_behind_the_object() {
        let (w, h) = (24, 20);
        // Inverse depth of a slanted plane is linear in the picture.
        let inverse = |i: usize| 0.8 + 0.01 * (i % w) as f32 + 0.02 * (i / w) as f32;
        let mut hidden = vec![false; w * h];
        for y in 6..14 {
            for x in 8..17 {
                hidden[y * w + x] = true;
            }
        }
        let depths: Vec<f32> = (0..w * h).map(|i| if hidden[i] { 0.4 } else { 1.0 / inverse(i) }).collect();
        let (filled, colors) = fill(&depths, &vec![[10, 20, 30]; w * h], &hidden, w, h);
        for (i, depth) in filled.iter().enumerate() {
            assert!((1.0 / depth - inverse(i)).abs() < 2e-3, "{i}: {} {}", 1.0 / depth, inverse(i));
        }
        assert!(colors.iter().all(|c| *c == [10, 20, 30]));
        // A picture full of object: nothing to continue.
        let (filled, _) = fill(&depths, &colors, &vec![true; w * h], w, h);
        assert!(filled.iter().all(|d| *d == 0.0));
    }
}
