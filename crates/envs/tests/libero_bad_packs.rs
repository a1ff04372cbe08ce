//! Damaged packs give errors that name the file and the place in it.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use efference_envs::libero::{LiberoSim, Pack, SimOptions};
use serde_json::{Value, json};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero/packs_physics")
}

/// A copy of a pack and of the assets beside it, which a test may damage.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["libero_object_1", "assets"] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
            for entry in std::fs::read_dir(source().join(part)).unwrap() {
                let from = entry.unwrap().path();
                std::fs::copy(&from, folder.path().join(part).join(from.file_name().unwrap())).unwrap();
            }
        }
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join("libero_object_1").join(name)
    }

    fn meta(&self, change: impl FnOnce(&mut Value)) -> &Self {
        let path = self.file("meta.json");
        let mut meta: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut meta);
        std::fs::write(path, serde_json::to_vec(&meta).unwrap()).unwrap();
        self
    }

    /// Opens and compiles; the message must hold all these words.
    #[track_caller]
    fn fails_with(&self, words: &[&str]) {
        let opened = Pack::open(self.0.path().join("libero_object_1"));
        let error =
            opened.and_then(|pack| LiberoSim::new(&pack, &SimOptions::default()).map(drop)).unwrap_err();
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn a_whole_pack_opens() {
    let copy = Copy::new();
    let pack = Pack::open(copy.0.path().join("libero_object_1")).unwrap();
    assert_eq!((pack.init_states(), pack.resets()), (50, 50));
    assert_eq!(pack.language(), "pick up the cream cheese and place it in the basket");
    assert!(pack.init_state(49).is_some() && pack.init_state(50).is_none());
    LiberoSim::new(&pack, &SimOptions::default()).unwrap();
    let root = copy.0.path();
    assert_eq!(Pack::find(root, "libero_object", 1).unwrap(), root.join("libero_object_1"));
    let message = Pack::find(root, "libero_object", 2).unwrap_err().to_string();
    assert!(message.contains("there are the tasks 1") && message.contains("cargo xtask libero"), "{message}");
    assert!(Pack::find(root, "libero_goal", 2).unwrap_err().to_string().contains("packs of libero_object"));
    assert!(
        Pack::find(&root.join("x"), "libero_goal", 2).unwrap_err().to_string().contains("does not exist")
    );
    assert!(Pack::find(root, "../libero_object", 1).is_err());
}

#[test]
fn missing_files_are_named() {
    for (name, words) in
        [("meta.json", "meta.json"), ("model.xml", "model.xml"), ("init_states.npy", "init_states.npy")]
    {
        let copy = Copy::new();
        std::fs::remove_file(copy.file(name)).unwrap();
        copy.fails_with(&[words, "cargo xtask libero"]);
    }
    let copy = Copy::new();
    let assets = copy.0.path().join("assets");
    let mesh = std::fs::read_dir(&assets).unwrap().map(|e| e.unwrap().path()).find(|path| {
        path.extension().is_some_and(|e| e == "msh")
            && std::fs::read_to_string(copy.file("model.xml"))
                .unwrap()
                .contains(path.file_name().unwrap().to_str().unwrap())
    });
    let mesh = mesh.unwrap();
    std::fs::remove_file(&mesh).unwrap();
    copy.fails_with(&["model.xml", mesh.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn damaged_initial_states_are_told() {
    let copy = Copy::new();
    let path = copy.file("init_states.npy");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 8]).unwrap();
    copy.fails_with(&["init_states.npy", "cut off"]);
    std::fs::write(&path, &whole[..40]).unwrap();
    copy.fails_with(&["init_states.npy", "header"]);
    std::fs::write(&path, b"").unwrap();
    copy.fails_with(&["init_states.npy", "no .npy file"]);
    let mut nan = whole.clone();
    let end = nan.len();
    nan[end - 8..].copy_from_slice(&f64::NAN.to_le_bytes());
    std::fs::write(&path, &nan).unwrap();
    copy.fails_with(&["init_states.npy", "NaN", "row 49"]);
    std::fs::write(&path, &whole).unwrap();
    copy.meta(|meta| meta["init_states"]["file"] = json!("../assets/x.npy"))
        .fails_with(&["init_states.file", "own folder"]);
    copy.meta(|meta| {
        meta["init_states"]["file"] = json!("init_states.npy");
        meta["init_states"]["shape"] = json!([10, 110]);
    })
    .fails_with(&["init_states.npy", "[10, 110]"]);
}

#[test]
fn descriptions_that_do_not_fit_are_told() {
    type Change = fn(&mut Value);
    let cases: [(Change, &[&str]); 16] = [
        (|m| m["format"] = json!(2), &["`format` is 2", "format 1"]),
        (|m| drop(m.as_object_mut().unwrap().remove("format")), &["`format` is missing"]),
        (|m| m["nq"] = json!("many"), &["meta.json", "nq", "line"]),
        (|m| m["nq"] = json!(12), &["nv", "more than nq"]),
        (|m| m["nu"] = json!(8), &["`nu` says 8", "scene has 9"]),
        (|m| m["timestep"] = json!(0.004), &["`timestep`"]),
        (|m| m["substeps"] = json!(0), &["`substeps` is 0"]),
        (
            |m| drop(m["robot"]["joints"].as_array_mut().unwrap().pop()),
            &["robot.joints", "6 entries, expected 7"],
        ),
        (|m| m["robot"]["joints"][2]["qpos_adr"] = json!(4000), &["robot.joints[2].qpos_adr", "4000"]),
        (|m| m["robot"]["joints"][2]["qpos_adr"] = json!(5), &["robot.joints[2]", "(5, 2)"]),
        (|m| m["robot"]["hand_body"] = json!("robot0_left_hand"), &["robot.hand_body", "robot0_right_hand"]),
        (|m| m["controller"]["type"] = json!("JOINT_VELOCITY"), &["controller.type", "OSC_POSE"]),
        (
            |m| m["objects"]["milk_1"]["contact_geom_ids"] = json!([99999]),
            &["objects.milk_1.contact_geom_ids", "99999"],
        ),
        (
            |m| m["sites"]["basket_1_contain_region"]["parent"] = json!("box"),
            &["basket_1_contain_region.parent", "`box`"],
        ),
        (|m| m["goal"] = json!([["in", "milk_2", "basket_1_contain_region"]]), &["`goal`", "milk_2"]),
        (
            |m| {
                m["fixture_poses"]["resets"] =
                    json!([{"a": {"body": "b", "pos": [0, 0, 0], "quat": [2, 0, 0, 0]}}])
            },
            &["fixture_poses.resets[0].a.quat", "length 2"],
        ),
    ];
    for (change, words) in cases {
        Copy::new().meta(change).fails_with(words);
    }
    let copy = Copy::new();
    std::fs::write(copy.file("meta.json"), "{").unwrap();
    copy.fails_with(&["meta.json", "line 1"]);
    let copy = Copy::new();
    std::fs::write(copy.file("model.xml"), "<mujoco><worldbody>").unwrap();
    copy.fails_with(&["model.xml", "cannot load"]);
    std::fs::write(copy.file("model.xml"), "<mujoco><worldbody/></mujoco>").unwrap();
    copy.fails_with(&["`nq` says 58, but the scene has 0"]);
}
