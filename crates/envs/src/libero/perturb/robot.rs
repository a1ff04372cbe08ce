//! Another pose of the arm at the start.

use rand::Rng;

use crate::libero::Meta;

/// Offsets of the arm's joint angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RobotStart {
    /// Number of the variant, from 1; 0 stands for none.
    pub variant: u64,
}

/// The largest offset of a joint, radians. The saved states differ by about 0.02.
const LARGEST: f64 = 0.15;
/// How far from a joint's end it stays, radians.
const MARGIN: f64 = 0.05;

impl RobotStart {
    /// Adds the variant's offsets to the arm's joints.
    pub(super) fn apply(&self, qpos: &mut [f64], meta: &Meta) {
        let mut draws = super::draws(3, [self.variant, 0, 0]);
        for joint in &meta.robot.joints {
            let offset = draws.random_range(-LARGEST..LARGEST);
            let [low, high] = joint.range;
            let angle = &mut qpos[joint.qpos_adr];
            let moved = *angle + offset;
            // A joint without range, or one that is saved outside it, keeps its angle.
            if moved > low + MARGIN && moved < high - MARGIN {
                *angle = moved;
            }
        }
    }
}
