//! Moving boxes seen by random cameras: a generator without a simulator, to measure the model itself.
//!
//! Five tasks: lift, push to a goal, carry in an arc to a goal, turn a quarter (left or right is not said, so that one
//! answer cannot be right), carry to a goal and tip over. Points lie on the sides that face the camera at the start. The
//! network is told the points, the goal and the task's name, and sees no picture.

use std::f64::consts::{FRAC_PI_2, PI, TAU};

use efference_data::flow::FlowSource;
use efference_geometry::{
    Camera, CameraAxes, Flow3d, Frame, Intrinsics, Isometry3, Point3, UnitQuaternion, Vector3,
};

use super::random::Gaussian;
use super::scene::Scene;
use crate::error::Result;

/// Names of the tasks.
pub const SYNTHETIC_TASKS: [&str; 5] = ["lift", "push", "place", "turn", "pour"];

/// Height of the arc in which a box is carried, metres.
const ARC_M: f64 = 0.12;

/// Scene number `seed` with `points` points and `frames` frames after the present. The task goes round.
///
/// # Errors
/// Never for at least one point and frame; the type says so because flows are checked.
pub fn synthetic_scene(seed: u64, points: usize, frames: usize) -> Result<Scene> {
    let mut random = Gaussian::new(seed);
    let task = (random.uniform(0.0, SYNTHETIC_TASKS.len() as f64) as usize).min(SYNTHETIC_TASKS.len() - 1);
    let half = Vector3::from_fn(|_, _| random.uniform(0.02, 0.06));
    let place = Vector3::new(random.uniform(-0.2, 0.2), random.uniform(-0.2, 0.2), half.z);
    let yaw = random.uniform(0.0, TAU);
    let start = Isometry3::from_parts(place.into(), about(Vector3::z(), yaw));
    let camera = camera(&mut random)?;

    let side = if random.uniform(0.0, 1.0) < 0.5 { 1.0 } else { -1.0 };
    let (towards, reach) = (random.uniform(0.0, TAU), random.uniform(0.15, 0.35));
    let across = Vector3::new(towards.cos(), towards.sin(), 0.0) * reach;
    let (lift, tip) = (random.uniform(0.15, 0.35), random.uniform(0.4, 0.7) * PI);
    let goal = match SYNTHETIC_TASKS[task] {
        "lift" => place + Vector3::z() * lift,
        "turn" => place,
        "pour" => place + across + Vector3::z() * 0.15,
        _ => place + across,
    };
    let pose = |s: f64| {
        let mut at = place + (goal - place) * s;
        let mut turn = UnitQuaternion::identity();
        match SYNTHETIC_TASKS[task] {
            "place" => at.z += ARC_M * 4.0 * s * (1.0 - s),
            "turn" => turn = about(Vector3::z(), side * FRAC_PI_2 * s),
            // The upper end tips in the direction of the motion.
            "pour" => turn = about(Vector3::z().cross(&across), tip * s * s),
            _ => {}
        }
        Isometry3::from_parts(at.into(), turn * start.rotation)
    };
    // Slow at both ends.
    let poses: Vec<Isometry3<f64>> =
        (0..=frames).map(|t| t as f64 / frames as f64).map(|s| pose(s * s * (3.0 - 2.0 * s))).collect();

    let eye = Point3::from(camera.world_from_camera.translation.vector);
    let (surface, normals) = visible_points(&half, &start, &eye, points, &mut random);
    let visibility = poses.iter().flat_map(|pose| {
        let camera = &camera;
        surface.iter().zip(&normals).map(move |(point, normal)| {
            let point = pose * point;
            let faces = (eye - point).dot(&(pose * normal)) > 0.0;
            f32::from(u8::from(faces && in_picture(camera, &point)))
        })
    });
    let flow = Flow3d::rigid(Frame::World, &surface, &poses, visibility.collect())?;
    Ok(Scene {
        instruction: SYNTHETIC_TASKS[task].into(),
        task: SYNTHETIC_TASKS[task].into(),
        source: FlowSource::Tabletop,
        seed,
        workbench: false,
        camera,
        picture: (Vec::new(), Vec::new()),
        flow,
        goal: Some(goal.into()),
    })
}

fn about(axis: Vector3<f64>, angle: f64) -> UnitQuaternion<f64> {
    axis.try_normalize(1e-12).map_or_else(UnitQuaternion::identity, |axis| UnitQuaternion::new(axis * angle))
}

fn camera(random: &mut Gaussian) -> Result<Camera> {
    let (azimuth, elevation) = (random.uniform(0.0, TAU), random.uniform(0.45, 1.1));
    let distance = random.uniform(0.9, 1.3);
    let level = Vector3::new(azimuth.cos(), azimuth.sin(), 0.0) * elevation.cos();
    let eye = Point3::from((level + Vector3::z() * elevation.sin()) * distance);
    let at = Point3::new(random.uniform(-0.05, 0.05), random.uniform(-0.05, 0.05), 0.08);
    let pose = Isometry3::face_towards(&eye, &at, &-Vector3::z());
    Ok(Camera::new(Intrinsics::from_fovy_deg(50.0, 128, 128)?, pose, CameraAxes::OpenCv))
}

fn in_picture(camera: &Camera, point: &Point3<f64>) -> bool {
    let lens = &camera.intrinsics;
    camera.project(point).is_some_and(|[u, v, _]| {
        (0.0..lens.width as f64).contains(&u) && (0.0..lens.height as f64).contains(&v)
    })
}

/// Points on the faces of a box that `eye` sees, drawn by area, with their outward normals; in the box's frame.
fn visible_points(
    half: &Vector3<f64>,
    pose: &Isometry3<f64>,
    eye: &Point3<f64>,
    count: usize,
    random: &mut Gaussian,
) -> (Vec<Point3<f64>>, Vec<Vector3<f64>>) {
    let eye = pose.inverse_transform_point(eye);
    let faces: Vec<(usize, f64, f64)> = (0..3)
        .flat_map(|axis| [-1.0, 1.0].map(|sign| (axis, sign)))
        .filter(|&(axis, sign)| sign * eye[axis] > half[axis])
        .map(|(axis, sign)| (axis, sign, half[(axis + 1) % 3] * half[(axis + 2) % 3]))
        .collect();
    let total: f64 = faces.iter().map(|face| face.2).sum();
    let mut one = || {
        let mut rest = random.uniform(0.0, total);
        let face = faces.iter().find(|face| {
            rest -= face.2;
            rest < 0.0
        });
        // A camera outside the box sees a face of it.
        let (axis, sign, _) = *face.or(faces.last()).unwrap_or(&(2, 1.0, 1.0));
        let mut point = Point3::origin();
        for i in 0..3 {
            point[i] = if i == axis { sign * half[i] } else { random.uniform(-half[i], half[i]) };
        }
        let mut normal = Vector3::zeros();
        normal[axis] = sign;
        (point, normal)
    };
    (0..count).map(|_| one()).unzip()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use efference_geometry::rigid::{fit_rigid, rigidity_rms};

    use super::*;

    #[test]
    fn scenes_are_rigid_reproducible_and_of_all_tasks() {
        let mut tasks = BTreeSet::new();
        let mut sides = [0; 2];
        for seed in 0..60 {
            let scene = synthetic_scene(seed, 24, 8).unwrap();
            assert_eq!(scene.flow, synthetic_scene(seed, 24, 8).unwrap().flow);
            assert!(rigidity_rms(&scene.flow).unwrap().iter().all(|rms| *rms < 1e-9));
            assert!(scene.flow.visibility_at(0).iter().all(|v| *v == 1.0), "seed {seed}");
            assert!(scene.flow.at(0).iter().all(|p| p.z > -1e-9 && p.z < 0.13));
            let motion = fit_rigid(scene.flow.at(0), scene.flow.at(8), None).unwrap().pose;
            match scene.task.as_str() {
                "turn" => sides[usize::from(motion.rotation.scaled_axis().z > 0.0)] += 1,
                "lift" => assert!(motion.rotation.angle() < 1e-6 && motion.translation.vector.z > 0.1),
                _ => {}
            }
            tasks.insert(scene.task);
        }
        assert_eq!(tasks.len(), 5);
        assert!(sides.iter().all(|count| *count > 0), "{sides:?}");
    }
}
