#![allow(clippy::unwrap_used)]
use super::*;
use crate::episode::{CameraAxes, CameraRecord, GeomKind, Intrinsics, Plan, Pose, SceneGeom, Signal};
use rerun::log::LogMsg;
use std::collections::BTreeMap;
use std::fs;

/// Six frames with one of everything.
fn episode(stage: &str, name: &str, success: bool) -> EpisodeRecord {
    let frames = 6;
    let poses: Vec<Pose> = (0..frames).map(|t| Pose::translation(0.01 * t as f32, 0.0, 0.1)).collect();
    let image = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([16 * x as u8, 16 * y as u8, 90]));
    let camera = |name: &str, poses: Vec<Pose>| CameraRecord {
        name: name.into(),
        intrinsics: Intrinsics::from_fovy(0.8, 16, 16),
        axes: CameraAxes::OpenGl,
        poses,
        frames: vec![(0, image.clone()), (3, image.clone())],
    };
    let kinds = [
        GeomKind::Box,
        GeomKind::Sphere,
        GeomKind::Ellipsoid,
        GeomKind::Cylinder,
        GeomKind::Capsule,
        GeomKind::Plane,
    ];
    let geom = |kind: GeomKind, poses: Vec<Pose>| SceneGeom {
        name: format!("{kind:?}_{}", poses.len()),
        kind,
        size: [0.02, 0.03, 0.04],
        rgba: [1.0, 0.2, 0.1, 1.0],
        poses,
    };
    EpisodeRecord {
        stage: stage.into(),
        name: name.into(),
        instruction: format!("{name} please"),
        control_hz: 20.0,
        success,
        gripper: poses.clone(),
        rewards: vec![0.0, 0.0, 0.0, 0.0, 1.0],
        progress: Some(0.7),
        signals: vec![Signal { name: "gripper_m".into(), values: vec![0.1, 0.2, f32::NAN, 0.4, 0.5, 0.6] }],
        plans: [0, 3].map(|frame| Plan { frame, points: vec![[0.0, 0.0, 0.1], [0.1, 0.0, 0.1]] }).to_vec(),
        scene: kinds
            .iter()
            .flat_map(|&k| [geom(k, vec![Pose::identity()]), geom(k, poses.clone())])
            .collect(),
        cameras: vec![camera("front", vec![Pose::identity()]), camera("wrist", poses)],
        ..Default::default()
    }
}

fn options(resume: bool) -> RecorderOptions {
    RecorderOptions { title: "test".into(), run_id: "r1".into(), resume, ..Default::default() }
}

/// Rows per entity of a recording.
fn rows(messages: &[LogMsg], application: &str) -> BTreeMap<String, usize> {
    contents::count(messages).unwrap().remove(application).unwrap_or_default()
}

fn activations(messages: &[LogMsg]) -> usize {
    messages.iter().filter(|m| matches!(m, LogMsg::BlueprintActivationCommand(_))).count()
}

#[test]
fn an_episode_becomes_entities_on_the_frame_timeline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    let mut sink = RrdSink::open(&path, &options(false)).unwrap();
    sink.episode(&episode("before RL", "pick", false)).unwrap();
    sink.episode(&episode("after RL", "pick", true)).unwrap();
    for update in 0..5 {
        sink.training(update, &[("success", 0.2 * update as f64), ("loss", f64::NAN)]).unwrap();
    }
    sink.summary("# run").unwrap();
    sink.finish().unwrap();
    drop(sink);

    let messages = file::read(&path);
    let got = rows(&messages, ROLLOUTS);
    for (entity, expected) in [
        ("world/path", 6),
        ("world/plan", 2),
        ("world/plan/points", 2),
        ("world/gripper", 6),
        ("world/scene/moving/capsules", 6),
        ("world/scene/fixed/capsules", 0),
        ("world/cameras/front", 0),
        ("world/cameras/front/rgb", 2),
        ("world/cameras/wrist", 6),
        ("plot/reward", 5),
        ("plot/progress_score", 6),
        ("signals/gripper_m", 5),
        ("card", 0),
    ] {
        for stage in ["before_RL", "after_RL"] {
            let path = format!("/{stage}/pick/{entity}");
            assert_eq!(got.get(&path), Some(&expected), "{path} in {got:#?}");
        }
    }
    let curves = rows(&messages, TRAINING);
    assert_eq!(curves.get("/curves/Success/success"), Some(&5));
    assert!(!curves.contains_key("/curves/Loss/loss"), "a curve without finite points is not there");

    let text = format!("{messages:?}");
    assert!(text.contains("RecordingInfo:name"), "recordings have a name");

    // The viewer opens the recording whose layout comes last.
    let last = messages.iter().rev().find(|m| matches!(m, LogMsg::BlueprintActivationCommand(_))).unwrap();
    assert_eq!(last.store_id().application_id().as_str(), ROLLOUTS);
    assert_eq!(activations(&messages), 2, "one layout per recording");
}

#[test]
fn images_are_thinned_out_evenly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    let mut e = episode("s", "n", true);
    let image = e.cameras[0].frames[0].1.clone();
    e.cameras[0].frames = (0..6).map(|f| (f, image.clone())).collect();
    let mut sink = RrdSink::open(&path, &RecorderOptions { max_images: 3, ..options(false) }).unwrap();
    sink.episode(&e).unwrap();
    sink.finish().unwrap();
    assert_eq!(rows(&file::read(&path), ROLLOUTS)["/s/n/world/cameras/front/rgb"], 3);
}

#[test]
fn a_killed_recording_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    let mut sink = RrdSink::open(&path, &options(false)).unwrap();
    sink.episode(&episode("before RL", "pick", false)).unwrap();
    sink.training(1, &[("success", 0.5)]).unwrap();
    sink.flush().unwrap();
    let flushed = fs::metadata(&path).unwrap().len() as usize;
    sink.training(2, &[("success", 0.6)]).unwrap();
    sink.flush().unwrap();
    // Killed: no end mark, the message that came last torn.
    let bytes = fs::read(&path).unwrap();
    drop(sink);
    fs::write(&path, &bytes[..flushed + 40]).unwrap();

    let mut sink = RrdSink::open(&path, &options(true)).unwrap();
    assert_eq!(rows(&file::read(&path), TRAINING)["/curves/Success/success"], 1);
    sink.training(2, &[("success", 0.6)]).unwrap();
    sink.episode(&episode("after RL", "pick", true)).unwrap();
    sink.finish().unwrap();
    assert_eq!(sink.layout.stages.len(), 2, "the old stage is still in the layout");

    let messages = file::read(&path);
    assert_eq!(rows(&messages, TRAINING)["/curves/Success/success"], 2);
    let got = rows(&messages, ROLLOUTS);
    assert_eq!((got["/before_RL/pick/world/path"], got["/after_RL/pick/world/path"]), (6, 6));
    assert_eq!(activations(&messages), 2, "old layouts are gone");
    assert!(!dir.path().join("recording.rrd.tmp").exists());
}

#[test]
fn a_foreign_file_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    fs::write(&path, b"something else entirely, longer than any header").unwrap();
    let error = RrdSink::open(&path, &options(true)).err().unwrap();
    assert!(matches!(&error, Error::Resume { .. }), "{error}");
    assert!(fs::read(&path).unwrap().starts_with(b"something"));
    // Nothing there, or nothing in it yet: a new recording.
    fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        drop(RrdSink::open(&path, &options(true)).unwrap());
    }
}

#[test]
fn a_full_disk_leaves_a_readable_recording() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    let mut sink = RrdSink::open(&path, &options(false)).unwrap();
    sink.training(0, &[("success", 0.1)]).unwrap();
    sink.flush().unwrap();
    sink.file.set_capacity_bytes(fs::metadata(&path).unwrap().len() + 20_000);
    let write = |update| sink.training(update, &[("success", 0.1)]).and_then(|()| sink.flush()).err();
    let error = (1..2000).find_map(write).unwrap();
    let text = error.to_string();
    assert!(matches!(error, Error::Write { .. }) && text.contains("recording.rrd"), "{text}");
    sink.training(2000, &[("success", 0.1)]).unwrap();
    drop(sink);
    assert!(rows(&file::read(&path), TRAINING)["/curves/Success/success"] > 2);
}

#[test]
fn many_flushes_do_not_pile_up_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    let mut sink = RrdSink::open(&path, &options(false)).unwrap();
    let mut e = episode("during RL", "pick", true);
    e.cameras.clear();
    for update in 0..40 {
        e.update = update;
        sink.episode(&e).unwrap();
        sink.training(update, &[("success", 0.5)]).unwrap();
        sink.flush().unwrap();
    }
    sink.finish().unwrap();
    let messages = file::read(&path);
    assert_eq!(rows(&messages, TRAINING)["/curves/Success/success"], 40);
    let layouts = activations(&messages) / 2;
    assert!((3..=12).contains(&layouts), "{layouts} layouts");
    assert_eq!(sink.layout.stages[0].episodes.len(), 40);
}

#[test]
fn a_run_without_episodes_has_one_recording_and_can_be_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.rrd");
    for update in 0..3 {
        let mut sink = RrdSink::open(&path, &options(update > 0)).unwrap();
        sink.training(update, &[("loss", 0.5)]).unwrap();
        sink.summary("# run").unwrap();
        sink.finish().unwrap();
    }
    let messages = file::read(&path);
    assert_eq!(rows(&messages, TRAINING)["/curves/Loss/loss"], 3);
    assert!(rows(&messages, ROLLOUTS).is_empty());
    assert!(messages.iter().all(|m| m.store_id().application_id().as_str() == TRAINING));

    // With the first episode, its recording becomes the main one and takes the card over.
    let mut sink = RrdSink::open(&path, &options(true)).unwrap();
    sink.episode(&episode("after RL", "pick", true)).unwrap();
    sink.finish().unwrap();
    assert!(rows(&file::read(&path), ROLLOUTS).contains_key("/card"));
}
