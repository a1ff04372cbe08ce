//! Smooth curves through noisy tracks.

use nalgebra::DMatrix;

use crate::{Error, Result};

/// A clamped uniform B-spline on [0, 1] in any number of dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct BSpline {
    degree: usize,
    knots: Vec<f64>,
    /// One row per control point.
    control_points: Vec<Vec<f64>>,
}

impl BSpline {
    /// Least-squares fit of `control_points` points to `samples`, which are taken at evenly spaced times from 0 to 1.
    ///
    /// # Errors
    /// Fewer control points than degree + 1, fewer samples than control points, samples of different sizes or that are not
    /// finite.
    pub fn fit(samples: &[Vec<f64>], control_points: usize, degree: usize) -> Result<Self> {
        if control_points <= degree {
            let value = control_points as f64;
            return Err(Error::Range { what: "control points", value, range: "above the degree" });
        }
        if samples.len() < control_points {
            return Err(Error::Length { what: "samples", got: samples.len(), want: control_points });
        }
        let dims = samples[0].len();
        for (index, sample) in samples.iter().enumerate() {
            if sample.len() != dims {
                return Err(Error::Length { what: "a sample", got: sample.len(), want: dims });
            }
            if !sample.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { what: "samples", index });
            }
        }
        let knots = clamped_uniform_knots(control_points, degree);
        let last = (samples.len() - 1).max(1) as f64;
        let basis = basis(&knots, degree, &(0..samples.len()).map(|i| i as f64 / last).collect::<Vec<_>>());
        let values = DMatrix::from_fn(samples.len(), dims, |i, j| samples[i][j]);
        // Householder QR keeps the accuracy that normal equations would halve.
        let qr = basis.qr();
        let right = qr.q().transpose() * values;
        let solution = qr.r().solve_upper_triangular(&right).ok_or(Error::Range {
            what: "samples",
            value: samples.len() as f64,
            range: "enough within each span of the knots",
        })?;
        let control_points = solution.row_iter().map(|row| row.iter().copied().collect()).collect();
        Ok(Self { degree, knots, control_points })
    }

    /// Knots, rising, the ends repeated.
    #[must_use]
    pub fn knots(&self) -> &[f64] {
        &self.knots
    }

    /// One row per control point.
    #[must_use]
    pub fn control_points(&self) -> &[Vec<f64>] {
        &self.control_points
    }

    /// Values of all basis functions at these times, one row per time.
    #[must_use]
    pub fn basis(&self, times: &[f64]) -> DMatrix<f64> {
        basis(&self.knots, self.degree, times)
    }

    /// The curve at time `x`, which is kept within 0 and 1.
    #[must_use]
    pub fn at(&self, x: f64) -> Vec<f64> {
        let row = basis(&self.knots, self.degree, &[x.clamp(0.0, 1.0)]);
        let dims = self.control_points.first().map_or(0, Vec::len);
        (0..dims).map(|d| self.control_points.iter().zip(row.iter()).map(|(c, w)| w * c[d]).sum()).collect()
    }
}

/// Clamped uniform knots on [0, 1]: n + degree + 1 of them.
fn clamped_uniform_knots(n: usize, degree: usize) -> Vec<f64> {
    let spans = n - degree;
    let inner = (1..spans).map(|i| i as f64 / spans as f64);
    let ends = |x: f64| std::iter::repeat_n(x, degree + 1);
    ends(0.0).chain(inner).chain(ends(1.0)).collect()
}

/// Cox and de Boor's recursion.
fn basis(knots: &[f64], degree: usize, times: &[f64]) -> DMatrix<f64> {
    let n = knots.len() - degree - 1;
    let mut out = DMatrix::zeros(times.len(), n);
    for (row, &x) in times.iter().enumerate() {
        // The span that contains x; the last one contains its end.
        let span = knots.partition_point(|k| *k <= x).clamp(degree + 1, n) - 1;
        let mut values = vec![0.0; degree + 1];
        values[0] = 1.0;
        for d in 1..=degree {
            let mut carried = 0.0;
            for r in 0..d {
                let (left, right) = (knots[span + 1 + r - d], knots[span + 1 + r]);
                let share = values[r] / (right - left);
                values[r] = carried + (right - x) * share;
                carried = (x - left) * share;
            }
            values[d] = carried;
        }
        for (r, value) in values.into_iter().enumerate() {
            out[(row, span - degree + r)] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any cubic is a cubic spline, so the fit reproduces it.
        #[test]
        fn a_cubic_is_reproduced(c in prop::array::uniform4(-2.0..2.0f64), n in 8..40usize, knots in 4..8usize) {
            let curve = |x: f64| c[0] + x * (c[1] + x * (c[2] + x * c[3]));
            let samples: Vec<Vec<f64>> = (0..n).map(|i| vec![curve(i as f64 / (n - 1) as f64), 1.0]).collect();
            let spline = BSpline::fit(&samples, knots, 3).unwrap();
            for x in [0.0, 0.123, 0.5, 0.87, 1.0] {
                let at = spline.at(x);
                prop_assert!((at[0] - curve(x)).abs() < 1e-9 && (at[1] - 1.0).abs() < 1e-9);
                prop_assert!((spline.basis(&[x]).sum() - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let samples = vec![vec![0.0]; 5];
        assert!(BSpline::fit(&samples, 3, 3).is_err() && BSpline::fit(&samples, 6, 3).is_err());
        assert!(BSpline::fit(&[vec![0.0], vec![f64::NAN]], 2, 1).is_err());
        assert!(BSpline::fit(&[vec![0.0], vec![]], 2, 1).is_err() && BSpline::fit(&[], 1, 0).is_err());
        assert_eq!(BSpline::fit(&[vec![2.0], vec![3.0]], 2, 1).unwrap().at(0.5), [2.5]);
    }
}
