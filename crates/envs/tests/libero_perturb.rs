//! Perturbations on a real task pack.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use efference_envs::libero::Pack;
use efference_envs::libero::perturb::{
    Background, Error, Layout, Light, Noise, Perturbation, RobotStart, View,
};
use efference_mujoco::{Kind, Model};
use proptest::prelude::*;

fn golden(pack: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero").join(pack)
}

fn pack(task: &str) -> Arc<Pack> {
    Pack::open(golden("packs_physics").join(task)).unwrap()
}

fn model(task: &str) -> Model {
    Model::from_xml_file(golden("packs_physics").join(task).join("model.xml")).unwrap()
}

fn planar(pack: &Pack, qpos: &[f64], name: &str) -> [f64; 2] {
    let a = pack.meta.objects[name].joints[0].qpos_adr;
    [qpos[1 + a], qpos[2 + a]]
}

/// All free objects of a state, by name.
fn movable(pack: &Pack) -> Vec<&str> {
    let objects = pack.meta.objects.iter().filter(|(_, o)| !o.joints.is_empty());
    objects.filter(|(_, o)| o.joints[0].name.ends_with("_joint0")).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn names_of_libero_plus_become_perturbations() {
    let of = |name: &str| Perturbation::from_name(name).unwrap().1;
    let (base, plain) = Perturbation::from_name("t_view_0_0_100_0_0_initstate_0").unwrap();
    assert_eq!((base.as_str(), plain), ("t", Perturbation::default()));
    let view =
        View { horizontal_deg: 330.0, vertical_deg: 15.0, distance: 1.5, pan_deg: -4.0, tilt_deg: 6.0 };
    assert_eq!(of("t_view_330_15_150_-4_6_initstate_0").view, view);
    let noisy = of("t_view_0_0_100_0_0_initstate_9_noise_37");
    assert_eq!((noisy.noise, noisy.robot), (Noise::from_number(37), Some(RobotStart { variant: 9 })));
    assert_eq!(of("t_language_4_view_0_0_100_0_0_initstate_0").language, Some(4));
    assert_eq!(of("t_tb_12").background, Some(Background::variant(12)));
    assert_eq!(of("t_light_2").light, Some(Light::variant(2)));
    let layout = Layout { level: 2, sample: 7, moved: true };
    assert_eq!(of("t_moved_level2_sample7").layout, Some(layout));
    assert_eq!(of("put_the_plate_on_the_table").background, None);
    assert!(matches!(Perturbation::from_name("t_add_5").unwrap_err(), Error::Distractors { .. }));
    for (name, words) in [
        ("t_view_0_0_100_0_0", "expected `_view_H_V_S_R_P_initstate_I`"),
        ("t_view_0_0_0_0_0_initstate_0", "a distance in percent above 0"),
        ("t_view_0_0_100_0_0_initstate_0_noise_51", "a noise of 0 to 50"),
        ("t_view_0_0_x_0_0_initstate_0", "whole numbers"),
        ("t_language_x_view_0_0_100_0_0_initstate_0", "a number after `_language_`"),
        ("t_level1_sampleX", "`_levelL_sampleS`"),
    ] {
        let error = Perturbation::from_name(name).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
}

#[test]
fn the_scene_changes_where_it_should() {
    let (pack, fresh) = (pack("libero_goal_0"), model("libero_goal_0"));
    let perturbation = Perturbation {
        view: View { horizontal_deg: 20.0, ..View::default() },
        light: Some(Light::variant(3)),
        background: Some(Background::variant(4)),
        ..Perturbation::default()
    };
    let mut changed = model("libero_goal_0");
    perturbation.apply_to_model(&mut changed, &pack.meta).unwrap();
    let mut again = model("libero_goal_0");
    perturbation.apply_to_model(&mut again, &pack.meta).unwrap();
    for name in fresh.names(Kind::Camera) {
        let camera = fresh.id(Kind::Camera, &name).unwrap();
        assert_eq!(changed.camera_pos(camera) != fresh.camera_pos(camera), name == "agentview", "{name}");
        assert_eq!(changed.camera_quat(camera), again.camera_quat(camera));
    }
    assert!(fresh.count(Kind::Light) > 0);
    for light in 0..fresh.count(Kind::Light) {
        assert_ne!(changed.light_dir(light), fresh.light_dir(light));
        assert_ne!(changed.light_diffuse(light), fresh.light_diffuse(light));
        assert_eq!(changed.light_casts_shadow(light), Light::variant(3).shadows);
        let length: f64 = changed.light_dir(light).iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 0.1 || (length - 1.0225).abs() < 0.1, "{length}");
    }
    let mut painted = Vec::new();
    for name in fresh.names(Kind::Material) {
        let material = fresh.id(Kind::Material, &name).unwrap();
        if changed.material_rgba(material) != fresh.material_rgba(material) {
            painted.push(name);
        }
    }
    assert_eq!(painted, ["floorplane", "table_texture", "table_legs", "walls_mat", "table_mat"]);

    // No perturbation, no change.
    let mut same = model("libero_goal_0");
    Perturbation::default().apply_to_model(&mut same, &pack.meta).unwrap();
    assert_eq!(same.camera_quat(0), fresh.camera_quat(0));
    assert_ne!(Light::variant(3), Light::variant(4));
    assert_ne!(Background::variant(3), Background::variant(4));
}

#[test]
fn the_arm_starts_elsewhere_and_inside_its_range() {
    let pack = pack("libero_goal_0");
    let clean = pack.init_state(0).unwrap().to_vec();
    let start = |variant| {
        let mut state = clean.clone();
        let perturbation = Perturbation { robot: Some(RobotStart { variant }), ..Perturbation::default() };
        perturbation.apply_to_state(&mut state, &pack.meta).unwrap();
        state
    };
    assert_eq!(start(5), start(5));
    assert_ne!(start(5), start(6));
    for variant in 1..50 {
        let state = start(variant);
        assert_ne!(state[1..8], clean[1..8]);
        assert_eq!(state[8..], clean[8..]);
        for (joint, angle) in pack.meta.robot.joints.iter().zip(&state[1..8]) {
            assert!((joint.range[0]..joint.range[1]).contains(angle), "{} {angle}", joint.name);
        }
    }
    let mut short = clean[1..].to_vec();
    let perturbation = Perturbation { robot: Some(RobotStart { variant: 1 }), ..Perturbation::default() };
    let error = perturbation.apply_to_state(&mut short, &pack.meta).unwrap_err();
    assert!(matches!(error, Error::State { expected: 79, got: 78, .. }), "{error}");
}

#[test]
fn objects_of_a_layout_keep_their_distances() {
    for task in ["libero_goal_0", "libero_object_1", "libero_spatial_0", "libero_10_9"] {
        let pack = pack(task);
        let names = movable(&pack);
        assert!(names.len() >= 2, "{task}: {names:?}");
        let mut any = 0;
        for sample in 0..20 {
            let layout = Layout { level: 3, sample, moved: sample % 2 == 0 };
            let clean = pack.init_state(sample as usize).unwrap();
            let mut state = clean.to_vec();
            let perturbation = Perturbation { layout: Some(layout), ..Perturbation::default() };
            perturbation.apply_to_state(&mut state, &pack.meta).unwrap();
            for (i, a) in names.iter().enumerate() {
                let (from, to) = (planar(&pack, clean, a), planar(&pack, &state, a));
                let offset = (from[0] - to[0]).hypot(from[1] - to[1]);
                assert!(offset <= 0.06 * 2f64.sqrt() + 1e-12, "{task} {a}: {offset}");
                any += usize::from(offset > 0.0);
                if pack.meta.obj_of_interest.iter().any(|o| o == a) && !layout.moved {
                    assert_eq!(offset, 0.0, "{task} {a}");
                }
                for b in &names[i + 1..] {
                    let distance = |s: &[f64]| {
                        let (p, q) = (planar(&pack, s, a), planar(&pack, s, b));
                        (p[0] - q[0]).hypot(p[1] - q[1])
                    };
                    assert!(distance(&state) >= distance(clean).min(0.11) - 1e-9, "{task} {a} {b}");
                }
            }
            // Only x and y of free objects.
            let changed = clean.iter().zip(&state).filter(|(a, b)| a != b).count();
            assert!(changed <= 2 * names.len());
        }
        assert!(any > 0, "{task}");
    }
}

#[test]
fn pictures_of_the_hand_stay_clean() {
    let noisy = Perturbation { noise: Noise::from_number(12), ..Perturbation::default() };
    let picture: Vec<u8> = (0..16 * 16 * 3).map(|i| (i * 37 % 251) as u8).collect();
    let mut hand = picture.clone();
    noisy.apply_to_picture("robot0_eye_in_hand", &mut hand, 16, 16, 0);
    assert_eq!(hand, picture);
    noisy.apply_to_picture("agentview", &mut hand, 16, 16, 0);
    assert_ne!(hand, picture);
}

#[test]
fn instructions_are_paraphrased() {
    let pack = pack("libero_goal_7");
    let say = |language| Perturbation { language, ..Perturbation::default() }.instruction(&pack.meta);
    assert_eq!(say(None), "turn on the stove");
    assert_eq!(say(Some(7)), "please switch on the stove");
}

proptest! {
    #[test]
    fn no_name_panics(name in "[a-z_]{0,8}(_view_|_level|_tb_|_language_|_noise_)?[0-9_a-z-]{0,24}") {
        let _ = Perturbation::from_name(&name);
    }
}
