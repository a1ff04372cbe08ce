//! The scene from a free camera: what the depth camera saw, trails, the object where the flow leaves it, grasps, the way of
//! the gripper.

use std::f64::consts::PI;

use efference_geometry::rigid::FlowFit;
use efference_geometry::{Camera, Flow3d, Intrinsics, Isometry3, Point3, Vector3};
use image::RgbImage;

use super::look::{self, RIM, SPACE};
use super::relief::Relief;
use super::trails::{self, Trail};
use super::{FlowScene, Grasp, GraspState, PREDICTED, TimedPose, colors};
use crate::draw::{Canvas, DepthPicture, Mesh, Stroke};
use crate::theme::{self, Rgb};

/// What of a scene is drawn in 3D, and from where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpaceOptions {
    /// Pixels.
    pub(crate) size: [u32; 2],
    /// Trails end here, in frames.
    pub(crate) until: f64,
    /// The object moves along with the flow; else it stays and its last place is shown as a ghost.
    pub(crate) moving: bool,
    /// Turn of the spectator round the vertical, from the scene's own camera, radians.
    pub(crate) azimuth: f64,
}

/// Length of a drawn finger, metres.
const FINGER_M: f64 = 0.045;
/// Trails that are drawn in 3D.
const TRAILS: usize = 18;
/// Things on a line of sight count as one surface within this distance, metres.
const MARGIN_M: f64 = 0.012;

/// Draws it. Without depth, trails and poses stand before an empty ground.
pub(crate) fn draw(scene: &FlowScene, relief: Option<&Relief>, options: SpaceOptions) -> RgbImage {
    let (target, radius) = interest(scene);
    let eye = spectator(scene, &target, radius, options);
    let mut solid = DepthPicture::new(&eye, SPACE);
    let shown = scene.shown();
    let flow = shown.map(|p| &p.flow).or(scene.truth.as_ref());
    let fit = shown.and_then(|p| p.fit.as_ref()).or(scene.truth_fit.as_ref());
    if let Some(relief) = relief {
        for mesh in [&relief.unseen, &relief.scene] {
            solid.draw(&vignette(mesh, &target, 2.2 * radius), 1.0);
        }
        draw_object(&mut solid, &relief.object, scene, fit, options);
    }
    let mut canvas = Canvas::new(options.size[0], options.size[1], SPACE);
    canvas.picture([0, 0], &solid.image(), 0.0);
    let pen = Pen { eye: &eye, solid: &solid };
    if let Some(flow) = flow {
        let share = if shown.is_some() { PREDICTED } else { 1.0 };
        pen.trails(&mut canvas, scene, flow, options.until, share);
    }
    for grasp in scene.grasps.iter().filter(|g| g.state != GraspState::Chosen) {
        pen.grasp(&mut canvas, grasp);
    }
    pen.path(&mut canvas, &scene.plan, theme::PLAN, true, f64::INFINITY);
    let done = if options.moving { options.until } else { f64::INFINITY };
    let color = scene.success.map_or([255, 255, 255], look::verdict);
    pen.path(&mut canvas, &scene.executed, color, false, done);
    for grasp in scene.grasps.iter().filter(|g| g.state == GraspState::Chosen) {
        pen.grasp(&mut canvas, grasp);
    }
    canvas.into_image()
}

fn draw_object(
    solid: &mut DepthPicture,
    object: &Mesh,
    scene: &FlowScene,
    fit: Option<&FlowFit>,
    options: SpaceOptions,
) {
    let Some(fit) = fit else {
        solid.draw(object, 1.0);
        return;
    };
    if options.moving {
        if let Some(motion) = trails::motion(&fit.poses, options.until) {
            solid.draw(&object.moved(&motion), 1.0);
        }
        return;
    }
    solid.draw(object, 1.0);
    if let Some(last) = trails::motion(&fit.poses, options.until) {
        let tint = scene.shown().and_then(super::Prediction::accepted).map_or(theme::PLAN, look::verdict);
        let mut ghost = object.moved(&last);
        for (_, color) in &mut ghost.vertices {
            *color = colors::mix(colors::mix(*color, [255; 3], 0.35), tint, 0.30);
        }
        solid.draw(&ghost, 0.72);
    }
}

/// The middle of what happens and a radius around it, metres.
fn interest(scene: &FlowScene) -> (Point3<f64>, f64) {
    let flow = scene.shown().map(|p| &p.flow).or(scene.truth.as_ref());
    let moved = flow.into_iter().flat_map(|f| (0..f.frames()).flat_map(|t| f.at(t)));
    let gripper = scene.plan.iter().chain(&scene.executed).map(|p| Point3::from(p.pose.translation.vector));
    let all: Vec<Point3<f64>> = moved.chain(&scene.points).copied().chain(gripper).collect();
    let fold = |pick: fn(f64, f64) -> f64, start: f64| {
        all.iter().fold([start; 3], |m, p| [pick(m[0], p.x), pick(m[1], p.y), pick(m[2], p.z)])
    };
    let (low, high) = (fold(f64::min, f64::INFINITY), fold(f64::max, f64::NEG_INFINITY));
    let (low, high) = (Vector3::from(low), Vector3::from(high));
    (Point3::from((low + high) * 0.5), (0.5 * (high - low).norm()).max(0.12))
}

#[cfg(feature = "rerun")]
/// Where a spectator of the scene stands, and what it looks at.
pub(crate) fn spectator_of(scene: &FlowScene) -> (Point3<f64>, Point3<f64>) {
    let (target, radius) = interest(scene);
    let options = SpaceOptions { size: [600, 440], until: 0.0, moving: false, azimuth: super::page::AZIMUTH };
    let eye = spectator(scene, &target, radius, options);
    (eye.world_from_camera.translation.vector.into(), target)
}

/// A spectator on a circle around the target, beside and a little above the scene's own camera.
fn spectator(scene: &FlowScene, target: &Point3<f64>, radius: f64, options: SpaceOptions) -> Camera {
    let from = scene.camera.world_from_camera.translation.vector - target.coords;
    let ground = from.xy().norm();
    let azimuth = from.y.atan2(from.x) + options.azimuth;
    let elevation = (from.z.atan2(ground) + 0.06).clamp(0.35, 0.95);
    let back =
        Vector3::new(azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin());
    let [w, h] = options.size.map(|s| s.max(1) as usize);
    // 32 degrees, high enough to be a valid angle.
    let fovy: f64 = 32.0;
    let f = 0.5 * h as f64 / (0.5 * fovy.to_radians()).tan();
    let intrinsics = Intrinsics { fx: f, fy: f, cx: 0.5 * w as f64, cy: 0.5 * h as f64, width: w, height: h };
    let narrow = (w as f64 / h as f64).min(1.0);
    let distance = 1.25 * radius / ((0.5 * fovy.to_radians()).sin() * narrow);
    let eye = target + back * distance;
    Camera { intrinsics, world_from_camera: looking(&eye, target) }
}

/// World from a camera (OpenCV axes) at `eye` that looks at `target`, the world's z upwards in its picture.
fn looking(eye: &Point3<f64>, target: &Point3<f64>) -> Isometry3<f64> {
    let turn = Isometry3::rotation(Vector3::x() * PI);
    // nalgebra's right-handed look-at is a camera with y up that looks along -z; half a turn about x makes it ours.
    Isometry3::look_at_rh(eye, target, &Vector3::z()).inverse() * turn
}

/// The mesh faded into the ground beyond `radius_m` from `target`, and gone a little farther out.
fn vignette(mesh: &Mesh, target: &Point3<f64>, radius_m: f64) -> Mesh {
    let share =
        |p: &Point3<f64>| (((p - target).norm() - 0.75 * radius_m) / (0.5 * radius_m)).clamp(0.0, 1.0);
    let vertices: Vec<(Point3<f64>, Rgb)> =
        mesh.vertices.iter().map(|(p, c)| (*p, colors::mix(*c, SPACE, share(p)))).collect();
    let near = |t: &&[u32; 3]| t.iter().any(|i| share(&mesh.vertices[*i as usize].0) < 1.0);
    let triangles = mesh.triangles.iter().filter(near).copied().collect();
    Mesh { vertices, triangles }
}

/// Draws lines of the world over what is solid.
struct Pen<'a> {
    eye: &'a Camera,
    solid: &'a DepthPicture,
}

impl Pen<'_> {
    /// Pixel, depth and whether nothing hides it.
    fn see(&self, p: &Point3<f64>) -> Option<([f32; 2], f64, bool)> {
        let [u, v, depth] = self.eye.project(p).filter(|[_, _, depth]| *depth > 0.02)?;
        Some(([u as f32, v as f32], depth, !self.solid.hides(u, v, depth, MARGIN_M)))
    }

    fn trails(&self, canvas: &mut Canvas, scene: &FlowScene, flow: &Flow3d, until: f64, share: f64) {
        let colors = colors::point_colors(&scene.points, share);
        let trail = |point: usize| {
            let way = trails::way(flow, point, until);
            let seen: Option<Vec<_>> = way.iter().map(|(p, _)| self.see(p)).collect();
            let seen = seen?;
            let depth = seen.last()?.1;
            let places = seen.iter().map(|(at, _, free)| (*at, *free)).collect();
            let tail = colors::mix(colors[point], SPACE, 0.45);
            Some(Trail { places, depth, color: colors[point], tail })
        };
        let width = canvas_scale(self.eye) * 3.0;
        let chosen = trails::spread(&scene.points, TRAILS);
        trails::draw(canvas, chosen.into_iter().filter_map(trail).collect(), width, RIM);
    }

    fn line(&self, canvas: &mut Canvas, points: &[Point3<f64>], stroke: Stroke) {
        let seen: Vec<([f32; 2], bool)> =
            points.iter().map_while(|p| self.see(p)).map(|(at, _, free)| (at, free)).collect();
        let all: Vec<[f32; 2]> = seen.iter().map(|s| s.0).collect();
        let rim = Stroke { color: RIM, width: stroke.width + 2.0, ..stroke };
        canvas.polyline(&all, rim.alpha(0.45 * stroke.alpha));
        canvas.polyline(&all, stroke);
    }

    /// The way of the gripper to `until`, with the axes of some of its poses.
    fn path(&self, canvas: &mut Canvas, poses: &[TimedPose], color: Rgb, axes: bool, until: f64) {
        let done: Vec<&TimedPose> = poses.iter().filter(|p| p.frame <= until).collect();
        let width = canvas_scale(self.eye) * 3.0;
        let points: Vec<Point3<f64>> = done.iter().map(|p| Point3::from(p.pose.translation.vector)).collect();
        self.line(canvas, &points, Stroke::new(color, width));
        if !axes {
            return;
        }
        let ends = done.first().into_iter().chain(done.last().filter(|_| done.len() > 1));
        for pose in ends {
            let origin = Point3::from(pose.pose.translation.vector);
            for (axis, color) in [
                (Vector3::x(), [235, 87, 87]),
                (Vector3::y(), [88, 190, 110]),
                (Vector3::z(), [90, 140, 245]),
            ] {
                let tip = origin + pose.pose.rotation * axis * 0.022;
                self.line(canvas, &[origin, tip], Stroke::new(color, 0.6 * width));
            }
        }
    }

    /// Two fingers, the palm between them and a handle behind.
    fn grasp(&self, canvas: &mut Canvas, grasp: &Grasp) {
        let (color, alpha, width) = match grasp.state {
            GraspState::Chosen => (theme::SUCCESS, 1.0, 3.6),
            GraspState::Possible => ([210, 216, 224], 0.75, 1.8),
            GraspState::Rejected => (theme::MUTED, 0.6, 1.4),
        };
        for line in finger_lines(grasp) {
            let stroke = Stroke::new(color, canvas_scale(self.eye) * width).alpha(alpha);
            self.line(canvas, &line, stroke);
        }
    }
}

/// The drawing of a gripper: finger tips, palm, handle; in the world.
pub(crate) fn finger_lines(grasp: &Grasp) -> [Vec<Point3<f64>>; 2] {
    let half = 0.5 * grasp.opening_m;
    let at = |y: f64, z: f64| grasp.pose * Point3::new(0.0, y, z - grasp.tip_m);
    [
        vec![at(-half, 0.0), at(-half, FINGER_M), at(half, FINGER_M), at(half, 0.0)],
        vec![at(0.0, FINGER_M), at(0.0, 1.7 * FINGER_M)],
    ]
}

/// Lines are as wide in small views as in large ones, in proportion.
fn canvas_scale(eye: &Camera) -> f32 {
    (eye.intrinsics.height as f32 / 460.0).clamp(0.6, 2.5)
}
