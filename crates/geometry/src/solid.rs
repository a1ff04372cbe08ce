//! Simple bodies: where rays hit them, and how far points are from them.

use nalgebra::{Isometry3, Point3, Vector3};
use serde::{Deserialize, Serialize};

use crate::{Camera, Error, Result};

/// A shape in its own frame, centred, metres.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Half sizes along x, y, z.
    Box([f64; 3]),
    /// Radius.
    Sphere(f64),
    /// Radius and half length along z.
    Cylinder(f64, f64),
    /// A patch of the plane z = 0 with these half sizes; everything below z = 0 is inside. Seen from above only.
    Plane([f64; 2]),
}

/// A shape somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Solid {
    /// What it is.
    pub shape: Shape,
    /// World from shape.
    pub pose: Isometry3<f64>,
}

impl Solid {
    /// Distance of a point from the surface: negative inside, metres.
    #[must_use]
    pub fn distance(&self, world: &Point3<f64>) -> f64 {
        let p = self.pose.inverse_transform_point(world);
        match self.shape {
            Shape::Box(half) => {
                let over = Vector3::new(p.x.abs() - half[0], p.y.abs() - half[1], p.z.abs() - half[2]);
                over.sup(&Vector3::zeros()).norm() + over.max().min(0.0)
            }
            Shape::Sphere(radius) => p.coords.norm() - radius,
            Shape::Cylinder(radius, half) => {
                let (side, end) = (p.x.hypot(p.y) - radius, p.z.abs() - half);
                side.max(0.0).hypot(end.max(0.0)) + side.max(end).min(0.0)
            }
            Shape::Plane(_) => p.z,
        }
    }

    /// How many lengths of `direction` from `origin` a ray first meets the surface; `None` if it never does.
    #[must_use]
    pub fn ray(&self, origin: &Point3<f64>, direction: &Vector3<f64>) -> Option<f64> {
        let o = self.pose.inverse_transform_point(origin);
        let d = self.pose.inverse_transform_vector(direction);
        match self.shape {
            Shape::Box(half) => {
                slabs(&o, &d, &[(0, half[0]), (1, half[1]), (2, half[2])]).and_then(first_ahead)
            }
            Shape::Sphere(radius) => {
                quadratic(d.norm_squared(), o.coords.dot(&d), o.coords.norm_squared() - radius * radius)
                    .and_then(first_ahead)
            }
            Shape::Cylinder(radius, half) => {
                let ends = slabs(&o, &d, &[(2, half)])?;
                let a = d.x * d.x + d.y * d.y;
                let c = o.x * o.x + o.y * o.y - radius * radius;
                let side = if a > 0.0 {
                    quadratic(a, o.x * d.x + o.y * d.y, c)?
                } else if c <= 0.0 {
                    (f64::NEG_INFINITY, f64::INFINITY)
                } else {
                    return None;
                };
                let (enter, leave) = (ends.0.max(side.0), ends.1.min(side.1));
                (enter <= leave).then_some((enter, leave)).and_then(first_ahead)
            }
            Shape::Plane(half) => {
                let t = -o.z / d.z;
                let at = o + d * t;
                (d.z < 0.0 && t >= 0.0 && at.x.abs() <= half[0] && at.y.abs() <= half[1]).then_some(t)
            }
        }
    }
}

/// Where a ray enters and leaves |axis| <= half for all of them.
fn slabs(o: &Point3<f64>, d: &Vector3<f64>, axes: &[(usize, f64)]) -> Option<(f64, f64)> {
    let (mut enter, mut leave) = (f64::NEG_INFINITY, f64::INFINITY);
    for &(axis, half) in axes {
        if d[axis] == 0.0 {
            if o[axis].abs() > half {
                return None;
            }
            continue;
        }
        let (a, b) = ((-half - o[axis]) / d[axis], (half - o[axis]) / d[axis]);
        enter = enter.max(a.min(b));
        leave = leave.min(a.max(b));
    }
    (enter <= leave).then_some((enter, leave))
}

/// Roots of a t^2 + 2 b t + c.
fn quadratic(a: f64, b: f64, c: f64) -> Option<(f64, f64)> {
    let root = b * b - a * c;
    (root >= 0.0 && a > 0.0).then(|| ((-b - root.sqrt()) / a, (-b + root.sqrt()) / a))
}

fn first_ahead((enter, leave): (f64, f64)) -> Option<f64> {
    if enter >= 0.0 { Some(enter) } else { (leave >= 0.0).then_some(leave) }
}

/// What a ray meets first: index of the solid, and how many lengths of `direction` away.
#[must_use]
pub fn first_hit(solids: &[Solid], origin: &Point3<f64>, direction: &Vector3<f64>) -> Option<(usize, f64)> {
    let hits = solids.iter().enumerate().filter_map(|(i, solid)| Some((i, solid.ray(origin, direction)?)));
    hits.min_by(|a, b| a.1.total_cmp(&b.1))
}

/// What each pixel of a camera sees [height, width]: index of the solid, and depth along the optical axis in metres; `None`
/// where it sees nothing. Exact, through the middles of the pixels.
///
/// # Errors
/// A picture without pixels.
pub fn depth_picture(camera: &Camera, solids: &[Solid]) -> Result<Vec<Option<(usize, f64)>>> {
    let k = &camera.intrinsics;
    let n = crate::cloud::pixels(k)?;
    let eye = Point3::from(camera.world_from_camera.translation.vector);
    let see = |pixel: usize| {
        let (u, v) = ((pixel % k.width) as f64 + 0.5, (pixel / k.width) as f64 + 0.5);
        // One length of this direction is one metre of depth.
        first_hit(solids, &eye, &(camera.world_from_camera * k.lift(u, v, 1.0).coords))
    };
    Ok((0..n).map(see).collect())
}

/// Whether a camera sees a point of the world: it projects into the picture, and nothing lies more than `tolerance_m`
/// before it on the ray.
///
/// # Errors
/// A negative tolerance.
pub fn is_visible(camera: &Camera, solids: &[Solid], world: &Point3<f64>, tolerance_m: f64) -> Result<bool> {
    if tolerance_m.is_nan() || tolerance_m < 0.0 {
        return Err(Error::Range { what: "tolerance_m", value: tolerance_m, range: "at least 0" });
    }
    let Some([u, v, _]) = camera.project(world) else { return Ok(false) };
    if crate::cloud::pixel_at(&camera.intrinsics, u, v).is_none() {
        return Ok(false);
    }
    let eye = Point3::from(camera.world_from_camera.translation.vector);
    let (way, distance) = (world - eye, (world - eye).norm());
    let hit = first_hit(solids, &eye, &(way / distance));
    Ok(hit.is_none_or(|(_, at)| at >= distance - tolerance_m))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A ray that is followed in steps of the distance to the surface ends where the formula says.
        #[test]
        fn rays_end_on_the_surface(
            origin in prop::array::uniform3(-1.0..1.0f64), aim in prop::array::uniform3(-0.3..0.3f64),
            turn in prop::array::uniform3(-2.0..2.0f64), which in 0..3usize,
        ) {
            let shape = [Shape::Box([0.2, 0.1, 0.3]), Shape::Sphere(0.25), Shape::Cylinder(0.15, 0.2)][which];
            let solid = Solid { shape, pose: Isometry3::new(Vector3::new(0.1, 0.0, -0.1), Vector3::from(turn)) };
            let origin = Point3::from(Vector3::from(origin));
            let direction = (Point3::from(Vector3::from(aim)) - origin).normalize();
            prop_assume!(solid.distance(&origin) > 1e-3);
            let mut walked = 0.0;
            for _ in 0..10_000 {
                let left = solid.distance(&(origin + direction * walked));
                if left < 1e-9 || walked > 10.0 {
                    break;
                }
                walked += left;
            }
            match solid.ray(&origin, &direction) {
                Some(at) => prop_assert!((at - walked).abs() < 1e-4, "{at} {walked}"),
                None => prop_assert!(walked > 3.0, "{walked}"),
            }
        }
    }

    #[test]
    fn the_nearer_solid_hides_the_farther() {
        let down =
            Camera::from_mujoco([0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 60.0, 8, 8);
        let down = down.unwrap();
        let table = Solid { shape: Shape::Plane([1.0, 1.0]), pose: Isometry3::identity() };
        let block = Solid { shape: Shape::Box([0.1, 0.1, 0.1]), pose: Isometry3::translation(0.0, 0.0, 0.1) };
        let picture = depth_picture(&down, &[table, block]).unwrap();
        assert_eq!(picture[0], Some((0, 1.0)));
        let (which, depth) = picture[8 * 4 + 4].unwrap();
        assert!(which == 1 && (depth - 0.8).abs() < 1e-12);
        let see = |x: f64, z: f64| is_visible(&down, &[table, block], &Point3::new(x, 0.0, z), 1e-3).unwrap();
        assert!(see(0.0, 0.2) && !see(0.0, 0.0) && see(0.3, 0.0) && !see(5.0, 0.0) && !see(0.0, 2.0));
        assert!(is_visible(&down, &[], &Point3::origin(), f64::NAN).is_err());
    }
}
