//! Bad input gives an error that says what was wrong, and leaves the process alive.
#![allow(clippy::unwrap_used)]

use efference_mujoco::{Data, Error, Kind, Model};
use std::sync::Arc;

const SCENE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/scene.xml");

const BALL: &str = r#"<mujoco><worldbody>
    <geom name="floor" type="plane" size="1 1 1"/>
    <body name="ball" pos="0 0 0.5"><freejoint name="ball"/><geom name="ball" size="0.1"/></body>
</worldbody></mujoco>"#;

fn scene() -> Arc<Model> {
    Arc::new(Model::from_xml_file(SCENE).unwrap())
}

#[test]
fn bad_xml_is_told_with_mujocos_words_and_line() {
    let error = Model::from_xml_string("<mujoco>\n<worldbody>\n<geom typ=\"box\"/>\n</worldbody>\n</mujoco>")
        .unwrap_err();
    let Error::Load { message, version, .. } = &error else { panic!("{error:?}") };
    assert!(message.contains("typ") && message.contains("line 3"), "{message}");
    assert_eq!(version, &efference_mujoco::version());

    for broken in ["", "not xml", "<mujoco>", "<mujoco><worldbody><body/></worldbody></mujoco2>", "\0"] {
        let error = Model::from_xml_string(broken).unwrap_err();
        assert!(
            matches!(&error, Error::Load { message, .. } if !message.is_empty()),
            "{broken:?}: {error:?}"
        );
    }
}

#[test]
fn a_file_with_an_error_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken scene.xml");
    std::fs::write(&path, "<mujoco><worldbody><geom type='cube' size='1'/></worldbody></mujoco>").unwrap();
    let text = Model::from_xml_file(&path).unwrap_err().to_string();
    assert!(text.contains("broken scene.xml") && text.contains("cube"), "{text}");
}

#[test]
fn a_missing_file_is_named_with_the_reason() {
    let error = Model::from_xml_file("/nowhere/scene.xml").unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error:?}");
    assert!(error.to_string().contains("/nowhere/scene.xml"), "{error}");
}

#[test]
fn a_missing_mesh_is_named() {
    let xml = r#"<mujoco><asset><mesh file="/nowhere/hand.stl"/></asset><worldbody/></mujoco>"#;
    let text = Model::from_xml_string(xml).unwrap_err().to_string();
    assert!(text.contains("hand.stl"), "{text}");
}

/// A unit tetrahedron as binary STL.
fn tetrahedron() -> Vec<u8> {
    let p = [[0.0f32, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1]];
    let mut stl = vec![0u8; 80];
    stl.extend(4u32.to_le_bytes());
    for face in [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]] {
        stl.extend([0u8; 12]); // normal: computed by the reader
        for corner in face {
            for x in p[corner] {
                let x: f32 = x;
                stl.extend(x.to_le_bytes());
            }
        }
        stl.extend([0u8; 2]);
    }
    stl
}

fn with_mesh(path: &str) -> String {
    format!(
        r#"<mujoco><asset><mesh name="m" file="{path}"/></asset>
        <worldbody><body name="b"><freejoint/><geom type="mesh" mesh="m"/></body></worldbody></mujoco>"#
    )
}

#[test]
fn assets_come_from_memory_or_from_absolute_paths() {
    let (xml, stl) = (with_mesh("tetra.stl"), tetrahedron());
    let model = Model::from_xml_string_with_assets(&xml, &[("tetra.stl", &stl)]).unwrap();
    let expected_kg = 1000.0 * 0.1f64.powi(3) / 6.0;
    assert!((model.body_mass(model.body_id("b").unwrap()) - expected_kg).abs() < 1e-7);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tetra.stl");
    std::fs::write(&path, &stl).unwrap();
    let from_disk = Model::from_xml_string(&with_mesh(path.to_str().unwrap())).unwrap();
    assert_eq!(from_disk.body_mass(1), model.body_mass(1));

    let twice = [("tetra.stl", stl.as_slice()), ("tetra.stl", &stl)];
    let text = Model::from_xml_string_with_assets(&xml, &twice).unwrap_err().to_string();
    assert!(text.contains("twice") && text.contains("tetra.stl"), "{text}");
    let truncated = Model::from_xml_string_with_assets(&xml, &[("tetra.stl", &stl[..100])]).unwrap_err();
    assert!(matches!(truncated, Error::Load { .. }), "{truncated:?}");
}

#[test]
fn an_unknown_name_gets_the_nearest_one() {
    let model = scene();
    let text = model.site_id("grips").unwrap_err().to_string();
    assert_eq!(text, "the model has no site named `grips`; did you mean `grip`?");
    let text = model.camera_id("xyz").unwrap_err().to_string();
    assert!(text.contains("front, top, wrist"), "{text}");
    assert!(model.body_id("zero\0byte").is_err());
    assert!(
        Model::from_xml_string(BALL)
            .unwrap()
            .sensor_id("s")
            .unwrap_err()
            .to_string()
            .contains("no named sensor")
    );
}

#[test]
fn names_and_indices_are_inverse() {
    let model = scene();
    for kind in [
        Kind::Body,
        Kind::Joint,
        Kind::Geom,
        Kind::Site,
        Kind::Camera,
        Kind::Actuator,
        Kind::Sensor,
        Kind::Light,
    ] {
        for index in 0..model.count(kind) {
            let name = model.name(kind, index).unwrap();
            assert_eq!(model.id(kind, &name).unwrap(), index, "{kind:?} {name}");
        }
        assert_eq!(model.name(kind, model.count(kind)), None);
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let model = scene();
    let mut data = Data::new(&model).unwrap();
    let good = data.state().unwrap();
    let is_length =
        |result: efference_mujoco::Result<()>| matches!(result.unwrap_err(), Error::Length { .. });
    assert!(is_length(data.state_set(&good[1..])));
    assert!(is_length(data.restore(&[])));
    assert!(is_length(data.state_get(&mut vec![0.0; good.len() + 1])));
    assert!(is_length(data.jac_site(0, &mut [0.0; 3])));
    assert!(is_length(data.jac_point(1, [0.0; 3], &mut [0.0; 6])));
    assert!(is_length(data.mass_matrix(&mut [0.0; 9])));
    assert!(matches!(data.reset_to_keyframe(9), Err(Error::Index { kind: "keyframe", index: 9, count: 1 })));
    assert!(matches!(data.jac_site(99, &mut []), Err(Error::Index { .. })));
    assert!(matches!(data.body_velocity(999), Err(Error::Index { .. })));
    assert!(matches!(data.place_free_joint(0, [0.0; 3], [1.0, 0.0, 0.0, 0.0]), Err(Error::Value { .. })));
}

#[test]
#[should_panic(expected = "past the end")]
fn an_index_past_the_end_panics_like_a_slice() {
    let model = scene();
    Data::new(&model).unwrap().body_pos(model.count(Kind::Body));
}

#[test]
fn an_explosion_is_an_error_with_time_and_joint() {
    let model = Arc::new(Model::from_xml_string(BALL).unwrap());
    let mut data = Data::new(&model).unwrap();
    data.step(10).unwrap();
    data.qvel_mut()[2] = f64::NAN;
    let error = data.step(5).unwrap_err();
    let Error::Unstable { quantity: "qvel", index: 2, place, time_secs } = &error else {
        panic!("{error:?}")
    };
    assert!(place.contains("joint ball") && (time_secs - 0.02).abs() < 1e-9, "{error}");
    assert_eq!(data.qpos(), model.qpos0(), "reset to the initial state");
    data.step(10).unwrap(); // and usable

    let scene = scene();
    let mut data = Data::new(&scene).unwrap();
    data.ctrl_mut()[1] = f64::NAN;
    let text = data.step(1).unwrap_err().to_string();
    assert!(text.contains("ctrl") && text.contains("actuator lift"), "{text}");
}

#[test]
fn a_fatal_error_inside_mujoco_is_returned() {
    // Boxes that are apart when compiled and in one heap when stepped: with some sizes of MuJoCo's scratch memory the
    // model compiles and the step does not fit.
    let bodies: String = (0..40)
        .map(|i| format!(r#"<body pos="0 0 {i}"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>"#))
        .collect();
    let mut messages = Vec::new();
    for kilobytes in (32..400).step_by(16) {
        let xml = format!(
            r#"<mujoco><size memory="{kilobytes}K"/><worldbody><geom type="plane" size="1 1 1"/>{bodies}</worldbody></mujoco>"#
        );
        let Ok(model) = Model::from_xml_string(&xml) else { continue };
        let Ok(mut data) = Data::new(&Arc::new(model)) else { continue };
        let start = data.state().unwrap();
        for body in data.qpos_mut().chunks_exact_mut(7) {
            body[2] = 0.1;
        }
        match data.step(1) {
            Err(Error::MuJoCo { call: "step", message }) => messages.push(message),
            other => println!("{kilobytes} KiB: {other:?}"),
        }
        // Still usable, and not leaking the scratch memory of the interrupted step.
        for _ in 0..1000 {
            data.state_set(&start).unwrap();
            data.step(1).unwrap();
        }
    }
    println!("{messages:?}");
    assert!(messages.iter().any(|m| m.contains("memory")), "no size of memory failed: {messages:?}");
}
