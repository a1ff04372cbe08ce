#![allow(clippy::unwrap_used)]
use efference_geometry::{Flow3d, Frame, Isometry3, Point3};

use super::space::SpaceOptions;
use super::*;
use crate::error::Error;
use crate::made_up;

fn scene() -> FlowScene {
    made_up::scene(&made_up::tasks()[0], 64, 8, 96)
}

#[test]
fn true_points_lie_on_the_object_and_in_front_of_the_camera() {
    for task in made_up::tasks() {
        let scene = made_up::scene(&task, 256, 4, 256);
        let truth = scene.truth.as_ref().unwrap();
        let (mut seen, mut inside) = (0, 0);
        for (p, visible) in truth.at(0).iter().zip(truth.visibility_at(0)) {
            let [u, v, depth] = scene.camera.project(p).expect("the camera faces the object");
            assert!(depth > 0.0);
            if *visible >= 0.5 {
                seen += 1;
                // A point on the outline may lie in a pixel whose middle is just off the object.
                let near = |c: f64| (c as usize).saturating_sub(1)..(c as usize + 2).min(256);
                let hit = near(v).any(|y| near(u).any(|x| scene.mask[y * 256 + x] == 255));
                inside += usize::from(hit);
            }
        }
        assert!(seen > 30, "{seen} points of {} are seen", task.name);
        assert!(inside as f64 > 0.99 * f64::from(seen), "{inside} of {seen} points of {}", task.name);
    }
}

#[test]
fn errors_agree_with_the_metrics_of_the_benchmark() {
    let scene = scene();
    for (k, prediction) in scene.predictions.iter().enumerate() {
        let metrics =
            efference_geometry::metrics::displacement(&prediction.flow, scene.truth.as_ref().unwrap());
        let metrics = metrics.unwrap();
        let errors = scene.errors(k).unwrap();
        assert!((errors.ade_cm() - 100.0 * metrics.ade_m).abs() < 1e-9);
        assert!((errors.fde_cm() - 100.0 * metrics.fde_m).abs() < 1e-9);
    }
    assert_eq!(scene.errors(2), None);
}

#[test]
fn a_page_is_made_of_whatever_there_is() {
    let full = scene();
    let whole = page(&full).unwrap();
    assert_eq!(whole.width(), 1600);

    let bare = FlowScene::new("pour", "lift", full.camera.clone(), full.picture.clone(), full.points.clone());
    let page_of = |change: &dyn Fn(&mut FlowScene)| {
        let mut scene = full.clone();
        change(&mut scene);
        page(&scene).unwrap()
    };
    let pages = [
        whole,
        page(&bare).unwrap(),
        page_of(&|s| s.truth = None),
        page_of(&|s| {
            s.predictions.clear();
            s.chosen = None;
        }),
        page_of(&|s| s.depth_m.clear()),
        page_of(&|s| s.mask.clear()),
        page_of(&|s| s.chosen = Some(0)),
    ];
    for (i, a) in pages.iter().enumerate() {
        assert_eq!(a.width(), pages[0].width());
        assert!(pages[i + 1..].iter().all(|b| a != b), "page {i} equals another");
    }
    let columns = |scenes: &[FlowScene]| sheet(scenes).unwrap().width();
    assert!(columns(&[full.clone(), full.clone()]) > columns(&[full]));
    assert!(sheet(&[]).is_ok());
}

#[test]
fn the_object_moves_along_with_the_flow() {
    let scene = scene();
    let relief = super::relief::Relief::of(&scene).unwrap();
    let at = |until: f64| {
        let options = SpaceOptions { size: [120, 90], until, moving: true, azimuth: 0.4 };
        super::space::draw(&scene, Some(&relief), options)
    };
    assert_eq!(at(3.0), at(3.0));
    assert_ne!(at(0.0), at(3.0));
    assert_ne!(at(3.0), at(8.0));
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let scene = scene();
    let frames = scene.frames();
    let refused = |change: &dyn Fn(&mut FlowScene), field: &str| {
        let mut bad = scene.clone();
        change(&mut bad);
        match (page(&bad), sheet(std::slice::from_ref(&bad))) {
            (Err(Error::Shape { field: named, .. }), Err(Error::Shape { .. })) => {
                assert!(named.contains(field), "{named}, not {field}");
            }
            other => panic!("{field}: {:?}", other.0.map(|p| p.dimensions())),
        }
    };
    refused(&|s| s.points.clear(), "points");
    refused(&|s| s.points[3].x = f64::NAN, "points");
    refused(&|s| _ = s.points.pop(), "truth");
    refused(&|s| _ = s.depth_m.pop(), "depth_m");
    refused(&|s| s.mask.push(0), "mask");
    refused(&|s| s.camera.intrinsics.width += 1, "picture");
    refused(&|s| s.chosen = Some(9), "chosen");
    refused(&|s| s.frame_s = 0.0, "frame_s");
    refused(&|s| s.curves[0].values.clear(), "curve");
    refused(&|s| s.plan[2].frame = -1.0, "plan");
    refused(&|s| s.executed[0].pose = Isometry3::translation(f64::NAN, 0.0, 0.0), "executed");
    refused(&|s| s.grasps[0].opening_m = f64::INFINITY, "grasps");
    refused(&|s| _ = s.predictions[1].fit.as_mut().unwrap().poses.pop(), "predictions[1].fit");
    refused(&|s| _ = s.predictions[0].fit.as_mut().unwrap().inliers[1].pop(), "predictions[0].fit");
    refused(
        &|s| s.truth = s.truth.as_ref().map(|t| t.transformed(Frame::Camera, &Isometry3::identity())),
        "truth",
    );
    let short = Flow3d::new(Frame::World, 64, vec![Point3::origin(); 64], vec![1.0; 64]).unwrap();
    refused(&|s| s.predictions[0].flow = short.clone(), "predictions[0]");
    assert_eq!(frames, 9);
}

#[test]
fn flows_come_from_the_camera_frame_as_well() {
    let scene = scene();
    let truth = scene.truth.clone().unwrap();
    let seen = truth.transformed(Frame::Camera, &scene.camera.world_from_camera.inverse());
    let back = scene.in_world(&seen);
    assert_eq!(back.frame(), Frame::World);
    for t in 0..truth.frames() {
        for (a, b) in truth.at(t).iter().zip(back.at(t)) {
            assert!((a - b).norm() < 1e-12);
        }
    }
}

#[test]
fn a_scene_becomes_a_line_of_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flow.jsonl");
    let mut recorder = FlowRecorder::create(&path).unwrap();
    let mut later = scene();
    (later.first_frame, later.round) = (8, 1);
    recorder.scene(&scene()).unwrap();
    recorder.scene(&later).unwrap();
    later.points.clear();
    assert!(matches!(recorder.scene(&later), Err(Error::Shape { .. })));
    recorder.finish().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let (scene, line) = (scene(), &lines[1]);
    assert_eq!((line["round"].as_u64(), line["first_frame"].as_u64()), (Some(1), Some(8)));
    let p = scene.predictions[1].flow.at(5)[7];
    let got = &line["predictions"][1]["flow"]["positions"][5][7];
    assert!((got[2].as_f64().unwrap() - p.z).abs() < 1e-6);
    assert_eq!(line["colors"].as_array().unwrap().len(), 64);
    assert_eq!(line["predictions"][0]["verdicts"][1]["accepted"], false);
    assert_eq!(line["grasps"][2]["state"], "chosen");

    let error = FlowRecorder::create(&dir.path().join("flow.txt")).err().unwrap();
    assert!(error.to_string().contains(".jsonl"), "{error}");
    assert!(matches!(FlowRecorder::create(&dir.path().join("no/a.jsonl")), Err(Error::Create { .. })));
}

#[test]
fn a_film_has_its_pictures_and_refuses_senseless_options() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gif");
    let scene = made_up::scene(&made_up::tasks()[1], 32, 4, 64);
    let options = MovieOptions { fps: 2, motion_s: 1.5, hold_s: 1.0, side: 64 };
    movie(&scene, &path, &options).unwrap();
    let mut reader = gif::DecodeOptions::new().read_info(std::fs::File::open(&path).unwrap()).unwrap();
    let mut pictures = 0;
    while reader.read_next_frame().unwrap().is_some() {
        pictures += 1;
    }
    assert_eq!(pictures, 4);
    for bad in [
        MovieOptions { fps: 0, ..options },
        MovieOptions { motion_s: f64::NAN, ..options },
        MovieOptions { hold_s: -1.0, ..options },
        MovieOptions { side: 100_000, ..options },
    ] {
        assert!(matches!(movie(&scene, &path, &bad), Err(Error::Film { .. })));
    }
}
