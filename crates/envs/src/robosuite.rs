//! Replay of robosuite's recorded demonstrations: the recorded states, shown by the simulator again.
//!
//! A recording holds its scene (MJCF with the asset paths of the recorder's machine), one state per control step
//! (time, qpos, qvel) and the actions. [`Replay`] loads the scene with our copies of the assets, goes to any step, and
//! computes what a policy would have seen there. Nothing is simulated forward, so what is shown is what was recorded.
//! [`import_hdf5`](crate::robosuite_import::import_hdf5) makes episodes of a whole file.
//!
//! Conventions, as in robosuite 1.4 and LIBERO: the end-effector's position is that of the grip site, its orientation
//! that of the hand's body (a different frame) as axis-angle with angles from 0 to 2 pi, and pictures show neither
//! collision shapes nor site markers.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use efference_data::{Demo, ImportError, RgbImage};
use efference_mujoco::{Data, Model, RenderQuality, Renderer};

/// Name under which a camera's pictures are stored, and its name in robosuite's scenes.
pub const CAMERAS: [(&str, &str); 2] = [("agentview", "agentview"), ("wrist", "robot0_eye_in_hand")];

/// The cube counts as lifted when its centre is so far above the table (robosuite's `Lift`).
const LIFTED_M: f64 = 0.04;
/// Height of the table's surface in robosuite's `Lift`, metres above the floor.
const TABLE_M: f64 = 0.8;

/// Shorthand for the results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a recording is replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recording cannot be read.
    #[error(transparent)]
    File(#[from] ImportError),

    /// The episodes cannot be stored.
    #[error(transparent)]
    Store(#[from] efference_data::Error),

    /// The recording has actions but no scene to show them in.
    #[error("`{demo}` holds no scene (`model_file`), so its pictures cannot be made")]
    NoScene {
        /// The demonstration.
        demo: String,
    },

    /// A mesh or texture that the scene needs.
    #[error(
        "the scene of `{demo}` needs `{path}`, which is not there\n  \
         hint: `cargo xtask real-data` fetches robosuite's assets; give the folder that holds `models/assets`",
        path = path.display()
    )]
    MissingAsset {
        /// The demonstration.
        demo: String,
        /// Where it was looked for.
        path: PathBuf,
    },

    /// States of another model than the scene's.
    #[error("`{demo}`: each state has {got} numbers, but the scene needs {expected} (time, qpos, qvel)")]
    StateWidth {
        /// The demonstration.
        demo: String,
        /// Numbers per state in the recording.
        got: usize,
        /// 1 + nq + nv of the scene.
        expected: usize,
    },

    /// A step past the end.
    #[error("`{demo}` has {steps} steps, step {step} was asked for")]
    NoStep {
        /// The demonstration.
        demo: String,
        /// Asked for.
        step: usize,
        /// There are.
        steps: usize,
    },

    /// A setting that cannot be meant.
    #[error("option `{field}` must be {expected}, got {got}")]
    Option {
        /// Its name.
        field: &'static str,
        /// The accepted range, in words.
        expected: &'static str,
        /// The value.
        got: String,
    },

    /// The scene does not load, lacks a part, or cannot be drawn.
    #[error("`{demo}`: {source}")]
    Simulator {
        /// The demonstration.
        demo: String,
        /// What MuJoCo says.
        source: efference_mujoco::Error,
    },
}

/// The names of the parts that the replay looks at.
struct Parts {
    grip_site: usize,
    hand: usize,
    fingers: [usize; 2],
    cube: Option<usize>,
    cameras: [usize; 2],
}

/// One demonstration, shown by the simulator.
pub struct Replay {
    demo: Demo,
    data: Data,
    parts: Parts,
}

impl Replay {
    /// Loads the demonstration's scene; meshes and textures come from `assets_root`, the folder that holds
    /// `models/assets`. Stands at step 0.
    ///
    /// # Errors
    /// [`Error::NoScene`], [`Error::MissingAsset`], [`Error::StateWidth`], or [`Error::Simulator`].
    pub fn new(demo: Demo, assets_root: &Path) -> Result<Self> {
        let xml = demo.model_xml.as_deref().ok_or_else(|| Error::NoScene { demo: demo.name.clone() })?;
        let xml = with_assets_from(xml, assets_root, &demo.name)?;
        let simulator = |source| Error::Simulator { demo: demo.name.clone(), source };
        let model = Arc::new(Model::from_xml_string(&xml).map_err(simulator)?);
        let expected = 1 + model.nq() + model.nv();
        if demo.states.width != expected {
            return Err(Error::StateWidth { got: demo.states.width, expected, demo: demo.name });
        }
        let parts = Parts::find(&model).map_err(simulator)?;
        let data = Data::new(&model).map_err(simulator)?;
        let mut replay = Self { demo, data, parts };
        replay.seek(0)?;
        Ok(replay)
    }

    /// The demonstration.
    pub fn demo(&self) -> &Demo {
        &self.demo
    }

    /// Control steps, T.
    pub fn steps(&self) -> usize {
        self.demo.actions.len()
    }

    /// Goes to the state before action `step`.
    ///
    /// # Errors
    /// [`Error::NoStep`] past the end, [`Error::Simulator`].
    pub fn seek(&mut self, step: usize) -> Result<()> {
        let state = self.demo.states.row(step).ok_or_else(|| Error::NoStep {
            demo: self.demo.name.clone(),
            step,
            steps: self.steps(),
        })?;
        let (time, rest) = (state[0], &state[1..]);
        let (qpos, qvel) = rest.split_at(self.data.model().nq());
        self.data.set_time_secs(time);
        self.data.qpos_mut().copy_from_slice(qpos);
        self.data.qvel_mut().copy_from_slice(qvel);
        let demo = &self.demo.name;
        self.data.forward().map_err(|source| Error::Simulator { demo: demo.clone(), source })
    }

    /// Grip position (m, world) 3, hand orientation as axis-angle (rad) 3, finger joints (m; the second is negative) 2.
    pub fn proprio(&self) -> [f32; 8] {
        let p = self.data.site_pos(self.parts.grip_site);
        let r = axis_angle(self.data.body_quat(self.parts.hand));
        let [left, right] = self.parts.fingers.map(|joint| self.data.joint_qpos(joint)[0]);
        [p[0], p[1], p[2], r[0], r[1], r[2], left, right].map(|x| x as f32)
    }

    /// Height of the cube's centre above the floor in metres; `None` in scenes without the cube of `Lift`.
    pub fn cube_height_m(&self) -> Option<f64> {
        self.parts.cube.map(|cube| self.data.body_pos(cube)[2])
    }

    /// Whether the cube is lifted as robosuite's `Lift` wants it; `None` in other scenes.
    pub fn is_lifted(&self) -> Option<bool> {
        self.cube_height_m().map(|height| height > TABLE_M + LIFTED_M)
    }

    /// Something that draws this scene in square pictures.
    ///
    /// # Errors
    /// [`Error::Simulator`] for an impossible size or without a usable OpenGL.
    pub fn renderer(&self, image_size_px: usize, quality: RenderQuality) -> Result<Renderer> {
        let model = self.data.model();
        let mut renderer = Renderer::new(model, image_size_px, image_size_px, quality)
            .map_err(|source| Error::Simulator { demo: self.demo.name.clone(), source })?;
        let hide = |renderer: &mut Renderer| -> std::result::Result<(), efference_mujoco::Error> {
            renderer.show_geom_group(0, false)?; // collision shapes
            (0..6).try_for_each(|group| renderer.show_site_group(group, false))
        };
        hide(&mut renderer).map_err(|source| Error::Simulator { demo: self.demo.name.clone(), source })?;
        Ok(renderer)
    }

    /// Draws the present state from both [`CAMERAS`], in that order.
    ///
    /// # Errors
    /// [`Error::Simulator`].
    pub fn draw(&self, renderer: &mut Renderer) -> Result<[RgbImage; 2]> {
        let (width, height) = renderer.size();
        let mut draw = |camera: usize| -> Result<RgbImage> {
            let mut image = RgbImage::new(width as u32, height as u32);
            renderer
                .render_rgb(&self.data, camera, &mut image)
                .map_err(|source| Error::Simulator { demo: self.demo.name.clone(), source })?;
            Ok(image)
        };
        Ok([draw(self.parts.cameras[0])?, draw(self.parts.cameras[1])?])
    }
}

impl Parts {
    fn find(model: &Model) -> std::result::Result<Self, efference_mujoco::Error> {
        let finger = |n: usize| model.joint_id(&format!("gripper0_finger_joint{n}"));
        Ok(Self {
            grip_site: model.site_id("gripper0_grip_site")?,
            hand: model.body_id("robot0_right_hand")?,
            fingers: [finger(1)?, finger(2)?],
            cube: model.body_id("cube_main").ok(),
            cameras: [model.camera_id(CAMERAS[0].1)?, model.camera_id(CAMERAS[1].1)?],
        })
    }
}

/// Quaternion (wxyz) to rotation vector with angles from 0 to 2 pi, robosuite's `quat2axisangle`.
fn axis_angle([w, x, y, z]: [f64; 4]) -> [f64; 3] {
    let w = w.clamp(-1.0, 1.0);
    let sin_half = (1.0 - w * w).sqrt();
    if sin_half < 1e-9 {
        return [0.0; 3];
    }
    let scale = 2.0 * w.acos() / sin_half;
    [x * scale, y * scale, z * scale]
}

/// The scene with each `file="…/robosuite/REST"` replaced by `ROOT/REST`.
fn with_assets_from(xml: &str, root: &Path, demo: &str) -> Result<String> {
    const ATTRIBUTE: &str = " file=\"";
    const PACKAGE: &str = "robosuite/";
    let missing = |path: PathBuf| Error::MissingAsset { demo: demo.to_owned(), path };
    // MuJoCo takes relative paths relative to the scene's mesh folder, which is not what we mean.
    let root = root.canonicalize().map_err(|_| missing(root.join("models/assets")))?;
    let mut pieces = xml.split(ATTRIBUTE);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        out.push_str(ATTRIBUTE);
        let (recorded, rest) = piece.split_once('"').unwrap_or((piece, ""));
        let inside = recorded.rfind(PACKAGE).map(|at| &recorded[at + PACKAGE.len()..]);
        let path = match inside {
            Some(inside) => normalised(&root.join(inside)),
            None => PathBuf::from(recorded),
        };
        if !path.is_file() {
            return Err(missing(path));
        }
        out.push_str(&escaped(&path.to_string_lossy()));
        out.push('"');
        out.push_str(rest);
    }
    Ok(out)
}

/// `a/b/../c` is `a/c`: the folder `b` of the recorder's machine need not exist here.
fn normalised(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

/// Text inside an XML attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_data::RobomimicFile;

    /// The unpacked wheel, or a word on what was skipped.
    pub(crate) fn assets() -> Option<PathBuf> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
        let folder = target.join("native/robosuite-1.4.1");
        if folder.join("manifest.json").is_file() {
            return Some(folder);
        }
        println!("skipped: robosuite's demonstrations are not there (`cargo xtask real-data` fetches them)");
        None
    }

    #[test]
    fn the_cube_rises_in_all_three_real_demonstrations() {
        let Some(assets) = assets() else { return };
        let file = RobomimicFile::open(assets.join("models/assets/demonstrations/lift/demo.hdf5")).unwrap();
        let mut lifts = Vec::new();
        for demo in file.demos() {
            let mut replay = Replay::new(demo.unwrap(), &assets).unwrap();
            let last = replay.steps() - 1;
            let start = replay.cube_height_m().unwrap();
            assert_eq!(replay.is_lifted(), Some(false));
            let open = replay.proprio();
            assert!((open[6] - 0.0208).abs() < 1e-4 && (open[7] + 0.0208).abs() < 1e-4, "{open:?}");
            // The hand points down: half a turn, about a horizontal axis.
            let turn = [open[3], open[4], open[5]].iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((turn - std::f32::consts::PI).abs() < 0.1 && open[5].abs() < 0.3, "{open:?}");

            replay.seek(last).unwrap();
            lifts.push((start, replay.cube_height_m().unwrap()));
            assert_eq!(replay.is_lifted(), Some(true));
            let cube = replay.data.body_pos(replay.parts.cube.unwrap());
            let held = replay.proprio();
            let apart = (0..3).map(|i| (f64::from(held[i]) - cube[i]).powi(2)).sum::<f64>().sqrt();
            assert!(apart < 0.03, "the cube is {apart} m from the grip site when it is held");

            let e = replay.seek(last + 1).unwrap_err();
            assert!(matches!(e, Error::NoStep { .. }), "{e}");
        }
        for (start, end) in &lifts {
            assert!((start - 0.831).abs() < 1e-3 && (end - 0.875).abs() < 2e-3, "{lifts:?}");
        }
        assert_eq!(lifts.len(), 3);
    }

    #[test]
    fn both_cameras_see_the_cube() {
        let Some(assets) = assets() else { return };
        let file = RobomimicFile::open(assets.join("models/assets/demonstrations/lift/demo.hdf5")).unwrap();
        let replay = Replay::new(file.load(0).unwrap(), &assets).unwrap();
        let mut renderer = replay.renderer(64, RenderQuality::FULL).unwrap();
        for image in replay.draw(&mut renderer).unwrap() {
            let red = image.pixels().filter(|p| p[0] > 90 && p[1] < p[0] / 2 && p[2] < p[0] / 2).count();
            assert!((5..400).contains(&red), "{red} red pixels");
            // Markers and collision shapes would be pure green and blue.
            let loud = image.pixels().filter(|p| {
                let [r, g, b] = p.0.map(u16::from);
                g.max(b) > 2 * r.max(60)
            });
            assert_eq!(loud.count(), 0);
        }
    }

    #[test]
    fn a_recording_that_does_not_fit_its_scene_is_named() {
        let Some(assets) = assets() else { return };
        let file = RobomimicFile::open(assets.join("models/assets/demonstrations/lift/demo.hdf5")).unwrap();
        let good = file.load(0).unwrap();
        let fails = |demo: Demo| Replay::new(demo, &assets).err().unwrap();
        let e = fails(Demo { model_xml: None, ..good.clone() });
        assert!(matches!(e, Error::NoScene { .. }), "{e}");
        let states = efference_data::States { width: 16, ..good.states.clone() };
        let e = fails(Demo { states, ..good.clone() });
        assert!(matches!(e, Error::StateWidth { got: 16, expected: 32, .. }), "{e}");
        let without_cameras = good.model_xml.as_deref().map(|xml| xml.replace("eye_in_hand", "ear"));
        let e = fails(Demo { model_xml: without_cameras, ..good.clone() });
        assert!(e.to_string().contains("no camera named `robot0_eye_in_hand`"), "{e}");
        let e = fails(Demo { model_xml: Some("<mujoco><worldbody></mujoco>".into()), ..good });
        assert!(matches!(e, Error::Simulator { .. }), "{e}");
    }

    #[test]
    fn assets_are_found_wherever_the_recorder_kept_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a & b");
        std::fs::create_dir_all(root.join("models/assets/textures")).unwrap();
        std::fs::write(root.join("models/assets/textures/x.png"), b"").unwrap();
        // The last `robosuite/` counts, and `arenas` need not exist.
        let xml = r#"<texture file="/Users/me/robosuite/robosuite/models/assets/arenas/../textures/x.png" type="2d"/>"#;
        let out = with_assets_from(xml, &root, "demo_1").unwrap();
        let file = format!("{}/models/assets/textures/x.png", root.canonicalize().unwrap().display());
        assert_eq!(out, format!(r#"<texture file="{}" type="2d"/>"#, escaped(&file)));
        assert!(out.contains("a &amp; b"));

        for bad in [xml.replace("x.png", "y.png"), r#"<mesh file="/absent.stl"/>"#.to_owned()] {
            let e = with_assets_from(&bad, &root, "demo_1").unwrap_err();
            assert!(matches!(&e, Error::MissingAsset { .. }), "{e}");
        }
        let e = with_assets_from(xml, &dir.path().join("absent"), "demo_1").unwrap_err();
        assert!(e.to_string().contains("real-data"), "{e}");
    }

    #[test]
    fn rotation_vectors_are_robosuites() {
        let close = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        let half = std::f64::consts::FRAC_PI_4.sin();
        assert!(close(axis_angle([1.0, 0.0, 0.0, 0.0]), [0.0; 3]));
        assert!(close(axis_angle([half, half, 0.0, 0.0]), [std::f64::consts::FRAC_PI_2, 0.0, 0.0]));
        // The other sign of the same rotation goes the long way round: not made the shortest, as in robosuite.
        assert!(close(axis_angle([-half, -half, 0.0, 0.0]), [-3.0 * std::f64::consts::FRAC_PI_2, 0.0, 0.0]));
    }
}
