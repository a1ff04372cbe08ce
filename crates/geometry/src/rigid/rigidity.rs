//! How much a set of points keeps its shape, and how far two rotations are apart.

use nalgebra::{Point3, UnitQuaternion};

use super::{RigidFit, finite, fit_rigid};
use crate::{Error, Flow3d, Result};

/// What is left of each frame after the best rigid motion from frame 0, metres, one per frame (0 for frame 0).
///
/// # Errors
/// None on a valid flow.
pub fn rigidity_rms(flow: &Flow3d) -> Result<Vec<f64>> {
    (0..flow.frames()).map(|t| Ok(fit_rigid(flow.at(0), flow.at(t), None)?.rms_m)).collect()
}

/// Mean over pairs of points of |distance later - distance first|, metres; 0 for a single point.
///
/// # Errors
/// Lengths that disagree, no points, or numbers that are not finite.
pub fn mean_pair_distance_change(first: &[Point3<f64>], later: &[Point3<f64>]) -> Result<f64> {
    super::check(first, later, None)?;
    let n = first.len();
    let (mut sum, mut pairs) = (0.0, 0usize);
    for i in 0..n {
        for j in i + 1..n {
            sum += ((later[i] - later[j]).norm() - (first[i] - first[j]).norm()).abs();
            pairs += 1;
        }
    }
    Ok(if pairs == 0 { 0.0 } else { sum / pairs as f64 })
}

/// `first`, moved rigidly as near as it gets to `predicted`: the nearest prediction that does not bend the object. With
/// the fit, which says how far that is.
///
/// # Errors
/// As [`fit_rigid`].
pub fn rigid_projection(
    first: &[Point3<f64>],
    predicted: &[Point3<f64>],
    weights: Option<&[f64]>,
) -> Result<(Vec<Point3<f64>>, RigidFit)> {
    finite("first", first)?;
    if first.len() != predicted.len() {
        return Err(Error::Length { what: "predicted", got: predicted.len(), want: first.len() });
    }
    let fit = fit_rigid(first, predicted, weights)?;
    Ok((first.iter().map(|p| fit.pose * p).collect(), fit))
}

/// The angle between two rotations, degrees, 0 to 180.
#[must_use]
pub fn rotation_error_deg(a: &UnitQuaternion<f64>, b: &UnitQuaternion<f64>) -> f64 {
    a.angle_to(b).to_degrees()
}
