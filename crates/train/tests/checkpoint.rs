//! Checkpoints through the public face: what is saved comes back, what is damaged is named.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use efference_objectives::State;
use efference_train::checkpoint::{
    Checkpoint, CheckpointError, Checkpointer, Identity, Tensors, TrainState, load_weights, peek,
};
use efference_train::config::CheckpointConfig;
use serde_json::json;

fn identity() -> Identity {
    Identity {
        model: json!({"chunk": 8, "text": {"hidden": 96}}),
        mujoco_version: "3.3.2".into(),
        suite: "tabletop".into(),
        world: serde_json::Value::Null,
        tokenizer_sha256: "ab".into(),
        action_stats: json!({"q01": [0.5, 1.0]}),
    }
}

fn tensors(x: f32) -> Tensors {
    let t = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
    Tensors::from([("b.weight".into(), t(&[x, 0.1, -0.0])), ("a".into(), t(&[x * 2.0]))])
}

fn state(step: u64, score: Option<f64>) -> TrainState {
    let mut objective = State::default();
    objective.set("tracker", &[0.1, -0.0]).unwrap();
    TrainState { step, stage: "rl".into(), score, objective, ..TrainState::default() }
}

fn open(dir: &Path) -> Checkpointer {
    let config = CheckpointConfig { keep_last: 2, ..CheckpointConfig::default() };
    Checkpointer::open(&dir.join("checkpoints"), &config).unwrap()
}

fn save(dir: &Path, step: u64, score: Option<f64>) -> PathBuf {
    open(dir).save(&identity(), &state(step, score), &tensors(step as f32), &tensors(0.5)).unwrap()
}

fn kept(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join("checkpoints")).unwrap();
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 12, Some(0.5));
    for given in [&path, &dir.path().join("checkpoints"), &dir.path().to_path_buf()] {
        let c = Checkpoint::load(given).unwrap();
        assert_eq!((&c.identity, &c.state, &c.path), (&identity(), &state(12, Some(0.5)), &path));
        let bits = |t: &Tensor| t.to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for (name, tensor) in tensors(12.0) {
            assert_eq!(bits(&c.model[&name]), bits(&tensor));
        }
    }
    assert_eq!(load_weights(&path.join("model.safetensors")).unwrap().len(), 2);
    assert_eq!(peek(dir.path()).unwrap().2.step, 12);
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (save(a.path(), 1, None), save(b.path(), 1, None));
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        assert_eq!(fs::read(from.join(file)).unwrap(), fs::read(to.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for (step, score) in [(1, Some(0.2)), (2, Some(0.9)), (3, None), (4, Some(0.9)), (5, Some(0.1))] {
        save(dir.path(), step, score);
    }
    assert_eq!(kept(dir.path()), ["00000002", "00000004", "00000005", "best", "last"]);
    assert_eq!(fs::read_to_string(dir.path().join("checkpoints/best")).unwrap(), "00000002\n");
}

#[test]
fn what_a_kill_left_behind_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let first = save(dir.path(), 1, None);
    // Killed after the folder's rename and before the pointer's.
    save(dir.path(), 2, None);
    fs::write(dir.path().join("checkpoints/last"), "00000001\n").unwrap();
    assert_eq!(Checkpoint::load(dir.path()).unwrap().path, first);
    open(dir.path());
    assert_eq!(kept(dir.path()), ["00000001", "last"]);
}

#[test]
fn every_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 1, None);
    let damaged = |file: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let file = path.join(file);
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(&file, bad).unwrap();
        let error = Checkpoint::load(&path).unwrap_err();
        fs::write(&file, good).unwrap();
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        error
    };
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let flipped = damaged(file, &|bytes| *bytes.last_mut().unwrap() ^= 1);
        assert!(matches!(flipped, CheckpointError::Corrupt { .. }), "{flipped}");
        let short = damaged(file, &|bytes| bytes.truncate(20));
        assert!(matches!(short, CheckpointError::Corrupt { .. }), "{short}");
    }
    assert!(matches!(damaged("state.json", &|b| b.truncate(30)), CheckpointError::Corrupt { .. }));
    let newer = damaged("state.json", &|b| {
        *b = String::from_utf8(b.clone()).unwrap().replace("\"format\": 1", "\"format\": 7").into_bytes();
    });
    assert!(matches!(newer, CheckpointError::Format { got: 7, .. }), "{newer}");
    fs::remove_file(path.join("optimizer.safetensors")).unwrap();
    assert!(matches!(Checkpoint::load(&path), Err(CheckpointError::Corrupt { .. })));
}

#[test]
fn a_pointer_to_nothing_and_a_folder_of_something_else() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Checkpoint::load(&dir.path().join("no")), Err(CheckpointError::Missing { .. })));
    assert!(matches!(Checkpoint::load(dir.path()), Err(CheckpointError::NotACheckpoint { .. })));
    fs::write(dir.path().join("config.toml"), "").unwrap();
    assert!(matches!(Checkpoint::load(dir.path()), Err(CheckpointError::Empty { .. })));
    let path = save(dir.path(), 1, None);
    fs::remove_dir_all(path).unwrap();
    assert!(matches!(Checkpoint::load(dir.path()), Err(CheckpointError::Missing { .. })));
    fs::write(dir.path().join("checkpoints/last"), "../../etc\n").unwrap();
    assert!(matches!(Checkpoint::load(dir.path()), Err(CheckpointError::Corrupt { .. })));
}

#[test]
fn another_architecture_or_simulator_is_refused_field_by_field() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1, None);
    let checkpoint = Checkpoint::load(dir.path()).unwrap();
    checkpoint.require(&identity()).unwrap();
    let mut needed = identity();
    needed.model = json!({"chunk": 5, "text": {"hidden": 96, "layers": 4}});
    needed.mujoco_version = "3.4.0".into();
    needed.action_stats = json!({"q01": [0.5, 2.0]});
    let error = checkpoint.require(&needed).unwrap_err();
    let CheckpointError::Different { differences, .. } = &error else { unreachable!("{error}") };
    let fields: Vec<&str> = differences.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(fields, ["action_stats.q01", "model.chunk", "model.text.layers", "mujoco_version"]);
    assert!(error.to_string().contains("`model.chunk` is 8 in the checkpoint, needed is 5"), "{error}");
}

#[test]
fn a_save_that_fails_leaves_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1, None);
    let mut checkpointer = open(dir.path());
    let good = fs::read(dir.path().join("checkpoints/last")).unwrap();
    // A folder in the place of the pointer: it cannot be replaced, so the very last step of a save fails.
    fs::remove_file(dir.path().join("checkpoints/last")).unwrap();
    fs::create_dir_all(dir.path().join("checkpoints/last/x")).unwrap();
    let error = checkpointer.save(&identity(), &state(2, None), &tensors(2.0), &tensors(0.5)).unwrap_err();
    assert!(matches!(error, CheckpointError::Write(_)), "{error}");
    fs::remove_dir_all(dir.path().join("checkpoints/last")).unwrap();
    fs::write(dir.path().join("checkpoints/last"), good).unwrap();
    assert_eq!(Checkpoint::load(dir.path()).unwrap().state.step, 1);
}
