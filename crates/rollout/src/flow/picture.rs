//! The picture of a state that is not there yet: the scene without the object, and the object where a plan puts it.

use efference_data::RgbImage;
use efference_data::flow::FlowQuery;
use efference_geometry::{Isometry3, Point3};
use image::Rgb;

use super::predictor::check_query;
use super::{Error, Result};

/// Depths beyond are no measurement, metres.
const FARTHEST_M: f32 = 20.0;

/// What the query's camera would see after the motion.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalPicture {
    /// Colours.
    pub rgb: RgbImage,
    /// [height, width]: metres along the optical axis, 0 where unknown.
    pub depth_m: Vec<f32>,
    /// [height, width]: whether the moved object is what is seen there.
    pub moved: Vec<bool>,
}

impl FinalPicture {
    /// Share of the picture that shows the moved object.
    #[must_use]
    pub fn moved_share(&self) -> f64 {
        self.moved.iter().filter(|m| **m).count() as f64 / self.moved.len().max(1) as f64
    }
}

/// Draws the state after `motion` (from the present to the end, in the world frame) of what `mask` [height, width] marks.
///
/// The camera stands still, so what is not the object keeps its pixels; the object's pixels are lifted by their depth,
/// moved, and drawn over it with a z-buffer. What the object covered before is filled in from around. Pixels whose depth is
/// 0, negative or not finite keep their colour and count as far away; those of the object are left out.
///
/// # Errors
/// [`Error::Query`]: the query is malformed, `mask` has another size, or nothing of the object has a depth.
pub fn draw_final(query: &FlowQuery, mask: &[bool], motion: &Isometry3<f64>) -> Result<FinalPicture> {
    check_query(query)?;
    let (w, h) = (query.image.width() as usize, query.image.height() as usize);
    if mask.len() != w * h {
        return Err(Error::Query { why: format!("a mask of {} pixels for {w}x{h}", mask.len()) });
    }
    let valid = |d: f32| d > 0.0 && d <= FARTHEST_M;
    let colour = |i: usize| query.image.get_pixel((i % w) as u32, (i / w) as u32).0;
    let mut known: Vec<bool> = mask.iter().map(|m| !m).collect();
    let mut rgb: Vec<[u8; 3]> = (0..w * h).map(colour).collect();
    let mut depth: Vec<f32> = query.depth_m.iter().map(|&d| if valid(d) { d } else { 0.0 }).collect();
    fill(&mut rgb, &mut depth, &mut known, w, h);

    let lift = |i: usize| {
        let (u, v) = ((i % w) as f64 + 0.5, (i / w) as f64 + 0.5);
        query.camera.lift(u, v, f64::from(query.depth_m[i]))
    };
    let cloud: Vec<(Point3<f64>, [u8; 3])> = (0..w * h)
        .filter(|&i| mask[i] && valid(query.depth_m[i]))
        .map(|i| (motion * lift(i), colour(i)))
        .collect();
    if cloud.is_empty() {
        return Err(Error::Query { why: "no pixel of the object has a depth".into() });
    }
    let mut moved = vec![false; w * h];
    for (p, colour) in &cloud {
        let Some([u, v, d]) = query.camera.project(p) else { continue };
        // A little more than a pixel wide, so that an object that turns or comes nearer has no gaps.
        for (du, dv) in [(-0.4, -0.4), (0.4, -0.4), (-0.4, 0.4), (0.4, 0.4)] {
            let (x, y) = ((u + du).floor(), (v + dv).floor());
            if x < 0.0 || y < 0.0 || x >= w as f64 || y >= h as f64 {
                continue;
            }
            let i = y as usize * w + x as usize;
            let d = d as f32;
            if depth[i] == 0.0 || d < depth[i] {
                (rgb[i], depth[i], moved[i]) = (*colour, d, true);
            }
        }
    }
    close_gaps(&mut rgb, &mut depth, &mut moved, w, h);
    let bytes = rgb.into_iter().flatten().collect();
    let rgb = RgbImage::from_raw(w as u32, h as u32, bytes)
        .ok_or_else(|| Error::Query { why: "the picture is too large".into() })?;
    Ok(FinalPicture { rgb, depth_m: depth, moved })
}

/// Grows what is known into what is not, ring by ring: each pixel becomes the mean of its known neighbours.
fn fill(rgb: &mut [[u8; 3]], depth: &mut [f32], known: &mut [bool], w: usize, h: usize) {
    let mut unknown: Vec<usize> = (0..w * h).filter(|&i| !known[i]).collect();
    while !unknown.is_empty() {
        let ring: Vec<(usize, [u8; 3], f32)> = unknown
            .iter()
            .filter_map(|&i| {
                let around: Vec<usize> = neighbours(i, w, h).filter(|&j| known[j]).collect();
                let (colour, depth) = mean(&around, rgb, depth)?;
                Some((i, colour, depth))
            })
            .collect();
        if ring.is_empty() {
            // The object fills the picture: there is nothing to grow from.
            return;
        }
        for (i, colour, d) in ring {
            (rgb[i], depth[i], known[i]) = (colour, d, true);
        }
        unknown.retain(|&i| !known[i]);
    }
}

/// Pixels with the object on most sides and something clearly behind it are gaps of the sampling.
fn close_gaps(rgb: &mut [[u8; 3]], depth: &mut [f32], moved: &mut [bool], w: usize, h: usize) {
    let gaps: Vec<(usize, [u8; 3], f32)> = (0..w * h)
        .filter(|&i| !moved[i])
        .filter_map(|i| {
            let around: Vec<usize> = neighbours(i, w, h).filter(|&j| moved[j]).collect();
            let (colour, d) = mean(&around, rgb, depth)?;
            (around.len() >= 5 && (depth[i] == 0.0 || depth[i] > d)).then_some((i, colour, d))
        })
        .collect();
    for (i, colour, d) in gaps {
        (rgb[i], depth[i], moved[i]) = (colour, d, true);
    }
}

fn neighbours(i: usize, w: usize, h: usize) -> impl Iterator<Item = usize> {
    let (x, y) = ((i % w) as isize, (i / w) as isize);
    (-1..=1)
        .flat_map(move |dy| (-1..=1).map(move |dx| (x + dx, y + dy)))
        .filter(move |&(a, b)| (a, b) != (x, y))
        .filter(move |&(a, b)| a >= 0 && b >= 0 && a < w as isize && b < h as isize)
        .map(move |(a, b)| b as usize * w + a as usize)
}

/// Mean colour, and mean depth of those that have one (else 0).
fn mean(pixels: &[usize], rgb: &[[u8; 3]], depth: &[f32]) -> Option<([u8; 3], f32)> {
    let n = u32::try_from(pixels.len()).ok().filter(|n| *n > 0)?;
    let channel = |c: usize| (pixels.iter().map(|&i| u32::from(rgb[i][c])).sum::<u32>() / n) as u8;
    let known: Vec<f32> = pixels.iter().map(|&i| depth[i]).filter(|d| *d > 0.0).collect();
    let d = if known.is_empty() { 0.0 } else { known.iter().sum::<f32>() / known.len() as f32 };
    Some((Rgb([channel(0), channel(1), channel(2)]).0, d))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_geometry::{Camera, CameraAxes, Intrinsics};

    use super::*;

    /// A camera that looks along +z at a grey wall one metre away, with a red square of 8x8 pixels at 0.5 m in the middle.
    pub(crate) fn wall_and_square() -> (FlowQuery, Vec<bool>) {
        let (w, h) = (32, 32);
        let inside = |i: usize| (12..20).contains(&(i % w)) && (12..20).contains(&(i / w));
        let mask: Vec<bool> = (0..w * h).map(inside).collect();
        let bytes = mask.iter().flat_map(|m| if *m { [200, 10, 10] } else { [90, 90, 90] }).collect();
        let intrinsics = Intrinsics::from_fovy_deg(60.0, w, h).unwrap();
        let query = FlowQuery {
            instruction: "move the square".into(),
            camera: Camera::new(intrinsics, Isometry3::identity(), CameraAxes::OpenCv),
            image: RgbImage::from_raw(w as u32, h as u32, bytes).unwrap(),
            depth_m: mask.iter().map(|m| if *m { 0.5 } else { 1.0 }).collect(),
            points: vec![Point3::new(0.0, 0.0, 0.5)],
        };
        (query, mask)
    }

    #[test]
    fn the_object_moves_and_what_it_hid_is_filled_in() {
        let (query, mask) = wall_and_square();
        // Eight pixels to the right at 0.5 m.
        let shift = 8.0 * 0.5 / query.camera.intrinsics.fx;
        let picture = draw_final(&query, &mask, &Isometry3::translation(shift, 0.0, 0.0)).unwrap();
        let at =
            |x: usize, y: usize| (picture.rgb.get_pixel(x as u32, y as u32).0, picture.depth_m[y * 32 + x]);
        assert_eq!(at(24, 16), ([200, 10, 10], 0.5));
        assert_eq!(at(14, 16), ([90, 90, 90], 1.0));
        let share = picture.moved_share() * 1024.0;
        assert!((64.0..=81.0).contains(&share), "{share} pixels instead of about 64");
    }

    #[test]
    fn an_object_that_goes_behind_the_wall_is_not_seen() {
        let (query, mask) = wall_and_square();
        let picture = draw_final(&query, &mask, &Isometry3::translation(0.0, 0.0, 1.0)).unwrap();
        assert_eq!(picture.moved_share(), 0.0);
        assert!(picture.rgb.pixels().all(|p| p.0 == [90, 90, 90]));
        // Behind the camera: not seen either.
        let picture = draw_final(&query, &mask, &Isometry3::translation(0.0, 0.0, -2.0)).unwrap();
        assert_eq!(picture.moved_share(), 0.0);
    }

    #[test]
    fn coming_nearer_leaves_no_gaps() {
        let (query, mask) = wall_and_square();
        let picture = draw_final(&query, &mask, &Isometry3::translation(0.0, 0.0, -0.15)).unwrap();
        // 8 pixels at 0.5 m are 11.4 at 0.35 m: the inner 10x10 must be whole.
        for y in 11..21 {
            assert!((11..21).all(|x| picture.moved[y * 32 + x]), "row {y} has a gap");
        }
    }

    #[test]
    fn holes_and_infinities_in_the_depth_are_borne_and_nothing_at_all_is_refused() {
        let (mut query, mask) = wall_and_square();
        for (i, d) in query.depth_m.iter_mut().enumerate() {
            match i % 7 {
                0 => *d = 0.0,
                1 => *d = f32::INFINITY,
                2 => *d = f32::NAN,
                3 => *d = -1.0,
                _ => {}
            }
        }
        let picture = draw_final(&query, &mask, &Isometry3::translation(0.1, 0.0, 0.0)).unwrap();
        assert!(picture.depth_m.iter().all(|d| d.is_finite() && *d >= 0.0));
        assert!(picture.moved_share() > 0.03);
        query.depth_m.fill(f32::NAN);
        let error = draw_final(&query, &mask, &Isometry3::identity()).unwrap_err();
        assert!(error.to_string().contains("no pixel of the object has a depth"), "{error}");
        let (query, mask) = wall_and_square();
        assert!(matches!(draw_final(&query, &mask[1..], &Isometry3::identity()), Err(Error::Query { .. })));
        let everything = vec![true; 1024];
        assert!(draw_final(&query, &everything, &Isometry3::translation(9.0, 0.0, 0.0)).is_ok());
    }
}
