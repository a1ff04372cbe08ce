//! A rigid fit that outliers do not bend.

use nalgebra::{Isometry3, Matrix2, Matrix3, Point3, Rotation3, UnitQuaternion, Vector2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{MIN_SPREAD, RigidFit, check, fit_checked};
use crate::{Error, Result};

/// How hypotheses are drawn and judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RansacOptions {
    /// A point farther than this from where the motion puts it is an outlier, metres.
    pub threshold_m: f64,
    /// Fits to the inliers after the best hypothesis, each followed by a new choice of inliers.
    pub refits: usize,
    /// Triangles of three source points smaller than this make no hypothesis, m^2.
    pub min_area_m2: f64,
    /// Most hypotheses drawn (only [`ransac_rigid`]); fewer where many inliers make more of them pointless.
    pub hypotheses: usize,
}

impl Default for RansacOptions {
    /// For objects of 3 to 30 cm: 1 cm, two refits, 1 mm^2, 100 hypotheses (half the points may be wrong: one in eight
    /// triples is good then, and the chance to miss them all is one in a million).
    fn default() -> Self {
        Self { threshold_m: 0.01, refits: 2, min_area_m2: 1e-6, hypotheses: 100 }
    }
}

/// The result of [`ransac_rigid`].
#[derive(Clone, Debug, PartialEq)]
pub struct RansacFit {
    /// To the inliers; the rms is over them.
    pub fit: RigidFit,
    /// One per point.
    pub inliers: Vec<bool>,
    /// Inliers of the best hypothesis and after each refit.
    pub inlier_counts: Vec<usize>,
    /// Index of the best hypothesis among those drawn or given; `None` where none has three inliers and the fit is the plain
    /// weighted one, flagged as degenerate.
    pub best: Option<usize>,
}

/// Chance to miss every good triple at which drawing ends.
const MISS: f64 = 1e-6;

/// The rigid motion that most points agree with (Fischler and Bolles 1981), refined on its inliers.
///
/// Points of weight 0 are neither drawn nor counted. The same seed gives the same result.
///
/// # Errors
/// As [`super::fit_rigid`]; a threshold that is not above 0.
pub fn ransac_rigid(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weights: Option<&[f64]>,
    options: &RansacOptions,
    seed: u64,
) -> Result<RansacFit> {
    check(source, target, weights)?;
    let mut search = Search::new(source, target, weights, options)?;
    let usable: Vec<usize> = (0..source.len()).filter(|&i| search.weight(i) > 0.0).collect();
    let n = usable.len();
    if n >= 3 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut needed = options.hypotheses;
        let mut drawn = 0;
        while drawn < needed {
            // Three different places: the second skips the first, the third skips both.
            let a = rng.random_range(0..n);
            let mut b = rng.random_range(0..n - 1);
            b += usize::from(b >= a);
            let mut c = rng.random_range(0..n - 2);
            for taken in [a.min(b), a.max(b)] {
                c += usize::from(c >= taken);
            }
            if search.offer(drawn, [usable[a], usable[b], usable[c]]) {
                let good = (search.agreed() as f64 / n as f64).powi(3);
                // Without any inlier yet the quotient is infinite; casts saturate.
                let enough = if good < 1.0 { MISS.ln() / (1.0 - good).ln().min(-1e-9) } else { 0.0 };
                needed = needed.min((drawn + 1).saturating_add(enough.ceil() as usize));
            }
            drawn += 1;
        }
    }
    Ok(search.finish())
}

/// As [`ransac_rigid`] with given triples of points as hypotheses, in this order: more inliers win, then the smaller sum
/// of squares over them, then the earlier.
///
/// # Errors
/// As [`ransac_rigid`]; a triple that names a point that is not there.
pub fn ransac_rigid_from(
    source: &[Point3<f64>],
    target: &[Point3<f64>],
    weights: Option<&[f64]>,
    triples: &[[usize; 3]],
    options: &RansacOptions,
) -> Result<RansacFit> {
    check(source, target, weights)?;
    if let Some(bad) = triples.iter().flatten().find(|i| **i >= source.len()) {
        return Err(Error::Range {
            what: "point of a triple",
            value: *bad as f64,
            range: "below the points",
        });
    }
    let mut search = Search::new(source, target, weights, options)?;
    for (index, triple) in triples.iter().enumerate() {
        search.offer(index, *triple);
    }
    Ok(search.finish())
}

struct Search<'a> {
    source: &'a [Point3<f64>],
    target: &'a [Point3<f64>],
    weights: Option<&'a [f64]>,
    options: &'a RansacOptions,
    /// Coordinates in rows, x y z of source and target, of the points with weight: the loop over points is vectorised.
    rows: [Vec<f64>; 6],
    best: Option<(usize, Isometry3<f64>)>,
    best_count: usize,
    best_squares: f64,
}

impl<'a> Search<'a> {
    fn new(
        source: &'a [Point3<f64>],
        target: &'a [Point3<f64>],
        weights: Option<&'a [f64]>,
        options: &'a RansacOptions,
    ) -> Result<Self> {
        if !(options.threshold_m > 0.0 && options.threshold_m.is_finite()) {
            let value = options.threshold_m;
            return Err(Error::Range { what: "threshold_m", value, range: "above 0" });
        }
        let used = |i: &usize| weights.is_none_or(|weights| weights[*i] > 0.0);
        let row = |points: &[Point3<f64>], axis: usize| {
            (0..points.len()).filter(used).map(|i| points[i][axis]).collect::<Vec<f64>>()
        };
        let rows = std::array::from_fn(|r| row(if r < 3 { source } else { target }, r % 3));
        let best_squares = f64::INFINITY;
        Ok(Self { source, target, weights, options, rows, best: None, best_count: 0, best_squares })
    }

    fn weight(&self, i: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights[i])
    }

    /// Tries the motion of three points; whether it is the best so far.
    fn offer(&mut self, index: usize, triple: [usize; 3]) -> bool {
        let a = triple.map(|i| self.source[i]);
        let area = 0.5 * (a[1] - a[0]).cross(&(a[2] - a[0])).norm();
        if area < self.options.min_area_m2 {
            return false;
        }
        let Some(pose) = pose_of_three(a, triple.map(|i| self.target[i])) else { return false };
        let Some((count, squares)) = self.score(&pose, self.best_count) else { return false };
        let better = count > self.best_count || (count == self.best_count && squares < self.best_squares);
        if better {
            (self.best, self.best_count, self.best_squares) = (Some((index, pose)), count, squares);
        }
        better
    }

    /// Number of inliers, and the sum of squares over them; `None` as soon as they must be fewer than `least`.
    fn score(&self, pose: &Isometry3<f64>, least: usize) -> Option<(usize, f64)> {
        /// Points between two looks at the count.
        const BLOCK: usize = 32;
        const LANES: usize = 4;
        let limit = self.options.threshold_m * self.options.threshold_m;
        let r = pose.rotation.to_rotation_matrix();
        let (m, t) = (r.matrix(), pose.translation.vector);
        let n = self.rows[0].len();
        let [x, y, z, u, v, w] = self.rows.each_ref().map(|row| &row[..n]);
        let squared = |i: usize| {
            let dx = m.m11 * x[i] + m.m12 * y[i] + m.m13 * z[i] + t.x - u[i];
            let dy = m.m21 * x[i] + m.m22 * y[i] + m.m23 * z[i] + t.y - v[i];
            let dz = m.m31 * x[i] + m.m32 * y[i] + m.m33 * z[i] + t.z - w[i];
            dx * dx + dy * dy + dz * dz
        };
        // Sums in lanes, in a fixed order: the compiler makes vectors of them.
        let (mut counts, mut sums) = ([0.0f64; LANES], [0.0f64; LANES]);
        for from in (0..n).step_by(BLOCK) {
            let to = (from + BLOCK).min(n);
            let whole = to - (to - from) % LANES;
            for i in (from..whole).step_by(LANES) {
                for lane in 0..LANES {
                    let d = squared(i + lane);
                    let inside = if d <= limit { 1.0 } else { 0.0 };
                    counts[lane] += inside;
                    sums[lane] += inside * d;
                }
            }
            for d in (whole..to).map(squared).filter(|d| *d <= limit) {
                counts[0] += 1.0;
                sums[0] += d;
            }
            if (counts.iter().sum::<f64>() as usize) + (n - to) < least {
                return None;
            }
        }
        Some((counts.iter().sum::<f64>() as usize, sums.iter().sum()))
    }

    /// Points that agree with the best hypothesis once it is fitted to its inliers: three noisy points alone find fewer.
    fn agreed(&self) -> usize {
        let Some((_, pose)) = &self.best else { return 0 };
        let inliers = self.inliers(pose);
        let fit =
            fit_checked(self.source, self.target, |i| if inliers[i] { self.weight(i) } else { 0.0 }, 0.0);
        if fit.degenerate {
            return self.best_count;
        }
        self.score(&fit.pose, 0).map_or(0, |(count, _)| count).max(self.best_count)
    }

    fn inliers(&self, pose: &Isometry3<f64>) -> Vec<bool> {
        let limit = self.options.threshold_m * self.options.threshold_m;
        let near = |i: usize| (pose * self.source[i] - self.target[i]).norm_squared() <= limit;
        (0..self.source.len()).map(|i| self.weight(i) > 0.0 && near(i)).collect()
    }

    fn finish(self) -> RansacFit {
        let count = |inliers: &[bool]| inliers.iter().filter(|x| **x).count();
        let Some((index, mut pose)) = self.best.filter(|_| self.best_count >= 3) else {
            // Nothing to choose by, not even three points that agree: all points with weight are taken.
            let fit = fit_checked(self.source, self.target, |i| self.weight(i), 0.0);
            let inliers: Vec<bool> = (0..self.source.len()).map(|i| self.weight(i) > 0.0).collect();
            let fit = RigidFit { degenerate: true, ..fit };
            return RansacFit { fit, inlier_counts: vec![count(&inliers)], inliers, best: None };
        };
        let mut inliers = self.inliers(&pose);
        let mut counts = vec![count(&inliers)];
        let fit_to = |inliers: &[bool]| {
            fit_checked(self.source, self.target, |i| if inliers[i] { self.weight(i) } else { 0.0 }, 0.0)
        };
        let mut refit = fit_to(&inliers);
        for _ in 0..self.options.refits {
            if refit.degenerate {
                break;
            }
            pose = refit.pose;
            inliers = self.inliers(&pose);
            counts.push(count(&inliers));
            refit = fit_to(&inliers);
        }
        let (mut left, mut total) = (0.0, 0.0);
        for (i, _) in inliers.iter().enumerate().filter(|(_, inside)| **inside) {
            left += self.weight(i) * (pose * self.source[i] - self.target[i]).norm_squared();
            total += self.weight(i);
        }
        let rms_m = if total > 0.0 { (left / total).sqrt() } else { 0.0 };
        let fit = RigidFit { pose, rms_m, ..refit };
        RansacFit { fit, inliers, inlier_counts: counts, best: Some(index) }
    }
}

/// The least-squares fit of three pairs, in closed form; `None` where the rotation is undetermined.
///
/// Two triangles are planar, so the rotation lays one plane on the other, with either side up, and the rest is the best
/// orthogonal 2x2 matrix within the plane: its side decides which way up.
fn pose_of_three(a: [Point3<f64>; 3], b: [Point3<f64>; 3]) -> Option<Isometry3<f64>> {
    let mean = |p: &[Point3<f64>; 3]| Point3::from((p[0].coords + p[1].coords + p[2].coords) / 3.0);
    let (from, to) = (mean(&a), mean(&b));
    // Axes in the plane and the normal, and the corners in them.
    let plane = |p: &[Point3<f64>; 3], middle: &Point3<f64>| {
        let x = (p[1] - p[0]).try_normalize(f64::MIN_POSITIVE)?;
        let across = (p[2] - p[0]) - x * x.dot(&(p[2] - p[0]));
        let y = across.try_normalize(f64::MIN_POSITIVE)?;
        let corners = p.map(|p| p - middle).map(|p| Vector2::new(x.dot(&p), y.dot(&p)));
        Some((Matrix3::from_columns(&[x, y, x.cross(&y)]), corners))
    };
    let ((axes_a, flat_a), (axes_b, flat_b)) = (plane(&a, &from)?, plane(&b, &to)?);
    let cross = (0..3).fold(Matrix2::zeros(), |sum, i| sum + flat_b[i] * flat_a[i].transpose());
    let side = if cross.determinant() < 0.0 { -1.0 } else { 1.0 };
    let (c, s) = (cross.m11 + side * cross.m22, cross.m21 - side * cross.m12);
    let (length, squares) = (c.hypot(s), cross.norm_squared());
    // Singular values of the 2x2 matrix: their sum is `length`, the sum of their squares `squares`.
    let apart = (2.0 * squares - length * length).max(0.0).sqrt();
    if length - apart <= MIN_SPREAD * (length + apart) {
        return None;
    }
    let (c, s) = (c / length, s / length);
    let within = Matrix3::new(c, -side * s, 0.0, s, side * c, 0.0, 0.0, 0.0, side);
    let turn = Rotation3::from_matrix_unchecked(axes_b * within * axes_a.transpose());
    let rotation = UnitQuaternion::from_rotation_matrix(&turn);
    Some(Isometry3::from_parts((to - rotation * from).into(), rotation))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nalgebra::Vector3;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn three_pairs_in_closed_form_are_the_least_squares_fit(
            a in prop::array::uniform9(-1.0..1.0f64), b in prop::array::uniform9(-1.0..1.0f64),
        ) {
            let corners = |x: [f64; 9]| [0, 3, 6].map(|i| Point3::from(Vector3::new(x[i], x[i + 1], x[i + 2])));
            let (a, b) = (corners(a), corners(b));
            let fit = super::super::fit_rigid(&a, &b, None).unwrap();
            prop_assume!(fit.singular_values[1] > 1e-4);
            let pose = pose_of_three(a, b).unwrap();
            prop_assert!(pose.rotation.angle_to(&fit.pose.rotation) < 1e-6, "{pose} {}", fit.pose);
            prop_assert!((pose.translation.vector - fit.pose.translation.vector).norm() < 1e-6);
        }
    }

    #[test]
    fn three_points_on_a_line_have_no_pose() {
        let line = [0.0, 1.0, 2.0].map(|x| Point3::new(x, 0.0, 0.0));
        let triangle = [Point3::origin(), Point3::new(1.0, 0.0, 0.0), Point3::new(0.0, 1.0, 0.0)];
        assert!(pose_of_three(line, triangle).is_none() && pose_of_three(triangle, line).is_none());
        assert!(pose_of_three([Point3::origin(); 3], triangle).is_none());
    }
}
