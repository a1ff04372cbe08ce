//! One recording, report and contact sheet from made-up data, through the public interface.
//!
//! `cargo run --release -p efference-viz --example demo_recording -- OUT` and then
//! `rerun OUT/recording.rrd` and a browser on `OUT/report.html`. Nothing here is a result: the "policy" is a
//! formula, the "camera" a painter of coloured squares.
#![allow(clippy::unwrap_used)]

use efference_viz::curves::YAxis;
use efference_viz::sheet::{self, Row, Style};
use efference_viz::{
    CameraAxes, CameraPose, CameraRecord, Chart, EpisodeRecord, GeomKind, Intrinsics, Plan, Pose, Recorder,
    RecorderOptions, ReportData, SceneGeom, Series, Signal, Strip, Tally, TaskRow, theme,
};
use image::{Rgb, RgbImage};
use nalgebra::{Isometry3, Point3, Vector3};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const STEPS: usize = 80;
const CONTROL_HZ: f64 = 20.0;
const CHUNK: usize = 8;
const TASKS: [(&str, [f32; 3]); 6] = [
    ("pick up the red cube", [0.85, 0.20, 0.18]),
    ("put the green cylinder in the tray", [0.20, 0.65, 0.32]),
    ("stack the red cube on the blue cube", [0.25, 0.40, 0.85]),
    ("open the drawer", [0.60, 0.45, 0.30]),
    ("push the yellow block onto the mark", [0.92, 0.76, 0.20]),
    ("press the button", [0.75, 0.30, 0.65]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::args().nth(1).unwrap_or_else(|| "demo_out".into()));
    fs::create_dir_all(&out)?;
    let title = "Six tabletop tasks, SRPO (made-up data)".to_owned();
    let options = RecorderOptions { title: title.clone(), run_id: "demo".into(), ..Default::default() };
    let mut recorder = Recorder::open(&out, &options)?;

    let mut strips = Vec::new();
    let mut rows = Vec::new();
    for (stage, update, skill) in [("before RL", 0, 0.3), ("during RL", 40, 0.7), ("after RL", 80, 1.0)] {
        for (i, (task, color)) in TASKS.iter().enumerate().filter(|(i, _)| stage != "during RL" || *i < 2) {
            let success = skill > 0.9 || (skill > 0.5 && i == 1);
            let e = episode(stage, update, i, task, *color, skill, success);
            recorder.episode(&e)?;
            let frames: Vec<RgbImage> = e.cameras[0].frames.iter().map(|(_, image)| image.clone()).collect();
            if stage != "during RL" && i < 3 {
                let strip =
                    sheet::filmstrip(&frames, 8, success, Style { frame_height: 112, ..Style::default() });
                let (task, stage) = ((*task).to_owned(), stage.to_owned());
                strips.push(Strip { task, stage, success, png: sheet::png(&strip)? });
                let mark = Some(if success { theme::SUCCESS } else { theme::FAILURE });
                rows.push(Row { frames: sheet::spread(&frames, 8), mark });
            }
        }
        recorder.flush()?;
    }

    let curve = |update: u64| 1.0 - 0.65 * (-(update as f64) / 18.0).exp();
    let wobble = |update: u64, k: f64| (k * update as f64).sin();
    for update in 0..=80 {
        let success = (curve(update) + 0.03 * wobble(update, 2.1)).clamp(0.0, 1.0);
        recorder.training(
            update,
            &[
                ("rollout/success", success),
                ("rollout/reward_mean", 0.2 + 0.8 * success),
                ("rollout/reward_std", 0.4 * (1.0 - success) + 0.05),
                ("loss", 0.3 * (1.0 - success) + 0.02 * wobble(update, 1.3)),
                ("approx_kl", 0.004 + 0.003 * wobble(update, 0.7).abs()),
                ("entropy", 2.2 - 1.1 * success + 0.05 * wobble(update, 1.9)),
                ("clip_frac", 0.08 + 0.03 * wobble(update, 1.1)),
                ("grad_norm", 0.9 + 0.3 * wobble(update, 2.7)),
                ("lr", 3e-4 * (0.5 + 0.5 * (0.039 * update as f64).cos())),
                ("env_steps_per_sec", 5200.0 + 300.0 * wobble(update, 0.9)),
            ],
        )?;
        if update % 10 == 0 {
            recorder.training(update, &[("eval/success", curve(update))])?;
        }
    }

    let before = [21, 17, 9, 24, 12, 27].map(|k| Tally::new(k, 50));
    let after = [49, 47, 45, 50, 48, 50].map(|k| Tally::new(k, 50));
    let tasks: Vec<TaskRow> = TASKS
        .iter()
        .zip(before.into_iter().zip(after))
        .map(|((task, _), (b, a))| TaskRow { task: (*task).into(), before: Some(b), after: Some(a) })
        .collect();
    let table: String = tasks
        .iter()
        .map(|t| format!("| {} | {} | {} |\n", t.task, t.before.unwrap(), t.after.unwrap()))
        .collect();
    recorder.summary(&format!(
        "# {title}\n\n| task | before | after |\n|-|-|-|\n{table}\n\nTraining curves: recording *efference training* \
         in the panel on the left."
    ))?;
    recorder.finish()?;

    let evaluations = (0..=8).map(|i| (10.0 * i as f64, Tally::new((300.0 * curve(10 * i)) as u64, 300)));
    let success = Chart::new("Success on held-out states", "update", "success")
        .y_axis(YAxis::Percent)
        .line(Series::rates("SRPO", evaluations))
        .line(Series::rates(
            "GRPO",
            (0..=8).map(|i| (10.0 * i as f64, Tally::new((260.0 * curve(7 * i)) as u64, 300))),
        ))
        .line(Series::new("before RL", [(0.0, 0.37), (80.0, 0.37)]).dashed().color(6));
    let line = |f: &dyn Fn(u64) -> f64| (0..=80).map(|u| (u as f64, f(u))).collect::<Vec<_>>();
    let loss = |u: u64| 0.3 * (1.0 - curve(u)) + 0.02 * wobble(u, 1.3);
    let charts = vec![
        success,
        Chart::new("Loss", "update", "nats").line(Series::new("", line(&loss))),
        Chart::new("KL and clip fraction", "update", "")
            .y_axis(YAxis::FromZero)
            .line(Series::new("approx. KL (nats)", line(&|u| 0.004 + 0.003 * wobble(u, 0.7).abs())).color(3))
            .line(Series::new("clip fraction", line(&|u| 0.08 + 0.03 * wobble(u, 1.1))).color(4)),
        Chart::new("Entropy of an action token", "update", "nats")
            .line(Series::new("", line(&|u| 2.2 - 1.1 * curve(u) + 0.05 * wobble(u, 1.9))).color(2)),
    ];
    fs::write(out.join("success.svg"), charts[0].to_svg()?)?;
    fs::write(out.join("sheet.png"), sheet::png(&sheet::compose(&rows, Style::default()))?)?;

    let pairs = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let report = ReportData {
        title,
        subtitle: "A layout sample: every number on this page comes from a formula in an example.".into(),
        tasks,
        charts,
        strips,
        phases: [
            ("environment", 181.0),
            ("policy", 122.0),
            ("reward", 9.4),
            ("update", 214.0),
            ("evaluation", 61.0),
        ]
        .map(|(name, secs)| (name.to_owned(), secs))
        .to_vec(),
        settings: pairs(&[
            ("algorithm", "srpo"),
            ("group", "8"),
            ("temperature", "1.0"),
            ("clip", "[0.8, 1.28], dual 3.0"),
            ("learning rate", "3e-4, cosine, warm-up 5"),
            ("seed", "0"),
        ]),
        environment: pairs(&[
            ("MuJoCo", "3.3.2"),
            ("machine", "2 cores, Mesa llvmpipe"),
            ("commit", "none: sample data"),
        ]),
        notes: vec!["Sample data; see crates/viz/examples/demo_recording.rs.".into()],
    };
    fs::write(out.join("report.html"), report.to_html()?)?;
    println!("{}", out.display());
    Ok(())
}

/// An arm that reaches for an object, closes, and lifts it; without skill it misses.
fn episode(
    stage: &str,
    update: u64,
    index: usize,
    task: &str,
    color: [f32; 3],
    skill: f32,
    success: bool,
) -> EpisodeRecord {
    let object = Point3::new(0.05 * index as f32 - 0.1, 0.04 * (index % 3) as f32 - 0.05, 0.02);
    let miss = Vector3::new(0.09, -0.07, 0.02) * (1.0 - skill);
    let start = Point3::new(-0.12, 0.1, 0.28);
    let grip = object + miss + Vector3::z() * 0.02;
    let lift = grip + Vector3::new(0.03, 0.05, 0.18);
    let smooth = |a: Point3<f32>, b: Point3<f32>, s: f32| a + (b - a) * (s * s * (3.0 - 2.0 * s));
    let gripper_at = |t: usize| {
        let s = t.min(STEPS) as f32 / STEPS as f32;
        let mut p =
            if s < 0.55 { smooth(start, grip, s / 0.55) } else { smooth(grip, lift, (s - 0.55) / 0.45) };
        p.z += 0.03 * (std::f32::consts::PI * (s / 0.55).min(1.0)).sin();
        p
    };
    let down = Isometry3::rotation(Vector3::x() * std::f32::consts::PI);
    let pose = |p: Point3<f32>| Pose::translation(p.x, p.y, p.z);
    let points: Vec<Point3<f32>> = (0..=STEPS).map(gripper_at).collect();
    let grasp = (0.55 * STEPS as f32) as usize;
    let held = |t: usize| if success && t > grasp { points[t] - Vector3::z() * 0.02 } else { object };

    let geom = |name: &str, kind, size, rgba, poses| SceneGeom { name: name.into(), kind, size, rgba, poses };
    let fixed = |x: f32, y: f32, z: f32| vec![Pose::translation(x, y, z)];
    let [r, g, b] = color;
    let shape =
        [GeomKind::Box, GeomKind::Cylinder, GeomKind::Box, GeomKind::Box, GeomKind::Box, GeomKind::Sphere];
    let grey = [0.62, 0.65, 0.70, 1.0];
    let finger = |side: f32| -> Vec<Pose> {
        let opening = |t: usize| if t > grasp { 0.02 } else { 0.035 };
        (0..=STEPS).map(|t| pose(points[t] + Vector3::new(0.0, side * opening(t), 0.01))).collect()
    };
    let scene = vec![
        geom("table", GeomKind::Box, [0.35, 0.3, 0.02], [0.72, 0.62, 0.50, 1.0], fixed(0.0, 0.0, -0.02)),
        geom("tray", GeomKind::Box, [0.07, 0.05, 0.004], [0.30, 0.32, 0.38, 1.0], fixed(0.2, -0.15, 0.004)),
        geom("post", GeomKind::Capsule, [0.03, 0.2, 0.0], grey, fixed(-0.3, 0.0, 0.2)),
        geom("mark", GeomKind::Cylinder, [0.04, 0.001, 0.0], [0.9, 0.9, 0.9, 1.0], fixed(0.18, 0.16, 0.001)),
        geom(
            "object",
            shape[index],
            [0.02, 0.02, 0.02],
            [r, g, b, 1.0],
            (0..=STEPS).map(|t| pose(held(t))).collect(),
        ),
        geom(
            "hand",
            GeomKind::Capsule,
            [0.018, 0.03, 0.0],
            grey,
            points.iter().map(|p| pose(p + Vector3::z() * 0.07)).collect(),
        ),
        geom("finger_left", GeomKind::Box, [0.008, 0.004, 0.025], [0.2, 0.2, 0.22, 1.0], finger(1.0)),
        geom("finger_right", GeomKind::Box, [0.008, 0.004, 0.025], [0.2, 0.2, 0.22, 1.0], finger(-1.0)),
    ];

    let intrinsics = Intrinsics::from_fovy(0.8, 64, 64);
    let front =
        Isometry3::face_towards(&Point3::new(0.75, 0.0, 0.55), &Point3::new(0.0, 0.0, 0.05), &Vector3::z());
    // `face_towards` looks along +Z with Y up; a MuJoCo camera looks along -Z.
    let front = front * Isometry3::rotation(Vector3::y() * std::f32::consts::PI);
    let wrist: Vec<Pose> = points.iter().map(|p| pose(p + Vector3::new(0.06, 0.0, 0.1))).collect();
    let camera = |name: &str, poses: Vec<Pose>| {
        let mut record = CameraRecord {
            name: name.into(),
            intrinsics,
            axes: CameraAxes::OpenGl,
            poses,
            frames: Vec::new(),
        };
        for t in (0..=STEPS).step_by(4) {
            record.frames.push((t, paint(&record.at(t).unwrap(), &scene, t)));
        }
        record
    };
    let cameras = vec![camera("agentview", vec![front]), camera("wrist", wrist)];
    let plans = (0..STEPS).step_by(CHUNK).map(|frame| {
        let points = (frame..=frame + CHUNK).map(|t| gripper_at(t).into()).collect();
        Plan { frame, points }
    });
    EpisodeRecord {
        stage: stage.into(),
        name: task.into(),
        instruction: task.into(),
        seed: 1000 + index as u64,
        update,
        control_hz: CONTROL_HZ,
        success,
        gripper: points.iter().map(|p| pose(*p) * down).collect(),
        rewards: (0..STEPS).map(|t| if success && t + 1 == STEPS { 1.0 } else { 0.0 }).collect(),
        progress: Some(if success { 1.0 } else { 0.35 }),
        signals: vec![
            Signal {
                name: "gripper_opening".into(),
                values: (0..=STEPS).map(|t| if t > grasp { 0.5 } else { 0.9 }).collect(),
            },
            Signal {
                name: "distance_m".into(),
                values: (0..=STEPS).map(|t| (points[t] - held(t)).norm()).collect(),
            },
        ],
        plans: plans.collect(),
        scene,
        cameras,
        notes: vec![("policy".into(), "a formula".into())],
    }
}

/// Squares at the projected bodies, far ones first; enough to see that cameras and 3D agree.
fn paint(camera: &CameraPose, scene: &[SceneGeom], t: usize) -> RgbImage {
    let k = camera.intrinsics;
    let mut image =
        RgbImage::from_fn(k.width, k.height, |_, y| Rgb([60 + y as u8, 66 + y as u8, 76 + y as u8]));
    let mut bodies: Vec<(f32, [f32; 2], f32, [f32; 4])> = scene
        .iter()
        .filter_map(|g| {
            let at = g.poses.get(t).unwrap_or(&g.poses[0]).translation.vector;
            let depth = (at - camera.world_from_cam.translation.vector).norm();
            Some((depth, camera.project(at.into())?, k.fx * g.size[0] / depth, g.rgba))
        })
        .collect();
    bodies.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, [cx, cy], half, rgba) in bodies {
        let color = Rgb([rgba[0], rgba[1], rgba[2]].map(|c| (255.0 * c) as u8));
        let span = |c: f32, n: u32| (c - half).max(0.0) as u32..((c + half).max(0.0) as u32).min(n);
        for y in span(cy, k.height) {
            for x in span(cx, k.width) {
                image.put_pixel(x, y, color);
            }
        }
    }
    image
}
