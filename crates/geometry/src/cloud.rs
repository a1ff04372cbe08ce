//! Points from depth pictures.

use nalgebra::Point3;
use serde::{Deserialize, Serialize};

use crate::{Error, Intrinsics, Result};

/// Where the coordinates of a pixel are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelCentre {
    /// The middle of pixel i is i + 0.5: exact.
    #[default]
    Middle,
    /// The pixel's index itself: what 3DFlowAction's scripts do; half a pixel off.
    Index,
}

/// How positions between pixels are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelRounding {
    /// Depth of the pixel that contains the position, lifted at the position itself.
    #[default]
    Exact,
    /// The position is cut to whole pixels first, also for lifting: what 3DFlowAction's scripts do; up to z/f off.
    Truncate,
}

/// Whether a depth can be one: finite and in front of the camera. Sensors write 0, NaN or infinity where they see nothing.
#[must_use]
pub fn is_depth(depth_m: f64) -> bool {
    depth_m.is_finite() && depth_m > 0.0
}

/// Points of a depth picture [height, width] (metres along the optical axis) in the camera frame, with their pixels (row
/// times width plus column), in order of pixels. Pixels without depth are left out; depths above `clamp_m` become it.
///
/// # Errors
/// The picture has another size than the camera's.
pub fn depth_to_points<D: Copy + Into<f64>>(
    intrinsics: &Intrinsics,
    depth_m: &[D],
    centre: PixelCentre,
    clamp_m: Option<f64>,
) -> Result<Vec<(usize, Point3<f64>)>> {
    let want = pixels(intrinsics)?;
    if depth_m.len() != want {
        return Err(Error::Length { what: "depth_m", got: depth_m.len(), want });
    }
    let half = if centre == PixelCentre::Middle { 0.5 } else { 0.0 };
    let limit = clamp_m.unwrap_or(f64::INFINITY);
    let lift = |(k, depth): (usize, &D)| {
        let depth: f64 = (*depth).into();
        let (u, v) = ((k % intrinsics.width) as f64 + half, (k / intrinsics.width) as f64 + half);
        is_depth(depth).then(|| (k, intrinsics.lift(u, v, depth.min(limit))))
    };
    Ok(depth_m.iter().enumerate().filter_map(lift).collect())
}

/// Points of pixel tracks [frames, points] lifted by a depth video [frames, height, width], in the camera frame. `None`
/// where the position lies outside the picture or the video has no depth there. A hidden point gets the depth of what
/// hides it: look at the visibility, too.
///
/// # Errors
/// Lengths that are no multiple of the number of frames, or a video of another size than the camera's.
pub fn lift_tracks<D: Copy + Into<f64>>(
    intrinsics: &Intrinsics,
    depth_m: &[D],
    tracks_uv: &[[f64; 2]],
    frames: usize,
    rounding: PixelRounding,
) -> Result<Vec<Option<Point3<f64>>>> {
    if frames == 0 || !tracks_uv.len().is_multiple_of(frames) {
        let want = tracks_uv.len().next_multiple_of(frames.max(1)).max(1);
        return Err(Error::Length { what: "tracks_uv", got: tracks_uv.len(), want });
    }
    let picture = pixels(intrinsics)?;
    let want = picture.saturating_mul(frames);
    if depth_m.len() != want {
        return Err(Error::Length { what: "depth_m", got: depth_m.len(), want });
    }
    let points = tracks_uv.len() / frames;
    let lift = |(k, uv): (usize, &[f64; 2])| {
        let [u, v] = match rounding {
            PixelRounding::Exact => *uv,
            PixelRounding::Truncate => uv.map(f64::trunc),
        };
        let pixel = pixel_at(intrinsics, u, v)?;
        let depth: f64 = depth_m[k / points * picture + pixel].into();
        is_depth(depth).then(|| intrinsics.lift(u, v, depth))
    };
    Ok(tracks_uv.iter().enumerate().map(lift).collect())
}

/// The pixel (row times width plus column) that contains a position; `None` outside the picture.
#[must_use]
pub fn pixel_at(intrinsics: &Intrinsics, u: f64, v: f64) -> Option<usize> {
    let inside = u >= 0.0 && v >= 0.0 && u < intrinsics.width as f64 && v < intrinsics.height as f64;
    inside.then(|| v as usize * intrinsics.width + u as usize)
}

pub(crate) fn pixels(intrinsics: &Intrinsics) -> Result<usize> {
    let Intrinsics { width, height, .. } = *intrinsics;
    width.checked_mul(height).filter(|n| *n > 0).ok_or(Error::Range {
        what: "width times height",
        value: width as f64 * height as f64,
        range: "at least 1 pixel, and countable",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn holes_are_left_out_and_points_come_back_to_their_pixels() {
        let camera = Intrinsics::from_fovy_deg(60.0, 3, 2).unwrap();
        let depth = [0.5f32, 0.0, f32::NAN, f32::INFINITY, 2.0, -1.0];
        let points = depth_to_points(&camera, &depth, PixelCentre::Middle, Some(1.5)).unwrap();
        let found: Vec<usize> = points.iter().map(|p| p.0).collect();
        assert_eq!(found, [0, 4]);
        for (pixel, point) in points {
            let [u, v, z] = camera.project(&point).unwrap();
            assert_eq!(pixel_at(&camera, u, v), Some(pixel));
            assert!((z - if pixel == 0 { 0.5 } else { 1.5 }).abs() < 1e-9);
        }
        assert!(depth_to_points(&camera, &depth[1..], PixelCentre::Middle, None).is_err());
    }

    #[test]
    fn tracks_outside_the_picture_or_in_a_hole_have_no_point() {
        let camera = Intrinsics::from_fovy_deg(60.0, 2, 2).unwrap();
        let depth = [1.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0, f64::INFINITY];
        let tracks = [[0.5, 0.5], [1.5, 0.2], [2.0, 0.0], [1.9, 1.9], [f64::NAN, 0.0], [0.7, 1.2]];
        let points = lift_tracks(&camera, &depth, &tracks, 2, PixelRounding::Exact).unwrap();
        let known: Vec<bool> = points.iter().map(Option::is_some).collect();
        assert_eq!(known, [true, false, false, false, false, true]);
        let [u, v, z] = camera.project(&points[5].unwrap()).unwrap();
        assert!((u - 0.7).abs() < 1e-12 && (v - 1.2).abs() < 1e-12 && z == 2.0);
        assert!(lift_tracks(&camera, &depth, &tracks[1..], 2, PixelRounding::Exact).is_err());
        assert!(lift_tracks(&camera, &depth, &tracks, 0, PixelRounding::Exact).is_err());
        assert!(lift_tracks(&camera, &depth[1..], &tracks, 2, PixelRounding::Exact).is_err());
    }
}
