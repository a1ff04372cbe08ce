//! The first picture in the size that the network takes, and its channels.

use efference_geometry::{Camera, Isometry3, Point3};

use crate::error::{Error, Result};

/// Channels of a scene: red, green, blue (-1 to 1), whether the depth is known, x, y, z of the surface (in the frame of
/// the query, 3 units are 1, cut at 3), and whether a query point is seen there.
pub const SCENE_CHANNELS: usize = 8;

/// Largest side of a picture that is read.
const MOST_SIDE: usize = 1 << 14;

fn check_sides(width: usize, height: usize, got: usize, want: usize, name: &'static str) -> Result<()> {
    let sides = (1..=MOST_SIDE).contains(&width) && (1..=MOST_SIDE).contains(&height);
    if sides && got == want {
        return Ok(());
    }
    Err(Error::Input {
        name,
        got: vec![got],
        expected: format!("{want} numbers for {width} x {height} pixels"),
    })
}

/// A picture [height, width, 3] as a square of `side` pixels, each the mean of what it covers.
///
/// # Errors
/// `rgb` is not of that size.
pub fn small_picture(rgb: &[u8], width: usize, height: usize, side: usize) -> Result<Vec<u8>> {
    check_sides(width, height, rgb.len(), width.saturating_mul(height).saturating_mul(3), "rgb")?;
    let spans = |length: usize| -> Vec<(usize, usize)> {
        (0..side)
            .map(|i| {
                let from = i * length / side;
                (from, ((i + 1) * length).div_ceil(side).clamp(from + 1, length))
            })
            .collect()
    };
    let (rows, columns) = (spans(height), spans(width));
    let mut out = Vec::with_capacity(side * side * 3);
    for &(top, bottom) in &rows {
        for &(left, right) in &columns {
            let count = ((bottom - top) * (right - left)) as u32;
            for channel in 0..3 {
                let row =
                    |y: usize| (left..right).map(move |x| u32::from(rgb[(y * width + x) * 3 + channel]));
                let sum: u32 = (top..bottom).flat_map(row).sum();
                out.push(((sum + count / 2) / count) as u8);
            }
        }
    }
    Ok(out)
}

/// Depth [height, width] as a square of `side` pixels: the number in the middle of each, because a mean across an edge
/// lies on no surface. What is not finite or below 0 is unknown, 0.
///
/// # Errors
/// `depth` is not of that size.
pub fn small_depth(depth: &[f32], width: usize, height: usize, side: usize) -> Result<Vec<f32>> {
    check_sides(width, height, depth.len(), width.saturating_mul(height), "depth")?;
    let middle = |i: usize, length: usize| ((2 * i + 1) * length) / (2 * side);
    let at = |y: usize, x: usize| depth[middle(y, height) * width + middle(x, width)];
    let known = |d: f32| if d.is_finite() && d > 0.0 { d } else { 0.0 };
    Ok((0..side).flat_map(|y| (0..side).map(move |x| known(at(y, x)))).collect())
}

/// [SCENE_CHANNELS, side, side] of a small picture and its depth, both of `side`.
pub(super) fn channels(
    (rgb, depth): (&[u8], &[f32]),
    side: usize,
    camera: &Camera,
    frame_from_world: &Isometry3<f64>,
    unit: f64,
    query: &[[f64; 3]],
) -> Vec<f32> {
    let pixels = side * side;
    let mut out = vec![0f32; SCENE_CHANNELS * pixels];
    for (i, colour) in rgb.chunks_exact(3).enumerate() {
        for (channel, &value) in colour.iter().enumerate() {
            out[channel * pixels + i] = f32::from(value) / 127.5 - 1.0;
        }
    }
    let lens = camera.intrinsics.resized(side, side);
    let pose = frame_from_world * camera.world_from_camera;
    for (i, &d) in depth.iter().enumerate().filter(|(_, d)| **d > 0.0) {
        let seen = lens.lift((i % side) as f64 + 0.5, (i / side) as f64 + 0.5, f64::from(d));
        let place: Point3<f64> = pose * seen;
        out[3 * pixels + i] = 1.0;
        for axis in 0..3 {
            out[(4 + axis) * pixels + i] = (place[axis] / (3.0 * unit)).clamp(-3.0, 3.0) as f32;
        }
    }
    let (sx, sy) =
        (side as f64 / camera.intrinsics.width as f64, side as f64 / camera.intrinsics.height as f64);
    for [u, v, _] in query {
        let (x, y) = ((u * sx).floor(), (v * sy).floor());
        if (0.0..side as f64).contains(&x) && (0.0..side as f64).contains(&y) {
            out[7 * pixels + y as usize * side + x as usize] = 1.0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pixels_are_means_and_depth_is_picked() {
        let rgb: Vec<u8> = (0..4 * 4 * 3).map(|i| if (i / 3) % 4 < 2 { 10 } else { 30 }).collect();
        assert_eq!(small_picture(&rgb, 4, 4, 2).unwrap(), [10, 10, 10, 30, 30, 30, 10, 10, 10, 30, 30, 30]);
        assert_eq!(small_picture(&[1, 2, 3], 1, 1, 2).unwrap(), [1, 2, 3].repeat(4), "larger than it was");
        let mut depth = vec![1f32; 16];
        (depth[5], depth[7], depth[13]) = (f32::INFINITY, -1.0, f32::NAN);
        depth[15] = 2.0;
        assert_eq!(small_depth(&depth, 4, 4, 2).unwrap(), [0.0, 0.0, 0.0, 2.0]);
        assert!(small_picture(&rgb, 4, 5, 2).is_err());
        assert!(small_depth(&depth, usize::MAX, 2, 2).is_err());
    }
}
