//! Text as outlines: Inter, which the rerun viewer shows as well (SIL Open Font License, `assets/Inter-LICENSE.txt`).

use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder, Transform};
use ttf_parser::{Face, OutlineBuilder};

static REGULAR: &[u8] = include_bytes!("../../assets/Inter-Regular.ttf");
static SEMIBOLD: &[u8] = include_bytes!("../../assets/Inter-SemiBold.ttf");
static FACES: LazyLock<[Option<Face<'static>>; 2]> =
    LazyLock::new(|| [REGULAR, SEMIBOLD].map(|data| Face::parse(data, 0).ok()));

/// How heavy the letters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Regular,
    SemiBold,
}

/// Which end of the text stands at the given place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Centre,
    Right,
}

fn face(weight: Weight) -> Option<&'static Face<'static>> {
    FACES[weight as usize].as_ref()
}

/// What the font lacks becomes the nearest thing it has.
fn glyph(face: &Face<'_>, c: char) -> Option<ttf_parser::GlyphId> {
    face.glyph_index(c).or_else(|| face.glyph_index('?'))
}

/// Width of `text` in pixels at this size.
pub(crate) fn text_width(text: &str, size: f32, weight: Weight) -> f32 {
    let Some(face) = face(weight) else { return 0.0 };
    let units: u32 = text
        .chars()
        .filter_map(|c| glyph(face, c))
        .map(|id| u32::from(face.glyph_hor_advance(id).unwrap_or(0)))
        .sum();
    units as f32 * size / f32::from(face.units_per_em())
}

/// The outlines of `text` with its first letter at `x` and its base line at `y`.
pub(crate) fn outlines(text: &str, x: f32, y: f32, size: f32, weight: Weight) -> Option<Path> {
    let face = face(weight)?;
    let scale = size / f32::from(face.units_per_em());
    let mut pen = Pen(PathBuilder::new(), 0.0);
    for c in text.chars() {
        let Some(id) = glyph(face, c) else { continue };
        face.outline_glyph(id, &mut pen);
        pen.1 += f32::from(face.glyph_hor_advance(id).unwrap_or(0));
    }
    pen.0.finish()?.transform(Transform::from_row(scale, 0.0, 0.0, -scale, x, y))
}

/// `text`, or as much of its beginning as fits into `width`, with an ellipsis.
pub(crate) fn shortened(text: &str, width: f32, size: f32, weight: Weight) -> String {
    if text_width(text, size, weight) <= width {
        return text.to_owned();
    }
    let mut short: Vec<char> = text.chars().collect();
    while short.pop().is_some() {
        let with_dots: String = short.iter().copied().chain(['…']).collect();
        if text_width(&with_dots, size, weight) <= width {
            return with_dots;
        }
    }
    String::new()
}

/// Collects outlines in the font's units; the second is where the next letter begins.
struct Pen(PathBuilder, f32);

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.move_to(self.1 + x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        self.0.line_to(self.1 + x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.0.quad_to(self.1 + x1, y1, self.1 + x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.0.cubic_to(self.1 + x1, y1, self.1 + x2, y2, self.1 + x, y);
    }
    fn close(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_width_and_is_shortened_to_fit() {
        let width = text_width("flow", 20.0, Weight::Regular);
        assert!((30.0..50.0).contains(&width), "{width}");
        assert!(text_width("flow", 20.0, Weight::SemiBold) > width);
        assert_eq!(shortened("flow", 60.0, 20.0, Weight::Regular), "flow");
        let short = shortened("put the peg into the holder", 100.0, 20.0, Weight::Regular);
        assert!(short.ends_with('…') && text_width(&short, 20.0, Weight::Regular) <= 100.0, "{short}");
        assert_eq!(shortened("flow", 1.0, 20.0, Weight::Regular), "");
        // Letters that the font lacks do not vanish.
        assert!(text_width("流", 20.0, Weight::Regular) > 0.0);
    }
}
