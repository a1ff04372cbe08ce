//! Poses as numbers, and poses between poses.

use nalgebra::{Isometry3, Translation3, UnitQuaternion, Vector3};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Position and extrinsic xyz Euler angles (R = Rz(c) Ry(b) Rx(a)) as six numbers, metres and radians, to a pose.
#[must_use]
pub fn pose_from_euler(numbers: &[f64; 6]) -> Isometry3<f64> {
    let [x, y, z, a, b, c] = *numbers;
    Isometry3::from_parts(Translation3::new(x, y, z), UnitQuaternion::from_euler_angles(a, b, c))
}

/// The inverse of [`pose_from_euler`]; angles within -pi and pi, the second within -pi/2 and pi/2.
#[must_use]
pub fn pose_to_euler(pose: &Isometry3<f64>) -> [f64; 6] {
    let (t, (a, b, c)) = (pose.translation.vector, pose.rotation.euler_angles());
    [t.x, t.y, t.z, a, b, c]
}

/// Ranges of the six numbers of a pose: metres, then radians.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoseBounds {
    low: [f64; 6],
    high: [f64; 6],
}

impl PoseBounds {
    /// From lower and upper ends.
    ///
    /// # Errors
    /// A range that is empty or not finite.
    pub fn new(low: [f64; 6], high: [f64; 6]) -> Result<Self> {
        for (l, h) in low.iter().zip(&high) {
            let length = h - l;
            if !(length > 0.0 && length.is_finite()) {
                return Err(Error::Range {
                    what: "length of a range",
                    value: length,
                    range: "above 0, finite",
                });
            }
        }
        Ok(Self { low, high })
    }

    /// A workspace with every rotation.
    ///
    /// # Errors
    /// As [`PoseBounds::new`].
    pub fn workspace(low_m: [f64; 3], high_m: [f64; 3]) -> Result<Self> {
        let pi = std::f64::consts::PI;
        let ([a, b, c], [d, e, f]) = (low_m, high_m);
        Self::new([a, b, c, -pi, -pi, -pi], [d, e, f, pi, pi, pi])
    }

    /// Lower ends.
    #[must_use]
    pub fn low(&self) -> &[f64; 6] {
        &self.low
    }

    /// Upper ends.
    #[must_use]
    pub fn high(&self) -> &[f64; 6] {
        &self.high
    }

    /// To -1 .. 1.
    #[must_use]
    pub fn normalise(&self, numbers: &[f64; 6]) -> [f64; 6] {
        let at = |i: usize| (numbers[i] - self.low[i]) / (self.high[i] - self.low[i]) * 2.0 - 1.0;
        std::array::from_fn(at)
    }

    /// From -1 .. 1.
    #[must_use]
    pub fn restore(&self, normalised: &[f64; 6]) -> [f64; 6] {
        let at = |i: usize| (normalised[i] + 1.0) / 2.0 * (self.high[i] - self.low[i]) + self.low[i];
        std::array::from_fn(at)
    }

    /// Whether a position lies inside, ends included.
    #[must_use]
    pub fn contains(&self, position: &Vector3<f64>) -> bool {
        (0..3).all(|i| (self.low[i]..=self.high[i]).contains(&position[i]))
    }

    /// The nearest position inside.
    #[must_use]
    pub fn clamp(&self, position: &Vector3<f64>) -> Vector3<f64> {
        Vector3::from_fn(|i, _| position[i].clamp(self.low[i], self.high[i]))
    }
}

/// The pose a share `s` of the way from `a` to `b`: positions linearly, rotations along the shorter arc.
#[must_use]
pub fn interpolate_isometry(a: &Isometry3<f64>, b: &Isometry3<f64>, s: f64) -> Isometry3<f64> {
    let position = a.translation.vector.lerp(&b.translation.vector, s);
    Isometry3::from_parts(Translation3::from(position), slerp(&a.rotation, &b.rotation, s))
}

/// Along the shorter arc. Half a turn, where two arcs are equally short, takes one of them (nalgebra's `slerp` panics).
fn slerp(a: &UnitQuaternion<f64>, b: &UnitQuaternion<f64>, s: f64) -> UnitQuaternion<f64> {
    let between = a.rotation_to(b);
    UnitQuaternion::from_scaled_axis(between.scaled_axis() * s) * a
}

/// `n` poses from `a` to `b`, both included (only `a` for 1).
#[must_use]
pub fn interpolate_poses(a: &Isometry3<f64>, b: &Isometry3<f64>, n: usize) -> Vec<Isometry3<f64>> {
    let last = n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| interpolate_isometry(a, b, i as f64 / last)).collect()
}

/// Poses needed from `a` to `b` so that neighbours are about these steps apart, metres and radians; at least 2.
///
/// # Errors
/// A step that is not above 0.
pub fn interpolation_steps(
    a: &Isometry3<f64>,
    b: &Isometry3<f64>,
    step_m: f64,
    step_rad: f64,
) -> Result<usize> {
    for (what, value) in [("step_m", step_m), ("step_rad", step_rad)] {
        if value.is_nan() || value <= 0.0 {
            return Err(Error::Range { what, value, range: "above 0" });
        }
    }
    let steps = (pose_distance(a, b).0 / step_m).ceil().max((pose_distance(a, b).1 / step_rad).ceil());
    Ok((steps as usize).max(2))
}

/// Distance of the positions, metres, and angle between the rotations, radians.
#[must_use]
pub fn pose_distance(a: &Isometry3<f64>, b: &Isometry3<f64>) -> (f64, f64) {
    ((a.translation.vector - b.translation.vector).norm(), a.rotation.angle_to(&b.rotation))
}

/// A path through `poses` with neighbours about these steps apart; every pose given is on it.
///
/// # Errors
/// As [`interpolation_steps`].
pub fn densify(poses: &[Isometry3<f64>], step_m: f64, step_rad: f64) -> Result<Vec<Isometry3<f64>>> {
    let mut dense: Vec<Isometry3<f64>> = poses.first().copied().into_iter().collect();
    for pair in poses.windows(2) {
        // Steps are counted in poses, both ends included, as ReKep does: one more, so that no gap is longer than a step.
        let n = interpolation_steps(&pair[0], &pair[1], step_m, step_rad)? + 1;
        let (distance, angle) = pose_distance(&pair[0], &pair[1]);
        let n = if distance <= step_m && angle <= step_rad { 2 } else { n };
        dense.extend(interpolate_poses(&pair[0], &pair[1], n).into_iter().skip(1));
    }
    Ok(dense)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn pose() -> impl Strategy<Value = Isometry3<f64>> {
        (prop::array::uniform3(-1.0..1.0f64), prop::array::uniform3(-1.8..1.8f64))
            .prop_map(|(t, r)| Isometry3::new(Vector3::from(t), Vector3::from(r)))
    }

    proptest! {
        #[test]
        fn numbers_and_poses_are_the_same(a in pose()) {
            let back = pose_from_euler(&pose_to_euler(&a));
            prop_assert!(pose_distance(&a, &back).0 < 1e-12 && pose_distance(&a, &back).1 < 1e-7);
            let bounds = PoseBounds::workspace([-1.0, -2.0, -1.0], [1.0, 1.0, 3.0]).unwrap();
            let numbers = pose_to_euler(&a);
            let normal = bounds.normalise(&numbers);
            prop_assert!(normal.iter().all(|x| x.abs() <= 1.0 + 1e-12));
            for (x, y) in bounds.restore(&normal).iter().zip(&numbers) {
                prop_assert!((x - y).abs() < 1e-12);
            }
        }

        #[test]
        fn a_dense_path_has_no_gap_and_keeps_its_poses(a in pose(), b in pose(), c in pose()) {
            let dense = densify(&[a, b, c], 0.05, 0.34).unwrap();
            for pair in dense.windows(2) {
                let (distance, angle) = pose_distance(&pair[0], &pair[1]);
                prop_assert!(distance < 0.05 + 1e-9 && angle < 0.34 + 1e-9, "{distance} {angle}");
            }
            for x in [&a, &b, &c] {
                prop_assert!(dense.iter().any(|y| pose_distance(x, y).0 < 1e-9));
            }
        }
    }

    #[test]
    fn half_a_turn_and_odd_requests() {
        let a = Isometry3::identity();
        let b = Isometry3::new(Vector3::x(), Vector3::z() * std::f64::consts::PI);
        let middle = interpolate_isometry(&a, &b, 0.5);
        assert!((middle.rotation.angle() - std::f64::consts::FRAC_PI_2).abs() < 1e-9);
        assert_eq!(interpolate_poses(&a, &b, 1), [a]);
        assert!(interpolate_poses(&a, &b, 0).is_empty() && densify(&[], 0.1, 0.1).unwrap().is_empty());
        assert!(
            interpolation_steps(&a, &b, 0.0, 0.1).is_err()
                && interpolation_steps(&a, &b, 0.1, f64::NAN).is_err()
        );
        assert!(PoseBounds::workspace([0.0; 3], [1.0, 0.0, 1.0]).is_err());
        assert!(PoseBounds::workspace([0.0; 3], [1.0, f64::INFINITY, 1.0]).is_err());
    }
}
