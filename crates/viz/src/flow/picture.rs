//! The camera's picture with trails over it.

use efference_geometry::Flow3d;
use image::RgbImage;

use super::look::{RIM, TRAILS};
use super::trails::{self, Trail};
use super::{FlowScene, colors};
use crate::draw::{Canvas, fit_picture};

/// The scene's picture, `side` pixels high and wide, with the trails of `flow` up to `until` (in frames). Points that
/// the camera does not see are faint. Without a flow: the query points.
pub(crate) fn draw(
    scene: &FlowScene,
    flow: Option<&Flow3d>,
    colourfulness: f64,
    until: f64,
    side: u32,
) -> RgbImage {
    let mut picture = fit_picture(&scene.picture, side, side);
    calm(&mut picture);
    let mut canvas = Canvas::new(side, side, [0; 3]);
    canvas.picture([0, 0], &picture, 0.0);
    let place = Place::new(scene, side);
    let point_colors = colors::point_colors(&scene.points, colourfulness);
    let chosen = trails::spread(&scene.points, TRAILS);
    let width = (side as f32 / 430.0 * 2.4).clamp(1.2, 6.0);
    let trail = |point: usize| {
        let color = point_colors[point];
        let way = match flow {
            Some(flow) => trails::way(flow, point, until),
            None => vec![(scene.points[point], true)],
        };
        let seen: Option<Vec<[f64; 3]>> = way.iter().map(|(p, _)| scene.camera.project(p)).collect();
        let seen = seen?;
        let places = seen.iter().zip(&way).map(|([u, v, _], (_, free))| (place.at(*u, *v), *free)).collect();
        Some(Trail { places, depth: seen.last()?[2], color, tail: colors::mix(color, [255; 3], 0.15) })
    };
    trails::draw(&mut canvas, chosen.into_iter().filter_map(trail).collect(), width, RIM);
    canvas.into_image()
}

/// Less colourful, a little darker: a ground for colours.
fn calm(picture: &mut RgbImage) {
    for pixel in picture.pixels_mut() {
        let [r, g, b] = pixel.0.map(f32::from);
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        pixel.0 = [r, g, b].map(|c| (0.88 * (grey + 0.6 * (c - grey))) as u8);
    }
}

/// From pixels of the camera to pixels of the square that shows the middle of its picture.
struct Place {
    scale: f64,
    shift: [f64; 2],
}

impl Place {
    fn new(scene: &FlowScene, side: u32) -> Self {
        let (w, h) = (f64::from(scene.picture.width()), f64::from(scene.picture.height()));
        let scale = f64::from(side) / w.min(h);
        Self { scale, shift: [w, h].map(|s| 0.5 * (f64::from(side) - s * scale)) }
    }

    fn at(&self, u: f64, v: f64) -> [f32; 2] {
        [(u * self.scale + self.shift[0]) as f32, (v * self.scale + self.shift[1]) as f32]
    }
}
