//! Demonstration files written by h5py (`fixtures/make_robomimic.py`) and, where the wheel was fetched with
//! `cargo xtask real-data`, robosuite's real ones.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use efference_data::{ImportError, RobomimicFile};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The script's formulas.
fn action(n: usize, i: usize, j: usize) -> f64 {
    ((i * 7 + j + n) % 201) as f64 / 100.0 - 1.0
}
fn state(n: usize, i: usize, j: usize) -> f64 {
    if j == 0 { i as f64 / 20.0 } else { n as f64 + i as f64 / 8.0 + j as f64 / 4.0 }
}

#[test]
fn both_layouts_give_the_numbers_that_were_written() {
    type Wanted = &'static [(usize, usize)]; // (number, steps)
    let cases: [(&str, Wanted); 2] =
        [("robomimic_old.hdf5", &[(1, 6), (2, 9)]), ("robomimic_new.hdf5", &[(0, 30), (2, 20), (10, 40)])];
    for (name, wanted) in cases {
        let file = RobomimicFile::open(fixture(name)).unwrap();
        let names: Vec<String> = wanted.iter().map(|(n, _)| format!("demo_{n}")).collect();
        assert_eq!(file.names(), names, "in the order of their numbers");
        assert_eq!(file.env().name.as_deref(), Some("Lift"));
        assert_eq!(file.env().control_hz, Some(20.0));
        for (demo, &(n, steps)) in file.demos().zip(wanted) {
            let demo = demo.unwrap();
            assert_eq!(
                (demo.actions.len(), demo.states.width, demo.states.values.len()),
                (steps, 5, 5 * steps)
            );
            for i in 0..steps {
                for j in 0..7 {
                    assert!((f64::from(demo.actions[i][j]) - action(n, i, j)).abs() < 1e-7);
                }
                for j in 0..5 {
                    assert_eq!(demo.states.row(i).unwrap()[j], state(n, i, j));
                }
            }
            let xml = demo.model_xml.unwrap();
            assert!(xml.starts_with(&format!("<mujoco model=\"demo {n}\">")) && xml.ends_with("</mujoco>"));
            let last = demo.rewards.map(|r| (r[steps - 1], r.iter().sum::<f32>()));
            assert_eq!(last, name.contains("new").then_some((1.0, 1.0)));
        }
        assert!(matches!(file.load(wanted.len()), Err(ImportError::NoDemo { .. })));
    }
    let file = RobomimicFile::open(fixture("robomimic_new.hdf5")).unwrap();
    assert_eq!(file.env().instruction.as_deref(), Some("lift the cube"));
}

#[test]
fn wrong_content_is_named() {
    for (demo, expected) in [
        ("no_actions", "has no `data/no_actions/actions`; there is: acts, states"),
        ("two_arms", "`data/two_arms/actions`: shape [3, 14], expected [T, 7]"),
        ("flat", "`data/flat/states`: shape [12], expected [3, S]"),
        ("short", "`data/short/states`: shape [2, 4], expected [3, S]"),
        ("empty", "`data/empty/actions`: shape [0, 7], expected [T, 7]"),
        ("text", "`data/text/actions`: holds"),
        ("nan", "`data/nan/states`: NaN in row 1"),
        ("reward_table", "`data/reward_table/rewards`: shape [3, 1], expected [3]"),
        ("elsewhere", "`data/elsewhere@model_file`: names `model_1.xml`"),
    ] {
        let file = RobomimicFile::open(fixture("robomimic_wrong.hdf5")).unwrap();
        let index = file.names().iter().position(|name| name == demo).unwrap();
        let message = file.load(index).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("robomimic_wrong.hdf5"), "{message}");
    }
    let e = RobomimicFile::open(fixture("robomimic_no_data.hdf5")).err().unwrap();
    assert!(e.to_string().contains("has no `data`; there is: dota"), "{e}");
    let e = RobomimicFile::open(fixture("robomimic_no_demo.hdf5")).err().unwrap();
    assert!(e.to_string().contains("has no `data/demo_0`; there is: nothing"), "{e}");
    let e = RobomimicFile::open(fixture("make_robomimic.py")).err().unwrap();
    assert!(matches!(e, ImportError::NotHdf5 { .. }), "{e}");
    let e = RobomimicFile::open(fixture("absent.hdf5")).err().unwrap();
    assert!(matches!(e, ImportError::Read { .. }), "{e}");
    let e = RobomimicFile::open(fixture("")).err().unwrap();
    assert!(matches!(e, ImportError::Read { .. }), "{e}");
}

/// Cut anywhere or with bytes changed, a file gives an error or some numbers, never a panic.
#[test]
fn damaged_files_do_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.hdf5");
    let read_all = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let file = RobomimicFile::open(&path)?;
        file.demos().map(|demo| demo.map(|d| d.actions.len())).sum::<Result<usize, _>>()
    };
    let mut noticed = 0;
    for name in ["robomimic_old.hdf5", "robomimic_new.hdf5"] {
        let bytes = fs::read(fixture(name)).unwrap();
        assert!(read_all(&bytes).is_ok());
        for k in 0..400 {
            let at = k * 7919 % bytes.len();
            assert!(read_all(&bytes[..at]).is_err(), "{name} cut to {at} bytes was read");
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (k % 8);
            changed[(at + 1) % bytes.len()] = 0xff;
            noticed += usize::from(read_all(&changed).is_err());
        }
    }
    assert!(noticed > 100, "only {noticed} of 800 changes were noticed");
}

#[test]
fn the_real_demonstrations() {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    let folder = target.join("native/robosuite-1.4.1/models/assets/demonstrations");
    if !folder.exists() {
        println!("skipped: robosuite's demonstrations are not there (`cargo xtask real-data` fetches them)");
        return;
    }
    let file = RobomimicFile::open(folder.join("lift/demo.hdf5")).unwrap();
    assert_eq!(file.names(), ["demo_1", "demo_2", "demo_3"]);
    assert_eq!(file.env().name.as_deref(), Some("Lift"));
    let demos: Vec<_> = file.demos().collect::<Result<_, _>>().unwrap();
    assert_eq!(demos.iter().map(|d| d.actions.len()).collect::<Vec<_>>(), [482, 510, 392]);
    for demo in demos {
        assert_eq!(demo.states.width, 32, "time, 16 qpos, 15 qvel");
        assert!(demo.model_xml.unwrap().contains("<mujoco"));
        let largest = demo.actions.as_flattened().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_eq!(largest, 3.75, "the person's device exceeds what the controller accepts");
    }
    let two_arms = RobomimicFile::open(folder.join("handover/panda_panda/demo.hdf5")).unwrap();
    assert!(matches!(two_arms.load(0), Err(ImportError::Shape { got, .. }) if got == [641, 14]));
    let old = RobomimicFile::open(folder.join("wipe/panda/demo.hdf5")).unwrap();
    assert!(matches!(old.load(0), Err(ImportError::Shape { got, .. }) if got == [174, 6]));
}
