//! Contact sheets and filmstrips: rows of frames with thin separators, as PNG.

use crate::error::{Error, Result};
use crate::theme::Rgb;
use image::imageops::{self, FilterType};
use image::{ImageFormat, RgbImage};
use std::io::Cursor;

/// One row of a sheet.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Frames from left to right.
    pub frames: Vec<RgbImage>,
    /// Colour of a thin bar at the left edge, for instance [`crate::theme::SUCCESS`].
    pub mark: Option<Rgb>,
}

/// Look of a sheet.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Height of every frame in pixels; widths keep their proportion.
    pub frame_height: u32,
    /// Space between frames and around the sheet in pixels.
    pub gap: u32,
    /// Colour of that space.
    pub ground: Rgb,
}

impl Default for Style {
    /// 128 pixel frames, 3 pixel white gaps.
    fn default() -> Self {
        Self { frame_height: 128, gap: 3, ground: crate::theme::PAPER }
    }
}

/// `n` frames spread evenly over `frames`, first and last included; all of them if there are fewer.
#[must_use]
pub fn spread<T: Clone>(frames: &[T], n: usize) -> Vec<T> {
    if frames.len() <= n {
        return frames.to_vec();
    }
    match n {
        0 => Vec::new(),
        1 => vec![frames[frames.len() - 1].clone()],
        // Rounded to the nearest frame: (i * last + half) / (n - 1).
        _ => (0..n).map(|i| frames[(i * (frames.len() - 1) + (n - 1) / 2) / (n - 1)].clone()).collect(),
    }
}

/// Composes rows into one picture. Small frames are enlarged smoothly. Without frames: one pixel of ground.
#[must_use]
pub fn compose(rows: &[Row], style: Style) -> RgbImage {
    let Style { frame_height, gap, ground } = style;
    let frame_height = frame_height.max(1);
    let mark_width = if rows.iter().any(|r| r.mark.is_some()) { gap.max(4) } else { 0 };
    let scaled: Vec<Vec<RgbImage>> =
        rows.iter().map(|row| row.frames.iter().map(|frame| resize(frame, frame_height)).collect()).collect();
    let row_width = |frames: &[RgbImage]| frames.iter().map(|f| f.width() + gap).sum::<u32>();
    let width = scaled.iter().map(|frames| row_width(frames)).max().unwrap_or(0);
    if width == 0 {
        return RgbImage::from_pixel(1, 1, image::Rgb(ground));
    }
    let left = gap + if mark_width > 0 { mark_width + gap } else { 0 };
    let height = gap + rows.len() as u32 * (frame_height + gap);
    let mut sheet = RgbImage::from_pixel(left + width, height, image::Rgb(ground));
    for (i, (row, frames)) in rows.iter().zip(&scaled).enumerate() {
        let y = gap + i as u32 * (frame_height + gap);
        if let Some(mark) = row.mark {
            let bar = RgbImage::from_pixel(mark_width, frame_height, image::Rgb(mark));
            imageops::replace(&mut sheet, &bar, i64::from(gap), i64::from(y));
        }
        let mut x = left;
        for frame in frames {
            imageops::replace(&mut sheet, frame, i64::from(x), i64::from(y));
            x += frame.width() + gap;
        }
    }
    sheet
}

fn resize(frame: &RgbImage, height: u32) -> RgbImage {
    if frame.height() == height || frame.height() == 0 {
        return frame.clone();
    }
    let width = (f64::from(frame.width()) * f64::from(height) / f64::from(frame.height())).round() as u32;
    imageops::resize(frame, width.max(1), height, FilterType::CatmullRom)
}

/// One row of at most `n` frames spread over an episode, marked with its verdict.
#[must_use]
pub fn filmstrip(frames: &[RgbImage], n: usize, success: bool, style: Style) -> RgbImage {
    let mark = if success { crate::theme::SUCCESS } else { crate::theme::FAILURE };
    compose(&[Row { frames: spread(frames, n), mark: Some(mark) }], style)
}

/// PNG file contents of `image`.
///
/// # Errors
/// [`Error::Image`].
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    encode(image, ImageFormat::Png)
}

fn encode(image: &RgbImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let what = || format!("{}x{}", image.width(), image.height());
    image.write_to(&mut bytes, format).map_err(|source| Error::Image { what: what(), source })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spread_keeps_both_ends() {
        let frames: Vec<u32> = (0..101).collect();
        assert_eq!(spread(&frames, 5), [0, 25, 50, 75, 100]);
        assert_eq!(spread(&frames, 1), [100]);
        assert_eq!(spread(&frames[..3], 5), [0, 1, 2]);
        assert!(spread(&frames, 0).is_empty());
        let even = spread(&frames, 7);
        assert!(even.windows(2).all(|w| (16..=17).contains(&(w[1] - w[0]))), "{even:?}");
    }

    #[test]
    fn frames_lie_where_they_should() {
        let solid = |c: Rgb| RgbImage::from_pixel(4, 4, image::Rgb(c));
        let (red, blue, mark, ground) = ([255, 0, 0], [0, 0, 255], [0, 200, 0], [9, 9, 9]);
        let rows = [
            Row { frames: vec![solid(red), solid(blue)], mark: Some(mark) },
            Row { frames: vec![solid(blue)], mark: None },
        ];
        let sheet = compose(&rows, Style { frame_height: 8, gap: 2, ground });
        // left = gap + mark 4 + gap = 8; two 8 px frames with a gap behind each.
        assert_eq!(sheet.dimensions(), (8 + 2 * 10, 2 + 2 * 10));
        let at = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!(at(0, 0), ground);
        assert_eq!(at(3, 5), mark);
        assert_eq!(at(10, 5), red);
        assert_eq!(at(17, 5), ground);
        assert_eq!(at(20, 5), blue);
        assert_eq!(at(3, 15), ground);
        assert_eq!(at(10, 15), blue);
        assert_eq!(at(20, 15), ground);

        let decoded = image::load_from_memory(&png(&sheet).unwrap()).unwrap().to_rgb8();
        assert_eq!(decoded, sheet);
        assert_eq!(compose(&[], Style::default()).dimensions(), (1, 1));
    }
}
