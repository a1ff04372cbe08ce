//! Distances between predicted and true points.

use nalgebra::{Isometry3, Point3, Vector3};
use serde::{Deserialize, Serialize};

use crate::rigid::rotation_error_deg;
use crate::{Error, Flow3d, Result};

/// Distances of one prediction from the truth, metres. Frame 0 is the present and does not count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Displacement {
    /// Mean over points and frames.
    pub ade_m: f64,
    /// Mean over points of the last frame.
    pub fde_m: f64,
    /// Mean over points and frames that the camera really sees; 0 where it sees none.
    pub visible_ade_m: f64,
}

/// Compares one prediction with the truth.
///
/// # Errors
/// Another number of frames or points, or no frame after the present.
pub fn displacement(predicted: &Flow3d, truth: &Flow3d) -> Result<Displacement> {
    same_shape(predicted, truth)?;
    let (frames, n) = (truth.frames(), truth.points());
    let (mut all, mut last, mut seen, mut weight) = (0.0, 0.0, 0.0, 0.0);
    for t in 1..frames {
        let mut sum = 0.0;
        for ((p, q), visible) in predicted.at(t).iter().zip(truth.at(t)).zip(truth.visibility_at(t)) {
            let distance = (p - q).norm();
            sum += distance;
            seen += f64::from(*visible) * distance;
            weight += f64::from(*visible);
        }
        all += sum;
        last = sum / n as f64;
    }
    let visible_ade_m = if weight > 0.0 { seen / weight } else { 0.0 };
    Ok(Displacement { ade_m: all / ((frames - 1) * n) as f64, fde_m: last, visible_ade_m })
}

/// Mean distance of the last frames of all pairs of samples, metres: how much samples of one scene differ; 0 for one.
///
/// # Errors
/// As [`displacement`].
pub fn diversity_m(samples: &[Flow3d]) -> Result<f64> {
    let (mut sum, mut pairs) = (0.0, 0usize);
    for (i, a) in samples.iter().enumerate() {
        for b in &samples[i + 1..] {
            sum += displacement(a, b)?.fde_m;
            pairs += 1;
        }
    }
    Ok(if pairs == 0 { 0.0 } else { sum / pairs as f64 })
}

/// How far a motion of the object is from the true one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoseError {
    /// Angle between the rotations, degrees.
    pub rotation_deg: f64,
    /// Distance between where the two motions put the object's centre, metres.
    pub translation_m: f64,
}

/// Compares two motions of an object, both left-multiplied in the same fixed frame; `centre` is the object's centre before
/// them, so that a small turn is no large shift of an object far from the origin.
#[must_use]
pub fn pose_error(predicted: &Isometry3<f64>, truth: &Isometry3<f64>, centre: &Point3<f64>) -> PoseError {
    PoseError {
        rotation_deg: rotation_error_deg(&predicted.rotation, &truth.rotation),
        translation_m: (predicted * centre - truth * centre).norm(),
    }
}

/// The mean of points; the origin for none.
pub(crate) fn centre(points: &[Point3<f64>]) -> Point3<f64> {
    let sum: Vector3<f64> = points.iter().map(|p| p.coords).sum();
    Point3::from(sum / points.len().max(1) as f64)
}

pub(super) fn same_shape(predicted: &Flow3d, truth: &Flow3d) -> Result<()> {
    if predicted.frame() != truth.frame() {
        return Err(Error::Frames { got: predicted.frame(), want: truth.frame() });
    }
    for (what, got, want) in [
        ("predicted frames", predicted.frames(), truth.frames()),
        ("predicted points", predicted.points(), truth.points()),
    ] {
        if got != want {
            return Err(Error::Length { what, got, want });
        }
    }
    if truth.frames() < 2 {
        return Err(Error::Range { what: "frames", value: truth.frames() as f64, range: "at least 2" });
    }
    Ok(())
}
