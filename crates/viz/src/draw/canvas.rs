//! Shapes, pictures and text on an opaque ground.

use image::RgbImage;
use image::imageops::{self, FilterType};
use tiny_skia::{
    Color, FillRule, FilterQuality, LineCap, LineJoin, Paint, Path, PathBuilder, Pattern, Pixmap,
    PremultipliedColorU8, Rect, SpreadMode, Transform,
};

use super::text::{Align, Weight, outlines, shortened, text_width};
use crate::theme::Rgb;

/// A place in pixels from the upper left corner.
type At = [f32; 2];

/// How a line looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stroke {
    pub(crate) color: Rgb,
    /// Opacity, 0 to 1.
    pub(crate) alpha: f32,
    /// Pixels.
    pub(crate) width: f32,
    /// Round ends; else they end exactly at their points.
    pub(crate) round: bool,
}

impl Stroke {
    /// A whole line with round ends.
    pub(crate) fn new(color: Rgb, width: f32) -> Self {
        Self { color, alpha: 1.0, width, round: true }
    }

    pub(crate) fn alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }
}

/// An opaque picture that is drawn on.
pub(crate) struct Canvas {
    pixmap: Pixmap,
}

impl Canvas {
    /// Largest side in pixels.
    const MAX_SIDE: u32 = 16_384;

    /// All in one colour; sides are brought into 1 to 16384.
    pub(crate) fn new(width: u32, height: u32, ground: Rgb) -> Self {
        let side = |s: u32| s.clamp(1, Self::MAX_SIDE);
        #[expect(clippy::expect_used, reason = "sides are within what a pixmap takes")]
        let mut pixmap = Pixmap::new(side(width), side(height)).expect("sides from 1 to 16384");
        pixmap.fill(color(ground, 1.0));
        Self { pixmap }
    }

    pub(crate) fn into_image(self) -> RgbImage {
        let (w, h) = (self.pixmap.width(), self.pixmap.height());
        // The ground is opaque, so premultiplied colours are the colours.
        let pixels = self.pixmap.pixels();
        RgbImage::from_fn(w, h, |x, y| {
            let p = pixels[(y * w + x) as usize];
            image::Rgb([p.red(), p.green(), p.blue()])
        })
    }

    fn fill_path(&mut self, path: &Path, rgb: Rgb, alpha: f32) {
        self.pixmap.fill_path(path, &paint(rgb, alpha), FillRule::Winding, Transform::identity(), None);
    }

    pub(crate) fn round_rect(&mut self, at: At, size: At, radius: f32, rgb: Rgb, alpha: f32) {
        if let Some(path) = rounded(at, size, radius) {
            self.fill_path(&path, rgb, alpha);
        }
    }

    pub(crate) fn polygon(&mut self, points: &[At], rgb: Rgb, alpha: f32) {
        if let Some(path) = lines(points, true) {
            self.fill_path(&path, rgb, alpha);
        }
    }

    pub(crate) fn polyline(&mut self, points: &[At], stroke: Stroke) {
        if let Some(path) = lines(points, false) {
            self.stroke_path(&path, stroke);
        }
    }

    pub(crate) fn dot(&mut self, at: At, radius: f32, rgb: Rgb, alpha: f32) {
        if let Some(path) = PathBuilder::from_circle(at[0], at[1], radius) {
            self.fill_path(&path, rgb, alpha);
        }
    }

    fn stroke_path(&mut self, path: &Path, stroke: Stroke) {
        let look = tiny_skia::Stroke {
            width: stroke.width,
            line_cap: if stroke.round { LineCap::Round } else { LineCap::Butt },
            line_join: LineJoin::Round,
            ..Default::default()
        };
        let paint = paint(stroke.color, stroke.alpha);
        self.pixmap.stroke_path(path, &paint, &look, Transform::identity(), None);
    }

    /// A picture of exactly this many pixels with round corners, its upper left corner at `at`.
    pub(crate) fn picture(&mut self, at: [u32; 2], picture: &RgbImage, radius: f32) {
        let Some(mut source) = Pixmap::new(picture.width(), picture.height()) else { return };
        for (to, from) in source.pixels_mut().iter_mut().zip(picture.pixels()) {
            let [r, g, b] = from.0;
            if let Some(opaque) = PremultipliedColorU8::from_rgba(r, g, b, 255) {
                *to = opaque;
            }
        }
        let at = at.map(|x| x as f32);
        let size = [picture.width() as f32, picture.height() as f32];
        let Some(path) = rounded(at, size, radius) else { return };
        let place = Transform::from_translate(at[0], at[1]);
        let shader = Pattern::new(source.as_ref(), SpreadMode::Pad, FilterQuality::Nearest, 1.0, place);
        let paint = Paint { shader, anti_alias: true, ..Default::default() };
        self.pixmap.fill_path(&path, &paint, FillRule::Winding, Transform::identity(), None);
    }

    /// One line of text; `at` is on its base line.
    pub(crate) fn text(&mut self, at: At, text: &str, size: f32, weight: Weight, rgb: Rgb, align: Align) {
        let width = text_width(text, size, weight);
        let x = match align {
            Align::Left => at[0],
            Align::Centre => at[0] - 0.5 * width,
            Align::Right => at[0] - width,
        };
        if let Some(path) = outlines(text, x, at[1], size, weight) {
            self.fill_path(&path, rgb, 1.0);
        }
    }

    /// One line that reads upwards, its middle at `at`.
    pub(crate) fn text_upwards(&mut self, at: At, text: &str, size: f32, rgb: Rgb) {
        let x = -0.5 * text_width(text, size, Weight::SemiBold);
        let Some(path) = outlines(text, x, 0.0, size, Weight::SemiBold) else { return };
        let turn = Transform::from_rotate(-90.0).post_translate(at[0], at[1]);
        self.pixmap.fill_path(&path, &paint(rgb, 1.0), FillRule::Winding, turn, None);
    }

    /// One line of text from the left, shortened to `width` pixels.
    pub(crate) fn text_in(&mut self, at: At, width: f32, text: &str, size: f32, weight: Weight, rgb: Rgb) {
        self.text(at, &shortened(text, width, size, weight), size, weight, rgb, Align::Left);
    }

    /// A mark (a tick or a cross) about `size` pixels wide with its centre at `at`.
    pub(crate) fn mark(&mut self, at: At, size: f32, good: bool, stroke: Stroke) {
        let p = |x: f32, y: f32| [at[0] + x * size, at[1] + y * size];
        if good {
            self.polyline(&[p(-0.45, 0.05), p(-0.12, 0.36), p(0.45, -0.34)], stroke);
        } else {
            self.polyline(&[p(-0.36, -0.36), p(0.36, 0.36)], stroke);
            self.polyline(&[p(-0.36, 0.36), p(0.36, -0.36)], stroke);
        }
    }
}

/// `picture` enlarged or reduced, smoothly, to fill `width` x `height` with its middle.
pub(crate) fn fit_picture(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (w, h) = (f64::from(picture.width()), f64::from(picture.height()));
    let scale = (f64::from(width) / w).max(f64::from(height) / h);
    let scaled = |side: f64, least: u32| ((side * scale).round() as u32).max(least);
    let (sw, sh) = (scaled(w, width), scaled(h, height));
    let large = imageops::resize(picture, sw, sh, FilterType::CatmullRom);
    imageops::crop_imm(&large, (sw - width) / 2, (sh - height) / 2, width, height).to_image()
}

fn color([r, g, b]: Rgb, alpha: f32) -> Color {
    Color::from_rgba8(r, g, b, (255.0 * alpha.clamp(0.0, 1.0)).round() as u8)
}

fn paint(rgb: Rgb, alpha: f32) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Default::default() };
    paint.set_color(color(rgb, alpha));
    paint
}

/// Points that are not finite end the line.
fn lines(points: &[At], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, [x, y]) in points.iter().take_while(|p| p.iter().all(|c| c.is_finite())).enumerate() {
        if i == 0 { path.move_to(*x, *y) } else { path.line_to(*x, *y) }
    }
    if closed {
        path.close();
    }
    path.finish()
}

fn rounded([x, y]: At, [w, h]: At, radius: f32) -> Option<Path> {
    let r = radius.min(0.5 * w).min(0.5 * h);
    if r < 0.1 {
        return Some(PathBuilder::from_rect(Rect::from_xywh(x, y, w, h)?));
    }
    // A quarter of a circle as one cubic.
    let k = r * (1.0 - 0.552_285);
    let (right, low) = (x + w, y + h);
    let mut path = PathBuilder::new();
    path.move_to(x + r, y);
    path.line_to(right - r, y);
    path.cubic_to(right - k, y, right, y + k, right, y + r);
    path.line_to(right, low - r);
    path.cubic_to(right, low - k, right - k, low, right - r, low);
    path.line_to(x + r, low);
    path.cubic_to(x + k, low, x, low - k, x, low - r);
    path.line_to(x, y + r);
    path.cubic_to(x, y + k, x + k, y, x + r, y);
    path.close();
    path.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_pictures_land_where_they_should() {
        let mut canvas = Canvas::new(40, 20, [255, 255, 255]);
        canvas.round_rect([0.0, 0.0], [10.0, 20.0], 0.0, [200, 0, 0], 1.0);
        canvas.dot([30.0, 10.0], 4.0, [0, 0, 200], 0.5);
        canvas.picture([12, 2], &RgbImage::from_pixel(8, 8, image::Rgb([0, 120, 0])), 0.0);
        canvas.polyline(&[[0.0, 18.0], [40.0, 18.0]], Stroke::new([0, 0, 0], 2.0));
        // Nothing to draw, nothing broken.
        canvas.polyline(&[[f32::NAN, 0.0], [1.0, 1.0]], Stroke::new([0, 0, 0], 2.0));
        canvas.text([0.0, 10.0], "", 12.0, Weight::Regular, [0, 0, 0], Align::Left);
        let image = canvas.into_image();
        let at = |x, y| image.get_pixel(x, y).0;
        assert_eq!((at(5, 5), at(16, 5)), ([200, 0, 0], [0, 120, 0]));
        assert_eq!((at(25, 3), at(20, 18)), ([255, 255, 255], [0, 0, 0]));
        let [r, g, b] = at(30, 10);
        assert!((126..=129).contains(&r) && r == g && b > 220, "{r} {g} {b}");
    }

    #[test]
    fn text_darkens_its_own_place_only() {
        let mut canvas = Canvas::new(120, 40, [255, 255, 255]);
        canvas.text([60.0, 28.0], "flow", 24.0, Weight::SemiBold, [0, 0, 0], Align::Centre);
        let image = canvas.into_image();
        let dark = |x0: u32, x1: u32| (x0..x1).any(|x| (0..40).any(|y| image.get_pixel(x, y).0[0] < 60));
        assert!(dark(38, 82) && !dark(0, 30) && !dark(90, 120));
    }

    #[test]
    fn pictures_fill_their_place() {
        let picture = RgbImage::from_fn(8, 4, |x, _| image::Rgb([if x < 4 { 0 } else { 255 }, 0, 0]));
        let fitted = fit_picture(&picture, 40, 40);
        assert_eq!(fitted.dimensions(), (40, 40));
        assert!(fitted.get_pixel(2, 20).0[0] < 20 && fitted.get_pixel(37, 20).0[0] > 235);
    }
}
