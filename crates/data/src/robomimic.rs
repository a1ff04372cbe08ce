//! Reader of robomimic-style HDF5 demonstration files: what robosuite's collection script, robomimic and LIBERO
//! write.
//!
//! ```text
//! data                    attributes: env or env_args / env_info (JSON), problem_info (JSON, LIBERO)
//!   demo_0 … demo_N       attribute model_file: the scene's MJCF
//!     actions  [T, 7]     translation 3, rotation 3, gripper 1, as the person's device gave them: the controller
//!                         clips them to [-1, 1] (robosuite's Lift holds values up to 3.75)
//!     states   [T, S]     time, qpos, qvel before each action
//!     rewards  [T]        optional
//!     obs/…               optional; not read: pictures are rendered again from the states
//! ```
//!
//! Numbers may be stored as floats, integers or booleans of any size, contiguous or chunked and compressed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hdf5_reader::group::Group;
use hdf5_reader::{Datatype, Hdf5File, OpenOptions};

use crate::episode::{ACTION_DIM, States};

/// More than any demonstration needs; a header that asks for more is not believed.
const MAX_DATASET_BYTES: usize = 1 << 30;

/// Why a demonstration file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The system refused to read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another kind of file.
    #[error("`{}` is not an HDF5 file; give a robomimic-style demonstration file (`demo.hdf5`)", path.display())]
    NotHdf5 {
        /// The file.
        path: PathBuf,
    },
    /// HDF5, but damaged or with an encoding we do not read.
    #[error("`{}`, `{at}`: {problem}", path.display())]
    Hdf5 {
        /// The file.
        path: PathBuf,
        /// Group, dataset or attribute inside it.
        at: String,
        /// What the HDF5 reader says.
        problem: String,
    },
    /// Something the layout asks for is absent.
    #[error("`{}` has no `{wanted}`; there is: {}", path.display(), list(present))]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its path inside the file.
        wanted: String,
        /// What lies beside it.
        present: Vec<String>,
    },
    /// A dataset of another shape.
    #[error("`{}`, `{at}`: shape {got:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The dataset.
        at: String,
        /// Its shape.
        got: Vec<u64>,
        /// What the layout asks for.
        expected: String,
    },
    /// A dataset that does not hold numbers.
    #[error("`{}`, `{at}`: holds {got}, expected numbers", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The dataset.
        at: String,
        /// Its type.
        got: String,
    },
    /// A NaN or infinity.
    #[error("`{}`, `{at}`: {value} in row {row}; the recording is damaged", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The dataset.
        at: String,
        /// The row.
        row: usize,
        /// The value.
        value: f64,
    },
    /// `model_file` names a file beside the recording instead of holding the scene (robosuite before 1.0).
    #[error("`{}`, `{at}`: names `{name}` instead of holding the scene; convert the file with a newer robosuite", path.display())]
    SceneElsewhere {
        /// The file.
        path: PathBuf,
        /// The attribute.
        at: String,
        /// What it holds.
        name: String,
    },
    /// A demonstration number past the end.
    #[error("demonstration {index} was asked for, `{}` holds {demos} (numbered from 0)", path.display())]
    NoDemo {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        index: usize,
        /// What there is.
        demos: usize,
    },
    /// A picture that cannot be shown.
    #[error("`{}`, `{at}`, row {row}: {problem}; copy or convert the file again", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// Dataset or column.
        at: String,
        /// The row.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing tells what the gripper numbers mean.
    #[error("`{}`, {at}: {problem}; say what they mean with the gripper option (`negative-opens` or `one-opens`)", path.display())]
    Gripper {
        /// The file.
        path: PathBuf,
        /// The demonstration.
        at: String,
        /// Why it cannot be told.
        problem: String,
    },
    /// Every step of a demonstration is an idle one.
    #[error("`{}`, {at}: nothing is left after dropping the idle steps; keep them", path.display())]
    OnlyIdle {
        /// The file.
        path: PathBuf,
        /// The demonstration.
        at: String,
    },
    /// A folder that is no LeRobot data set, or one that contradicts itself.
    #[error("`{}`: {problem}", path.display())]
    LeRobot {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A column of a LeRobot table.
    #[error("`{}`, column `{column}`: {problem}", path.display())]
    Column {
        /// The table.
        path: PathBuf,
        /// The column.
        column: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Frames in video files, which are not decoded here.
    #[error("`{}`: the frames of `{feature}` are videos, which this program does not decode; convert the data set to one with images (load it with the `lerobot` Python package and write it again with dtype `image`), or take the variant with images that many LIBERO sets have", path.display())]
    Video {
        /// `meta/info.json`.
        path: PathBuf,
        /// The camera's feature.
        feature: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

pub(crate) type Result<T> = std::result::Result<T, ImportError>;

/// One recorded demonstration of T control steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Demo {
    /// The group's name, e.g. `demo_1`.
    pub name: String,
    /// The scene as MJCF, with the asset paths of the machine it was recorded on.
    pub model_xml: Option<String>,
    /// Time (s), qpos, qvel before each action, \[T, S\].
    pub states: States,
    /// As recorded, \[T, 7\]; clip to \[-1, 1\] for what the controller executed (see [`ACTION_DIM`]).
    pub actions: Vec<[f32; ACTION_DIM]>,
    /// \[T\], where they were recorded.
    pub rewards: Option<Vec<f32>>,
}

/// An open demonstration file; demonstrations are read when asked for.
pub struct RobomimicFile {
    path: PathBuf,
    data: Group,
    names: Vec<String>,
    env: EnvInfo,
}

/// What the file says about the environment it was recorded in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnvInfo {
    /// The environment's name, e.g. `Lift`.
    pub name: Option<String>,
    /// Control steps per second.
    pub control_hz: Option<f64>,
    /// What the robot was told (LIBERO).
    pub instruction: Option<String>,
}

impl RobomimicFile {
    /// Opens the file and lists its demonstrations in the order of their numbers.
    ///
    /// # Errors
    /// [`ImportError::Read`], [`ImportError::NotHdf5`], [`ImportError::Missing`] without `data` or without any
    /// demonstration in it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let read = |source| ImportError::Read { path: path.clone(), source };
        // A folder opens like a file on Unix and fails later with a less clear message.
        if File::open(&path).and_then(|f| f.metadata()).map_err(read)?.is_dir() {
            return Err(read(io::ErrorKind::IsADirectory.into()));
        }
        let options = OpenOptions::default().with_max_read_bytes(MAX_DATASET_BYTES);
        let file = Hdf5File::open_with_options(&path, options).map_err(|e| not_hdf5(&path, &e))?;
        let root = file.root_group().map_err(|e| not_hdf5(&path, &e))?;
        let at = |at: &str| At { path: &path, name: at.to_string() };
        let data = at("/").group(&root, "data")?;
        let mut names = data.member_names().map_err(|e| at("data").broken(&e))?.0;
        if names.is_empty() {
            return Err(ImportError::Missing { wanted: "data/demo_0".into(), present: names, path });
        }
        names.sort_by_key(|name| (number(name), name.clone()));
        let env = at("data").env_info(&data)?;
        Ok(Self { path, data, names, env })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The demonstrations' names, e.g. `demo_1`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the file says about its environment.
    pub fn env(&self) -> &EnvInfo {
        &self.env
    }

    /// Reads demonstration `index` (from 0, in the order of [`Self::names`]).
    ///
    /// # Errors
    /// [`ImportError`], naming the dataset inside the file.
    pub fn load(&self, index: usize) -> Result<Demo> {
        let (demo, at) = self.demo_group(index)?;
        let name = &self.names[index];

        let (shape, actions) = at.numbers(&demo, "actions", "[T, 7]", |s| s.len() == 2 && s[1] == 7)?;
        let steps = shape[0];
        let same = |s: &[u64]| s[0] == steps as u64;
        let (shape, values) =
            at.numbers(&demo, "states", &format!("[{steps}, S]"), |s| s.len() == 2 && same(s))?;
        let states = States { width: shape[1], values };
        let has_rewards = at.children(&demo)?.iter().any(|child| child == "rewards");
        let rewards = match has_rewards {
            true => Some(at.numbers(&demo, "rewards", &format!("[{steps}]"), |s| s.len() == 1 && same(s))?.1),
            false => None,
        };
        Ok(Demo {
            name: name.clone(),
            model_xml: at.model_xml(&demo)?,
            states,
            actions: actions.as_chunks::<ACTION_DIM>().0.iter().map(|row| row.map(|x| x as f32)).collect(),
            rewards: rewards.map(|all| all.into_iter().map(|x| x as f32).collect()),
        })
    }

    /// The group of demonstration `index`, and its place.
    pub(crate) fn demo_group(&self, index: usize) -> Result<(Group, At<'_>)> {
        let Some(name) = self.names.get(index) else {
            return Err(ImportError::NoDemo { path: self.path.clone(), index, demos: self.names.len() });
        };
        let demo = At { path: &self.path, name: "data".into() }.group(&self.data, name)?;
        Ok((demo, At { path: &self.path, name: format!("data/{name}") }))
    }

    /// An attribute of the group `data`.
    pub(crate) fn data_text(&self, attribute: &str) -> Result<Option<String>> {
        At { path: &self.path, name: "data".into() }.text(&self.data, attribute)
    }

    /// Reads all demonstrations in order.
    pub fn demos(&self) -> impl Iterator<Item = Result<Demo>> + '_ {
        (0..self.names.len()).map(|index| self.load(index))
    }
}

/// A place inside the file, to be named in errors.
pub(crate) struct At<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: String,
}

impl At<'_> {
    pub(crate) fn join(&self, child: &str) -> String {
        if self.name == "/" { child.to_string() } else { format!("{}/{child}", self.name) }
    }

    pub(crate) fn broken(&self, e: &hdf5_reader::error::Error) -> ImportError {
        ImportError::Hdf5 { path: self.path.into(), at: self.name.clone(), problem: e.to_string() }
    }

    pub(crate) fn children(&self, group: &Group) -> Result<Vec<String>> {
        let (groups, datasets) = group.member_names().map_err(|e| self.broken(&e))?;
        Ok([groups, datasets].concat())
    }

    pub(crate) fn require(&self, group: &Group, child: &str) -> Result<()> {
        let present = self.children(group)?;
        if present.iter().any(|name| name == child) {
            return Ok(());
        }
        Err(ImportError::Missing { path: self.path.into(), wanted: self.join(child), present })
    }

    pub(crate) fn group(&self, parent: &Group, child: &str) -> Result<Group> {
        self.require(parent, child)?;
        let at = At { path: self.path, name: self.join(child) };
        parent.group(child).map_err(|e| at.broken(&e))
    }

    /// Shape and numbers of a dataset whose shape fits.
    pub(crate) fn numbers(
        &self,
        group: &Group,
        child: &str,
        expected: &str,
        fits: impl Fn(&[u64]) -> bool,
    ) -> Result<(Vec<usize>, Vec<f64>)> {
        self.require(group, child)?;
        let at = At { path: self.path, name: self.join(child) };
        let dataset = group.dataset(child).map_err(|e| at.broken(&e))?;
        let (path, at_name) = (self.path.to_path_buf(), at.name.clone());
        let shape = dataset.shape().to_vec();
        if !fits(&shape) || shape.contains(&0) {
            return Err(ImportError::Shape { path, at: at_name, got: shape, expected: expected.into() });
        }
        let Some((size, decode)) = decoder(dataset.dtype()) else {
            let got = format!("{:?}", dataset.dtype());
            return Err(ImportError::Type { path, at: at_name, got });
        };
        let bytes = dataset.read_native_bytes().map_err(|e| at.broken(&e))?;
        let values: Vec<f64> = bytes.chunks_exact(size).map(decode).collect();
        let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        if values.len() != shape.iter().product::<usize>() {
            let problem = format!("{} numbers for shape {shape:?}", values.len());
            return Err(ImportError::Hdf5 { path, at: at_name, problem });
        }
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            let row = i / (values.len() / shape[0]);
            return Err(ImportError::NotFinite { path, at: at_name, row, value: values[i] });
        }
        Ok((shape, values))
    }

    pub(crate) fn text(&self, group: &Group, attribute: &str) -> Result<Option<String>> {
        let at = At { path: self.path, name: format!("{}@{attribute}", self.name) };
        let all = group.attributes().map_err(|e| at.broken(&e))?;
        let found = all.iter().find(|a| a.name == attribute);
        found.map(|a| a.read_string().map_err(|e| at.broken(&e))).transpose()
    }

    fn model_xml(&self, demo: &Group) -> Result<Option<String>> {
        match self.text(demo, "model_file")? {
            Some(text) if !text.trim_start().starts_with('<') => Err(ImportError::SceneElsewhere {
                path: self.path.into(),
                at: format!("{}@model_file", self.name),
                name: text.chars().take(60).collect(),
            }),
            xml => Ok(xml),
        }
    }

    /// The descriptions that robosuite (`env`, `env_info`), robomimic (`env_args`) and LIBERO (`problem_info`)
    /// leave; a description that is not JSON is passed over, since nothing depends on it.
    fn env_info(&self, data: &Group) -> Result<EnvInfo> {
        let json = |attribute| -> Result<serde_json::Value> {
            let text = self.text(data, attribute)?;
            Ok(text.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default())
        };
        let (info, args, problem) = (json("env_info")?, json("env_args")?, json("problem_info")?);
        let named = [&info["env_name"], &args["env_name"]].into_iter().find_map(|v| v.as_str());
        let hz =
            [&info["control_freq"], &args["env_kwargs"]["control_freq"]].into_iter().find_map(|v| v.as_f64());
        let said = problem["language_instruction"].as_str().map(|s| s.trim_matches(['"', ' ']).to_string());
        let name = named.map(str::to_string).or(self.text(data, "env")?);
        Ok(EnvInfo { name, control_hz: hz.filter(|hz| *hz > 0.0), instruction: said })
    }
}

type Decode = fn(&[u8]) -> f64;

/// Bytes per number and how to read one; `None` for what is no number.
fn decoder(dtype: &Datatype) -> Option<(usize, Decode)> {
    macro_rules! native {
        ($t:ty) => {
            Some((size_of::<$t>(), |bytes| {
                let mut array = [0; size_of::<$t>()];
                array.copy_from_slice(bytes);
                <$t>::from_ne_bytes(array) as f64
            }))
        };
    }
    match dtype {
        Datatype::FloatingPoint { size: 8, .. } => native!(f64),
        Datatype::FloatingPoint { size: 4, .. } => native!(f32),
        Datatype::FixedPoint { size: 8, signed: true, .. } => native!(i64),
        Datatype::FixedPoint { size: 8, signed: false, .. } => native!(u64),
        Datatype::FixedPoint { size: 4, signed: true, .. } => native!(i32),
        Datatype::FixedPoint { size: 4, signed: false, .. } => native!(u32),
        Datatype::FixedPoint { size: 2, signed: true, .. } => native!(i16),
        Datatype::FixedPoint { size: 2, signed: false, .. } => native!(u16),
        Datatype::FixedPoint { size: 1, signed: true, .. } => native!(i8),
        Datatype::FixedPoint { size: 1, signed: false, .. } => native!(u8),
        Datatype::Enum { base, .. } => decoder(base), // h5py's booleans
        _ => None,
    }
}

fn not_hdf5(path: &Path, e: &hdf5_reader::error::Error) -> ImportError {
    match e {
        hdf5_reader::error::Error::InvalidMagic => ImportError::NotHdf5 { path: path.into() },
        e => ImportError::Hdf5 { path: path.into(), at: "/".into(), problem: e.to_string() },
    }
}

/// The number at the end of `demo_12`; names without one come last.
fn number(name: &str) -> u64 {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().unwrap_or(u64::MAX)
}
