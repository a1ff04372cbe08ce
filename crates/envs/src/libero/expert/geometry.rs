//! Sizes of things from their collision shapes.

use nalgebra::{Matrix3, Vector2, Vector3};

use super::super::{Error, LiberoSim, Result};

/// MuJoCo's codes of shapes.
const SPHERE: i32 = 2;
const CAPSULE: i32 = 3;
const CYLINDER: i32 = 5;

/// One collision shape in the world, as the corners of its box.
pub(super) struct Shape {
    pub(super) corners: [Vector3<f64>; 8],
    pub(super) centre: Vector3<f64>,
}

impl Shape {
    fn span(&self, along: Vector3<f64>) -> (f64, f64) {
        let ends = self.corners.iter().map(|c| c.dot(&along));
        ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)))
    }

    /// Whether a vertical line meets its bounding box, widened.
    fn is_over(&self, at: Vector2<f64>, wider: f64) -> bool {
        [(Vector3::x(), at.x), (Vector3::y(), at.y)].iter().all(|(axis, value)| {
            let (low, high) = self.span(*axis);
            (low - wider..=high + wider).contains(value)
        })
    }
}

/// The shapes of an object or fixture.
pub(super) fn shapes(sim: &LiberoSim, object: &str) -> Result<Vec<Shape>> {
    let meta = meta(sim, object)?;
    Ok(meta.contact_geom_ids.iter().map(|&geom| shape(sim, geom)).collect())
}

/// What `meta.json` says about a thing.
pub(super) fn meta<'a>(sim: &'a LiberoSim, object: &str) -> Result<&'a super::super::ObjectMeta> {
    let objects = &sim.pack().meta.objects;
    objects.get(object).ok_or_else(|| Error::Name {
        kind: "object",
        name: object.into(),
        known: objects.keys().cloned().collect::<Vec<_>>().join(", "),
    })
}

pub(super) fn shape(sim: &LiberoSim, geom: usize) -> Shape {
    let (centre, turn, kind, size) = sim.standin_geom(geom);
    let half = match kind {
        SPHERE => [size[0]; 3],
        CAPSULE => [size[0], size[0], size[0] + size[1]],
        CYLINDER => [size[0], size[0], size[1]],
        _ => size,
    };
    let (centre, turn) = (Vector3::from(centre), Matrix3::from_row_slice(&turn));
    let corner = |i: usize| {
        let sign = |bit: usize| if i >> bit & 1 == 1 { 1.0 } else { -1.0 };
        centre + turn * Vector3::new(sign(0) * half[0], sign(1) * half[1], sign(2) * half[2])
    };
    Shape { corners: std::array::from_fn(corner), centre }
}

/// Extent of an object along the vertical and across it.
pub(super) struct Extent {
    pub(super) root: Vector3<f64>,
    pub(super) low: f64,
    pub(super) high: f64,
    shapes: Vec<Shape>,
}

impl Extent {
    pub(super) fn of(sim: &LiberoSim, object: &str) -> Result<Self> {
        let root = Vector3::from(sim.object_pose(object)?.position_m);
        let shapes = shapes(sim, object)?;
        let (mut low, mut high) = (root.z, root.z);
        for shape in &shapes {
            let (a, b) = shape.span(Vector3::z());
            (low, high) = (low.min(a), high.max(b));
        }
        Ok(Self { root, low, high, shapes })
    }

    pub(super) fn height(&self) -> f64 {
        self.high - self.low
    }

    /// Width and middle of the object across the horizontal direction at `angle`.
    pub(super) fn across(&self, angle: f64) -> (f64, f64) {
        let along = Vector3::new(angle.cos(), angle.sin(), 0.0);
        let spans = self.shapes.iter().map(|s| s.span(along));
        let (low, high) =
            spans.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), (c, d)| (a.min(c), b.max(d)));
        if low > high { (0.0, self.root.dot(&along)) } else { (high - low, (high + low) / 2.0) }
    }

    /// Middle of the bounding box in the plane.
    pub(super) fn middle(&self) -> Vector2<f64> {
        Vector2::new(self.across(0.0).1, self.across(std::f64::consts::FRAC_PI_2).1)
    }

    /// Distance from the middle of the object to its rim in the direction at `angle`.
    pub(super) fn radius(&self, angle: f64) -> f64 {
        self.across(angle).0 / 2.0
    }
}

/// Height of what lies under a point, among all things but one (and below `below`); the lowest point of all things when
/// there is nothing: the table.
pub(super) fn surface(sim: &LiberoSim, at: Vector2<f64>, without: &str, below: f64) -> Result<f64> {
    let mut highest = f64::NEG_INFINITY;
    let mut lowest = f64::INFINITY;
    for object in sim.pack().meta.objects.keys() {
        for shape in shapes(sim, object)? {
            let (low, high) = shape.span(Vector3::z());
            lowest = lowest.min(low);
            if object != without && shape.is_over(at, 0.002) && high <= below {
                highest = highest.max(high);
            }
        }
    }
    Ok(if highest.is_finite() { highest } else { lowest })
}

/// Horizontal distance from a point to the nearest other thing's middle.
pub(super) fn clearance(sim: &LiberoSim, at: Vector2<f64>, without: &str) -> Result<f64> {
    let mut nearest = f64::INFINITY;
    for object in sim.pack().meta.objects.keys().filter(|name| *name != without) {
        for shape in shapes(sim, object)? {
            let (x, y) = (shape.span(Vector3::x()), shape.span(Vector3::y()));
            let dx = (x.0 - at.x).max(at.x - x.1).max(0.0);
            let dy = (y.0 - at.y).max(at.y - y.1).max(0.0);
            nearest = nearest.min(dx.hypot(dy));
        }
    }
    Ok(nearest)
}
