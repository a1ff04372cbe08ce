//! The authors' way against outliers: the points that move least and most are left out.

use nalgebra::Point3;

use super::{RigidFit, check, fit_rigid};
use crate::{Error, Result};

/// A fit to the points whose displacement is neither among the smallest nor among the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct TrimmedFit {
    /// To the points kept; to all of them, and flagged as degenerate, where none was kept.
    pub fit: RigidFit,
    /// Indices of the points kept, rising.
    pub kept: Vec<usize>,
    /// Displacements between which points are kept, both excluded, metres.
    pub limits_m: [f64; 2],
}

/// Keeps the points whose displacement lies strictly between two percentiles, then fits (3DFlowAction's final-state
/// check). It loses a fifth of good points and keeps outliers when they are many: [`super::ransac_rigid`] does not.
///
/// # Errors
/// As [`fit_rigid`]; percentiles outside 0 to 100 or in the wrong order.
pub fn trimmed_rigid(
    first: &[Point3<f64>],
    last: &[Point3<f64>],
    percentiles: [f64; 2],
) -> Result<TrimmedFit> {
    check(first, last, None)?;
    let [low, high] = percentiles;
    if !(0.0 <= low && low < high && high <= 100.0) {
        return Err(Error::Range {
            what: "lower percentile",
            value: low,
            range: "at least 0, below the upper",
        });
    }
    let moved: Vec<f64> = first.iter().zip(last).map(|(a, b)| (b - a).norm()).collect();
    let limits_m = [percentile(&moved, low)?, percentile(&moved, high)?];
    let kept: Vec<usize> =
        (0..moved.len()).filter(|&i| limits_m[0] < moved[i] && moved[i] < limits_m[1]).collect();
    let pick = |points: &[Point3<f64>]| kept.iter().map(|&i| points[i]).collect::<Vec<_>>();
    let fit = if kept.is_empty() {
        RigidFit { degenerate: true, ..fit_rigid(first, last, None)? }
    } else {
        fit_rigid(&pick(first), &pick(last), None)?
    };
    Ok(TrimmedFit { fit, kept, limits_m })
}

/// The value below which `q` percent of `values` lie, interpolated linearly between neighbours (NumPy's default).
///
/// # Errors
/// No values, a value that is not finite, or `q` outside 0 to 100.
pub fn percentile(values: &[f64], q: f64) -> Result<f64> {
    if !(0.0..=100.0).contains(&q) {
        return Err(Error::Range { what: "percentile", value: q, range: "within 0 and 100" });
    }
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        return Err(Error::NotFinite { what: "values", index });
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return Err(Error::Range { what: "values", value: 0.0, range: "at least 1" });
    };
    let place = q / 100.0 * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    let (share, step) = (place - below as f64, sorted[above] - sorted[below]);
    // From the nearer end, as NumPy does: points on the limit must compare alike.
    Ok(if share < 0.5 { sorted[below] + step * share } else { sorted[above] - step * (1.0 - share) })
}
