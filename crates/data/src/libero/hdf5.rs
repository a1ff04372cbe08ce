//! The benchmark's own demonstration files.
//!
//! ```text
//! data                      attributes: bddl_file_name, env_args (JSON), problem_info (JSON), macros_image_convention
//!   demo_0 … demo_49
//!     actions [T, 7], states [T, S], rewards [T]
//!     obs/agentview_rgb, obs/eye_in_hand_rgb [T, H, W, 3] u8, bottom row first (convention `opengl`)
//!     obs/ee_states [T, 6]  position (m) 3, orientation as axis-angle (rad) 3; or ee_pos and ee_ori [T, 3] each
//!     obs/gripper_states [T, 2]
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use hdf5_reader::Datatype;
use hdf5_reader::group::Group;
use image::RgbImage;

use super::{CAMERAS, Recording, language_of};
use crate::episode::PROPRIO_DIM;
use crate::robomimic::{At, ImportError, Result, RobomimicFile};

/// Names of the two cameras in the file, in the order of [`CAMERAS`].
const DATASETS: [&str; 2] = ["agentview_rgb", "eye_in_hand_rgb"];
/// Larger pictures are refused before memory is taken for them.
const MAX_SIDE_PX: u64 = 4096;
/// LIBERO's control rate where the file does not tell.
const DEFAULT_HZ: f64 = 20.0;

/// An open demonstration file of LIBERO with its pictures; demonstrations are read when asked for.
pub struct LiberoFile {
    file: RobomimicFile,
    task: String,
    bottom_first: bool,
}

impl LiberoFile {
    /// Takes an open file when its first demonstration holds LIBERO's pictures; gives it back otherwise (robosuite's
    /// recordings hold states only).
    ///
    /// # Errors
    /// [`ImportError`] when the file is damaged.
    pub fn recognise(file: RobomimicFile) -> Result<std::result::Result<Self, RobomimicFile>> {
        let (demo, at) = file.demo_group(0)?;
        if !at.children(&demo)?.iter().any(|name| name == "obs") {
            return Ok(Err(file));
        }
        let obs = at.group(&demo, "obs")?;
        let inside = At { path: file.path(), name: at.join("obs") };
        let there = inside.children(&obs)?.iter().any(|name| name == DATASETS[0]);
        if !there {
            return Ok(Err(file));
        }
        let bddl = file.data_text("bddl_file_name")?;
        let task = match bddl.as_deref().map(|name| stem(Path::new(name))) {
            Some(task) if !task.is_empty() => task,
            _ => stem(file.path()).trim_end_matches("_demo").to_owned(),
        };
        let convention = file.data_text("macros_image_convention")?;
        let bottom_first = convention.is_none_or(|name| name != "opencv");
        Ok(Ok(Self { file, task, bottom_first }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Number of demonstrations.
    pub fn len(&self) -> usize {
        self.file.names().len()
    }

    /// Never: a file without demonstrations does not open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The task's name, from the task file that the recording names, else from its own name.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// Reads demonstration `index` (from 0, in the order of their numbers).
    ///
    /// # Errors
    /// [`ImportError`], naming the dataset inside the file.
    pub fn load(&self, index: usize) -> Result<Recording> {
        let demo = self.file.load(index)?;
        let (group, at) = self.file.demo_group(index)?;
        let obs = at.group(&group, "obs")?;
        let at = At { path: self.path(), name: at.join("obs") };
        let steps = demo.actions.len();
        let table = |name: &str, width: u64| {
            let fits = |s: &[u64]| *s == [steps as u64, width];
            at.numbers(&obs, name, &format!("[{steps}, {width}]"), fits).map(|(_, values)| values)
        };
        let (hand, fingers) = match at.children(&obs)?.iter().any(|name| name == "ee_states") {
            true => (table("ee_states", 6)?, table("gripper_states", 2)?),
            false => {
                let (pos, ori) = (table("ee_pos", 3)?, table("ee_ori", 3)?);
                let rows = pos.chunks_exact(3).zip(ori.chunks_exact(3));
                (rows.flat_map(|(p, o)| [p, o].concat()).collect(), table("gripper_states", 2)?)
            }
        };
        let proprio = hand.chunks_exact(6).zip(fingers.chunks_exact(2)).map(|(hand, fingers)| {
            let mut row = [0.0; PROPRIO_DIM];
            for (to, from) in row.iter_mut().zip(hand.iter().chain(fingers)) {
                *to = *from as f32;
            }
            row
        });
        let mut cameras = BTreeMap::new();
        for (name, dataset) in CAMERAS.iter().zip(DATASETS) {
            cameras.insert((*name).to_owned(), self.pictures(&at, &obs, dataset, steps)?);
        }
        // Only successes were kept by the recorder; a file without rewards got them at the end.
        let rewards = demo.rewards.unwrap_or_else(|| (0..steps).map(|t| f32::from(t + 1 == steps)).collect());
        Ok(Recording {
            name: demo.name,
            task: self.task.clone(),
            instruction: language_of(&self.task),
            control_hz: self.file.env().control_hz.unwrap_or(DEFAULT_HZ),
            actions: demo.actions,
            proprio: proprio.collect(),
            rewards,
            states: Some(demo.states),
            cameras,
        })
    }

    fn pictures(&self, at: &At<'_>, obs: &Group, name: &str, steps: usize) -> Result<Vec<RgbImage>> {
        at.require(obs, name)?;
        let at = At { path: at.path, name: at.join(name) };
        let dataset = obs.dataset(name).map_err(|e| at.broken(&e))?;
        let (path, place) = (at.path.to_path_buf(), at.name.clone());
        let shape = dataset.shape();
        let &[frames, height, width, 3] = shape else {
            let expected = format!("[{steps}, H, W, 3]");
            return Err(ImportError::Shape { path, at: place, got: shape.to_vec(), expected });
        };
        let side = 1..=MAX_SIDE_PX;
        if frames != steps as u64 || !side.contains(&height) || !side.contains(&width) {
            let expected = format!("[{steps}, H, W, 3] with sides of at most {MAX_SIDE_PX} px");
            return Err(ImportError::Shape { path, at: place, got: shape.to_vec(), expected });
        }
        if !matches!(dataset.dtype(), Datatype::FixedPoint { size: 1, signed: false, .. }) {
            return Err(ImportError::Type { path, at: place, got: format!("{:?}", dataset.dtype()) });
        }
        let bytes = dataset.read_native_bytes().map_err(|e| at.broken(&e))?;
        let size = (height * width * 3) as usize;
        if bytes.len() != size * steps {
            let problem = format!("{} bytes for shape {shape:?}", bytes.len());
            return Err(ImportError::Hdf5 { path, at: place, problem });
        }
        let picture = |rgb: &[u8]| {
            let picture = RgbImage::from_raw(width as u32, height as u32, rgb.to_vec())?;
            // Bottom row first, rotated by 180 degrees: what policies see. Upright becomes that by a mirror.
            Some(if self.bottom_first {
                image::imageops::rotate180(&picture)
            } else {
                image::imageops::flip_horizontal(&picture)
            })
        };
        Ok(bytes.chunks_exact(size).filter_map(picture).collect())
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
