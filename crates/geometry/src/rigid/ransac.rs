//! A rigid fit that outliers do not bend.

use nalgebra::{Isometry3, Point3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{MIN_SPREAD, RigidFit, check, fit_checked, svd3};
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
    /// Index of the best hypothesis among those drawn or given; `None` where none could be used and the fit is the plain
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
                let share = search.best_count as f64 / n as f64;
                let good = share.powi(3);
                let enough = if good >= 1.0 { 0.0 } else { MISS.ln() / (1.0 - good).ln() };
                needed = needed.min(drawn + 1 + enough.ceil().max(0.0) as usize).min(options.hypotheses);
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
        let (count, squares) = self.score(&pose);
        let better = count > self.best_count || (count == self.best_count && squares < self.best_squares);
        if better {
            (self.best, self.best_count, self.best_squares) = (Some((index, pose)), count, squares);
        }
        better
    }

    /// Number of inliers, and the sum of squares over them.
    fn score(&self, pose: &Isometry3<f64>) -> (usize, f64) {
        let limit = self.options.threshold_m * self.options.threshold_m;
        let r = pose.rotation.to_rotation_matrix();
        let (m, t) = (r.matrix(), pose.translation.vector);
        let [x, y, z, u, v, w] = &self.rows;
        let n = x.len();
        let (y, z, u, v, w) = (&y[..n], &z[..n], &u[..n], &v[..n], &w[..n]);
        // Sums in four lanes, in a fixed order.
        let (mut counts, mut sums) = ([0.0f64; 4], [0.0f64; 4]);
        let mut add = |lane: usize, i: usize| {
            let dx = m[(0, 0)] * x[i] + m[(0, 1)] * y[i] + m[(0, 2)] * z[i] + t.x - u[i];
            let dy = m[(1, 0)] * x[i] + m[(1, 1)] * y[i] + m[(1, 2)] * z[i] + t.y - v[i];
            let dz = m[(2, 0)] * x[i] + m[(2, 1)] * y[i] + m[(2, 2)] * z[i] + t.z - w[i];
            let squared = dx * dx + dy * dy + dz * dz;
            let inside = if squared <= limit { 1.0 } else { 0.0 };
            counts[lane] += inside;
            sums[lane] += inside * squared;
        };
        let whole = n - n % 4;
        for i in (0..whole).step_by(4) {
            for lane in 0..4 {
                add(lane, i + lane);
            }
        }
        for i in whole..n {
            add(0, i);
        }
        (counts.iter().sum::<f64>() as usize, sums.iter().sum())
    }

    fn inliers(&self, pose: &Isometry3<f64>) -> Vec<bool> {
        let limit = self.options.threshold_m * self.options.threshold_m;
        let near = |i: usize| (pose * self.source[i] - self.target[i]).norm_squared() <= limit;
        (0..self.source.len()).map(|i| self.weight(i) > 0.0 && near(i)).collect()
    }

    fn finish(self) -> RansacFit {
        let count = |inliers: &[bool]| inliers.iter().filter(|x| **x).count();
        let Some((index, mut pose)) = self.best else {
            // Nothing to choose by: all points with weight are taken.
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

/// The rigid fit of three pairs; `None` where the rotation is undetermined.
fn pose_of_three(a: [Point3<f64>; 3], b: [Point3<f64>; 3]) -> Option<Isometry3<f64>> {
    let mean = |p: &[Point3<f64>; 3]| Point3::from((p[0].coords + p[1].coords + p[2].coords) / 3.0);
    let (from, to) = (mean(&a), mean(&b));
    let cross =
        (0..3).fold(nalgebra::Matrix3::zeros(), |sum, i| sum + (a[i] - from) * (b[i] - to).transpose());
    let svd = svd3::signed_svd(&cross);
    if svd.s[1] <= MIN_SPREAD * svd.s[0] {
        return None;
    }
    let turn = nalgebra::Rotation3::from_matrix_unchecked(svd.v * svd.u.transpose());
    let rotation = nalgebra::UnitQuaternion::from_rotation_matrix(&turn);
    Some(Isometry3::from_parts((to - rotation * from).into(), rotation))
}
