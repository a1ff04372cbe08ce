//! A small triangle rasteriser with a depth buffer.

use efference_geometry::{Camera, Isometry3, Point3};
use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::theme::Rgb;

/// A place in the world and its colour.
pub(crate) type Vertex = (Point3<f64>, Rgb);

/// Coloured triangles in the world.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mesh {
    /// Places and colours.
    pub(crate) vertices: Vec<Vertex>,
    /// Three vertices each.
    pub(crate) triangles: Vec<[u32; 3]>,
}

impl Mesh {
    /// The same mesh moved.
    pub(crate) fn moved(&self, motion: &Isometry3<f64>) -> Self {
        let vertices = self.vertices.iter().map(|(p, c)| (motion * p, *c)).collect();
        Self { vertices, triangles: self.triangles.clone() }
    }
}

/// Colours and depths while meshes are drawn, `FINE` times as fine as the picture they become.
pub(crate) struct DepthPicture {
    width: usize,
    height: usize,
    colors: Vec<Rgb>,
    /// Metres along the optical axis; infinite where nothing is.
    depths: Vec<f32>,
    camera: Camera,
}

/// Samples per pixel and side.
const FINE: usize = 2;
/// Nothing nearer than this is drawn, metres.
const NEAR_M: f64 = 0.01;

impl DepthPicture {
    /// An empty picture of what `camera` sees, as large as its intrinsics say.
    pub(crate) fn new(camera: &Camera, ground: Rgb) -> Self {
        let (width, height) = (camera.intrinsics.width * FINE, camera.intrinsics.height * FINE);
        let intrinsics = camera.intrinsics.resized(width, height);
        Self {
            width,
            height,
            colors: vec![ground; width * height],
            depths: vec![f32::INFINITY; width * height],
            camera: Camera { intrinsics, ..camera.clone() },
        }
    }

    /// Draws a mesh; with `alpha` below 1 it is seen through, but hides its own back.
    pub(crate) fn draw(&mut self, mesh: &Mesh, alpha: f64) {
        let seen: Vec<Option<[f64; 3]>> = mesh
            .vertices
            .iter()
            .map(|(p, _)| self.camera.project(p).filter(|[_, _, depth]| *depth > NEAR_M))
            .collect();
        if alpha >= 1.0 {
            let (colors, depths, width, height) =
                (&mut self.colors, &mut self.depths, self.width, self.height);
            for_each_sample(mesh, &seen, width, height, |i, depth, color| {
                if depth < depths[i] {
                    depths[i] = depth;
                    colors[i] = color;
                }
            });
            return;
        }
        // Its nearest layer first, then mixed with what is there.
        let mut layer: Vec<(f32, Rgb)> = vec![(f32::INFINITY, [0; 3]); self.width * self.height];
        for_each_sample(mesh, &seen, self.width, self.height, |i, depth, color| {
            if depth < layer[i].0 {
                layer[i] = (depth, color);
            }
        });
        for (i, (depth, color)) in layer.into_iter().enumerate() {
            if depth < self.depths[i] {
                self.colors[i] = crate::flow::mix(self.colors[i], color, alpha);
            }
        }
    }

    /// Whether something drawn lies more than `margin_m` in front of what is seen at pixel (u, v) of the finished picture
    /// at this depth.
    pub(crate) fn hides(&self, u: f64, v: f64, depth_m: f64, margin_m: f64) -> bool {
        let (x, y) = (u * FINE as f64, v * FINE as f64);
        if !(x >= 0.0 && y >= 0.0 && x < self.width as f64 && y < self.height as f64) {
            return false;
        }
        f64::from(self.depths[y as usize * self.width + x as usize]) + margin_m < depth_m
    }

    /// The finished picture.
    pub(crate) fn image(&self) -> RgbImage {
        let fine = RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            image::Rgb(self.colors[y as usize * self.width + x as usize])
        });
        let size = |n: usize| (n / FINE) as u32;
        imageops::resize(&fine, size(self.width), size(self.height), FilterType::Triangle)
    }
}

/// Calls `put(sample, depth, colour)` for all samples inside triangles whose three corners are seen.
fn for_each_sample(
    mesh: &Mesh,
    seen: &[Option<[f64; 3]>],
    width: usize,
    height: usize,
    mut put: impl FnMut(usize, f32, Rgb),
) {
    let corner = |i: u32| Some((seen.get(i as usize).copied().flatten()?, mesh.vertices.get(i as usize)?.1));
    for triangle in &mesh.triangles {
        let [Some(a), Some(b), Some(c)] = triangle.map(corner) else { continue };
        let ([a, b, c], colors) = ([a.0, b.0, c.0], [a.1, b.1, c.1]);
        let area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
        if area.abs() < 1e-9 {
            continue;
        }
        let range = |axis: usize, end: usize| {
            let low = a[axis].min(b[axis]).min(c[axis]).floor().max(0.0) as usize;
            let high = a[axis].max(b[axis]).max(c[axis]).ceil().clamp(0.0, end as f64) as usize;
            low..high
        };
        // Perspective-correct: weights of the corners divided by their depths.
        let inverse = [1.0 / a[2], 1.0 / b[2], 1.0 / c[2]];
        for y in range(1, height) {
            for x in range(0, width) {
                let (px, py) = (x as f64 + 0.5, y as f64 + 0.5);
                let wb = ((px - a[0]) * (c[1] - a[1]) - (py - a[1]) * (c[0] - a[0])) / area;
                let wc = ((b[0] - a[0]) * (py - a[1]) - (b[1] - a[1]) * (px - a[0])) / area;
                let wa = 1.0 - wb - wc;
                if wa < -1e-9 || wb < -1e-9 || wc < -1e-9 {
                    continue;
                }
                let weights = [wa * inverse[0], wb * inverse[1], wc * inverse[2]];
                let depth = 1.0 / weights.iter().sum::<f64>();
                let channel = |i: usize| {
                    let sum: f64 = (0..3).map(|k| weights[k] * f64::from(colors[k][i])).sum();
                    (sum * depth).round().clamp(0.0, 255.0) as u8
                };
                put(y * width + x, depth as f32, [channel(0), channel(1), channel(2)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_geometry::Intrinsics;

    /// A square across the view at this depth.
    fn square(depth: f64, color: Rgb) -> Mesh {
        let corners = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]];
        let vertices = corners.map(|[x, y]| (Point3::new(x, y, depth), color)).to_vec();
        Mesh { vertices, triangles: vec![[0, 1, 2], [0, 2, 3]] }
    }

    fn empty(ground: Rgb) -> DepthPicture {
        let intrinsics = Intrinsics::from_fovy_deg(90.0, 20, 20).unwrap();
        DepthPicture::new(&Camera { intrinsics, world_from_camera: Isometry3::identity() }, ground)
    }

    #[test]
    fn the_nearer_square_hides_the_farther_whatever_the_order() {
        for order in [[0, 1], [1, 0]] {
            let meshes = [square(4.0, [255, 0, 0]), square(2.0, [0, 0, 255])];
            let mut picture = empty([9, 9, 9]);
            for i in order {
                picture.draw(&meshes[i], 1.0);
            }
            let image = picture.image();
            // Half of the view is 2 m wide at 2 m: the near square covers the middle half.
            assert_eq!(image.get_pixel(10, 10).0, [0, 0, 255]);
            assert_eq!(image.get_pixel(1, 1).0, [9, 9, 9]);
            assert!(picture.hides(10.0, 10.0, 3.0, 0.01) && !picture.hides(10.0, 10.0, 1.0, 0.01));
            assert!(!picture.hides(-5.0, 10.0, 3.0, 0.01));
        }
    }

    #[test]
    fn a_glass_square_is_seen_through_once() {
        let mut picture = empty([0, 0, 0]);
        let mut glass = square(2.0, [200, 200, 200]);
        glass.triangles.extend([[0, 1, 2], [0, 2, 3]]);
        picture.draw(&glass, 0.5);
        assert_eq!(picture.image().get_pixel(10, 10).0, [100, 100, 100]);
        // Behind the camera, or triangles that name no vertex: nothing.
        picture.draw(&square(-1.0, [255, 0, 0]), 1.0);
        picture.draw(&Mesh { vertices: Vec::new(), triangles: vec![[0, 1, 2]] }, 1.0);
        assert_eq!(picture.image().get_pixel(10, 10).0, [100, 100, 100]);
    }
}
