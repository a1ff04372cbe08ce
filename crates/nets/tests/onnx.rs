//! Networks in ONNX files, run by the real ONNX Runtime. The files are made by `fixtures/make_onnx.py`.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use efference_nets::Error;
use efference_nets::onnx::{Array, DepthMeaning, DepthNet, OnnxModel, TrackNet, runtime};
use image::{Rgb, RgbImage};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name)
}

/// A white square of 8 pixels on black whose corner is at (x, y).
fn square(x: u32, y: u32) -> RgbImage {
    RgbImage::from_fn(56, 42, |u, v| {
        let inside = (x..x + 8).contains(&u) && (y..y + 8).contains(&v);
        Rgb(if inside { [255; 3] } else { [0; 3] })
    })
}

#[test]
fn the_runtime_is_there_and_a_model_tells_what_it_takes() {
    assert!(runtime().unwrap().contains("ORT"), "{}", runtime().unwrap());
    let model = OnnxModel::load(&fixture("tracker.onnx"), 1).unwrap();
    let names: Vec<&str> = model.inputs().iter().chain(model.outputs()).map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["video", "queries", "tracks", "visibility"]);
    assert_eq!(model.inputs()[0].dims, [Some(1), None, Some(3), None, None]);
    let wrong = |inputs: Vec<Array>| model.run(inputs).unwrap_err().to_string();
    assert!(wrong(vec![]).contains("takes 2 tensors"));
    let video = Array { dims: vec![1, 1, 4, 2, 2], values: vec![0.0; 16] };
    let queries = Array { dims: vec![1, 1, 3], values: vec![0.0; 3] };
    assert!(wrong(vec![video, queries.clone()]).contains("[1, ?, 3, ?, ?]"));
    let short = Array { dims: vec![1, 1, 3, 2, 2], values: vec![0.0; 5] };
    assert!(wrong(vec![short, queries]).contains("`video`"));
}

#[test]
fn depth_comes_back_in_the_pictures_size_and_meaning() {
    // White is 2.5 for the network, black 0.5; 42 x 56 is a multiple of 14, so nothing is resized.
    let pictures = vec![square(4, 6); 6];
    let at = |meaning, scale: f64| {
        let net = DepthNet::load(&fixture("depth.onnx"), meaning, scale).unwrap();
        let depth = net.depth(&pictures).unwrap();
        assert_eq!(depth.len(), 6 * 42 * 56);
        let last = &depth[5 * 42 * 56..];
        [last[8 * 56 + 6], last[30 * 56 + 40]]
    };
    let close = |got: [f32; 2], want: [f32; 2]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4);
    assert!(close(at(DepthMeaning::Metres, 1.0), [2.5, 0.5]));
    assert!(close(at(DepthMeaning::Metres, 2.0), [5.0, 1.0]));
    assert!(close(at(DepthMeaning::Disparity, 1.0), [0.4, 2.0]));
    // Another size is asked for at the nearest multiple and brought back.
    let net = DepthNet::load(&fixture("depth.onnx"), DepthMeaning::Metres, 1.0).unwrap();
    let grey = RgbImage::from_pixel(50, 33, Rgb([51; 3]));
    let depth = net.depth(&[grey]).unwrap();
    assert!(depth.len() == 50 * 33 && depth.iter().all(|d| (d - 0.9).abs() < 1e-3));
    // Beyond a metre too.
    let depth = net.depth(&[RgbImage::from_pixel(50, 33, Rgb([255; 3]))]).unwrap();
    assert!(depth.iter().all(|d| (d - 2.5).abs() < 1e-3), "{:?}", &depth[..3]);
}

#[test]
fn points_on_the_square_follow_it_and_the_others_stay() {
    let net = TrackNet::load(&fixture("tracker.onnx")).unwrap();
    let pictures: Vec<RgbImage> = (0..5).map(|t| square(10 + 3 * t, 12 + t)).collect();
    let tracks = net.follow(&pictures, 14).unwrap();
    assert_eq!(tracks.points, 196);
    assert!(tracks.visibility.iter().all(|v| *v == 1.0));
    let (first, last) = (&tracks.places[..196], &tracks.places[4 * 196..]);
    let mut followed = 0;
    for (a, b) in first.iter().zip(last) {
        let on = (10.0..18.0).contains(&a[0]) && (12.0..20.0).contains(&a[1]);
        let moved = [b[0] - a[0], b[1] - a[1]];
        let want = if on { [12.0, 4.0] } else { [0.0, 0.0] };
        assert!((moved[0] - want[0]).abs() < 1e-3 && (moved[1] - want[1]).abs() < 1e-3, "{a:?} {b:?}");
        followed += usize::from(on);
    }
    assert!(followed >= 4, "{followed}");
}

#[test]
fn what_is_no_such_network_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.onnx");
    std::fs::write(&broken, b"no model").unwrap();
    for path in [broken, dir.path().join("none.onnx")] {
        assert!(matches!(OnnxModel::load(&path, 0), Err(Error::Onnx { .. })));
    }
    let said = |error: Error| error.to_string();
    let depth =
        |name: &str, scale| said(DepthNet::load(&fixture(name), DepthMeaning::Metres, scale).unwrap_err());
    assert!(depth("tracker.onnx", 1.0).contains("one tensor"));
    assert!(depth("depth.onnx", f64::NAN).contains("not above 0"));
    assert!(said(TrackNet::load(&fixture("depth.onnx")).unwrap_err()).contains("a tracker takes"));
    let net = TrackNet::load(&fixture("tracker.onnx")).unwrap();
    let uneven = [square(0, 0), RgbImage::new(20, 20)];
    assert!(
        net.follow(&uneven, 4).is_err()
            && net.follow(&[], 4).is_err()
            && net.follow(&uneven[..1], 0).is_err()
    );
    // A black video has no middle: what comes out is not finite, and that is said.
    let black = [RgbImage::new(56, 42), RgbImage::new(56, 42)];
    assert!(said(net.follow(&black, 4).unwrap_err()).contains("not finite"));
}
