//! Where the object has to end.

use std::f64::consts::{FRAC_PI_2, PI, TAU};

use efference_geometry::{Isometry3, Point3, UnitQuaternion, Vector3};
use nalgebra::{Matrix3, Rotation3, Translation3};

use super::layout::standing;
use super::wear::PEG_RADIUS_M;
use super::{FlowTask, Layout, Sizes};

/// Opening of the drawer that counts, metres.
const DRAWER_OPEN_M: f64 = 0.07;
/// How far the drawer is pulled by a motion, metres.
pub(crate) const DRAWER_GOAL_M: f64 = 0.10;
/// Tilt of a cup that counts as pouring, and that of a goal, radians.
const POUR_TILT_RAD: f64 = 0.90;
const POUR_GOAL_RAD: f64 = 1.25;
/// Height of the cup's lip above the bowl's rim in a goal, metres.
const POUR_LIP_M: f64 = 0.065;
/// Depth of the peg's end below the holder's rim, metres.
const INSERT_GOAL_M: f64 = 0.032;

/// How exactly a pose must fit: a wish may be off by what the hardware forgives, a state may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Wished,
    Real,
}

/// A cup that pours from direction `yaw` (towards which its top leans) into the bowl.
pub(crate) fn pouring(layout: &Layout, present: &Isometry3<f64>, yaw: f64) -> Isometry3<f64> {
    let Sizes::Pour { radius_m, height_m, bowl_height_m, bowl_radius_m } = layout.sizes else {
        return *present;
    };
    let ahead = Vector3::new(yaw.cos(), yaw.sin(), 0.0);
    let tilt = UnitQuaternion::from_scaled_axis(Vector3::z().cross(&ahead) * POUR_GOAL_RAD);
    let up = tilt * Vector3::z();
    let lip = layout.target.translation.vector - ahead * 0.2 * bowl_radius_m
        + Vector3::z() * (bowl_height_m + POUR_LIP_M);
    // From the lip to the middle of the opening, and down the axis.
    let across = Vector3::z() * POUR_GOAL_RAD.sin() - ahead * POUR_GOAL_RAD.cos();
    let middle = lip + across * radius_m - up * (0.5 * height_m);
    let yaw_only = upright_part(&present.rotation);
    Isometry3::from_parts(Translation3::from(middle), tilt * yaw_only)
}

/// The turn about the vertical that is left when the object's z is brought upright the short way.
fn upright_part(rotation: &UnitQuaternion<f64>) -> UnitQuaternion<f64> {
    let up = rotation * Vector3::z();
    let back = UnitQuaternion::rotation_between(&up, &Vector3::z());
    back.map_or(*rotation, |back| back * rotation)
}

/// Poses that solve the task, all of them where they are few, a fair choice where they are many.
pub(crate) fn goals(layout: &Layout, present: &Isometry3<f64>) -> Vec<Isometry3<f64>> {
    match layout.sizes {
        Sizes::Pour { .. } => (0..16).map(|i| pouring(layout, present, TAU * f64::from(i) / 16.0)).collect(),
        Sizes::Insert { half_length_m, holder_height_m, .. } => {
            let middle = Vector3::z() * (holder_height_m - INSERT_GOAL_M + half_length_m);
            let turned = |quarter: i32, flip: bool| {
                let yaw = UnitQuaternion::from_scaled_axis(Vector3::z() * (FRAC_PI_2 * f64::from(quarter)));
                let over = UnitQuaternion::from_scaled_axis(Vector3::x() * if flip { PI } else { 0.0 });
                layout.target * Isometry3::from_parts(Translation3::from(middle), yaw * over)
            };
            (0..8).map(|i| turned(i % 4, i >= 4)).collect()
        }
        Sizes::Hang { .. } => {
            let rolls = [0.0, 0.3, -0.3, 0.6, -0.6];
            [false, true]
                .iter()
                .flat_map(|flip| rolls.map(|roll| hanging(layout, *flip, roll, 0.5)))
                .collect()
        }
        Sizes::Drawer { .. } => vec![layout.object * Isometry3::translation(0.0, -DRAWER_GOAL_M, 0.0)],
        Sizes::Push { half_m, .. } => {
            let xy = layout.target.translation.vector.xy();
            let (_, _, yaw) = present.rotation.euler_angles();
            vec![standing(xy, half_m[2], yaw)]
        }
    }
}

/// Where the stand's peg leaves the pole, and its tip, world frame.
pub(crate) fn stand_peg(layout: &Layout) -> [Point3<f64>; 2] {
    let Sizes::Hang { peg_height_m, peg_length_m, peg_tilt_rad, .. } = layout.sizes else {
        return [Point3::origin(); 2];
    };
    let along = Vector3::new(peg_tilt_rad.cos(), 0.0, peg_tilt_rad.sin());
    let base = Point3::new(0.0, 0.0, peg_height_m);
    [layout.target * base, layout.target * (base + along * peg_length_m)]
}

/// A ring that hangs on the stand's peg at this share of its length; `flip`: the other face is in front. `roll` about the
/// peg; at 0 the tab points down.
pub(crate) fn hanging(layout: &Layout, flip: bool, roll: f64, share: f64) -> Isometry3<f64> {
    let Sizes::Hang { hole_radius_m, .. } = layout.sizes else { return Isometry3::identity() };
    let [base, tip] = stand_peg(layout);
    let ahead = (tip - base).normalize();
    let up = (Vector3::z() - ahead * ahead.z).normalize();
    // Roll about the peg moves the tab, not the place under it.
    let below = hole_radius_m - PEG_RADIUS_M - 0.004;
    let middle = base + (tip - base) * share - up * below;
    let z = if flip { -ahead } else { ahead };
    let x = UnitQuaternion::from_scaled_axis(ahead * roll) * -up;
    let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_columns(&[x, z.cross(&x), z]));
    let rotation = UnitQuaternion::from_rotation_matrix(&rotation);
    Isometry3::from_parts(Translation3::from(middle.coords), rotation)
}

/// Whether an object at this pose has reached the goal.
pub(crate) fn reached(layout: &Layout, pose: &Isometry3<f64>, fit: Fit) -> bool {
    let wished = fit == Fit::Wished;
    match layout.sizes {
        Sizes::Pour { radius_m, height_m, bowl_radius_m, bowl_height_m } => {
            let up = pose.rotation * Vector3::z();
            let tilt = up.z.clamp(-1.0, 1.0).acos();
            if !(POUR_TILT_RAD..=2.6).contains(&tilt) {
                return false;
            }
            let opening = pose * Point3::new(0.0, 0.0, 0.5 * height_m);
            // The lowest point of the rim is where it would run out.
            let down = (up * up.z - Vector3::z()).normalize();
            let lip = opening + down * radius_m;
            let off = (lip - layout.target.translation.vector).coords.xy().norm();
            off < bowl_radius_m && (bowl_height_m - 0.005..bowl_height_m + 0.2).contains(&lip.z)
        }
        Sizes::Insert { half_width_m, half_length_m, holder_half_m, holder_height_m } => {
            let inside = layout.target.inv_mul(pose);
            let axis = inside.rotation * Vector3::z();
            let lower = inside.translation.vector - axis * (half_length_m * axis.z.signum());
            let tilt = axis.z.abs().min(1.0).acos();
            let side = inside.rotation * Vector3::x();
            let quarter = side.y.atan2(side.x).rem_euclid(FRAC_PI_2);
            let twist = quarter.min(FRAC_PI_2 - quarter);
            let slack = holder_half_m - half_width_m + if wished { 0.010 } else { 0.003 };
            let deep = holder_height_m - lower.z;
            let (tilt_rad, twist_rad) = if wished { (0.21, 0.35) } else { (0.26, 0.6) };
            lower.x.abs().max(lower.y.abs()) < slack
                && deep > 0.015
                && lower.z > -0.012
                && tilt < tilt_rad
                && twist < twist_rad
        }
        Sizes::Hang { hole_radius_m, .. } => {
            let [base, tip] = stand_peg(layout).map(|p| pose.inverse_transform_point(&p));
            // Where the peg's axis crosses the plane of the ring.
            let rise = tip.z - base.z;
            if rise.abs() < 0.7 * (tip - base).norm() {
                return false;
            }
            let share = -base.z / rise;
            let crossing = base + (tip - base) * share;
            let slack = if wished { 0.004 } else { 0.001 };
            (0.10..0.88).contains(&share)
                && crossing.coords.xy().norm() < hole_radius_m - PEG_RADIUS_M + slack
        }
        Sizes::Drawer { .. } => {
            let moved = layout.object.inv_mul(pose);
            let out = -moved.translation.y;
            let aside = moved.translation.x.hypot(moved.translation.z);
            out > DRAWER_OPEN_M && aside < 0.02 && moved.rotation.angle() < 0.25
        }
        Sizes::Push { .. } => {
            (pose.translation.vector - layout.target.translation.vector).xy().norm() < 0.025
        }
    }
}

/// Metres that the object still has to travel, roughly, with radians counted as 5 cm each; 0 at a goal.
pub(crate) fn remaining(layout: &Layout, pose: &Isometry3<f64>) -> f64 {
    if reached(layout, pose, Fit::Real) {
        return 0.0;
    }
    let left = |goal: &Isometry3<f64>| {
        let turn = goal.rotation.angle_to(&pose.rotation);
        (goal.translation.vector - pose.translation.vector).norm() + 0.05 * turn
    };
    goals(layout, pose).iter().map(left).fold(f64::INFINITY, f64::min)
}

/// Whether success needs the object in the hand at the end.
pub(crate) const fn ends_in_hand(task: FlowTask) -> bool {
    matches!(task, FlowTask::Pour)
}
