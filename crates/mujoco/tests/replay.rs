//! The simulation gives the numbers that the Python bindings of the same MuJoCo recorded (fixtures/make_fixtures.py).
//!
//! On the machine that recorded them they agree bit for bit; the test says so when they do. Another CPU or C library may
//! round sines differently in the last bit, and contacts amplify that, hence the tolerances: 1e-12 for the first 40
//! physics steps, 1e-6 at the end.
#![allow(clippy::unwrap_used)]

use efference_mujoco::{Data, Model, version};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
struct Trajectory {
    version: String,
    substeps: usize,
    controls: Vec<Numbers>,
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    step: usize,
    time_secs: Numbers,
    qpos: Numbers,
    qvel: Numbers,
    act: Numbers,
    sensors: Numbers,
    qfrc_bias: Numbers,
    grip_pos: Numbers,
    grip_mat: Numbers,
    hand_quat: Numbers,
    hand_velocity: Numbers,
    jacobian: Numbers,
    mass_diagonal: Numbers,
    mass_first_rows: Numbers,
    contacts: Vec<RecordedContact>,
}

#[derive(Deserialize)]
struct RecordedContact {
    geoms: [usize; 2],
    dist_m: Numbers,
    normal_force_n: Numbers,
}

/// Exact numbers, as text with spaces between.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Numbers(Vec<f64>);

impl From<String> for Numbers {
    fn from(text: String) -> Self {
        Self(text.split(' ').map(|number| number.parse().unwrap()).collect())
    }
}

impl std::ops::Deref for Numbers {
    type Target = [f64];
    fn deref(&self) -> &[f64] {
        &self.0
    }
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn recorded() -> Trajectory {
    serde_json::from_str(&std::fs::read_to_string(format!("{FIXTURES}/trajectory.json")).unwrap()).unwrap()
}

/// Largest difference relative to the size of the numbers, and whether every bit agrees.
struct Comparison {
    worst: f64,
    exact: bool,
}

impl Comparison {
    fn all(&mut self, what: &str, step: usize, got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{what} at step {step}");
        let tolerance = if step <= 20 { 1e-12 } else { 1e-6 };
        let scale = expected.iter().fold(1.0f64, |max, x| max.max(x.abs()));
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            let difference = (g - e).abs() / scale;
            assert!(difference <= tolerance, "{what}[{i}] at step {step}: got {g}, Python has {e}");
            self.worst = self.worst.max(difference);
            self.exact &= g.to_bits() == e.to_bits();
        }
    }
}

#[test]
fn the_trajectory_is_the_one_python_recorded() {
    let recorded = recorded();
    if version() != recorded.version {
        let chosen = std::env::var("EFFERENCE_MUJOCO").ok();
        assert!(
            chosen.is_some(),
            "the fixtures are of MuJoCo {}, the library is {}",
            recorded.version,
            version()
        );
        println!("not compared: another MuJoCo ({}) was asked for", version());
        return;
    }
    let model = Arc::new(Model::from_xml_file(format!("{FIXTURES}/scene.xml")).unwrap());
    let mut data = Data::new(&model).unwrap();
    data.reset_to_keyframe(model.keyframe_id("bent").unwrap()).unwrap();
    let (grip, hand) = (model.site_id("grip").unwrap(), model.body_id("hand").unwrap());
    let nv = model.nv();
    let (mut jacobian, mut mass) = (vec![0.0; 6 * nv], vec![0.0; nv * nv]);
    let mut compare = Comparison { worst: 0.0, exact: true };
    let mut records = recorded.records.iter();
    let mut seen_contacts = 0;

    for (step, control) in recorded.controls.iter().enumerate() {
        data.ctrl_mut().copy_from_slice(control);
        data.step(recorded.substeps).unwrap();
        let Some(record) = records.as_slice().first().filter(|r| r.step == step + 1) else { continue };
        records.next();
        let mut same =
            |what: &str, got: &[f64], expected: &[f64]| compare.all(what, record.step, got, expected);
        same("time", &[data.time_secs()], &record.time_secs);
        same("qpos", data.qpos(), &record.qpos);
        same("qvel", data.qvel(), &record.qvel);
        same("act", data.act(), &record.act);
        same("sensors", data.sensor_data(), &record.sensors);
        same("qfrc_bias", data.qfrc_bias(), &record.qfrc_bias);
        same("grip_pos", &data.site_pos(grip), &record.grip_pos);
        same("grip_mat", &data.site_mat(grip), &record.grip_mat);
        same("hand_quat", &data.body_quat(hand), &record.hand_quat);
        same("hand_velocity", &data.body_velocity(hand).unwrap(), &record.hand_velocity);
        data.jac_site(grip, &mut jacobian).unwrap();
        same("jacobian", &jacobian, &record.jacobian);
        data.mass_matrix(&mut mass).unwrap();
        let diagonal: Vec<f64> = (0..nv).map(|i| mass[i * nv + i]).collect();
        same("mass diagonal", &diagonal, &record.mass_diagonal);
        same("first two rows of the mass matrix", &mass[..2 * nv], &record.mass_first_rows);

        let contacts: Vec<_> = data.contacts().collect();
        assert_eq!(contacts.len(), record.contacts.len(), "contacts at step {}", record.step);
        for (got, expected) in contacts.iter().zip(&record.contacts) {
            assert_eq!(got.geoms, expected.geoms);
            same("contact distance", &[got.dist_m], &expected.dist_m);
            same("contact force", &[got.normal_force_n], &expected.normal_force_n);
        }
        seen_contacts += contacts.len();
    }
    assert!(
        records.as_slice().is_empty() && seen_contacts > 20,
        "the fixture is too tame: {seen_contacts} contacts"
    );
    assert_eq!(data.overflows(), 0);
    let exactness = if compare.exact { "bit for bit" } else { "within rounding" };
    println!(
        "200 x {} steps agree {exactness} (largest relative difference {:e})",
        recorded.substeps, compare.worst
    );
}

#[test]
fn a_restored_state_continues_bit_for_bit() {
    let recorded = recorded();
    let model = Arc::new(Model::from_xml_file(format!("{FIXTURES}/scene.xml")).unwrap());
    let drive = |data: &mut Data, controls: &[Numbers]| {
        for control in controls {
            data.ctrl_mut().copy_from_slice(control);
            data.step(recorded.substeps).unwrap();
        }
        data.state().unwrap()
    };
    let bits = |state: &[f64]| state.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (before, after) = recorded.controls.split_at(90);

    let mut original = Data::new(&model).unwrap();
    original.reset_to_keyframe(0).unwrap();
    let snapshot = drive(&mut original, before);
    let mut copied = original.try_clone().unwrap();
    let end = drive(&mut original, after);

    let mut fresh = Data::new(&model).unwrap();
    fresh.state_set(&snapshot).unwrap();
    assert_eq!(bits(&drive(&mut fresh, after)), bits(&end), "state_set");
    // The same object, after it has been elsewhere.
    fresh.restore(&snapshot).unwrap();
    assert_eq!(bits(&fresh.state().unwrap()), bits(&snapshot), "restore leaves the state as it was");
    assert_eq!(bits(&drive(&mut fresh, after)), bits(&end), "restore");
    assert_eq!(bits(&drive(&mut copied, after)), bits(&end), "try_clone");
    assert_ne!(bits(&end), bits(&snapshot));
}

#[test]
fn restore_computes_poses_and_contacts() {
    let model = Arc::new(Model::from_xml_file(format!("{FIXTURES}/scene.xml")).unwrap());
    let mut data = Data::new(&model).unwrap();
    data.reset_to_keyframe(0).unwrap();
    data.step(100).unwrap();
    let snapshot = data.state().unwrap();
    data.forward().unwrap();
    let cube = model.body_id("red_cube").unwrap();
    let (pos, contacts) = (data.body_pos(cube), data.contacts().map(|c| c.geoms).collect::<Vec<_>>());
    let mut other = Data::new(&model).unwrap();
    other.restore(&snapshot).unwrap();
    assert_eq!(other.body_pos(cube), pos);
    assert_eq!(other.contacts().map(|c| c.geoms).collect::<Vec<_>>(), contacts);
    assert!(!contacts.is_empty());
}

/// Jacobian and velocities are two ways to the same numbers: J qvel = [linear, angular] velocity.
#[test]
fn the_jacobian_maps_joint_velocities_to_the_sites_velocity() {
    let model = Arc::new(Model::from_xml_file(format!("{FIXTURES}/scene.xml")).unwrap());
    let mut data = Data::new(&model).unwrap();
    data.reset_to_keyframe(0).unwrap();
    for (i, v) in data.qvel_mut().iter_mut().enumerate() {
        *v = (i as f64 * 0.7).sin();
    }
    data.forward().unwrap();
    let (site, nv) = (model.site_id("grip").unwrap(), model.nv());
    let mut jacobian = vec![0.0; 6 * nv];
    data.jac_site(site, &mut jacobian).unwrap();
    let velocity = data.site_velocity(site).unwrap();
    for row in 0..6 {
        let product: f64 = (0..nv).map(|i| jacobian[row * nv + i] * data.qvel()[i]).sum();
        let expected = velocity[(row + 3) % 6]; // the Jacobian has linear rows first, MuJoCo's velocities angular
        assert!((product - expected).abs() < 1e-12, "row {row}: {product} against {expected}");
    }
    let mut at_point = vec![0.0; 6 * nv];
    data.jac_point(model.site_body(site), data.site_pos(site), &mut at_point).unwrap();
    assert_eq!(jacobian, at_point);
}

#[test]
fn many_threads_give_the_same_bits() {
    let recorded = recorded();
    let model = Arc::new(Model::from_xml_file(format!("{FIXTURES}/scene.xml")).unwrap());
    let run = || {
        let mut data = Data::new(&model).unwrap();
        data.reset_to_keyframe(0).unwrap();
        for control in &recorded.controls {
            data.ctrl_mut().copy_from_slice(control);
            data.step(recorded.substeps).unwrap();
        }
        data.qpos().to_vec()
    };
    let alone = run();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), alone);
        }
    });
}
