//! What is known of a scene, as numbers for the network, and its answer as metres again.

use std::f64::consts::PI;

use efference_geometry::{Camera, Isometry3, Point3, UnitQuaternion, Vector3};

use super::config::{FlowNetConfig, Representation};
use super::picture;
use super::text::text_ids;
use crate::error::{Error, Result};

/// Octaves of the Fourier features.
const OCTAVES: usize = 6;
/// Numbers of one coordinate: itself, sines, cosines.
const PER_AXIS: usize = 1 + 2 * OCTAVES;
/// Numbers per query point: Fourier features of (u, v, depth) and of the place relative to the object's middle.
pub const POINT_NUMBERS: usize = 6 * PER_AXIS;
/// Numbers of a point from which any affine motion of the object is linear: 1 and its place.
pub(super) const WHOLE: usize = 4;
/// Numbers of a goal point.
pub(super) const GOAL_NUMBERS: usize = 3 * PER_AXIS;
/// Numbers about the camera: up direction in its frame, whether lengths are metric, focal length over height, and u, v,
/// depth of the object's middle.
pub const CAMERA_NUMBERS: usize = 8;
/// Depth that [`Representation::Uvd`] and the features map to 1, metres.
const DEPTH_RANGE_M: f64 = 1.5;
/// Gain on displacements of [`Representation::Uvd`].
const UVD_GAIN: f64 = 4.0;

/// What may be known before the motion.
#[derive(Clone, Copy, Debug)]
pub struct QueryInput<'a> {
    /// The calibrated camera of the picture.
    pub camera: &'a Camera,
    /// Colours [side, side, 3] and depth [side, side] in metres (0: unknown) with the network's `image_size` for side,
    /// see [`small_picture`](super::small_picture); unused by a network without picture.
    pub picture: Option<(&'a [u8], &'a [f32])>,
    /// The object's points now, world frame, metres.
    pub points: &'a [Point3<f64>],
    /// What to do.
    pub instruction: &'a str,
    /// Where the object should go, for networks that take a goal; world frame.
    pub goal: Option<Point3<f64>>,
    /// Whether lengths are metres. If not (depth up to an unknown factor), the object's mean depth serves as the unit.
    pub metric: bool,
}

/// A query as numbers, and how to read the answer.
#[derive(Clone, Debug)]
pub struct QueryCode {
    representation: Representation,
    camera: Camera,
    /// Origin in the object's middle; axes as the representation says.
    frame_from_world: Isometry3<f64>,
    /// What is 1 for the network, metres.
    unit_m: f64,
    /// Factor from lengths here to metres as the network knows them.
    to_metric: f64,
    /// Query points, world frame.
    present: Vec<Point3<f64>>,
    /// [N, POINT_NUMBERS]
    pub(super) features: Vec<f32>,
    /// [N, WHOLE]: 1 and the place relative to the object's middle, of unit spread; what moves rigidly is linear in it.
    pub(super) whole: Vec<f32>,
    /// Spread of the points, units.
    pub(super) spread: f32,
    /// [N, 2]: where each point is in the picture, from 0 to 1 across it.
    pub(super) places: Vec<[f64; 2]>,
    /// [SCENE_CHANNELS, side, side], or empty.
    pub(super) scene: Vec<f32>,
    pub(super) words: Vec<u32>,
    pub(super) camera_numbers: [f32; CAMERA_NUMBERS],
    pub(super) goal: Option<Vec<f32>>,
}

fn bad(reason: impl Into<String>) -> Error {
    Error::Query { reason: reason.into() }
}

/// x, sin(2^k pi x), cos(2^k pi x), k = 0 .. 5.
fn fourier(x: f64, out: &mut Vec<f32>) {
    out.push(x as f32);
    let angles = (0..OCTAVES).map(|k| PI * x * (1u32 << k) as f64);
    for angle in angles {
        out.push(angle.sin() as f32);
        out.push(angle.cos() as f32);
    }
}

/// Axes of the level frame in the world: z up, x the camera's view made horizontal (for a camera that looks straight
/// down, the top of its picture).
fn level(camera: &Camera) -> UnitQuaternion<f64> {
    let horizontal = |axis: Vector3<f64>| {
        let v = camera.world_from_camera * axis;
        Vector3::new(v.x, v.y, 0.0)
    };
    let forward = [Vector3::z(), -Vector3::y()].map(horizontal);
    let x = if forward[0].norm() > 1e-3 { forward[0] } else { forward[1] };
    UnitQuaternion::from_axis_angle(&Vector3::z_axis(), x.y.atan2(x.x))
}

impl QueryCode {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Error::Query`]: no points, points that are not finite or not in front of the camera, a picture missing or of
    /// another size, a goal missing.
    pub fn new(config: &FlowNetConfig, query: &QueryInput<'_>) -> Result<Self> {
        let QueryInput { camera, points, .. } = *query;
        if points.is_empty() {
            return Err(bad("there are no points"));
        }
        if points.iter().any(|p| !p.coords.iter().all(|x| x.is_finite())) {
            return Err(bad("a point is not finite"));
        }
        let seen: Option<Vec<[f64; 3]>> = points.iter().map(|p| camera.project(p)).collect();
        let seen = seen.filter(|seen| seen.iter().flatten().all(|x| x.is_finite()));
        let seen = seen.ok_or_else(|| bad("a point does not lie in front of the camera"))?;

        let count = points.len() as f64;
        let middle = points.iter().fold(Vector3::zeros(), |sum, p| sum + p.coords) / count;
        let mean_depth = seen.iter().map(|[_, _, d]| d).sum::<f64>() / count;
        let to_metric = if query.metric { 1.0 } else { 1.0 / mean_depth };
        let axes = match config.representation {
            Representation::Level => level(camera),
            Representation::Camera | Representation::Uvd => camera.world_from_camera.rotation,
        };
        let frame_from_world = Isometry3::from_parts(middle.into(), axes).inverse();
        let mut code = Self {
            representation: config.representation,
            camera: camera.clone(),
            frame_from_world,
            unit_m: config.scale_m / to_metric,
            to_metric,
            present: points.to_vec(),
            features: Vec::with_capacity(points.len() * POINT_NUMBERS),
            whole: Vec::with_capacity(points.len() * WHOLE),
            spread: 0.0,
            places: Vec::with_capacity(points.len()),
            scene: Vec::new(),
            words: text_ids(query.instruction, config.vocabulary),
            camera_numbers: [0.0; CAMERA_NUMBERS],
            goal: None,
        };
        for (point, place) in points.iter().zip(&seen) {
            code.places.push(code.share(place));
            let offset = code.offset(point);
            for x in code.normalised(place).into_iter().chain(offset) {
                fourier(x, &mut code.features);
            }
        }
        let offsets: Vec<[f64; 3]> = points.iter().map(|point| code.offset(point)).collect();
        let square = offsets.iter().flatten().map(|x| x * x).sum::<f64>() / (3.0 * count);
        // One point, or all at one place: no spread to divide by.
        let spread = square.sqrt().max(1e-3);
        code.spread = spread as f32;
        for offset in &offsets {
            code.whole.push(1.0);
            code.whole.extend(offset.map(|x| (x / spread) as f32));
        }
        code.camera_numbers = code.describe_camera(query.metric, &Point3::from(middle));
        code.goal = match (config.goal, query.goal) {
            (false, _) => None,
            (true, None) => return Err(bad("this network needs a goal point")),
            (true, Some(goal)) => {
                let mut numbers = Vec::with_capacity(GOAL_NUMBERS);
                code.offset(&goal).into_iter().for_each(|x| fourier(x / 3.0, &mut numbers));
                Some(numbers)
            }
        };
        if config.picture {
            let side = config.image_size;
            let picture = query.picture.ok_or_else(|| bad("this network needs a picture with depth"))?;
            if picture.0.len() != 3 * side * side || picture.1.len() != side * side {
                return Err(bad(format!("the picture and its depth must be {side} x {side}")));
            }
            let frame = &code.frame_from_world;
            code.scene = picture::channels(picture, side, camera, frame, code.unit_m, &seen);
        }
        Ok(code)
    }

    /// Number of query points.
    #[must_use]
    pub fn points(&self) -> usize {
        self.present.len()
    }

    /// The query points, world frame.
    #[must_use]
    pub fn present(&self) -> &[Point3<f64>] {
        &self.present
    }

    /// Forgets the instruction.
    pub fn drop_text(&mut self) {
        self.words = vec![super::text::NO_TEXT];
    }

    /// What is 1 for the network, metres; for [`Representation::Uvd`] only a yardstick.
    #[must_use]
    pub fn unit_m(&self) -> f64 {
        self.unit_m
    }

    /// Place in the picture from 0 to 1.
    fn share(&self, [u, v, _]: &[f64; 3]) -> [f64; 2] {
        [u / self.camera.intrinsics.width as f64, v / self.camera.intrinsics.height as f64]
    }

    /// (u, v, depth), each about -1 to 1.
    fn normalised(&self, place: &[f64; 3]) -> [f64; 3] {
        let [x, y] = self.share(place);
        [2.0 * x - 1.0, 2.0 * y - 1.0, 2.0 * place[2] * self.to_metric / DEPTH_RANGE_M - 1.0]
    }

    /// Place relative to the object's middle, in units.
    fn offset(&self, point: &Point3<f64>) -> [f64; 3] {
        let p = self.frame_from_world * point;
        [p.x / self.unit_m, p.y / self.unit_m, p.z / self.unit_m]
    }

    fn describe_camera(&self, metric: bool, middle: &Point3<f64>) -> [f32; CAMERA_NUMBERS] {
        let up = self.camera.world_from_camera.rotation.inverse() * Vector3::z();
        let place = self.camera.project(middle).unwrap_or_default();
        let [u, v, d] = self.normalised(&place);
        let lens = &self.camera.intrinsics;
        let flag = if metric { 1.0 } else { -1.0 };
        [up.x, up.y, up.z, flag, lens.fy / lens.height as f64, u, v, d].map(|x| x as f32)
    }

    /// Future positions `future` [T, N] (world frame, frame by frame) of points that are at `from` [N] now, as the
    /// network's numbers [N, 3 T]: a point's x, y, z frame after frame.
    ///
    /// # Errors
    /// [`Error::Query`]: another number of points; for [`Representation::Uvd`] a position that is not in front of the
    /// camera.
    pub fn encode(&self, from: &[Point3<f64>], future: &[Point3<f64>]) -> Result<Vec<f32>> {
        let n = self.points();
        if from.len() != n || !future.len().is_multiple_of(n) {
            return Err(bad(format!("{n} points are asked about, {} move", from.len())));
        }
        let frames = future.len() / n;
        let mut out = vec![0f32; future.len() * 3];
        for (i, start) in from.iter().enumerate() {
            for t in 0..frames {
                let moved = self.displacement(start, &future[t * n + i])?;
                let at = (i * frames + t) * 3;
                out[at..at + 3].copy_from_slice(&moved.map(|x| x as f32));
            }
        }
        Ok(out)
    }

    fn displacement(&self, from: &Point3<f64>, to: &Point3<f64>) -> Result<[f64; 3]> {
        if self.representation != Representation::Uvd {
            let d = self.frame_from_world.rotation * (to - from) / self.unit_m;
            return Ok([d.x, d.y, d.z]);
        }
        let place = |p: &Point3<f64>| {
            let seen = self.camera.project(p).ok_or_else(|| bad("a position is behind the camera"))?;
            Ok::<_, Error>(self.normalised(&seen))
        };
        let (a, b) = (place(from)?, place(to)?);
        Ok(std::array::from_fn(|i| (b[i] - a[i]) * UVD_GAIN))
    }

    /// The network's numbers [N, 3 T] as positions [T, N] in the world frame, frame by frame.
    ///
    /// # Errors
    /// [`Error::Query`]: not a multiple of 3 N numbers, or numbers that are not finite.
    pub fn decode(&self, numbers: &[f32]) -> Result<Vec<Point3<f64>>> {
        let n = self.points();
        if numbers.is_empty() || !numbers.len().is_multiple_of(3 * n) {
            return Err(bad(format!("{} numbers are no trajectories of {n} points", numbers.len())));
        }
        if !numbers.iter().all(|x| x.is_finite()) {
            return Err(bad("the network's answer is not finite"));
        }
        let frames = numbers.len() / (3 * n);
        let at = |t: usize, i: usize| {
            let d: [f64; 3] = std::array::from_fn(|axis| f64::from(numbers[(i * frames + t) * 3 + axis]));
            self.moved(&self.present[i], d)
        };
        Ok((0..frames).flat_map(|t| (0..n).map(move |i| (t, i))).map(|(t, i)| at(t, i)).collect())
    }

    fn moved(&self, from: &Point3<f64>, d: [f64; 3]) -> Point3<f64> {
        if self.representation != Representation::Uvd {
            return from + self.frame_from_world.rotation.inverse() * Vector3::from(d) * self.unit_m;
        }
        // Query points are in front of the camera: `new` refuses others.
        let seen = self.normalised(&self.camera.project(from).unwrap_or([0.0, 0.0, 1.0]));
        let [x, y, z]: [f64; 3] = std::array::from_fn(|i| seen[i] + d[i] / UVD_GAIN);
        let lens = &self.camera.intrinsics;
        let depth = (0.5 * (z + 1.0) * DEPTH_RANGE_M / self.to_metric).max(1e-3);
        let (u, v) = (0.5 * (x + 1.0) * lens.width as f64, 0.5 * (y + 1.0) * lens.height as f64);
        self.camera.lift(u, v, depth)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_geometry::{CameraAxes, Intrinsics};

    use super::*;

    fn camera(turn: f64) -> Camera {
        let lens = Intrinsics::from_fovy_deg(50.0, 64, 64).unwrap();
        let (eye, at) = (Point3::new(0.9 * turn.cos(), 0.9 * turn.sin(), 0.7), Point3::new(0.0, 0.0, 0.1));
        // OpenCV axes: z towards the scene, y down.
        let pose = Isometry3::face_towards(&eye, &at, &-Vector3::z());
        Camera::new(lens, pose, CameraAxes::OpenCv)
    }

    fn query<'a>(camera: &'a Camera, points: &'a [Point3<f64>]) -> QueryInput<'a> {
        QueryInput { camera, picture: None, points, instruction: "lift", goal: None, metric: true }
    }

    fn config(representation: Representation) -> FlowNetConfig {
        FlowNetConfig { picture: false, representation, ..FlowNetConfig::default() }
    }

    const POINTS: [[f64; 3]; 3] = [[0.05, 0.0, 0.1], [0.0, 0.04, 0.12], [-0.03, 0.0, 0.05]];

    #[test]
    fn positions_come_back_in_every_representation() {
        let points = POINTS.map(Point3::from);
        let future: Vec<Point3<f64>> =
            (1..=2).flat_map(|t| points.map(|p| p + Vector3::new(0.02, 0.05, 0.1) * f64::from(t))).collect();
        for representation in [Representation::Level, Representation::Camera, Representation::Uvd] {
            for metric in [true, false] {
                let camera = camera(0.7);
                let input = QueryInput { metric, ..query(&camera, &points) };
                let code = QueryCode::new(&config(representation), &input).unwrap();
                let back = code.decode(&code.encode(&points, &future).unwrap()).unwrap();
                let worst = back.iter().zip(&future).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max);
                assert!(worst < 1e-6, "{representation:?} {worst}");
            }
        }
    }

    #[test]
    fn in_the_level_frame_lifting_and_moving_away_look_alike_from_everywhere() {
        let points = POINTS.map(Point3::from);
        for turn in [0.0, 1.0, 4.0] {
            let camera = camera(turn);
            let code = QueryCode::new(&config(Representation::Level), &query(&camera, &points)).unwrap();
            let away = Vector3::new(-turn.cos(), -turn.sin(), 1.0) * 0.15;
            let moved = code.encode(&points, &points.map(|p| p + away)).unwrap();
            for d in moved.chunks_exact(3) {
                assert!((d[0] - 1.0).abs() < 1e-5 && d[1].abs() < 1e-5 && (d[2] - 1.0).abs() < 1e-5, "{d:?}");
            }
        }
    }

    #[test]
    fn a_scene_of_unknown_scale_looks_like_its_metric_twin() {
        let (camera, points) = (camera(0.3), POINTS.map(Point3::from));
        let factor = 2.5;
        let mut larger = camera.clone();
        larger.world_from_camera.translation.vector *= factor;
        let grown = points.map(|p| Point3::from(p.coords * factor));
        let code = |camera: &Camera, points: &[Point3<f64>]| {
            let input = QueryInput { metric: false, ..query(camera, points) };
            QueryCode::new(&config(Representation::Level), &input).unwrap()
        };
        let (a, b) = (code(&camera, &points), code(&larger, &grown));
        let worst = a.features.iter().zip(&b.features).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
        assert!((b.unit_m() / a.unit_m() - factor).abs() < 1e-9);
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let (camera, points) = (camera(0.0), POINTS.map(Point3::from));
        let base = config(Representation::Level);
        let refuse = |config: &FlowNetConfig, input: &QueryInput<'_>| {
            QueryCode::new(config, input).unwrap_err().to_string()
        };
        assert!(refuse(&base, &query(&camera, &[])).contains("no points"));
        assert!(refuse(&base, &query(&camera, &[Point3::new(f64::NAN, 0.0, 0.0)])).contains("finite"));
        assert!(refuse(&base, &query(&camera, &[Point3::new(5.0, 0.0, 3.0)])).contains("in front"));
        let with_goal = FlowNetConfig { goal: true, ..base.clone() };
        assert!(refuse(&with_goal, &query(&camera, &points)).contains("goal"));
        let with_picture = FlowNetConfig { picture: true, ..base.clone() };
        assert!(refuse(&with_picture, &query(&camera, &points)).contains("picture"));
        let small = QueryInput { picture: Some((&[0; 12], &[0.0; 4])), ..query(&camera, &points) };
        assert!(refuse(&with_picture, &small).contains("128 x 128"));
        let code = QueryCode::new(&base, &query(&camera, &points)).unwrap();
        assert!(code.decode(&[0.0; 8]).is_err() && code.decode(&[f32::NAN; 9]).is_err());
        assert!(code.encode(&points[..2], &points).is_err());
    }
}
