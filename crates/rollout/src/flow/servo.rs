//! From a wanted gripper pose to a 7-number action.

use efference_envs::Action;
use efference_geometry::{Isometry3, Vector3, interpolate_isometry};
use serde::{Deserialize, Serialize};

/// Metres per unit of translation action.
const TRANSLATION_M: f64 = 0.05;
/// Radians per unit of rotation action.
const ROTATION_RAD: f64 = 0.5;

/// How fast the gripper moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// Most translation commanded per control step, metres.
    pub step_m: f64,
    /// Most rotation commanded per control step, radians.
    pub step_rad: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { step_m: 0.03, step_rad: 0.2 }
    }
}

/// What is commanded beyond the error, because servos do not cover the whole commanded way within a step.
const GAIN: f64 = 1.3;

/// The action that brings the gripper from `now` towards `target`; `close`: the fingers.
#[must_use]
pub fn servo(now: &Isometry3<f64>, target: &Isometry3<f64>, close: bool, pace: &Pace) -> Action {
    let gap = (target.translation.vector - now.translation.vector) * GAIN;
    let turn = (target.rotation * now.rotation.inverse()).scaled_axis() * GAIN;
    let bound = |v: Vector3<f64>, most: f64| if v.norm() > most { v * (most / v.norm()) } else { v };
    let gap = bound(gap, pace.step_m) / TRANSLATION_M;
    let turn = bound(turn, pace.step_rad) / ROTATION_RAD;
    let finger = if close { 1.0 } else { -1.0 };
    [gap.x, gap.y, gap.z, turn.x, turn.y, turn.z, finger].map(|v: f64| v.clamp(-1.0, 1.0) as f32)
}

/// Distance and angle between two poses.
#[must_use]
pub fn apart(a: &Isometry3<f64>, b: &Isometry3<f64>) -> [f64; 2] {
    [(a.translation.vector - b.translation.vector).norm(), a.rotation.angle_to(&b.rotation)]
}

/// Poses in between, so that neighbours are at most `pace` apart; the first and last are those given. `of` are poses of the
/// thing whose speed counts; the result holds (index of the frame before, share) pairs.
#[must_use]
pub fn densify(of: &[Isometry3<f64>], pace: &Pace) -> Vec<(usize, f64)> {
    let mut out = vec![(0, 0.0)];
    for (i, pair) in of.windows(2).enumerate() {
        let [m, rad] = apart(&pair[0], &pair[1]);
        let parts = (m / pace.step_m).max(rad / pace.step_rad).ceil().clamp(1.0, 1000.0) as usize;
        out.extend((1..=parts).map(|k| (i, k as f64 / parts as f64)));
    }
    out
}

/// The pose at such a place.
#[must_use]
pub fn pose_at(of: &[Isometry3<f64>], (before, share): (usize, f64)) -> Isometry3<f64> {
    match (of.get(before), of.get(before + 1)) {
        (Some(a), Some(b)) => interpolate_isometry(a, b, share),
        (Some(a), None) => *a,
        _ => of.last().copied().unwrap_or_else(Isometry3::identity),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pose() -> impl Strategy<Value = Isometry3<f64>> {
        let six = [-0.4..0.4f64, -0.4..0.4, 0.0..0.5, -1.0..1.0, -1.0..1.0, -1.0..1.0];
        six.prop_map(|[x, y, z, a, b, c]| Isometry3::new(Vector3::new(x, y, z), Vector3::new(a, b, c)))
    }

    proptest! {
        #[test]
        fn an_arm_that_covers_part_of_each_command_arrives(start in pose(), goal in pose(), share in 0.4..0.9f64) {
            let mut now = start;
            let pace = Pace::default();
            for _ in 0..120 {
                let action = servo(&now, &goal, false, &pace);
                prop_assert!(action.iter().all(|v| (-1.0..=1.0).contains(v)));
                let a = action.map(f64::from);
                let step = Vector3::new(a[0], a[1], a[2]) * TRANSLATION_M;
                prop_assert!(step.norm() <= pace.step_m + 1e-6);
                now.translation.vector += step * share;
                let turn = Vector3::new(a[3], a[4], a[5]) * ROTATION_RAD * share;
                now.rotation = efference_geometry::UnitQuaternion::from_scaled_axis(turn) * now.rotation;
            }
            let [m, rad] = apart(&now, &goal);
            prop_assert!(m < 1e-3 && rad < 1e-2, "{m} m, {rad} rad left");
        }

        #[test]
        fn dense_paths_keep_their_ends_and_their_pace(poses in prop::collection::vec(pose(), 1..6)) {
            let pace = Pace { step_m: 0.01, step_rad: 0.1 };
            let places = densify(&poses, &pace);
            let dense: Vec<_> = places.iter().map(|p| pose_at(&poses, *p)).collect();
            let same = |a: &Isometry3<f64>, b: &Isometry3<f64>| apart(a, b)[0] < 1e-9 && apart(a, b)[1] < 1e-6;
            prop_assert!(same(&dense[0], &poses[0]) && same(&dense[dense.len() - 1], &poses[poses.len() - 1]));
            for pair in dense.windows(2) {
                let [m, rad] = apart(&pair[0], &pair[1]);
                prop_assert!(m <= pace.step_m + 1e-9 && rad <= pace.step_rad + 1e-6);
            }
        }
    }
}
