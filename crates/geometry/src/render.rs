//! Pictures of point clouds, nearest point first.

use nalgebra::{Isometry3, Point3};

use crate::cloud::{pixel_at, pixels};
use crate::{Error, Intrinsics, Result};

/// Points nearer than this are not drawn, metres.
const MIN_DEPTH_M: f64 = 1e-6;

/// A picture of points.
#[derive(Clone, Debug, PartialEq)]
pub struct PointPicture<C> {
    /// [height, width].
    pub colours: Vec<C>,
    /// [height, width]: metres along the optical axis, 0 where nothing is.
    pub depth_m: Vec<f64>,
    /// [height, width]: index of the point that is seen.
    pub source: Vec<Option<usize>>,
}

/// Draws points given in the camera frame. The nearest wins; at equal depth the earlier one.
///
/// `splat_px` widens each point to a square of that many pixels on every side, so that a cloud seen from nearer than it
/// was taken has no holes; 0 colours one pixel.
///
/// # Errors
/// Another number of colours than points, or a picture without pixels.
pub fn render_points<C: Copy>(
    intrinsics: &Intrinsics,
    points: &[Point3<f64>],
    colours: &[C],
    background: C,
    splat_px: usize,
) -> Result<PointPicture<C>> {
    if colours.len() != points.len() {
        return Err(Error::Length { what: "colours", got: colours.len(), want: points.len() });
    }
    let n = pixels(intrinsics)?;
    let (width, height) = (intrinsics.width, intrinsics.height);
    let mut picture =
        PointPicture { colours: vec![background; n], depth_m: vec![0.0; n], source: vec![None; n] };
    for (index, point) in points.iter().enumerate() {
        if !(point.z > MIN_DEPTH_M && point.z.is_finite()) {
            continue;
        }
        let Some([u, v, depth]) = intrinsics.project(point) else { continue };
        let Some(pixel) = pixel_at(intrinsics, u, v) else { continue };
        let (row, column) = (pixel / width, pixel % width);
        for r in row.saturating_sub(splat_px)..(row + splat_px + 1).min(height) {
            for c in column.saturating_sub(splat_px)..(column + splat_px + 1).min(width) {
                let k = r * width + c;
                if picture.source[k].is_none() || depth < picture.depth_m[k] {
                    (picture.colours[k], picture.depth_m[k]) = (colours[index], depth);
                    picture.source[k] = Some(index);
                }
            }
        }
    }
    Ok(picture)
}

/// A coloured cloud in the camera frame.
#[derive(Clone, Copy, Debug)]
pub struct Cloud<'a, C> {
    /// Metres, camera frame.
    pub points: &'a [Point3<f64>],
    /// One per point.
    pub colours: &'a [C],
}

/// The scene after the object has moved: the scene's points without the object's, and the object's points moved.
/// Sources count the scene's points first, then the object's.
///
/// # Errors
/// As [`render_points`].
pub fn render_final_state<C: Copy>(
    intrinsics: &Intrinsics,
    scene: Cloud<C>,
    object: Cloud<C>,
    motion: &Isometry3<f64>,
    background: C,
    splat_px: usize,
) -> Result<PointPicture<C>> {
    let moved = object.points.iter().map(|p| motion * p);
    let points: Vec<Point3<f64>> = scene.points.iter().copied().chain(moved).collect();
    let colours = [scene.colours, object.colours].concat();
    render_points(intrinsics, &points, &colours, background, splat_px)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearest_point_is_seen_and_what_is_behind_or_beside_the_camera_is_not() {
        let camera = Intrinsics::from_fovy_deg(90.0, 4, 4).unwrap();
        let points = [
            Point3::new(0.1, 0.1, 2.0),
            Point3::new(0.05, 0.05, 1.0),
            Point3::new(0.05, 0.05, 1.0),
            Point3::new(0.0, 0.0, -1.0),
            Point3::new(9.0, 0.0, 1.0),
            Point3::new(f64::NAN, 0.0, 1.0),
            Point3::new(0.0, 0.0, f64::INFINITY),
        ];
        let picture = render_points(&camera, &points, &[10u8, 11, 12, 13, 14, 15, 16], 0, 0).unwrap();
        let seen: Vec<_> = picture.source.iter().flatten().collect();
        assert_eq!(seen, [&1]);
        assert_eq!((picture.colours[10], picture.depth_m[10]), (11, 1.0));
        let wide = render_points(&camera, &points, &[10u8, 11, 12, 13, 14, 15, 16], 0, 1).unwrap();
        assert_eq!(wide.source.iter().flatten().count(), 9);
        assert!(render_points(&camera, &points, &[0u8], 0, 0).is_err());
    }
}
