//! The surface of the object: its shapes, and points spread evenly over them.

use std::f64::consts::{PI, TAU};

use efference_geometry::{Isometry3, Point3, UnitQuaternion, Vector3};
use efference_mujoco::{Data, Kind};
use nalgebra::{Matrix3, Rotation3, Translation3};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::scene::Scene;
use crate::ShapeKind;
use crate::shapes::shape_kind;

/// A primitive shape of the object, in the object's frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Name in the scene, such as `handle`, `peg`, `tab`, `cup_wall3`.
    pub name: String,
    /// What `size_m` means.
    pub kind: ShapeKind,
    /// Metres.
    pub size_m: [f64; 3],
    /// Object from part.
    pub pose: Isometry3<f64>,
    /// Whether it collides; others are only drawn.
    pub solid: bool,
}

/// World from a body.
pub(crate) fn body_pose(data: &Data, body: usize) -> Isometry3<f64> {
    let [w, x, y, z] = data.body_quat(body);
    let rotation = UnitQuaternion::from_quaternion(nalgebra::Quaternion::new(w, x, y, z));
    Isometry3::from_parts(Translation3::from(data.body_pos(body)), rotation)
}

fn geom_pose(data: &Data, geom: usize) -> Isometry3<f64> {
    let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(&data.geom_mat(geom)));
    let rotation = UnitQuaternion::from_rotation_matrix(&rotation);
    Isometry3::from_parts(Translation3::from(data.geom_pos(geom)), rotation)
}

/// The drawn shapes of the object. Poses must be up to date.
pub(crate) fn parts(scene: &Scene, data: &Data) -> Vec<Part> {
    let model = data.model();
    let object = body_pose(data, scene.object);
    let part = |geom: &usize| {
        Some(Part {
            name: model.name(Kind::Geom, *geom).unwrap_or_default().to_owned(),
            kind: shape_kind(model.geom_type(*geom))?,
            size_m: model.geom_size(*geom),
            pose: object.inv_mul(&geom_pose(data, *geom)),
            solid: model.geom_group(*geom) == 0,
        })
    };
    scene.object_geoms.iter().filter_map(part).collect()
}

impl Part {
    /// Square metres.
    fn area(&self) -> f64 {
        let [a, b, c] = self.size_m;
        match self.kind {
            ShapeKind::Box => 8.0 * (a * b + b * c + c * a),
            ShapeKind::Sphere => 4.0 * PI * a * a,
            ShapeKind::Capsule => 4.0 * PI * a * (a + b),
            ShapeKind::Cylinder => TAU * a * (a + 2.0 * b),
        }
    }

    /// A point of the surface, evenly by area, in the object's frame.
    fn point(&self, rng: &mut ChaCha8Rng) -> Point3<f64> {
        let [a, b, c] = self.size_m;
        let mut sym = |half: f64| rng.random_range(-1.0..=1.0) * half;
        let local = match self.kind {
            ShapeKind::Box => {
                let (u, v, side) = (sym(1.0), sym(1.0), sym(1.0).signum());
                let (x, y) = (b * c, c * a);
                let pick = sym(1.0).abs() * (x + y + a * b);
                if pick < x {
                    Vector3::new(side * a, u * b, v * c)
                } else if pick < x + y {
                    Vector3::new(u * a, side * b, v * c)
                } else {
                    Vector3::new(u * a, v * b, side * c)
                }
            }
            ShapeKind::Sphere => sphere(a, sym(1.0), sym(PI)),
            ShapeKind::Capsule => {
                let (height, angle) = (sym(a + b), sym(PI));
                if height.abs() <= b {
                    Vector3::new(a * angle.cos(), a * angle.sin(), height)
                } else {
                    // A sphere's zones of equal height have equal areas.
                    let cap = height - b * height.signum();
                    sphere(a, cap / a, angle) + Vector3::z() * (b * height.signum())
                }
            }
            ShapeKind::Cylinder => {
                let (pick, angle) = (sym(1.0), sym(PI));
                if pick.abs() * (a + 2.0 * b) < 2.0 * b {
                    Vector3::new(a * angle.cos(), a * angle.sin(), sym(b))
                } else {
                    let r = a * sym(1.0).abs().sqrt();
                    Vector3::new(r * angle.cos(), r * angle.sin(), b * pick.signum())
                }
            }
        };
        self.pose * Point3::from(local)
    }
}

/// On a sphere: height in -1..=1 of the radius, angle about z.
fn sphere(radius: f64, height: f64, angle: f64) -> Vector3<f64> {
    let across = (1.0 - height * height).max(0.0).sqrt();
    Vector3::new(across * angle.cos(), across * angle.sin(), height) * radius
}

/// Points on the shapes' surfaces, evenly by area, in the object's frame.
pub(crate) fn sample(parts: &[Part], n: usize, rng: &mut ChaCha8Rng) -> Vec<Point3<f64>> {
    let total: f64 = parts.iter().map(Part::area).sum();
    let mut points = Vec::with_capacity(n);
    while points.len() < n && total > 0.0 {
        let mut left = rng.random_range(0.0..total);
        let chosen = parts.iter().find(|part| {
            left -= part.area();
            left < 0.0
        });
        points.extend(chosen.or(parts.last()).map(|part| part.point(rng)));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn points_lie_on_the_surface_and_cover_it_evenly() {
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let part = |kind, size_m| Part {
            name: String::new(),
            kind,
            size_m,
            pose: Isometry3::identity(),
            solid: true,
        };
        let off = |part: &Part, p: &Point3<f64>| {
            let [a, b, _] = part.size_m;
            let across = p.coords.xy().norm();
            match part.kind {
                ShapeKind::Sphere => (p.coords.norm() - a).abs(),
                ShapeKind::Capsule => {
                    let z = p.z.clamp(-b, b);
                    ((p.coords - Vector3::z() * z).norm() - a).abs()
                }
                ShapeKind::Cylinder => (across - a).max(p.z.abs() - b).abs(),
                ShapeKind::Box => {
                    (0..3).map(|i| p[i].abs() - part.size_m[i]).fold(f64::NEG_INFINITY, f64::max).abs()
                }
            }
        };
        let kinds = [ShapeKind::Box, ShapeKind::Sphere, ShapeKind::Capsule, ShapeKind::Cylinder];
        for kind in kinds {
            let part = part(kind, [0.02, 0.05, 0.03]);
            let points = sample(std::slice::from_ref(&part), 4000, rng);
            assert!(points.iter().all(|p| off(&part, p) < 1e-12), "{kind:?}");
            // Evenly spread over a body that is its own mirror image: the middle is the middle.
            let middle = points.iter().map(|p| p.coords).sum::<Vector3<f64>>() / 4000.0;
            assert!(middle.norm() < 3e-3, "{kind:?} {middle:?}");
        }
        // Shares of a cylinder's caps and side are those of their areas.
        let part = part(ShapeKind::Cylinder, [0.03, 0.02, 0.0]);
        let caps = sample(std::slice::from_ref(&part), 20_000, rng)
            .iter()
            .filter(|p| (p.z.abs() - 0.02).abs() < 1e-12)
            .count();
        assert!((caps as f64 / 20_000.0 - 3.0 / 7.0).abs() < 0.015, "{caps}");
    }
}
