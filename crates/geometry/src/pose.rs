//! Poses as numbers, and poses between poses.

use nalgebra::{Isometry3, Translation3, UnitQuaternion};

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
