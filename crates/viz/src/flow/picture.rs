//! The camera's picture with trails over it.

use efference_geometry::Flow3d;
use image::RgbImage;
use image::imageops;

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
    let window = Window::of(scene);
    let mut picture = window.cut(&scene.picture, side);
    calm(&mut picture);
    let mut canvas = Canvas::new(side, side, [0; 3]);
    canvas.picture([0, 0], &picture, 0.0);
    let point_colors = colors::point_colors(&scene.points, colourfulness);
    let chosen = trails::spread(&scene.points, TRAILS);
    let width = (side as f32 / 430.0 * 3.0).clamp(1.2, 6.0);
    let trail = |point: usize| {
        let color = point_colors[point];
        let way = match flow {
            Some(flow) => trails::way(flow, point, until),
            None => vec![(scene.points[point], true)],
        };
        let seen: Option<Vec<[f64; 3]>> = way.iter().map(|(p, _)| scene.camera.project(p)).collect();
        let seen = seen?;
        let places =
            seen.iter().zip(&way).map(|([u, v, _], (_, free))| (window.at(*u, *v, side), *free)).collect();
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

/// The square of the camera's picture that is shown: where everything happens, with some room around it.
pub(crate) struct Window {
    /// Upper left corner and side, pixels of the camera.
    left: u32,
    top: u32,
    side: u32,
}

impl Window {
    /// A window shows at least this part of the picture's shorter side: small pictures cannot be enlarged far.
    const LEAST: f64 = 0.66;

    pub(crate) fn of(scene: &FlowScene) -> Self {
        let (w, h) = (scene.picture.width(), scene.picture.height());
        let shown = scene.truth.iter().chain(scene.shown().map(|p| &p.flow));
        let moved = shown.flat_map(|f| (0..f.frames()).flat_map(|t| f.at(t)));
        let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
        for [u, v, _] in moved.chain(&scene.points).filter_map(|p| scene.camera.project(p)) {
            let at = [u.clamp(0.0, f64::from(w)), v.clamp(0.0, f64::from(h))];
            for axis in 0..2 {
                low[axis] = low[axis].min(at[axis]);
                high[axis] = high[axis].max(at[axis]);
            }
        }
        let whole = f64::from(w.min(h));
        let extent = (high[0] - low[0]).max(high[1] - low[1]);
        // Nothing in view: the extent is minus infinity, the whole picture is shown.
        let share = if extent.is_finite() { (1.35 * extent / whole).clamp(Self::LEAST, 1.0) } else { 1.0 };
        let side = ((share * whole).round() as u32).clamp(1, w.min(h));
        let corner = |axis: usize, length: u32| {
            let middle = 0.5 * (low[axis] + high[axis]);
            let start =
                if middle.is_finite() { middle } else { 0.5 * f64::from(length) } - 0.5 * f64::from(side);
            start.round().clamp(0.0, f64::from(length - side)) as u32
        };
        Self { left: corner(0, w), top: corner(1, h), side }
    }

    /// What is in the window, `side` pixels wide and high.
    pub(crate) fn cut(&self, picture: &RgbImage, side: u32) -> RgbImage {
        let part = imageops::crop_imm(picture, self.left, self.top, self.side, self.side).to_image();
        fit_picture(&part, side, side)
    }

    /// From pixels of the camera to pixels of the cut, `side` wide.
    fn at(&self, u: f64, v: f64, side: u32) -> [f32; 2] {
        let scale = f64::from(side) / f64::from(self.side);
        [((u - f64::from(self.left)) * scale) as f32, ((v - f64::from(self.top)) * scale) as f32]
    }
}
