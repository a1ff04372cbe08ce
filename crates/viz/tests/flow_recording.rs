//! Recordings of flow, read back with the viewer's own library.
#![cfg(feature = "rerun")]
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../examples/demo_flow/made_up.rs"]
mod made_up;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use efference_geometry::farthest_points;
use efference_viz::flow::{FlowRecorder, FlowScene};
use rerun::external::re_log_encoding::Decoder;
use rerun::external::re_log_types::StoreKind;
use rerun::log::{Chunk, LogMsg};
use rerun::{LineStrips2D, LineStrips3D, Pinhole, Points2D, Points3D};

/// Name of the recording, as the viewer lists it.
const FLOW: &str = "efference flow";

/// Rows of each entity, 0 for what does not change.
fn rows(path: &Path) -> BTreeMap<String, usize> {
    efference_viz::contents(path).unwrap().remove(FLOW).unwrap()
}

fn scene() -> FlowScene {
    made_up::scene(&made_up::tasks()[0], 100, 8, 96)
}

fn record(path: &Path, scenes: &[FlowScene]) -> Vec<LogMsg> {
    let mut recorder = FlowRecorder::create(path).unwrap();
    for scene in scenes {
        recorder.scene(scene).unwrap();
    }
    recorder.finish().unwrap();
    let file = BufReader::new(File::open(path).unwrap());
    Decoder::<LogMsg>::decode_lazy(file).map(Result::unwrap).collect()
}

/// All chunks of the recording (not of its layout) by entity.
fn chunks(messages: &[LogMsg]) -> BTreeMap<String, Vec<Chunk>> {
    let mut chunks: BTreeMap<String, Vec<Chunk>> = BTreeMap::new();
    for message in messages.iter().filter(|m| m.store_id().kind() == StoreKind::Recording) {
        let LogMsg::ArrowMsg(_, arrow) = message else { continue };
        let chunk = Chunk::from_arrow_msg(arrow).unwrap();
        chunks.entry(chunk.entity_path().to_string()).or_default().push(chunk);
    }
    chunks
}

/// Red, green and blue of a component, row by row.
fn colors(chunks: &[Chunk], component: rerun::ComponentIdentifier) -> Vec<Vec<u32>> {
    let rows = chunks.iter().flat_map(|c| c.iter_slices::<u32>(component));
    rows.map(|row| row.iter().map(|rgba| rgba >> 8).collect()).collect()
}

#[test]
fn the_recording_has_the_tree_and_a_row_per_frame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rrd");
    let messages = record(&path, &[scene()]);
    let got = rows(&path);
    for (entity, rows) in [
        ("/world/scene", 1),
        ("/world/object", 9),
        ("/world/object/cloud", 1),
        ("/world/flow/truth/points", 9),
        ("/world/flow/truth/trail", 9),
        ("/world/flow/pred/0/points", 9),
        ("/world/flow/pred/1/trail", 9),
        ("/world/flow/error", 9),
        ("/world/fit/axes", 9),
        ("/world/fit/outliers", 9),
        ("/world/fit/residual", 9),
        ("/world/goal/ghost", 1),
        ("/world/ee/plan", 1),
        ("/world/ee/plan/axes", 1),
        ("/world/ee/executed", 9),
        ("/world/grasps/chosen", 1),
        ("/world/grasps/rejected", 1),
        ("/world/cam", 0),
        ("/world/cam/rgb", 1),
        ("/world/cam/depth", 1),
        ("/world/cam/tracks/truth/points", 9),
        ("/world/cam/tracks/pred/trail", 9),
        ("/judged/1", 1),
        ("/plot/error_cm/mean", 9),
        ("/plot/rigid_rms_mm/inliers", 9),
        ("/plot/cost/collision", 9),
        ("/phase", 3),
        ("/verdict/0/predicate", 1),
        ("/denoise/flow", 6),
        ("/card", 1),
    ] {
        assert_eq!(got.get(entity), Some(&rows), "{entity} in {got:#?}");
    }
    let activations = messages.iter().filter(|m| matches!(m, LogMsg::BlueprintActivationCommand(_)));
    assert_eq!(activations.count(), 1);
    // Entities are stable: no entity per frame or per point.
    assert!(got.len() < 60, "{} entities", got.len());
}

#[test]
fn a_point_has_one_colour_everywhere_and_trails_end_at_their_points() {
    let dir = tempfile::tempdir().unwrap();
    let scene = scene();
    let chunks = chunks(&record(&dir.path().join("a.rrd"), std::slice::from_ref(&scene)));
    let in_space = Points3D::descriptor_colors().component;
    let trails = LineStrips3D::descriptor_colors().component;
    let chosen = farthest_points(&scene.points, 64, 0).unwrap();
    for (flow, track) in [("truth", "truth"), ("pred/1", "pred")] {
        let points = colors(&chunks[&format!("/world/flow/{flow}/points")], in_space);
        assert_eq!((points.len(), points[0].len()), (9, 100));
        assert!(points.iter().all(|row| *row == points[0]), "colours change over time");
        let trail = colors(&chunks[&format!("/world/flow/{flow}/trail")], trails);
        assert_eq!(trail, [chosen.iter().map(|i| points[0][*i]).collect::<Vec<_>>()]);
        let tracks = &chunks[&format!("/world/cam/tracks/{track}/points")];
        assert_eq!(colors(tracks, Points2D::descriptor_colors().component), points);
        let tracks = &chunks[&format!("/world/cam/tracks/{track}/trail")];
        assert_eq!(colors(tracks, LineStrips2D::descriptor_colors().component), trail);
    }
    // Predictions are paler, not other colours, and all samples have the same.
    let of = |flow: &str| colors(&chunks[&format!("/world/flow/{flow}/points")], in_space)[0].clone();
    assert_eq!(of("pred/0"), of("pred/1"));
    assert_ne!(of("truth"), of("pred/0"));

    let points = &chunks["/world/flow/truth/points"];
    let points: Vec<Vec<[f32; 3]>> = points
        .iter()
        .flat_map(|c| c.iter_slices::<[f32; 3]>(Points3D::descriptor_positions().component))
        .map(<[_]>::to_vec)
        .collect();
    let strips = LineStrips3D::descriptor_strips().component;
    let mut rows = 0;
    for chunk in &chunks["/world/flow/truth/trail"] {
        for (t, row) in chunk.iter_slices::<&[[f32; 3]]>(strips).enumerate() {
            assert_eq!(row.len(), chosen.len());
            for (strip, i) in row.iter().zip(&chosen) {
                assert_eq!(strip.len(), t + 1);
                assert_eq!((strip[0], strip[t]), (points[0][*i], points[t][*i]));
            }
            rows += 1;
        }
    }
    assert_eq!(rows, 9);
}

#[test]
fn the_camera_has_opencv_axes_and_looks_at_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let scene = scene();
    let chunks = chunks(&record(&dir.path().join("a.rrd"), std::slice::from_ref(&scene)));
    let axes: Vec<[u8; 3]> = chunks["/world/cam"]
        .iter()
        .flat_map(|c| c.iter_slices::<[u8; 3]>(Pinhole::descriptor_camera_xyz().component))
        .map(|row| row[0])
        .collect();
    // Right, down, forward in the library's numbers.
    assert_eq!(axes, [[3, 2, 5]]);
    let translation: Vec<[f32; 3]> = chunks["/world/cam"]
        .iter()
        .flat_map(|c| c.iter_slices::<[f32; 3]>(rerun::Transform3D::descriptor_translation().component))
        .map(|row| row[0])
        .collect();
    let quaternion: Vec<[f32; 4]> = chunks["/world/cam"]
        .iter()
        .flat_map(|c| c.iter_slices::<[f32; 4]>(rerun::Transform3D::descriptor_quaternion().component))
        .map(|row| row[0])
        .collect();
    let [x, y, z, w] = quaternion[0];
    let turn = nalgebra::UnitQuaternion::from_quaternion(nalgebra::Quaternion::new(w, x, y, z));
    let eye = nalgebra::Point3::from(translation[0]);
    for p in &scene.points {
        let to_point = p.cast::<f32>() - eye;
        let [right, down, forward]: [f32; 3] = (turn.inverse() * to_point).into();
        let [u, v, depth] = scene.camera.project(p).unwrap();
        let k = scene.camera.intrinsics;
        assert!((forward - depth as f32).abs() < 1e-4);
        assert!((k.fx as f32 * right / forward + k.cx as f32 - u as f32).abs() < 0.05);
        assert!((k.fy as f32 * down / forward + k.cy as f32 - v as f32).abs() < 0.05);
    }
}

#[test]
fn rounds_follow_each_other_and_old_samples_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let mut second = scene();
    (second.first_frame, second.round) = (9, 1);
    second.predictions.truncate(1);
    second.chosen = Some(0);
    let path = dir.path().join("a.rrd");
    let messages = record(&path, &[scene(), second]);
    let got = rows(&path);
    assert_eq!((got["/world/flow/truth/points"], got["/world/flow/pred/0/points"]), (18, 18));
    assert_eq!((got["/world/flow/pred/1/points"], got["/world/flow/pred/1"]), (9, 1));
    let frames: Vec<i64> = chunks(&messages)["/world/flow/truth/points"]
        .iter()
        .filter_map(|c| c.timelines().get(&"frame".into()))
        .flat_map(|column| column.times_raw().to_vec())
        .collect();
    assert_eq!(frames, (0..18).collect::<Vec<_>>());
}

#[test]
fn a_recording_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rrd");
    let scene = made_up::scene(&made_up::tasks()[0], 256, 32, 256);
    record(&path, &[scene]);
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 3_000_000, "{bytes} bytes");
    println!("{bytes} bytes");
}

#[test]
fn next_to_nothing_can_be_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let full = scene();
    let bare = FlowScene::new("pour", "lift", full.camera.clone(), full.picture.clone(), full.points.clone());
    let path = dir.path().join("a.rrd");
    record(&path, &[bare]);
    let got = rows(&path);
    assert!(got.contains_key("/world/cam/rgb") && !got.contains_key("/world/flow/error"));
    // Not even a scene: an empty recording, no error.
    FlowRecorder::create(&dir.path().join("b.rrd")).unwrap().finish().unwrap();
}
