//! Seeded planning problems.

use efference_geometry::plan::{Subgoal, SubgoalWeights, targets_of};
use efference_geometry::sdf::SdfGrid;
use efference_geometry::solid::{Shape, Solid};
use efference_geometry::{Flow3d, Frame, Isometry3, Point3, PoseBounds, Vector3, farthest_points};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Future frames of a flow.
pub const FRAMES: usize = 8;
/// Points of a flow.
pub const POINTS: usize = 128;
/// Points that are carried to their targets.
const KEYPOINTS: usize = 16;
/// Points that must not touch anything: ReKep takes at most 60.
const COLLISION_POINTS: usize = 60;
/// Nodes of the grid of distances along each side.
const NODES: usize = 31;

pub const LOW: [f64; 3] = [-0.6, -0.6, -0.1];
pub const HIGH: [f64; 3] = [0.6, 0.6, 0.9];

/// One object in one hand, and where it should go.
pub struct Scene {
    pub hand: Isometry3<f64>,
    /// In the hand's frame.
    pub keypoints: Vec<Point3<f64>>,
    /// In the hand's frame.
    pub collision_points: Vec<Point3<f64>>,
    /// [frames][keypoints], world.
    pub targets: Vec<Vec<Point3<f64>>>,
    pub sdf: SdfGrid,
    /// The grid's values, as the peer takes them.
    pub sdf_values: Vec<f64>,
}

/// Uniform within `size` along each axis.
fn noise(rng: &mut ChaCha8Rng, size: f64) -> Vector3<f64> {
    Vector3::from_fn(|_, _| rng.random_range(-size..=size))
}

impl Scene {
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Points on a box of 6 to 12 cm, held from above.
        let half = noise(&mut rng, 0.015).add_scalar(0.045);
        let surface = |rng: &mut ChaCha8Rng| {
            let mut p = Vector3::from_fn(|i, _| rng.random_range(-half[i]..=half[i]));
            let side = rng.random_range(0..3usize);
            p[side] = if rng.random_bool(0.5) { half[side] } else { -half[side] };
            Point3::from(p)
        };
        let body: Vec<Point3<f64>> = (0..POINTS).map(|_| surface(&mut rng)).collect();
        let object =
            Isometry3::translation(0.0, 0.0, 0.05) * Isometry3::new(noise(&mut rng, 0.15), Vector3::zeros());
        let hand = object
            * Isometry3::new(Vector3::new(0.0, 0.0, half.z), noise(&mut rng, 0.3) + Vector3::x() * 3.0);
        let first: Vec<Point3<f64>> = body.iter().map(|p| object * p).collect();
        // Lifted, carried and tilted; every frame with 2 mm of noise, as a network's flow has.
        let (carry, tilt) = (noise(&mut rng, 0.2), noise(&mut rng, 0.8));
        let centre = object.translation.vector;
        let pose = |t: usize| {
            let s = t as f64 / FRAMES as f64;
            let shift = Vector3::new(carry.x * s, carry.y * s, 0.25 * (0.5 * std::f64::consts::PI * s).sin());
            let about = Isometry3::translation(centre.x, centre.y, centre.z);
            Isometry3::new(shift, Vector3::zeros())
                * about
                * Isometry3::new(Vector3::zeros(), tilt * s)
                * about.inverse()
        };
        let mut positions = first.clone();
        for t in 1..=FRAMES {
            let motion = pose(t);
            positions.extend(first.iter().map(|p| motion * p + noise(&mut rng, 0.002)));
        }
        let flow = Flow3d::new(Frame::World, POINTS, positions, vec![1.0; POINTS * (FRAMES + 1)]).unwrap();
        let chosen = farthest_points(&first, COLLISION_POINTS, 0).unwrap();
        let local = |n: usize| chosen[..n].iter().map(|&i| hand.inverse() * first[i]).collect::<Vec<_>>();
        let targets = targets_of(&flow, &chosen[..KEYPOINTS]).unwrap();
        // A table and two blocks.
        let mut solids = vec![Solid { shape: Shape::Plane([1.0, 1.0]), pose: Isometry3::identity() }];
        for _ in 0..2 {
            let half = noise(&mut rng, 0.02).add_scalar(0.06);
            let at = noise(&mut rng, 0.35);
            let pose = Isometry3::translation(at.x, at.y, half.z);
            solids.push(Solid { shape: Shape::Box([half.x, half.y, half.z]), pose });
        }
        let sdf_values: Vec<f64> = (0..NODES * NODES * NODES)
            .map(|k| {
                let index = [k / (NODES * NODES), k / NODES % NODES, k % NODES];
                let x = |a: usize| LOW[a] + (HIGH[a] - LOW[a]) * index[a] as f64 / (NODES - 1) as f64;
                let p = Point3::new(x(0), x(1), x(2));
                solids.iter().map(|solid| -solid.distance(&p)).fold(f64::NEG_INFINITY, f64::max)
            })
            .collect();
        let sdf = SdfGrid::new(LOW, HIGH, [NODES; 3], sdf_values.clone(), 0.0).unwrap();
        Self {
            hand,
            keypoints: local(KEYPOINTS),
            collision_points: local(COLLISION_POINTS),
            targets,
            sdf,
            sdf_values,
        }
    }

    pub fn bounds() -> PoseBounds {
        PoseBounds::workspace(LOW, HIGH).unwrap()
    }

    /// The distance to the flow alone.
    pub fn flow_only(&self) -> Subgoal<'_> {
        Subgoal::flow_only(self.hand, &self.keypoints, &self.targets[0])
    }

    /// ReKep's objective, without an arm.
    pub fn objective(&self) -> Subgoal<'_> {
        Subgoal {
            weights: SubgoalWeights::default(),
            collision_points: &self.collision_points,
            sdf: Some(&self.sdf),
            ..self.flow_only()
        }
    }
}
