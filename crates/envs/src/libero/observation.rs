//! What the robot sees of itself and of the objects, as LIBERO's observation dictionary has it.

/// The numbers of LIBERO's observation, as sampled: positions and orientations of bodies belong to the start of the
/// physics step in which the sample was taken, joint values to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiberoObservation {
    /// `robot0_joint_pos`: arm joints in radians.
    pub joint_pos: [f64; 7],
    /// `robot0_joint_vel`: rad/s.
    pub joint_vel: [f64; 7],
    /// `robot0_eef_pos`: the grip site in metres, world.
    pub eef_pos: [f64; 3],
    /// `robot0_eef_quat`: the hand's body (a different frame from the site), xyzw, sign as MuJoCo gives it.
    pub eef_quat: [f64; 4],
    /// `robot0_gripper_qpos`: finger joints in metres, the second negative.
    pub gripper_qpos: [f64; 2],
    /// `robot0_gripper_qvel`: m/s.
    pub gripper_qvel: [f64; 2],
    /// The movable objects in the order of the scene (fixtures are not observed).
    pub objects: Vec<ObjectObservation>,
}

/// A movable object's part of the observation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ObjectObservation {
    /// `NAME_pos`: metres, world.
    pub pos: [f64; 3],
    /// `NAME_quat`: xyzw.
    pub quat: [f64; 4],
}

impl LiberoObservation {
    /// `robot0_proprio-state`, 39 numbers: joint angles, their cosines, their sines, joint velocities, eef position and
    /// quaternion, finger positions and velocities.
    pub fn proprio_state(&self) -> [f64; 39] {
        let mut out = [0.0; 39];
        let parts: [&[f64]; 8] = [
            &self.joint_pos,
            &self.joint_pos.map(f64::cos),
            &self.joint_pos.map(f64::sin),
            &self.joint_vel,
            &self.eef_pos,
            &self.eef_quat,
            &self.gripper_qpos,
            &self.gripper_qvel,
        ];
        let mut start = 0;
        for part in parts {
            out[start..start + part.len()].copy_from_slice(part);
            start += part.len();
        }
        out
    }

    /// `object-state`, 14 numbers per object: position, quaternion (xyzw), and both again in the hand's frame.
    pub fn object_state(&self) -> Vec<f64> {
        let mut out = Vec::with_capacity(14 * self.objects.len());
        for object in &self.objects {
            let (pos, quat) = self.in_hand(object);
            out.extend(object.pos);
            out.extend(object.quat);
            out.extend(pos);
            out.extend(quat);
        }
        out
    }

    /// `NAME_to_robot0_eef_pos` and `_quat` (xyzw, w >= 0): the object in a frame at `eef_pos` with the orientation
    /// `eef_quat`. As in the original, poses pass through float32.
    pub fn in_hand(&self, object: &ObjectObservation) -> ([f64; 3], [f64; 4]) {
        let single = |x: f64| f64::from(x as f32);
        let (hand, thing) = (rotation(self.eef_quat).map(single), rotation(object.quat).map(single));
        let between: [f64; 3] = std::array::from_fn(|i| single(object.pos[i]) - single(self.eef_pos[i]));
        let pos = std::array::from_fn(|i| (0..3).map(|k| hand[3 * k + i] * between[k]).sum());
        let turn: [f64; 9] =
            std::array::from_fn(|e| (0..3).map(|k| hand[3 * k + e / 3] * thing[3 * k + e % 3]).sum());
        (pos, quaternion(&turn).map(single))
    }

    /// What LIBERO policies usually take: eef position (3), axis-angle of `eef_quat` (3), finger positions (2).
    pub fn policy_state(&self) -> [f64; 8] {
        let [x, y, z] = self.eef_pos;
        let [a, b, c] = axis_angle(self.eef_quat);
        let [left, right] = self.gripper_qpos;
        [x, y, z, a, b, c, left, right]
    }
}

/// Axis times angle (radians, 0 to 2 pi) of a quaternion xyzw, as LIBERO's evaluators compute it: `v * 2 acos(w) /
/// sqrt(1 - w^2)`, w clipped to -1..=1, zero for w = +-1. The quaternion's sign is not normalised: q and -q differ.
pub fn axis_angle(quat_xyzw: [f64; 4]) -> [f64; 3] {
    let [x, y, z, w] = quat_xyzw;
    let w = w.clamp(-1.0, 1.0);
    let sine = (1.0 - w * w).sqrt();
    if sine < 1e-9 {
        return [0.0; 3];
    }
    let scale = 2.0 * w.acos() / sine;
    [x * scale, y * scale, z * scale]
}

/// Rotation matrix, row-major, of a quaternion xyzw.
fn rotation([x, y, z, w]: [f64; 4]) -> [f64; 9] {
    let s = 2.0 / (x * x + y * y + z * z + w * w).max(f64::MIN_POSITIVE);
    [
        1.0 - s * (y * y + z * z),
        s * (x * y - w * z),
        s * (x * z + w * y),
        s * (x * y + w * z),
        1.0 - s * (x * x + z * z),
        s * (y * z - w * x),
        s * (x * z - w * y),
        s * (y * z + w * x),
        1.0 - s * (x * x + y * y),
    ]
}

/// Quaternion xyzw with w >= 0 of a rotation matrix, row-major: the column of the largest of the four products.
fn quaternion(m: &[f64; 9]) -> [f64; 4] {
    let trace = m[0] + m[4] + m[8];
    let (a, b, c) = (m[7] - m[5], m[2] - m[6], m[3] - m[1]);
    let (d, e, f) = (m[1] + m[3], m[2] + m[6], m[5] + m[7]);
    let candidates = [
        [1.0 + m[0] - m[4] - m[8], d, e, a],
        [d, 1.0 - m[0] + m[4] - m[8], f, b],
        [e, f, 1.0 - m[0] - m[4] + m[8], c],
        [a, b, c, 1.0 + trace],
    ];
    let squared = |q: &[f64; 4]| q.iter().map(|x| x * x).sum::<f64>();
    let mut best = candidates[3];
    for candidate in candidates {
        if squared(&candidate) > squared(&best) {
            best = candidate;
        }
    }
    let scale = squared(&best).sqrt().max(f64::MIN_POSITIVE) * if best[3] < 0.0 { -1.0 } else { 1.0 };
    best.map(|x| x / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product([ax, ay, az, aw]: [f64; 4], [bx, by, bz, bw]: [f64; 4]) -> [f64; 4] {
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    }

    /// The object's frame is the hand's, then the relative one.
    #[test]
    fn an_object_in_the_hand_is_where_it_is_in_the_world() {
        let unit = |q: [f64; 4]| {
            let length = q.iter().map(|x| x * x).sum::<f64>().sqrt();
            q.map(|x| x / length)
        };
        let hands = [[0.999, 0.01, -0.02, 0.001], [0.0, 0.0, 0.0, 1.0], [-0.3, 0.4, 0.1, -0.8]].map(unit);
        let things = [[0.1, 0.7, 0.2, -0.5], [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]].map(unit);
        for hand in hands {
            for thing in things {
                let object = ObjectObservation { pos: [0.3, -0.1, 1.0], quat: thing };
                let seen =
                    LiberoObservation { eef_pos: [0.1, 0.2, 1.2], eef_quat: hand, ..Default::default() };
                let (pos, quat) = seen.in_hand(&object);
                let m = rotation(hand);
                for i in 0..3 {
                    let world: f64 = seen.eef_pos[i] + (0..3).map(|k| m[3 * i + k] * pos[k]).sum::<f64>();
                    assert!((world - object.pos[i]).abs() < 1e-6);
                }
                let back = product(hand, quat);
                let same: f64 = back.iter().zip(thing).map(|(a, b)| a * b).sum();
                assert!(same.abs() > 1.0 - 1e-6 && quat[3] >= 0.0, "{back:?} {thing:?}");
            }
        }
    }
}
