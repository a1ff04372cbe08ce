//! A task pack: the folder that holds one task.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::compiled::Compiled;
use super::meta::{FORMAT, JointMeta, Meta};
use super::npy::{self, Matrix};
use super::{Error, Profile, Result};

/// The most bytes of a text file of a pack; the largest that the exporter writes are a few hundred kilobytes.
pub(super) const MAX_TEXT_BYTES: u64 = 64 << 20;
/// The most bytes of a file of initial states; 50 states take 50 kB.
const MAX_STATES_BYTES: u64 = 1 << 30;

/// One task, read from its folder. Shared by all simulations of it.
#[derive(Debug)]
pub struct Pack {
    /// What the scene's numbers mean.
    pub meta: Meta,
    /// The folder.
    pub dir: PathBuf,
    states: Matrix,
    /// Compiled scenes, made at first use.
    compiled: Mutex<BTreeMap<Profile, Arc<Compiled>>>,
}

impl Pack {
    /// Reads and checks a pack's description and initial states. The scene is compiled by the first simulation.
    ///
    /// # Errors
    /// [`Error::Read`] for missing files, [`Error::Json`], [`Error::Field`] and [`Error::InitStates`] for contents that
    /// cannot be meant, each with the file and the place in it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Arc<Self>> {
        let dir = dir.as_ref().to_path_buf();
        let path = dir.join("meta.json");
        let text = read(&path, MAX_TEXT_BYTES)?;
        check_format(&path, &text)?;
        let meta: Meta =
            serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.clone(), source })?;
        check_meta(&meta).map_err(|(field, problem)| Error::Field { path, field, problem })?;
        let states = init_states(&dir, &meta)?;
        Ok(Arc::new(Self { meta, dir, states, compiled: Mutex::default() }))
    }

    /// Number of saved initial states.
    pub fn init_states(&self) -> usize {
        self.states.rows
    }

    /// Saved initial state `i`: time, qpos, qvel, [1 + nq + nv].
    pub fn init_state(&self, i: usize) -> Option<&[f64]> {
        self.states.numbers.chunks_exact(self.states.columns).nth(i)
    }

    /// What policies are told to do.
    pub fn language(&self) -> &str {
        &self.meta.language
    }

    /// `SUITE_TASK`, for example `libero_goal_7`.
    pub fn id(&self) -> String {
        format!("{}_{}", self.meta.suite, self.meta.task_id)
    }

    /// Entries of the table of fixture poses.
    pub fn resets(&self) -> usize {
        self.meta.fixture_poses.resets.len()
    }

    /// The folder of a task's pack below the folder of all packs: `ROOT/SUITE_TASK`.
    ///
    /// # Errors
    /// [`Error::NoPack`], which says what is there.
    pub fn find(root: &Path, suite: &str, task: usize) -> Result<PathBuf> {
        let dir = root.join(format!("{suite}_{task}"));
        // A suite's name is no path.
        let plain =
            !suite.is_empty() && suite.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if plain && dir.join("meta.json").is_file() {
            return Ok(dir);
        }
        Err(Error::NoPack { root: root.into(), suite: suite.into(), task, hint: what_is_there(root, suite) })
    }

    /// The compiled scene of a profile.
    pub(super) fn compiled(&self, profile: Profile) -> Result<Arc<Compiled>> {
        // Held while compiling: whoever comes second waits instead of compiling too.
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = compiled.get(&profile) {
            return Ok(Arc::clone(there));
        }
        let fresh = Arc::new(Compiled::new(self, profile)?);
        compiled.insert(profile, Arc::clone(&fresh));
        Ok(fresh)
    }
}

/// Where packs lie: the folder that `EFFERENCE_LIBERO` names, else `target/libero/packs` of the workspace that this was
/// built in.
pub fn packs_dir() -> PathBuf {
    let named = std::env::var_os("EFFERENCE_LIBERO").filter(|dir| !dir.is_empty());
    named.map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/libero/packs"),
        PathBuf::from,
    )
}

pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::Read { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > limit {
        return Err(Error::TooLarge { path: path.into(), bytes, limit });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// Looks at the version first: other formats may lack fields that we would complain about.
fn check_format(path: &Path, text: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: Option<u64>,
    }
    let Format { format } =
        serde_json::from_slice(text).map_err(|source| Error::Json { path: path.into(), source })?;
    let problem = match format {
        Some(FORMAT) => return Ok(()),
        Some(other) => format!("is {other}; this program reads packs of format {FORMAT}: write them again"),
        None => format!("is missing; packs of format {FORMAT} have it"),
    };
    Err(Error::Field { path: path.into(), field: "format".into(), problem })
}

type Found = std::result::Result<(), (String, String)>;

fn require(good: bool, field: impl Into<String>, problem: impl FnOnce() -> String) -> Found {
    if good { Ok(()) } else { Err((field.into(), problem())) }
}

/// What can be checked without the scene; [`Compiled`] checks the rest.
fn check_meta(meta: &Meta) -> Found {
    let sizes = [("nq", meta.nq), ("nv", meta.nv), ("nu", meta.nu)];
    for (field, size) in sizes {
        require((1..=100_000).contains(&size), field, || format!("is {size}"))?;
    }
    require(meta.nv <= meta.nq, "nv", || format!("is {}, more than nq {}", meta.nv, meta.nq))?;
    require(meta.timestep > 0.0 && meta.timestep <= 0.1, "timestep", || format!("is {}", meta.timestep))?;
    require((1..=1000).contains(&meta.substeps), "substeps", || format!("is {}", meta.substeps))?;
    require(meta.horizon > 0, "horizon", || "is 0".into())?;
    require(meta.control_freq > 0.0 && meta.control_freq.is_finite(), "control_freq", || {
        format!("is {}", meta.control_freq)
    })?;
    require(meta.goal.iter().all(|fact| (2..=3).contains(&fact.len())), "goal", || {
        "holds a fact that is not [predicate, object] or [predicate, object, place]".into()
    })?;
    require(!meta.goal.is_empty(), "goal", || "is empty".into())?;
    let controller = &meta.controller;
    require(controller.kind == "OSC_POSE", "controller.type", || {
        format!("is `{}`; only OSC_POSE is known", controller.kind)
    })?;
    require(controller.uncouple_pos_ori, "controller.uncouple_pos_ori", || {
        "is false; only decoupled position and orientation are known".into()
    })?;
    require(controller.input_max > controller.input_min, "controller.input_max", || {
        format!("is {}, not above input_min {}", controller.input_max, controller.input_min)
    })?;
    let lists = [
        ("robot.joints", meta.robot.joints.len(), 7),
        ("robot.actuators", meta.robot.actuators.len(), 7),
        ("gripper.joints", meta.gripper.joints.len(), 2),
        ("gripper.actuators", meta.gripper.actuators.len(), 2),
    ];
    for (field, got, expected) in lists {
        require(got == expected, field, || format!("has {got} entries, expected {expected}"))?;
    }
    for (i, joint) in meta.robot.joints.iter().enumerate() {
        check_joint(meta, joint, || format!("robot.joints[{i}]"))?;
    }
    for (i, joint) in meta.gripper.joints.iter().enumerate() {
        check_joint(meta, joint, || format!("gripper.joints[{i}]"))?;
    }
    for (name, object) in &meta.objects {
        for (i, joint) in object.joints.iter().enumerate() {
            check_joint(meta, joint, || format!("objects.{name}.joints[{i}]"))?;
        }
    }
    for (name, site) in &meta.sites {
        if let Some(parent) = &site.parent {
            require(meta.objects.contains_key(parent), format!("sites.{name}.parent"), || {
                format!("is `{parent}`, which is not among `objects`")
            })?;
        }
        for (i, joint) in site.joints.iter().enumerate() {
            check_joint(meta, joint, || format!("sites.{name}.joints[{i}]"))?;
        }
    }
    for (k, reset) in meta.fixture_poses.resets.iter().enumerate() {
        for (name, pose) in reset {
            let length = pose.quat.iter().map(|x| x * x).sum::<f64>().sqrt();
            require((length - 1.0).abs() < 1e-6, format!("fixture_poses.resets[{k}].{name}.quat"), || {
                format!("has the length {length}, expected 1")
            })?;
        }
    }
    require(!meta.obs_cameras.is_empty(), "obs_cameras", || "is empty".into())
}

fn check_joint(meta: &Meta, joint: &JointMeta, field: impl Fn() -> String) -> Found {
    require(joint.qpos_adr < meta.nq, format!("{}.qpos_adr", field()), || {
        format!("is {}, but qpos has {} numbers", joint.qpos_adr, meta.nq)
    })?;
    require(joint.dof_adr < meta.nv, format!("{}.dof_adr", field()), || {
        format!("is {}, but qvel has {} numbers", joint.dof_adr, meta.nv)
    })
}

fn init_states(dir: &Path, meta: &Meta) -> Result<Matrix> {
    let name = &meta.init_states.file;
    let meta_path = || dir.join("meta.json");
    if Path::new(name).file_name() != Some(std::ffi::OsStr::new(name)) {
        let problem = format!("is `{name}`; it must be a file in the pack's own folder");
        return Err(Error::Field { path: meta_path(), field: "init_states.file".into(), problem });
    }
    let path = dir.join(name);
    let bytes = read(&path, MAX_STATES_BYTES)?;
    let states = npy::parse(&bytes).map_err(|problem| Error::InitStates { path: path.clone(), problem })?;
    let width = 1 + meta.nq + meta.nv;
    let problem = if states.columns != width {
        format!("has {} numbers per state, but the scene needs {width} (time, qpos, qvel)", states.columns)
    } else if states.rows == 0 {
        "holds no state".to_owned()
    } else if meta.init_states.shape != [states.rows, states.columns] {
        let said = meta.init_states.shape;
        format!("has the shape [{}, {}], but meta.json says {said:?}", states.rows, states.columns)
    } else {
        return Ok(states);
    };
    Err(Error::InitStates { path, problem })
}

/// The tasks of this suite, or else the suites, that the folder holds.
fn what_is_there(root: &Path, suite: &str) -> String {
    let Ok(entries) = std::fs::read_dir(root) else {
        return " (the folder does not exist)".to_owned();
    };
    let names = entries.flatten().filter(|entry| entry.path().join("meta.json").is_file());
    let mut suites = BTreeMap::<String, Vec<usize>>::new();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if let Some((suite, task)) = name.rsplit_once('_')
            && let Ok(task) = task.parse()
        {
            suites.entry(suite.to_owned()).or_default().push(task);
        }
    }
    if suites.is_empty() {
        return "; there are none at all".to_owned();
    }
    match suites.get_mut(suite) {
        Some(tasks) => {
            tasks.sort_unstable();
            let tasks: Vec<String> = tasks.iter().map(ToString::to_string).collect();
            format!("; of this suite there are the tasks {}", tasks.join(", "))
        }
        None => format!("; there are packs of {}", suites.into_keys().collect::<Vec<_>>().join(", ")),
    }
}
