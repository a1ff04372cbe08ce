//! Pictures of the sample pack beside those of Python LIBERO.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use efference_envs::libero::{LiberoSim, Pack, Profile, SimOptions};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero")
}

/// Upright, as our pictures are; the files have LIBERO's order of rows.
fn recorded(name: &str) -> Vec<u8> {
    let image = image::open(golden().join("images").join(name)).unwrap().into_rgb8();
    image::imageops::flip_vertical(&image).into_raw()
}

fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

fn actions() -> Vec<[f64; 7]> {
    #[derive(serde::Deserialize)]
    struct Recording {
        actions: Vec<[f64; 7]>,
    }
    let text = std::fs::read(golden().join("3.3.2/libero_goal_7.json")).unwrap();
    serde_json::from_slice::<Recording>(&text).unwrap().actions
}

fn start(options: &SimOptions) -> LiberoSim {
    let pack = Pack::open(golden().join("pack_sample")).unwrap();
    let mut sim = LiberoSim::new(&pack, options).unwrap();
    sim.reset(0).unwrap();
    sim.set_init_state(pack.init_state(1).unwrap()).unwrap();
    sim
}

const CAMERAS: [&str; 2] = ["agentview", "robot0_eye_in_hand"];

#[test]
fn pictures_are_those_of_python_libero() {
    let mut sim = start(&SimOptions::default());
    let mut table = Vec::new();
    let mut compare = |sim: &mut LiberoSim, when: &str| {
        for camera in CAMERAS {
            let picture = sim.render(camera).unwrap();
            for (kind, bound) in [("sample", 1.5), ("full", 3.0)] {
                let expected = recorded(&format!("libero_goal_7_{when}_{camera}_{kind}.png"));
                table.push((
                    when.to_owned(),
                    camera,
                    kind,
                    mean_difference(picture.as_raw(), &expected),
                    bound,
                ));
            }
        }
    };
    compare(&mut sim, "init");
    for action in &actions()[..3] {
        sim.step(action).unwrap();
    }
    compare(&mut sim, "step3");
    for (when, camera, kind, mean, bound) in table {
        println!("{when} {camera} {kind}: mean difference {mean:.4}");
        assert!(mean <= bound, "{when} {camera} {kind}: {mean} above {bound}");
    }
}

/// Drawing late, or twice, or other things in between, gives the same picture, and the simulation does not notice.
#[test]
fn drawing_is_lazy_and_leaves_no_trace() {
    let actions = actions();
    let (mut looking, mut blind) = (start(&SimOptions::default()), start(&SimOptions::default()));
    for action in &actions[40..44] {
        looking.step(action).unwrap();
        blind.step(action).unwrap();
        let first = looking.render(CAMERAS[0]).unwrap();
        let facts = (looking.success(), looking.eef_pose(), looking.snapshot());
        let mut depth = vec![0.0; 128 * 128];
        looking.render_depth(CAMERAS[1], &mut depth).unwrap();
        let mut ids = vec![0; 128 * 128];
        looking.render_segmentation(CAMERAS[0], &mut ids).unwrap();
        assert_eq!(looking.render(CAMERAS[0]).unwrap(), first);
        assert_eq!((looking.success(), looking.eef_pose(), looking.snapshot()), facts);
        assert!(depth.iter().all(|d| *d > 0.0 && d.is_finite()));
        // Shown geoms are those of the visual group.
        let model = looking.model();
        assert!(ids.iter().all(|id| *id < 0 || model.geom_group(*id as usize) == 1), "{ids:?}");
        assert!(ids.iter().filter(|id| **id >= 0).count() > 128 * 64);
    }
    assert_eq!(looking.snapshot(), blind.snapshot());
    assert_eq!(looking.render(CAMERAS[1]).unwrap(), blind.render(CAMERAS[1]).unwrap());
}

/// Pictures are of the instant of the observation, which is older than the state: the picture after a step differs from
/// that of the state restored by itself.
#[test]
fn a_picture_belongs_to_the_observation() {
    let mut sim = start(&SimOptions::default());
    for action in &actions()[..30] {
        sim.step(action).unwrap();
    }
    let picture = sim.render(CAMERAS[1]).unwrap();
    let seen = sim.observation().clone();
    let live = sim.init_state();
    let mut other = start(&SimOptions::default());
    other.set_init_state(&live).unwrap();
    assert_ne!(other.observation().eef_pos, seen.eef_pos);
    assert_ne!(other.render(CAMERAS[1]).unwrap(), picture);
}

#[test]
fn the_fast_profile_shows_the_same_scene() {
    for size in [128, 224, 256] {
        let options = SimOptions { image_size: size, ..SimOptions::default() };
        let mut faithful = start(&options);
        let mut fast = start(&SimOptions { profile: Profile::Fast, ..options });
        for camera in CAMERAS {
            let (a, b) = (faithful.render(camera).unwrap(), fast.render(camera).unwrap());
            assert_eq!((a.width() as usize, b.height() as usize), (size, size));
            let mean = mean_difference(a.as_raw(), b.as_raw());
            println!("{size} px {camera}: mean difference {mean:.2}");
            assert!(mean > 0.0 && mean < 20.0, "{camera}: {mean}");
        }
    }
    let mut sim = start(&SimOptions::default());
    let error = sim.render("overhead").unwrap_err().to_string();
    assert!(error.contains("no camera named `overhead`") && error.contains("agentview"), "{error}");
}
