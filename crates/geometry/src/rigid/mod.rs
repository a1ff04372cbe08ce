//! The motion that carries one set of points onto another.

mod flow_fit;
mod ransac;
mod rigidity;
mod slide;
mod svd3;
mod trim;

use nalgebra::{Isometry3, Matrix3, Point3, Rotation3, Similarity3, Translation3, UnitQuaternion, Vector3};

pub use flow_fit::{FlowFit, FlowFitOptions, FlowWeights, fit_flow};
pub use ransac::{RansacFit, RansacOptions, ransac_rigid, ransac_rigid_from};
pub use rigidity::{mean_pair_distance_change, rigid_projection, rigidity_rms, rotation_error_deg};
pub use slide::{Slide, SlideOptions, fit_slide};
pub use trim::{TrimmedFit, percentile, trimmed_rigid};

use crate::{Error, Result};

/// Total weight below which points say nothing.
const MIN_WEIGHT: f64 = 1e-9;
/// Second singular value over the first below which points lie on a line.
const MIN_SPREAD: f64 = 1e-9;

/// A rigid motion fitted to pairs of points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RigidFit {
    /// Target from source.
    pub pose: Isometry3<f64>,
    /// Root of the weighted mean squared distance left, metres.
    pub rms_m: f64,
    /// Singular values of the weighted cross-covariance sum, falling, m^2.
    pub singular_values: [f64; 3],
    /// Whether the best orthogonal matrix is a reflection, so that the last axis was turned over to get a rotation.
    pub reflected: bool,
    /// Fewer than three usable points, no weight, or points on a line: the rotation is undetermined and is the
    /// identity; the translation carries one centroid to the other.
    pub degenerate: bool,
}

/// How weights are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightOptions {
    /// Weights below count as 0.
    pub threshold: f64,
    /// Added to the total weight under the centroids; 0 is exact (General Flow uses 1e-6).
    pub centroid_eps: f64,
}

impl Default for WeightOptions {
    fn default() -> Self {
        Self { threshold: 0.0, centroid_eps: 0.0 }
    }
}

/// The rotation and translation that carry `source` onto `target` with the least weighted squared distance (Kabsch 1976).
///
/// Weights are at least 0 and need not sum to one; none means equal ones. A reflection is never returned: where one would
/// fit best, the axis of least spread is turned over.
///
/// # Errors
/// No points, lengths that disagree, numbers that are not finite, a negative weight. Too few points or points on a line
/// are no error: see [`RigidFit::degenerate`].
pub fn fit_rigid(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weights: Option<&[f64]>,
) -> Result<RigidFit> {
    fit_rigid_with(source, target, weights, WeightOptions::default())
}

/// As [`fit_rigid`], with weights read in another way.
///
/// # Errors
/// As [`fit_rigid`].
pub fn fit_rigid_with(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weights: Option<&[f64]>,
    options: WeightOptions,
) -> Result<RigidFit> {
    check(source, target, weights)?;
    let at = |i: usize| match weights {
        Some(weights) if weights[i] < options.threshold => 0.0,
        Some(weights) => weights[i],
        None => 1.0,
    };
    Ok(fit_checked(source, target, at, options.centroid_eps))
}

/// A rotation, translation and scale fitted to pairs of points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimilarityFit {
    /// Target from source.
    pub motion: Similarity3<f64>,
    /// Root of the weighted mean squared distance left, metres.
    pub rms_m: f64,
    /// As [`RigidFit::degenerate`]; the scale is then 1.
    pub degenerate: bool,
}

/// As [`fit_rigid`], with a scale of its own (Umeyama 1991).
///
/// # Errors
/// As [`fit_rigid`].
pub fn fit_similarity(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weights: Option<&[f64]>,
) -> Result<SimilarityFit> {
    check(source, target, weights)?;
    let weight = |i: usize| weights.map_or(1.0, |weights| weights[i]);
    let fit = fit_checked(source, target, weight, 0.0);
    let (from, to, total) = centroids(source, target, weight, 0.0);
    let spread: f64 = source.iter().enumerate().map(|(i, p)| weight(i) * (p - from).norm_squared()).sum();
    let [s1, s2, s3] = fit.singular_values;
    let scale = (s1 + s2 + if fit.reflected { -s3 } else { s3 }) / spread;
    // A scale of 0 (all targets in one place) is no similarity.
    if fit.degenerate || !(scale.is_finite() && scale > 0.0) {
        let motion = Similarity3::from_isometry(fit.pose, 1.0);
        return Ok(SimilarityFit { motion, rms_m: fit.rms_m, degenerate: true });
    }
    let rotation = fit.pose.rotation;
    let translation = Translation3::from(to.coords - rotation * (from.coords * scale));
    let motion = Similarity3::from_parts(translation, rotation, scale);
    let left =
        source.iter().zip(target).enumerate().map(|(i, (a, b))| weight(i) * (motion * a - b).norm_squared());
    let rms_m = (left.sum::<f64>() / total).sqrt();
    Ok(SimilarityFit { motion, rms_m, degenerate: false })
}

/// Refuses what no fit can be made of.
fn check(source: &[Point3<f64>], target: &[Point3<f64>], weights: Option<&[f64]>) -> Result<()> {
    if source.is_empty() {
        return Err(Error::Range { what: "points", value: 0.0, range: "at least 1" });
    }
    if target.len() != source.len() {
        return Err(Error::Length { what: "target points", got: target.len(), want: source.len() });
    }
    finite("source points", source)?;
    finite("target points", target)?;
    let Some(weights) = weights else { return Ok(()) };
    if weights.len() != source.len() {
        return Err(Error::Length { what: "weights", got: weights.len(), want: source.len() });
    }
    match weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        Some(index) if weights[index].is_finite() => {
            Err(Error::Range { what: "weight", value: weights[index], range: "at least 0" })
        }
        Some(index) => Err(Error::NotFinite { what: "weights", index }),
        None => Ok(()),
    }
}

/// Refuses NaN and infinity.
pub(crate) fn finite(what: &'static str, points: &[Point3<f64>]) -> Result<()> {
    match points.iter().position(|p| !p.coords.iter().all(|x| x.is_finite())) {
        Some(index) => Err(Error::NotFinite { what, index }),
        None => Ok(()),
    }
}

/// Weighted centroids and the total weight; plain ones without weight.
fn centroids(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weight: impl Fn(usize) -> f64,
    eps: f64,
) -> (Point3<f64>, Point3<f64>, f64) {
    let (mut from, mut to, mut total) = (Vector3::zeros(), Vector3::zeros(), 0.0);
    for (i, (a, b)) in source.iter().zip(target).enumerate() {
        let w = weight(i);
        from += a.coords * w;
        to += b.coords * w;
        total += w;
    }
    if total < MIN_WEIGHT {
        let mean = |points: &[Point3<f64>]| {
            let sum: Vector3<f64> = points.iter().map(|p| p.coords).sum();
            Point3::from(sum / points.len() as f64)
        };
        return (mean(source), mean(target), total);
    }
    (Point3::from(from / (total + eps)), Point3::from(to / (total + eps)), total)
}

/// The fit of points that are known to be finite and as many as the targets; at least one.
fn fit_checked(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weight: impl Fn(usize) -> f64,
    centroid_eps: f64,
) -> RigidFit {
    let (from, to, total) = centroids(source, target, &weight, centroid_eps);
    let (mut cross, mut usable) = (Matrix3::zeros(), 0usize);
    for (i, (a, b)) in source.iter().zip(target).enumerate() {
        let w = weight(i);
        usable += usize::from(w > 0.0);
        cross += ((a - from) * w) * (b - to).transpose();
    }
    let svd = svd3::signed_svd(&cross);
    let (s1, s2, s3) = (svd.s[0], svd.s[1], svd.s[2]);
    let degenerate = usable < 3 || total < MIN_WEIGHT || s2 <= MIN_SPREAD * s1;
    let rotation = if degenerate {
        UnitQuaternion::identity()
    } else {
        UnitQuaternion::from_rotation_matrix(&Rotation3::from_matrix_unchecked(svd.v * svd.u.transpose()))
    };
    let pose = Isometry3::from_parts(Translation3::from(to - rotation * from), rotation);
    let (mut left, mut plain) = (0.0, 0.0);
    for (i, (a, b)) in source.iter().zip(target).enumerate() {
        let squared = (pose * a - b).norm_squared();
        left += weight(i) * squared;
        plain += squared;
    }
    let mean = if total < MIN_WEIGHT { plain / source.len() as f64 } else { left / total };
    RigidFit {
        pose,
        rms_m: mean.sqrt(),
        singular_values: [s1, s2, s3.abs()],
        reflected: s3 < 0.0,
        degenerate,
    }
}

#[cfg(test)]
mod tests;
