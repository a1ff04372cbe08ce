//! Where a parallel gripper can hold simple shapes.
//!
//! Frame of a grasp: the gripper's, which moves along its -z to the object and closes its fingers along y.

use efference_geometry::{Isometry3, UnitQuaternion, Vector3};
use nalgebra::{Matrix3, Rotation3, Translation3, Unit};

/// A part of an object that can be held, in its own frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GraspShape {
    /// Half-lengths along x, y, z. A wall, a block, a bar.
    Box {
        /// Metres.
        half_m: [f64; 3],
    },
    /// A cylinder along z, or a capsule without its caps: a peg, a body, a handle.
    Cylinder {
        /// Metres.
        radius_m: f64,
        /// Half its length, metres.
        half_m: f64,
    },
    /// A hollow round body along z: held from its sides only, for its open end gives way.
    Barrel {
        /// Metres.
        radius_m: f64,
        /// Half its length, metres.
        half_m: f64,
    },
    /// The upper edge of an open round vessel; the edge is the circle z = 0, the wall goes down from it.
    Rim {
        /// Of the middle of the wall, metres.
        radius_m: f64,
        /// Thickness of the wall, metres.
        wall_m: f64,
        /// Depth of the vessel, metres.
        depth_m: f64,
    },
}

/// Sizes of the gripper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gripper {
    /// Widest thing that fits between the fingers, metres.
    pub opening_m: f64,
    /// How far the tips stand out beyond the frame's origin, metres.
    pub tip_m: f64,
}

/// A way to hold an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grasp {
    /// Object from gripper.
    pub object_from_grip: Isometry3<f64>,
    /// Thickness between the fingers, metres.
    pub width_m: f64,
    /// Index of the part.
    pub part: usize,
    /// How far the grasp is from the part's middle, metres.
    pub off_middle_m: f64,
    /// How far the gripper's middle is from the part's along the closing axis, metres: room for the other finger where
    /// something stands beside a thin part. The finger that touches first waits for the other one.
    pub shift_m: f64,
}

impl Grasp {
    /// The direction in which the gripper comes, object frame.
    #[must_use]
    pub fn approach(&self) -> Vector3<f64> {
        self.object_from_grip.rotation * -Vector3::z()
    }
}

/// How much room between finger and part is left on the near side of a shifted grasp, metres.
const NEAR_M: f64 = 0.008;
/// Shifts below are not worth a candidate, metres.
const LEAST_SHIFT_M: f64 = 0.015;
/// How far tips stay from the far side of what they hold, metres.
const ABOVE_M: f64 = 0.003;
/// Room that the open fingers leave on both sides together, metres.
const PLAY_M: f64 = 0.010;
/// How deep the fingertips' middle goes into a wall or block, metres.
const BITE_M: f64 = 0.018;
/// Turns about the closing axis, radians: 0 first, it is the most natural.
const TILTS: [f64; 7] = [0.0, 0.35, -0.35, 0.7, -0.7, 1.05, -1.05];
/// Directions around a round thing.
const AROUND: usize = 12;

/// All ways to hold the parts (shape and its pose in the object's frame) that this gripper is wide enough for. Parts with
/// sizes that are not positive and finite give none.
#[must_use]
pub fn grasp_candidates(parts: &[(GraspShape, Isometry3<f64>)], gripper: &Gripper) -> Vec<Grasp> {
    let mut out = Vec::new();
    for (part, (shape, pose)) in parts.iter().enumerate() {
        let mut maker = Maker { out: &mut out, pose, part, gripper };
        match *shape {
            GraspShape::Box { half_m } if sound(&half_m) => maker.cuboid(half_m),
            GraspShape::Cylinder { radius_m, half_m } if sound(&[radius_m, half_m]) => {
                maker.cylinder(radius_m, half_m, true);
            }
            GraspShape::Barrel { radius_m, half_m } if sound(&[radius_m, half_m]) => {
                maker.cylinder(radius_m, half_m, false);
            }
            GraspShape::Rim { radius_m, wall_m, depth_m } if sound(&[radius_m, wall_m, depth_m]) => {
                maker.rim(radius_m, wall_m, depth_m);
            }
            _ => {}
        }
    }
    out
}

fn sound(sizes: &[f64]) -> bool {
    sizes.iter().all(|x| *x > 0.0 && x.is_finite())
}

struct Maker<'a> {
    out: &'a mut Vec<Grasp>,
    pose: &'a Isometry3<f64>,
    part: usize,
    gripper: &'a Gripper,
}

impl Maker<'_> {
    fn fits(&self, width: f64) -> bool {
        width + PLAY_M <= self.gripper.opening_m
    }

    /// Both ways round, for every tilt about the closing axis. `at`, `approach`, `closing` in the part's frame.
    fn add(&mut self, at: Vector3<f64>, approach: Vector3<f64>, closing: Vector3<f64>, width: f64) {
        for tilt in TILTS {
            let turn = Rotation3::from_axis_angle(&Unit::new_normalize(closing), tilt);
            let z = -(turn * approach);
            let room = 0.5 * (self.gripper.opening_m - width) - NEAR_M;
            let shifts: &[f64] = if room < LEAST_SHIFT_M { &[0.0] } else { &[0.0, room, -room] };
            for (y, shift) in
                [closing, -closing].into_iter().flat_map(|y| shifts.iter().map(move |s| (y, *s)))
            {
                let frame = Matrix3::from_columns(&[y.cross(&z), y, z]);
                let rotation = UnitQuaternion::from_rotation_matrix(&Rotation3::from_matrix_unchecked(frame));
                let grip = Isometry3::from_parts(Translation3::from(at + y * shift), rotation);
                self.out.push(Grasp {
                    object_from_grip: self.pose * grip,
                    width_m: width,
                    part: self.part,
                    off_middle_m: at.norm(),
                    shift_m: shift,
                });
            }
        }
    }

    fn cuboid(&mut self, half: [f64; 3]) {
        let axis = |i: usize| Vector3::ith(i, 1.0);
        for closing in 0..3 {
            if !self.fits(2.0 * half[closing]) {
                continue;
            }
            for along in (0..3).filter(|&a| a != closing) {
                let across = 3 - closing - along;
                // Thin bars are held in the middle, tall things below their edge, flat ones so that the tips end at
                // their far side.
                let lifted = (self.gripper.tip_m + ABOVE_M - half[along]).min(0.8 * half[along]);
                let back = (half[along] - BITE_M).max(lifted).max(0.0);
                let steps: &[f64] = if half[across] > 0.015 { &[0.0, 0.6, -0.6] } else { &[0.0] };
                for side in [1.0, -1.0] {
                    for step in steps {
                        let at = axis(along) * (side * back) + axis(across) * (step * half[across]);
                        self.add(at, axis(along) * -side, axis(closing), 2.0 * half[closing]);
                    }
                }
            }
        }
    }

    fn cylinder(&mut self, radius: f64, half: f64, ends: bool) {
        if self.fits(2.0 * radius) {
            let heights: &[f64] = if half > 0.02 { &[0.0, 0.5, -0.5] } else { &[0.0] };
            for i in 0..AROUND {
                let angle = std::f64::consts::TAU * i as f64 / AROUND as f64;
                let out = Vector3::new(angle.cos(), angle.sin(), 0.0);
                let tangent = Vector3::new(-angle.sin(), angle.cos(), 0.0);
                for height in heights {
                    let lifted = (self.gripper.tip_m + ABOVE_M - radius).clamp(0.0, 0.8 * radius);
                    let at = Vector3::z() * (height * half) + out * lifted;
                    self.add(at, -out, tangent, 2.0 * radius);
                }
                // From both ends, with the fingers this way.
                if ends && i < AROUND / 2 {
                    let back = (half - BITE_M).max(0.0);
                    for side in [1.0, -1.0] {
                        self.add(Vector3::z() * (side * back), Vector3::z() * -side, tangent, 2.0 * radius);
                    }
                }
            }
        }
    }

    fn rim(&mut self, radius: f64, wall: f64, depth: f64) {
        if !self.fits(wall) {
            return;
        }
        let bite = BITE_M.min((depth - self.gripper.tip_m).max(0.25 * depth));
        for i in 0..AROUND {
            let angle = std::f64::consts::TAU * i as f64 / AROUND as f64;
            let out = Vector3::new(angle.cos(), angle.sin(), 0.0);
            self.add(out * radius - Vector3::z() * bite, -Vector3::z(), out, wall);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRIPPER: Gripper = Gripper { opening_m: 0.09, tip_m: 0.011 };

    fn shape() -> impl Strategy<Value = GraspShape> {
        let size = || 0.003..0.1f64;
        prop_oneof![
            [size(), size(), size()].prop_map(|half_m| GraspShape::Box { half_m }),
            (size(), size()).prop_map(|(radius_m, half_m)| GraspShape::Cylinder { radius_m, half_m }),
            (size(), size()).prop_map(|(radius_m, half_m)| GraspShape::Barrel { radius_m, half_m }),
            (size(), size()).prop_map(|(r, d)| GraspShape::Rim { radius_m: r, wall_m: 0.004, depth_m: d }),
        ]
    }

    /// How far inside the shape a point is in metres (negative outside), a rim's wall being its solid.
    fn inside(shape: &GraspShape, p: &Vector3<f64>) -> f64 {
        match *shape {
            GraspShape::Box { half_m } => (0..3).map(|i| half_m[i] - p[i].abs()).fold(f64::MAX, f64::min),
            GraspShape::Cylinder { radius_m, half_m } | GraspShape::Barrel { radius_m, half_m } => {
                (radius_m - p.xy().norm()).min(half_m - p.z.abs())
            }
            GraspShape::Rim { radius_m, wall_m, depth_m } => {
                (wall_m / 2.0 - (p.xy().norm() - radius_m).abs()).min(-p.z).min(p.z + depth_m)
            }
        }
    }

    proptest! {
        #[test]
        fn the_fingers_stand_on_both_sides_of_something_they_can_span(shape in shape(), yaw in -3.0..3.0f64) {
            let pose = Isometry3::new(Vector3::new(0.1, 0.2, 0.3), Vector3::new(0.3, yaw, 0.1));
            for grasp in grasp_candidates(&[(shape, pose)], &GRIPPER) {
                let local = pose.inverse() * grasp.object_from_grip;
                let at = local.translation.vector - local.rotation * Vector3::y() * grasp.shift_m;
                // Neither finger touches before it closes.
                let play = 0.5 * (GRIPPER.opening_m - grasp.width_m) - grasp.shift_m.abs();
                prop_assert!(play > 0.004, "{grasp:?} would push {shape:?} away");
                prop_assert!(inside(&shape, &at) > -1e-9, "{grasp:?} holds nothing of {shape:?}");
                prop_assert!(grasp.width_m <= GRIPPER.opening_m);
                let frame = local.rotation.to_rotation_matrix();
                prop_assert!((frame.matrix().determinant() - 1.0).abs() < 1e-9);
                // Just outside the width along the closing axis there is nothing left to hold.
                let finger = frame * Vector3::y() * (grasp.width_m / 2.0 + 1e-4);
                for side in [finger, -finger] {
                    prop_assert!(inside(&shape, &(at + side)) < 0.0, "{grasp:?} would stab {shape:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_too_wide_or_no_shape_gives_nothing() {
        let at = Isometry3::identity();
        let none = |shape| grasp_candidates(&[(shape, at)], &GRIPPER).is_empty();
        assert!(none(GraspShape::Box { half_m: [0.1; 3] }));
        assert!(none(GraspShape::Cylinder { radius_m: 0.06, half_m: 0.1 }));
        assert!(none(GraspShape::Box { half_m: [0.01, f64::NAN, 0.01] }));
        assert!(none(GraspShape::Cylinder { radius_m: -0.01, half_m: 0.1 }));
        assert!(!none(GraspShape::Rim { radius_m: 0.2, wall_m: 0.004, depth_m: 0.08 }));
    }
}
