//! Made-up scenes: a table with a few shapes, drawn by rays, one of which moves along a smooth rigid way. Exact depth,
//! mask, points and visibility; predictions are the truth with a made-up error. Nothing here is a result.

use efference_geometry::{
    Camera, CameraAxes, Flow3d, Frame, Intrinsics, Isometry3, Point3, UnitQuaternion, Vector3,
};
use efference_viz::flow::{Curve, FlowScene, Grasp, GraspState, Phase, Prediction, TimedPose, Verdict};
use image::{Rgb, RgbImage};

/// A solid around the origin of its own frame.
#[derive(Clone, Copy)]
pub enum Solid {
    /// Half sides.
    Cuboid([f64; 3]),
    /// Radius and half height, axis z.
    Cylinder(f64, f64),
}

/// A solid, where it is, its colour.
pub type Body = (Solid, Isometry3<f64>, [f64; 3]);

/// A task of the kind `efference` knows.
pub struct Task {
    pub name: &'static str,
    pub instruction: &'static str,
    /// What moves; its pose at the beginning.
    pub object: Body,
    pub others: Vec<Body>,
    /// Motion of the object, as shift and turn vector (radians) about its middle, at 0, a half and the end.
    pub way: [([f64; 3], [f64; 3]); 3],
}

fn at(x: f64, y: f64, z: f64) -> Isometry3<f64> {
    Isometry3::translation(x, y, z)
}

/// Four tasks.
pub fn tasks() -> Vec<Task> {
    let (red, blue, green) = ([0.86, 0.22, 0.18], [0.20, 0.42, 0.85], [0.18, 0.62, 0.34]);
    let (wood, grey, yellow) = ([0.66, 0.42, 0.24], [0.35, 0.38, 0.43], [0.93, 0.76, 0.18]);
    vec![
        Task {
            name: "pour",
            instruction: "lift the cup and tilt it over the bowl",
            object: (Solid::Cylinder(0.033, 0.045), at(-0.12, 0.02, 0.045), blue),
            others: vec![
                (Solid::Cylinder(0.07, 0.025), at(0.12, 0.05, 0.025), yellow),
                (Solid::Cuboid([0.03, 0.03, 0.03]), at(0.02, -0.15, 0.03), red),
            ],
            way: [
                ([0.0; 3], [0.0; 3]),
                ([0.10, 0.02, 0.14], [0.0, 0.3, 0.0]),
                ([0.19, 0.03, 0.12], [0.0, 1.7, 0.0]),
            ],
        },
        Task {
            name: "insert",
            instruction: "put the peg into the holder",
            object: (Solid::Cuboid([0.018, 0.018, 0.06]), at(-0.10, -0.08, 0.06), green),
            others: vec![
                (Solid::Cuboid([0.045, 0.012, 0.04]), at(0.10, 0.09, 0.04), grey),
                (Solid::Cuboid([0.045, 0.012, 0.04]), at(0.10, 0.03, 0.04), grey),
            ],
            way: [
                ([0.0; 3], [0.0; 3]),
                ([0.12, 0.10, 0.16], [0.0, 0.0, 0.4]),
                ([0.20, 0.14, 0.01], [0.0, 0.0, 0.8]),
            ],
        },
        Task {
            name: "hang",
            instruction: "hang the ring on the peg",
            object: (Solid::Cylinder(0.05, 0.012), at(-0.08, -0.10, 0.012), red),
            others: vec![
                (Solid::Cuboid([0.012, 0.012, 0.11]), at(0.10, 0.12, 0.11), wood),
                (Solid::Cuboid([0.05, 0.008, 0.008]), at(0.06, 0.12, 0.19), wood),
            ],
            way: [
                ([0.0; 3], [0.0; 3]),
                ([0.02, 0.08, 0.14], [0.0, 0.8, 0.0]),
                ([0.11, 0.22, 0.16], [0.0, 1.5, 0.0]),
            ],
        },
        Task {
            name: "drawer",
            instruction: "pull the drawer open",
            object: (Solid::Cuboid([0.07, 0.012, 0.03]), at(0.05, -0.01, 0.06), wood),
            others: vec![
                (Solid::Cuboid([0.085, 0.08, 0.075]), at(0.05, 0.085, 0.075), [0.52, 0.33, 0.19]),
                (Solid::Cylinder(0.03, 0.035), at(-0.16, -0.05, 0.035), green),
            ],
            way: [([0.0; 3], [0.0; 3]), ([0.0, -0.07, 0.0], [0.0; 3]), ([0.0, -0.14, 0.0], [0.0; 3])],
        },
    ]
}

/// The camera of all made-up scenes, `side` pixels wide and high.
pub fn camera(side: usize) -> Camera {
    let eye = Point3::new(-0.28, -0.68, 0.52);
    let view = Isometry3::look_at_rh(&eye, &Point3::new(0.0, 0.0, 0.06), &Vector3::z()).inverse();
    let intrinsics = Intrinsics::from_fovy_deg(40.0, side, side).expect("a valid angle and size");
    Camera::new(intrinsics, view, CameraAxes::OpenGl)
}

/// Distance along the ray and normal, in the solid's own frame.
fn hit(solid: Solid, o: &Point3<f64>, d: &Vector3<f64>) -> Option<(f64, Vector3<f64>)> {
    let mut best: Option<(f64, Vector3<f64>)> = None;
    let mut offer = |t: f64, n: Vector3<f64>| {
        if t > 1e-6 && best.is_none_or(|(b, _)| t < b) {
            best = Some((t, n));
        }
    };
    match solid {
        Solid::Cuboid(half) => {
            for axis in 0..3 {
                for sign in [-1.0, 1.0] {
                    let t = (sign * half[axis] - o[axis]) / d[axis];
                    let p = o + d * t;
                    if (0..3).all(|k| k == axis || p[k].abs() <= half[k]) {
                        let mut n = Vector3::zeros();
                        n[axis] = sign;
                        offer(t, n);
                    }
                }
            }
        }
        Solid::Cylinder(radius, half) => {
            let (a, b) = (d.x * d.x + d.y * d.y, o.x * d.x + o.y * d.y);
            let root = (b * b - a * (o.x * o.x + o.y * o.y - radius * radius)).sqrt();
            let t = (-b - root) / a;
            let p = o + d * t;
            if p.z.abs() <= half {
                offer(t, Vector3::new(p.x, p.y, 0.0) / radius);
            }
            for sign in [-1.0, 1.0] {
                let t = (sign * half - o.z) / d.z;
                let p = o + d * t;
                if p.x * p.x + p.y * p.y <= radius * radius {
                    offer(t, Vector3::new(0.0, 0.0, sign));
                }
            }
        }
    }
    best
}

/// Nearest body (or the table) along a ray of the world: number of the body (the table is `bodies.len()`), distance, normal.
fn trace(bodies: &[Body], o: &Point3<f64>, d: &Vector3<f64>) -> Option<(usize, f64, Vector3<f64>)> {
    let mut best: Option<(usize, f64, Vector3<f64>)> = None;
    if d.z < 0.0 {
        let t = -o.z / d.z;
        let p = o + d * t;
        if p.x.abs() < 0.6 && p.y.abs() < 0.6 {
            best = Some((bodies.len(), t, Vector3::z()));
        }
    }
    for (i, (solid, pose, _)) in bodies.iter().enumerate() {
        let (lo, ld) = (pose.inverse_transform_point(o), pose.inverse_transform_vector(d));
        if let Some((t, n)) = hit(*solid, &lo, &ld)
            && best.is_none_or(|(_, b, _)| t < b)
        {
            best = Some((i, t, pose * n));
        }
    }
    best
}

/// Picture, depth (metres, 0 for the background) and mask of body 0.
pub fn render(bodies: &[Body], camera: &Camera) -> (RgbImage, Vec<f32>, Vec<u8>) {
    let k = camera.intrinsics;
    let (mut depth, mut mask) = (Vec::new(), Vec::new());
    let eye = Point3::from(camera.world_from_camera.translation.vector);
    let light = Vector3::new(-0.5, -0.4, 1.0).normalize();
    let mut picture = RgbImage::new(k.width as u32, k.height as u32);
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        // One metre deep: the distance along this ray is the depth.
        let ray = camera.world_from_camera * k.lift(f64::from(x) + 0.5, f64::from(y) + 0.5, 1.0).coords;
        let found = trace(bodies, &eye, &ray);
        depth.push(found.map_or(0.0, |(_, t, _)| t as f32));
        mask.push(if found.is_some_and(|(i, ..)| i == 0) { 255 } else { 0 });
        let color = found.map_or([0.62, 0.70, 0.78], |(i, t, n)| {
            let base = bodies.get(i).map_or([0.80, 0.73, 0.64], |b| b.2);
            let p = eye + ray * t;
            let shadow = trace(bodies, &(p + n * 1e-4), &light).is_some_and(|(i, ..)| i < bodies.len());
            let shade = 0.45 + if shadow { 0.0 } else { 0.55 * n.dot(&light).max(0.0) };
            base.map(|c| c * shade)
        });
        *pixel = Rgb(color.map(|c| (255.0 * c.clamp(0.0, 1.0)) as u8));
    }
    (picture, depth, mask)
}

/// Points on the surface, in the solid's frame, by a golden-angle spiral of rays from outside.
fn surface_points(solid: Solid, n: usize) -> Vec<Point3<f64>> {
    let golden = std::f64::consts::PI * (3.0 - 5.0_f64.sqrt());
    let ray = |i: usize| {
        let z = 1.0 - 2.0 * (i as f64 + 0.5) / n as f64;
        let r = (1.0 - z * z).sqrt();
        let from = Point3::new(r * (golden * i as f64).cos(), r * (golden * i as f64).sin(), z);
        let (t, _) = hit(solid, &from, &-from.coords).expect("the middle is inside");
        from - from.coords * t
    };
    (0..n).map(ray).collect()
}

/// World from object at `frames + 1` times.
fn poses(task: &Task, frames: usize) -> Vec<Isometry3<f64>> {
    let start = task.object.1;
    let pose = |i: usize| {
        let s = i as f64 / frames as f64;
        // A parabola through the three places.
        let weights = [2.0 * (s - 0.5) * (s - 1.0), -4.0 * s * (s - 1.0), 2.0 * s * (s - 0.5)];
        let blend = |pick: &dyn Fn(usize) -> [f64; 3]| {
            (0..3).fold(Vector3::zeros(), |sum, k| sum + Vector3::from(pick(k)) * weights[k])
        };
        let (shift, turn) = (blend(&|k| task.way[k].0), blend(&|k| task.way[k].1));
        Isometry3::from_parts(
            (start.translation.vector + shift).into(),
            UnitQuaternion::from_scaled_axis(turn) * start.rotation,
        )
    };
    (0..=frames).map(pose).collect()
}

/// Everything about a task: `points` points, `frames` frames after the present, a picture of `side` pixels, one good
/// prediction and one that goes astray.
pub fn scene(task: &Task, points: usize, frames: usize, side: usize) -> FlowScene {
    let camera = camera(side);
    let mut bodies = vec![task.object];
    bodies.extend(&task.others);
    let (picture, depth_m, mask) = render(&bodies, &camera);
    let local = surface_points(task.object.0, points);
    let poses = poses(task, frames);
    let eye = Point3::from(camera.world_from_camera.translation.vector);
    let mut visibility = Vec::new();
    for pose in &poses {
        bodies[0].1 = *pose;
        visibility.extend(local.iter().map(|p| {
            let ray = pose * p - eye;
            let free = trace(&bodies, &eye, &ray).is_none_or(|(_, t, _)| t > 1.0 - 1e-6);
            if free { 1.0 } else { 0.0 }
        }));
    }
    let truth = Flow3d::rigid(Frame::World, &local, &poses, visibility.clone()).expect("a rigid flow");
    let last_pose = poses[frames];
    bodies[0].1 = last_pose;
    let final_picture = render(&bodies, &camera).0;

    let astray = |size: f64| -> Vec<Isometry3<f64>> {
        let bend = |t: usize| size * (t as f64 / frames as f64).powf(1.5);
        let wrong = |t: usize| {
            Isometry3::new(Vector3::new(0.4, -0.6, 0.35) * bend(t), Vector3::new(2.0, 1.0, -1.0) * bend(t))
        };
        poses.iter().enumerate().map(|(t, p)| wrong(t) * p).collect()
    };
    let motion = |poses: &[Isometry3<f64>]| poses.iter().map(|p| p * poses[0].inverse()).collect::<Vec<_>>();
    let prediction = |size: f64, accepted: bool| {
        let poses = astray(size);
        let noise = |i: usize| 0.0015 * ((i * 7919 % 1000) as f64 / 500.0 - 1.0);
        let exact = Flow3d::rigid(Frame::World, &local, &poses, visibility.clone()).expect("a rigid flow");
        let places = (0..=frames).flat_map(|t| {
            let shaky = move |(i, p): (usize, &Point3<f64>)| {
                p + Vector3::new(noise(3 * i + 17 * t), noise(5 * i + 3 * t), noise(i + 29 * t))
                    * (t.min(1) as f64)
            };
            exact.at(t).iter().enumerate().map(shaky).collect::<Vec<_>>()
        });
        let flow = Flow3d::new(Frame::World, points, places.collect(), visibility.clone()).expect("a flow");
        let chain = (0..6).map(|step| {
            let spread = 0.03 * (5 - step) as f64;
            let places = (0..=frames).flat_map(|t| {
                let off = move |i: usize| noise(i * 13 + t * 7) / 0.0015 * spread;
                let p = flow.at(t);
                (0..points)
                    .map(move |i| p[i] + Vector3::new(off(i), off(i + 5), off(i + 9)))
                    .collect::<Vec<_>>()
            });
            Flow3d::new(Frame::World, points, places.collect(), visibility.clone()).expect("a flow")
        });
        let chain: Vec<Flow3d> = chain.collect();
        Prediction {
            final_picture: Some(final_picture.clone()),
            verdicts: vec![
                Verdict { judge: "rigidity".into(), accepted: true, score: None, reason: String::new() },
                Verdict {
                    judge: "predicate".into(),
                    accepted,
                    score: Some(if accepted { 0.93 } else { 0.12 }),
                    reason: if accepted { String::new() } else { "off the goal".into() },
                },
            ],
            chain,
            ..Prediction::new(flow)
        }
    };

    let mut scene = FlowScene::new(task.name, task.instruction, camera, picture, truth.at(0).to_vec());
    scene.seed = 7;
    scene.depth_m = depth_m;
    scene.mask = mask;
    scene.truth = Some(truth);
    scene.predictions = vec![prediction(0.18, false), prediction(0.03, true)];
    scene.chosen = Some(1);
    scene.fit().expect("options in range");
    let at_start = Isometry3::from_parts(task.object.1.translation, UnitQuaternion::identity());
    // A gripper from above that keeps its place on the object.
    let hold = Isometry3::translation(0.0, 0.0, 0.04) * at_start;
    let gripper = |m: &Isometry3<f64>| m * hold;
    let chosen = scene.predictions[1].fit.as_ref().expect("just made").poses.clone();
    scene.plan =
        chosen.iter().enumerate().map(|(t, m)| TimedPose { frame: t as f64, pose: gripper(m) }).collect();
    scene.executed = motion(&poses)
        .iter()
        .enumerate()
        .map(|(t, m)| TimedPose { frame: t as f64, pose: gripper(m) })
        .collect();
    let turned = |angle: f64, state| Grasp {
        pose: hold * Isometry3::rotation(Vector3::z() * angle),
        opening_m: 0.08,
        tip_m: 0.02,
        state,
    };
    scene.grasps = vec![
        turned(0.9, GraspState::Rejected),
        turned(-0.7, GraspState::Possible),
        turned(0.0, GraspState::Chosen),
    ];
    scene.curves = vec![Curve {
        name: "cost/collision".into(),
        values: (0..=frames).map(|t| 0.1 / (1.0 + t as f64)).collect(),
    }];
    scene.phases = ["predict", "grasp", "follow"]
        .iter()
        .enumerate()
        .map(|(i, name)| Phase { frame: i, name: (*name).into() })
        .collect();
    scene.success = Some(true);
    scene
}
