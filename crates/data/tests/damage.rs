//! Files that are really broken: every error says which file and which field.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{episode, file, filled};
use efference_data::{EpisodeStore, EpisodeWriter, Error, OnCorrupt, codec};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The file of `episode(4, 0)` with its tensors and header text changed.
fn changed(change: impl FnOnce(&mut Tensors, &mut Value)) -> Vec<u8> {
    let bytes = codec::encode(&episode(4, 0)).unwrap();
    let (_, layout) = SafeTensors::read_metadata(&bytes).unwrap();
    let text = &layout.metadata().as_ref().unwrap()["efference.episode"];
    let mut header: Value = serde_json::from_str(text).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let all = all.iter().map(|(name, t)| (name.into(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
    let mut tensors: Tensors = all.collect();
    change(&mut tensors, &mut header);
    let views = tensors.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize(views, Some([("efference.episode".to_string(), header.to_string())].into()))
        .unwrap()
}

/// Replaces an episode's file and makes the index agree, so that only the content is wrong.
fn replace(dir: &Path, n: usize, bytes: &[u8]) {
    fs::write(file(dir, n), bytes).unwrap();
    let path = dir.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    index["episodes"][n]["sha256"] = digest.into();
    index["episodes"][n]["bytes"] = bytes.len().into();
    fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
}

fn offsets(values: &[i64]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::I64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

#[test]
fn damage_to_one_file_is_skipped_only_when_asked() {
    let append = |p: &Path| fs::write(p, [fs::read(p).unwrap(), vec![0]].concat()).unwrap();
    let flip = |p: &Path| {
        let mut bytes = fs::read(p).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(p, bytes).unwrap();
    };
    let cut = |p: &Path| fs::File::options().write(true).open(p).unwrap().set_len(200).unwrap();
    type Case<'a> = (&'a dyn Fn(&Path), fn(&Error) -> bool, &'a str);
    let cases: [Case<'_>; 4] = [
        (&|p| fs::remove_file(p).unwrap(), |e| matches!(e, Error::Missing { .. }), "missing"),
        (&cut, |e| matches!(e, Error::Size { got: 200, .. }), "truncated"),
        (&append, |e| matches!(e, Error::Size { .. }), "appended"),
        (&flip, |e| matches!(e, Error::Checksum { .. }), "SHA-256"),
    ];
    for (spoil, expected, word) in cases {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 3);
        spoil(&file(dir.path(), 1));
        let store = EpisodeStore::open(dir.path()).unwrap();
        let e = store.load_all(OnCorrupt::Error).unwrap_err();
        let message = e.to_string();
        assert!(
            expected(&e) && message.contains("episode_00001.safetensors") && message.contains(word),
            "{e}"
        );
        let mut episodes = store.iter(OnCorrupt::Skip);
        let seeds: Vec<u64> = episodes.by_ref().map(|e| e.unwrap().meta.seed).collect();
        assert_eq!(seeds, [0, 2]);
        assert!(episodes.skipped().len() == 1 && expected(&episodes.skipped()[0]));
    }
}

#[test]
fn damage_inside_a_file_is_named() {
    let check = |change: &dyn Fn(&mut Tensors, &mut Value), expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1);
        replace(dir.path(), 0, &changed(change));
        let e = EpisodeStore::open(dir.path()).unwrap().load(0).unwrap_err();
        let message = e.to_string();
        assert!(e.is_corrupt_episode() && message.contains("episode_00000.safetensors"), "{message}");
        assert!(message.contains(expected), "{message}\n  expected: {expected}");
    };
    let header =
        |key: &'static str, value: Value| move |_: &mut Tensors, h: &mut Value| h[key] = value.clone();
    let camera = |name: &'static str, size: (u32, u32)| {
        move |_: &mut Tensors, h: &mut Value| h["cameras"][name] = json!([size.0, size.1])
    };
    let shape = |name: &'static str, shape: Vec<usize>| {
        move |t: &mut Tensors, _: &mut Value| t.get_mut(name).unwrap().1 = shape.clone()
    };
    check(&|t, _| drop(t.remove("rewards")), "has no tensor `rewards`");
    check(&|t, _| t.get_mut("rewards").unwrap().0 = Dtype::U32, "`rewards`: got U32 [4], expected F32 [4]");
    check(&shape("actions", vec![7, 4]), "`actions`: got F32 [7, 4], expected F32 [any, 7]");
    check(&shape("states", vec![8]), "`states`: got F64 [8], expected F64 [4, any]");
    check(&header("format_version", 2.into()), "has format version 2, this program reads 1");
    check(&header("format_version", "x".into()), "no `format_version`");
    check(&header("meta", 3.into()), "is not an episode file");
    check(&|_, h| h["meta"]["colour"] = 3.into(), "unknown field `colour`");
    check(&camera("../up", (1, 1)), "`../up` is not a camera name");
    check(&camera("side", (1, 1)), "has no tensor `camera.side.png`");
    check(&camera("front", (16, 13)), "frame 0: 16x12 px, the camera has 16x13 px");
    check(&|t, _| t.get_mut("camera.front.png").unwrap().2[1] = b'?', "camera `front`, frame 0: not a PNG");
    let flip_pixels = |t: &mut Tensors, _: &mut Value| {
        let blob = &mut t.get_mut("camera.front.png").unwrap().2;
        let at = blob.len() - 30;
        blob[at] ^= 0xff;
    };
    check(&flip_pixels, "camera `front`, frame 1: broken PNG");
    let short =
        |t: &mut Tensors, _: &mut Value| drop(t.insert("camera.front.offsets".into(), offsets(&[0, 5])));
    check(&short, "`camera.front.offsets`: got I64 [2], expected I64 [3]");
    let late = |t: &mut Tensors, _: &mut Value| {
        t.get_mut("frame_steps").unwrap().2 = [5u32, 6].iter().flat_map(|s| s.to_le_bytes()).collect();
    };
    check(&late, "`frame_steps[0]` is 5");
    let nan = |t: &mut Tensors, _: &mut Value| {
        t.get_mut("actions").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    check(&nan, "`actions` holds NaN at row 0");
    for bad in [[1, 2, 3], [0, -1, 3], [0, 9, 3], [0, 1, i64::MAX], [0, 1, 2]] {
        let bytes = changed(|t, _| drop(t.insert("camera.front.offsets".into(), offsets(&bad))));
        let e = codec::decode(&bytes, Path::new("x")).unwrap_err();
        assert!(matches!(e, Error::Offset { .. }), "{e}");
    }
}

#[test]
fn hostile_headers_take_no_memory() {
    let huge = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    let long = [(90_u64 << 20).to_le_bytes().as_slice(), b"{}"].concat();
    for bytes in [&huge[..], &long[..], b"", b"short", b"\x02\0\0\0\0\0\0\0{}"] {
        let e = codec::decode(bytes, Path::new("x.safetensors")).unwrap_err();
        assert!(matches!(e, Error::Header { .. }), "{e}");
    }
    // A PNG header that claims a giant picture is refused by its size, before any pixel is decoded.
    let bytes = changed(|t, h| {
        h["cameras"]["front"] = json!([60_000, 60_000]);
        let blob = &mut t.get_mut("camera.front.png").unwrap().2;
        blob[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    });
    assert!(matches!(codec::decode(&bytes, Path::new("x")), Err(Error::Picture { frame: 0, .. })));
}

#[test]
fn a_wrong_index_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(EpisodeStore::open(dir.path()), Err(Error::NotAStore { .. })));
    assert!(matches!(EpisodeStore::open(dir.path().join("absent")), Err(Error::NotAStore { .. })));
    let good = json!({
        "file": "a.safetensors", "sha256": "", "bytes": 1, "steps": 1, "frames": 0, "task": "t",
        "instruction": "i", "seed": 1, "success": true, "source": "human", "mujoco_version": "", "control_hz": 20.0,
    });
    let index = |key: &str, value: Value| {
        let mut entry = good.clone();
        entry[key] = value;
        json!({"format": "efference-episodes", "version": 1, "episodes": [entry]}).to_string()
    };
    let without_steps = index("steps", 1.into()).replace("\"steps\":1,", "");
    for (text, expected) in [
        (index("frames", 0.into()), "is listed in the index but missing"),
        (index("file", "../a".into()), "`../a` is not a plain file name"),
        (index("file", "/etc/a".into()), "`/etc/a` is not a plain file name"),
        (index("source", "martian".into()), "unknown variant `martian`"),
        (without_steps, "missing field `steps`"),
        (index("seed", 1.into()).replace("\"version\":1", "\"version\":7"), "has format version 7"),
        (index("seed", 1.into()).replace("efference-episodes", "other"), "its `format` is not"),
        ("{\"format\": \"efference-epi".into(), "is not a valid index"),
        ("[]".into(), "its `format` is not"),
    ] {
        fs::write(dir.path().join("index.json"), text).unwrap();
        let e = EpisodeStore::open(dir.path()).and_then(|s| s.load(0)).unwrap_err();
        assert!(e.to_string().contains(expected), "{e}\n  expected: {expected}");
    }
    // A broken index is not overwritten by a writer.
    assert!(matches!(EpisodeWriter::append_to(dir.path()), Err(Error::Index { .. })));
}
