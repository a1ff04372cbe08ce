//! Motions along a straight line: drawers, sliding doors, things that are pushed.

use nalgebra::Matrix3;

use super::svd3::signed_svd;
use crate::{Isometry3, Point3, UnitQuaternion, Vector3};

/// When a motion counts as a slide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlideOptions {
    /// Farthest from the line, metres.
    pub off_m: f64,
    /// Largest turn, radians.
    pub off_rad: f64,
    /// Least way, metres: shorter ones have no direction to speak of.
    pub least_m: f64,
}

impl Default for SlideOptions {
    fn default() -> Self {
        Self { off_m: 0.02, off_rad: 0.25, least_m: 0.04 }
    }
}

/// A motion along a line, without turning.
#[derive(Clone, Debug, PartialEq)]
pub struct Slide {
    /// Unit vector, towards the end.
    pub direction: Vector3<f64>,
    /// How far along it at each frame, metres; never back.
    pub travel_m: Vec<f64>,
    /// Farthest that the motion was from it, metres.
    pub off_m: f64,
    /// Largest turn that was left out, radians.
    pub off_rad: f64,
}

impl Slide {
    /// The motion at each frame.
    #[must_use]
    pub fn poses(&self) -> Vec<Isometry3<f64>> {
        let at = |travel: &f64| {
            Isometry3::from_parts((self.direction * *travel).into(), UnitQuaternion::identity())
        };
        self.travel_m.iter().map(at).collect()
    }
}

/// The line that fits a rigid motion (poses that map the present to each frame) of an object around `middle` best, in the
/// least squares of the middle's way, if the motion is nearly a slide. `None`: it is not, or something is not finite.
///
/// A hand that holds a handle and follows a motion that is off by a centimetre sideways or turns a little slips off it, for
/// the rail gives way in one direction only.
#[must_use]
pub fn fit_slide(poses: &[Isometry3<f64>], middle: &Point3<f64>, options: &SlideOptions) -> Option<Slide> {
    let ways: Vec<Vector3<f64>> = poses.iter().map(|pose| pose * middle - middle).collect();
    let end = *ways.last()?;
    if !ways.iter().all(|way| way.iter().all(|x| x.is_finite())) || end.norm() < options.least_m {
        return None;
    }
    let spread: Matrix3<f64> = ways.iter().map(|way| way * way.transpose()).sum();
    let axis: Vector3<f64> = signed_svd(&spread).v.column(0).into_owned();
    let direction = if axis.dot(&end) < 0.0 { -axis } else { axis };
    let mut travel_m: Vec<f64> = ways.iter().map(|way| way.dot(&direction)).collect();
    let off = |(way, travel): (&Vector3<f64>, &f64)| (way - direction * *travel).norm();
    let off_m = ways.iter().zip(&travel_m).map(off).fold(0.0, f64::max);
    let off_rad = poses.iter().map(|pose| pose.rotation.angle()).fold(0.0, f64::max);
    if off_m > options.off_m || off_rad > options.off_rad {
        return None;
    }
    let mut farthest = 0.0_f64;
    for travel in &mut travel_m {
        farthest = farthest.max(*travel);
        *travel = farthest;
    }
    Some(Slide { direction, travel_m, off_m, off_rad })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A drawer that opens along (0.6, -0.8, 0) by 12 cm, seen with errors.
    fn wobbling(off_m: f64, off_rad: f64) -> Vec<Isometry3<f64>> {
        let direction = Vector3::new(0.6, -0.8, 0.0);
        (0..=8)
            .map(|t| {
                let (s, sign) = (f64::from(t) / 8.0, if t % 2 == 0 { 1.0 } else { -1.0 });
                // About the middle, so that turning does not move it.
                let middle = Vector3::new(0.3, 0.1, 0.05);
                let turn = UnitQuaternion::from_scaled_axis(Vector3::z() * (off_rad * s));
                let way = direction * (0.12 * s) + Vector3::z() * (off_m * sign * s);
                Isometry3::from_parts((middle + way - turn * middle).into(), turn)
            })
            .collect()
    }

    #[test]
    fn a_wobbling_slide_becomes_a_straight_one() {
        let middle = Point3::new(0.3, 0.1, 0.05);
        let slide = fit_slide(&wobbling(0.01, 0.1), &middle, &SlideOptions::default()).unwrap();
        assert!((slide.direction - Vector3::new(0.6, -0.8, 0.0)).norm() < 0.05, "{}", slide.direction);
        assert!(slide.travel_m.windows(2).all(|w| w[0] <= w[1]) && slide.travel_m[0] == 0.0);
        let end = slide.poses()[8];
        assert!((end.translation.vector.norm() - 0.12).abs() < 0.002 && end.rotation.angle() == 0.0);
        assert!(
            (slide.off_rad - 0.1).abs() < 1e-9 && (0.008..0.012).contains(&slide.off_m),
            "{}",
            slide.off_m
        );
        let exact = fit_slide(&wobbling(0.0, 0.0), &middle, &SlideOptions::default()).unwrap();
        assert!((exact.direction - Vector3::new(0.6, -0.8, 0.0)).norm() < 1e-12 && exact.off_m < 1e-12);
    }

    #[test]
    fn what_turns_leaves_the_line_or_stays_is_no_slide() {
        let middle = Point3::new(0.3, 0.1, 0.05);
        let options = SlideOptions::default();
        assert!(fit_slide(&wobbling(0.0, 0.4), &middle, &options).is_none());
        assert!(fit_slide(&wobbling(0.04, 0.0), &middle, &options).is_none());
        let still = vec![Isometry3::identity(); 5];
        assert!(
            fit_slide(&still, &middle, &options).is_none() && fit_slide(&[], &middle, &options).is_none()
        );
        let nowhere = vec![Isometry3::identity(), Isometry3::translation(f64::NAN, 0.0, 0.0)];
        assert!(fit_slide(&nowhere, &middle, &options).is_none());
    }
}
