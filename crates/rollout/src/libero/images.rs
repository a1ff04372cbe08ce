//! What evaluators make of a camera's picture before a policy sees it.
//!
//! LIBERO's own array is the upright picture turned upside down; "rotate by 180 degrees" of that array is the upright
//! picture mirrored left to right. All pipelines begin with it.

use image::RgbImage;
use image::imageops::flip_horizontal;
use serde::{Deserialize, Serialize};

/// Share of the area that the centre crop keeps.
pub const CROP_AREA: f64 = 0.9;

/// A named pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Images {
    /// OpenVLA-OFT: JPEG at quality 95, antialiased Lanczos3 to 224, centre crop of 90% of the area, bilinear to 224.
    Oft,
    /// As [`Images::Oft`] without the JPEG.
    OftWithoutJpeg,
    /// openpi: resized to 224 with Pillow's antialiased bilinear filter.
    OpenPi,
    /// As rendered.
    Plain,
    /// Rendered in the network's own size.
    Own,
}

/// Why a picture could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error("a picture of {width} x {height} pixels could not be prepared: {why}")]
pub struct ImageError {
    width: u32,
    height: u32,
    why: String,
}

impl Images {
    /// Side of the square pictures that the simulator draws for it; `None`: the network's.
    pub fn render_size(self) -> Option<usize> {
        (self != Self::Own).then_some(256)
    }

    /// What the policy sees of an upright camera picture (row 0 on top).
    ///
    /// # Errors
    /// [`ImageError`] for pictures without pixels.
    pub fn prepare(self, upright: &RgbImage) -> Result<RgbImage, ImageError> {
        const SIDE: u32 = 224;
        let fail = |why: String| ImageError { width: upright.width(), height: upright.height(), why };
        if upright.width() == 0 || upright.height() == 0 {
            return Err(fail("it is empty".into()));
        }
        let mirrored = flip_horizontal(upright);
        match self {
            Self::Plain | Self::Own => Ok(mirrored),
            Self::OpenPi => Ok(pad_to(&mirrored, SIDE)),
            Self::OftWithoutJpeg => {
                Ok(to_bytes(&centre_crop(&lanczos3(&mirrored, SIDE), SIDE, CROP_AREA), SIDE))
            }
            Self::Oft => {
                let decoded = jpeg(&mirrored).map_err(fail)?;
                Ok(to_bytes(&centre_crop(&lanczos3(&decoded, SIDE), SIDE, CROP_AREA), SIDE))
            }
        }
    }
}

/// There and back through JPEG, quality 95, colours at half resolution, as the evaluators' encoder writes it.
fn jpeg(image: &RgbImage) -> Result<RgbImage, String> {
    let side = |n: u32| u16::try_from(n).map_err(|_| "it is too large for JPEG".to_owned());
    let (width, height) = (side(image.width())?, side(image.height())?);
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 95);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    encoder.encode(image.as_raw(), width, height, jpeg_encoder::ColorType::Rgb).map_err(|e| e.to_string())?;
    let decoded = image::load_from_memory_with_format(&bytes, image::ImageFormat::Jpeg);
    Ok(decoded.map_err(|e| e.to_string())?.into_rgb8())
}

/// Scales into a `side` x `side` square, keeping proportions, with black bars.
fn pad_to(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    if (width, height) == (side, side) {
        return image.clone();
    }
    let ratio = f64::from(width.max(height)) / f64::from(side);
    let scaled = |n: u32| ((f64::from(n) / ratio) as u32).max(1);
    let (w, h) = (scaled(width), scaled(height));
    let mut out = RgbImage::new(side, side);
    let small = bilinear(image, w, h);
    image::imageops::replace(&mut out, &small, i64::from((side - w) / 2), i64::from((side - h) / 2));
    out
}

/// Weights of an antialiased filter for each of `to` outputs: first input, and one weight per input.
fn weights(from: u32, to: u32, reach: f64, filter: fn(f64) -> f64) -> Vec<(usize, Vec<f64>)> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    (0..to)
        .map(|i| {
            let centre = (f64::from(i) + 0.5) * scale;
            let first = (centre - reach * stretch).floor().max(0.0) as usize;
            let last = (centre + reach * stretch).ceil().min(f64::from(from)) as usize;
            let weights: Vec<f64> =
                (first..last).map(|j| filter((j as f64 + 0.5 - centre) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            (first, weights.into_iter().map(|w| w / sum).collect())
        })
        .collect()
}

const LOBES: f64 = 3.0;

fn lanczos(x: f64) -> f64 {
    use std::f64::consts::PI;
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    if x.abs() < LOBES { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

/// Pillow's antialiased bilinear filter, bit for bit: weights of 22 bits, along rows first, rounded to bytes in between.
fn bilinear(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    const BITS: u32 = 22;
    let fixed = |from, to| -> Vec<(usize, Vec<i64>)> {
        let round = |w: f64| (w * f64::from(1 << BITS) + 0.5) as i64;
        let axis = weights(from, to, 1.0, |x| (1.0 - x.abs()).max(0.0));
        axis.into_iter().map(|(first, w)| (first, w.into_iter().map(round).collect())).collect()
    };
    let byte = |sum: i64| ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8;
    let (columns, rows) = (fixed(image.width(), width), fixed(image.height(), height));
    let mix = |picture: &RgbImage, x: u32, y: u32, (first, weights): &(usize, Vec<i64>), along_x: bool| {
        let mut sum = [0; 3];
        for (i, weight) in weights.iter().enumerate() {
            let at = (first + i) as u32;
            let pixel = if along_x { picture.get_pixel(at, y) } else { picture.get_pixel(x, at) };
            sum.iter_mut().zip(pixel.0).for_each(|(s, c)| *s += weight * i64::from(c));
        }
        image::Rgb(sum.map(byte))
    };
    let narrow =
        RgbImage::from_fn(width, image.height(), |x, y| mix(image, x, y, &columns[x as usize], true));
    RgbImage::from_fn(width, height, |x, y| mix(&narrow, x, y, &rows[y as usize], false))
}

/// Antialiased Lanczos3 to a square, rounded and clipped to bytes.
pub(super) fn lanczos3(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (rows, columns) =
        (weights(image.height(), side, LOBES, lanczos), weights(image.width(), side, LOBES, lanczos));
    let side = side as usize;
    let pixels = image.as_raw();
    // Rows first: [side, width, 3].
    let mut tall = vec![0.0; side * width * 3];
    for (out, (first, weights)) in tall.chunks_exact_mut(width * 3).zip(&rows) {
        for (row, weight) in (*first..height).zip(weights) {
            let line = &pixels[row * width * 3..][..width * 3];
            out.iter_mut().zip(line).for_each(|(o, &x)| *o += weight * f64::from(x));
        }
    }
    let mut bytes = Vec::with_capacity(side * side * 3);
    for line in tall.chunks_exact(width * 3) {
        for (first, weights) in &columns {
            let mut sum = [0.0; 3];
            for (pixel, weight) in line[first * 3..].chunks_exact(3).zip(weights) {
                sum.iter_mut().zip(pixel).for_each(|(s, x)| *s += weight * x);
            }
            bytes.extend(sum.map(|x| (x + 0.5).floor().clamp(0.0, 255.0) as u8));
        }
    }
    RgbImage::from_raw(side as u32, side as u32, bytes).unwrap_or_default()
}

/// The centre of an image (`area` of it), bilinear to `side` x `side`; numbers 0 to 1, [side, side, 3].
pub(super) fn centre_crop(image: &RgbImage, side: u32, area: f64) -> Vec<f64> {
    let margin = (1.0 - area.sqrt()) / 2.0;
    // Sample places along an axis of n pixels: two neighbours and the weight of the second.
    let places = |n: u32| -> Vec<(usize, usize, f64)> {
        let last = f64::from(n - 1);
        let step = (1.0 - 2.0 * margin) * last / f64::from((side - 1).max(1));
        let place = |i: u32| {
            let x = (margin * last + f64::from(i) * step).clamp(0.0, last);
            let low = x.floor();
            (low as usize, (low as usize + 1).min(n as usize - 1), x - low)
        };
        (0..side).map(place).collect()
    };
    let (rows, columns) = (places(image.height()), places(image.width()));
    let (width, pixels) = (image.width() as usize, image.as_raw());
    let at = |row: usize, column: usize, c: usize| f64::from(pixels[(row * width + column) * 3 + c]) / 255.0;
    let mut out = Vec::with_capacity(rows.len() * columns.len() * 3);
    for &(top, bottom, down) in &rows {
        for &(left, right, along) in &columns {
            for c in 0..3 {
                let upper = at(top, left, c) * (1.0 - along) + at(top, right, c) * along;
                let lower = at(bottom, left, c) * (1.0 - along) + at(bottom, right, c) * along;
                out.push(upper * (1.0 - down) + lower * down);
            }
        }
    }
    out
}

/// Numbers 0 to 1 as bytes, the way TensorFlow's saturating conversion does it: cut off after scaling by 255.5.
fn to_bytes(numbers: &[f64], side: u32) -> RgbImage {
    let bytes = numbers.iter().map(|x| (x * 255.5).clamp(0.0, 255.0) as u8).collect();
    RgbImage::from_raw(side, side, bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Colours that vary slowly, so that compression and filters change little; left is dark, right is bright.
    fn ramp(side: u32) -> RgbImage {
        RgbImage::from_fn(side, side, |x, y| {
            let along = |n: u32| (n * 255 / (side - 1)) as u8;
            image::Rgb([along(x), along(y), 128])
        })
    }

    #[test]
    fn every_pipeline_mirrors_and_keeps_the_top_on_top() {
        for images in [Images::Oft, Images::OftWithoutJpeg, Images::OpenPi, Images::Plain, Images::Own] {
            let seen = images.prepare(&ramp(256)).unwrap();
            let side = seen.width();
            assert_eq!(side, if matches!(images, Images::Plain | Images::Own) { 256 } else { 224 });
            let (left, right) = (seen.get_pixel(2, side / 2).0, seen.get_pixel(side - 3, side / 2).0);
            assert!(left[0] > 230 && right[0] < 25, "{images:?}: {left:?} {right:?}");
            let (top, bottom) = (seen.get_pixel(side / 2, 2).0, seen.get_pixel(side / 2, side - 3).0);
            assert!(top[1] < 25 && bottom[1] > 230, "{images:?}: {top:?} {bottom:?}");
        }
    }

    #[test]
    fn the_crop_leaves_out_a_margin_of_two_and_a_half_percent() {
        let crop = centre_crop(&ramp(224), 224, CROP_AREA);
        let margin = (1.0 - CROP_AREA.sqrt()) / 2.0;
        assert!((crop[0] - margin).abs() < 0.006, "{}", crop[0]);
        assert!((crop[3 * 223] - (1.0 - margin)).abs() < 0.006);
    }

    #[test]
    fn bars_fill_what_the_proportions_leave() {
        let wide = RgbImage::from_pixel(320, 160, image::Rgb([200, 100, 50]));
        let seen = Images::OpenPi.prepare(&wide).unwrap();
        assert_eq!((seen.get_pixel(0, 55).0, seen.get_pixel(0, 56).0), ([0; 3], [200, 100, 50]));
        assert_eq!((seen.get_pixel(9, 167).0, seen.get_pixel(9, 168).0), ([200, 100, 50], [0; 3]));
        assert!(Images::OpenPi.prepare(&RgbImage::new(0, 0)).is_err());
    }

    /// Pictures and what Pillow 13 made of them, in `tests/pillow_bilinear.bin`: 64 x 64 x 3 bytes, then 56 x 56 x 3.
    #[test]
    fn the_bilinear_filter_is_pillows_bit_for_bit() {
        let bytes = include_bytes!("../../tests/pillow_bilinear.bin");
        let (source, expected) = bytes.split_at(64 * 64 * 3);
        let source = RgbImage::from_raw(64, 64, source.to_vec()).unwrap();
        assert!(pad_to(&source, 56).as_raw() == expected);
    }

    #[test]
    fn jpeg_changes_little_but_something() {
        let noisy = RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, 3]));
        let back = jpeg(&noisy).unwrap();
        let differ = back.as_raw().iter().zip(noisy.as_raw()).filter(|(a, b)| a != b).count();
        assert!(differ > 1000, "{differ}");
        let smooth = ramp(64);
        let back = jpeg(&smooth).unwrap();
        let worst = back.as_raw().iter().zip(smooth.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
        assert!(worst < 12, "{worst}");
    }
}
