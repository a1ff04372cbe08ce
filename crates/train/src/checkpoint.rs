//! Checkpoints: everything a run needs to go on as if it had never stopped, and nothing half written.
//!
//! ```text
//! checkpoints/00000120/model.safetensors       weights, f32, Hugging Face names
//!                      optimizer.safetensors   state of the optimiser, averages of the weights
//!                      state.json              the rest, with a checksum of each file beside it
//! checkpoints/last     00000120                written when the folder is complete and on disk
//! checkpoints/best     00000090
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use efference_data::atomic;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::CheckpointConfig;

/// Named tensors, in name order so that files are the same byte for byte.
pub type Tensors = BTreeMap<String, Tensor>;

/// Version of the layout of a checkpoint folder.
pub const FORMAT: u32 = 1;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// Why a checkpoint could not be saved or loaded. Saving that fails leaves all earlier checkpoints as they were.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused a write.
    #[error(transparent)]
    Write(#[from] atomic::Error),
    /// There is nothing at this path.
    #[error("there is no checkpoint at `{}`\n  hint: give a run folder, or one of the folders in its `checkpoints`", path.display())]
    Missing {
        /// What was given, or the folder a pointer names.
        path: PathBuf,
    },
    /// The path exists, but is neither a checkpoint folder nor a run nor a weights file.
    #[error(
        "`{}` is not a checkpoint: expected a run folder, or a folder with `{STATE}` in it\n  hint: a `.safetensors` file alone \
         can be the start of a run (`model.init_from`), but cannot be evaluated or resumed",
        path.display()
    )]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
    },
    /// A run folder that has not saved anything yet.
    #[error("the run `{}` has no checkpoint yet; start it again without `--resume`", path.display())]
    Empty {
        /// The run folder.
        path: PathBuf,
    },
    /// A file is damaged or gone.
    #[error(
        "the checkpoint file `{}` is damaged: {why}\n  hint: copy it again; or use an earlier checkpoint: a run goes on from \
         the one that its file `checkpoints/last` names", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// How it shows.
        why: String,
    },
    /// Written by another version of the layout.
    #[error("`{}` has checkpoint format {got}, this program reads format {FORMAT}", path.display())]
    Format {
        /// The state file.
        path: PathBuf,
        /// Its format.
        got: u64,
    },
    /// The checkpoint does not fit what it is to be used with.
    #[error(
        "the checkpoint `{}` does not fit: {}\n  hint: use it with the program, simulator, suite and network it was made \
         with, or train again", path.display(), list(differences)
    )]
    Different {
        /// The checkpoint folder.
        path: PathBuf,
        /// At least one.
        differences: Vec<Difference>,
    },
    /// The tensors could not be brought into the safetensors form.
    #[error("cannot write the tensors of `{}`: {why}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Which tensor, and why.
        why: String,
    },
}

/// A field in which a checkpoint and its use disagree.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Dotted name, for example `model.chunk`.
    pub field: String,
    /// What the run, the environment or the program needs.
    pub expected: Value,
    /// What the checkpoint has.
    pub got: Value,
}

fn list(differences: &[Difference]) -> String {
    const SHOWN: usize = 6;
    let one =
        |d: &Difference| format!("`{}` is {} in the checkpoint, needed is {}", d.field, d.got, d.expected);
    let mut text = differences.iter().take(SHOWN).map(one).collect::<Vec<_>>().join("; ");
    if differences.len() > SHOWN {
        text += &format!("; and {} more", differences.len() - SHOWN);
    }
    text
}

/// What must be the same wherever the weights are used; a difference would give a wrong result, so it is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The network's configuration, every field; the chunk length is one of them.
    pub model: Value,
    /// Version of the simulator the weights were trained on, for example `3.3.2`.
    pub mujoco_version: String,
    /// Environment suite, for example `tabletop`.
    pub suite: String,
    /// Settings of that suite on which results depend; null where it has none.
    #[serde(default)]
    pub world: Value,
    /// SHA-256 of `tokenizer.json`, hex.
    pub tokenizer_sha256: String,
    /// Normalisation of actions and proprioception.
    pub action_stats: Value,
}

impl Identity {
    /// Every field in which `got` differs from `self`, down to single numbers.
    pub fn differences(&self, got: &Self) -> Vec<Difference> {
        let mut out = Vec::new();
        let value = |identity: &Self| serde_json::to_value(identity).unwrap_or(Value::Null);
        compare("", &value(self), &value(got), &mut out);
        out
    }
}

fn compare(field: &str, expected: &Value, got: &Value, out: &mut Vec<Difference>) {
    match (expected, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let here = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                compare(&here, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(Difference { field: field.into(), expected: a.clone(), got: b.clone() }),
    }
}

/// Where the run stands, apart from tensors.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainState {
    /// Updates done, over all stages.
    pub step: u64,
    /// Stage in progress: `pretrain`, `sft`, `rl`, or `done`.
    pub stage: String,
    /// Updates (SFT steps, RL iterations) done within the stage.
    pub stage_step: u64,
    /// [`crate::config::TrainConfig::fingerprint`] of the run.
    pub config: String,
    /// Length of `metrics.jsonl` in bytes at this moment.
    pub metrics_bytes: u64,
    /// Positions in data and other counts by name, for example skipped steps.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// Numbers by name, for example success before RL.
    #[serde(default)]
    pub numbers: BTreeMap<String, f64>,
    /// What the objective's blocks remember.
    #[serde(default)]
    pub objective: efference_objectives::State,
    /// Success tables measured so far, in order.
    #[serde(default)]
    pub evals: Vec<crate::evaluate::EvalTable>,
    /// Evaluation that decides which checkpoint is best; higher is better.
    #[serde(default)]
    pub score: Option<f64>,
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u32,
    program: String,
    identity: Identity,
    state: TrainState,
    /// SHA-256, hex, of each file beside this one.
    files: BTreeMap<String, String>,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder it was read from.
    pub path: PathBuf,
    /// What it may be used with.
    pub identity: Identity,
    /// Where the run stood.
    pub state: TrainState,
    /// Weights.
    pub model: Tensors,
    /// Optimiser moments; empty before the first stage that trains.
    pub optimizer: Tensors,
}

impl Checkpoint {
    /// Reads and verifies a checkpoint.
    ///
    /// `path` is a checkpoint folder, a `checkpoints` folder, or a run folder; the last two mean their `last`.
    ///
    /// # Errors
    /// [`CheckpointError`]: missing, empty run, damaged file, other format.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let path = find(path)?;
        let (identity, state, files) = read_state(&path)?;
        let tensors = |name: &str| -> Result<Tensors, CheckpointError> {
            let file = path.join(name);
            let bytes = read(&file)?;
            if files.get(name).is_none_or(|sum| *sum != sha256(&bytes)) {
                let why = "its checksum is not the one in state.json".into();
                return Err(CheckpointError::Corrupt { path: file, why });
            }
            parse(&file, &bytes)
        };
        Ok(Self { identity, state, model: tensors(MODEL)?, optimizer: tensors(OPTIMIZER)?, path })
    }

    /// Refuses a checkpoint that was made with another network, simulator, tokenizer or normalisation.
    ///
    /// # Errors
    /// [`CheckpointError::Different`] with every field that differs.
    pub fn require(&self, needed: &Identity) -> Result<(), CheckpointError> {
        let differences = needed.differences(&self.identity);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(CheckpointError::Different { path: self.path.clone(), differences })
        }
    }
}

/// What a checkpoint may be used with and where the run stood, without reading tensors. `path` as in [`Checkpoint::load`].
///
/// # Errors
/// As [`Checkpoint::load`].
pub fn peek(path: &Path) -> Result<(PathBuf, Identity, TrainState), CheckpointError> {
    let path = find(path)?;
    let (identity, state, _) = read_state(&path)?;
    Ok((path, identity, state))
}

/// The weights of a checkpoint, a run (its `last`), or a plain `.safetensors` file.
///
/// # Errors
/// [`CheckpointError`].
pub fn load_weights(path: &Path) -> Result<Tensors, CheckpointError> {
    if path.is_file() && path.extension().is_some_and(|e| e == "safetensors") {
        return parse(path, &read(path)?);
    }
    Ok(Checkpoint::load(path)?.model)
}

/// Precision of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// As they are trained.
    F32,
    /// Rounded to 16 bits.
    F16,
}

/// Writes `weights` into one file, all or nothing, and returns its size in bytes.
///
/// # Errors
/// [`CheckpointError::Write`], [`CheckpointError::Tensors`].
pub fn export(weights: &Tensors, dtype: Dtype, path: &Path) -> Result<u64, CheckpointError> {
    let dtype = match dtype {
        Dtype::F32 => candle_core::DType::F32,
        Dtype::F16 => candle_core::DType::F16,
    };
    let failed = |e: candle_core::Error| CheckpointError::Tensors { path: path.into(), why: e.to_string() };
    let converted: Result<Tensors, _> =
        weights.iter().map(|(name, t)| Ok((name.clone(), t.to_dtype(dtype)?))).collect();
    let bytes = serialise(path, &converted.map_err(failed)?)?;
    atomic::write_file(path, &bytes)?;
    Ok(bytes.len() as u64)
}

/// The checkpoint folder that `path` means.
fn find(path: &Path) -> Result<PathBuf, CheckpointError> {
    if path.join(STATE).is_file() {
        return Ok(path.into());
    }
    if !path.exists() {
        return Err(CheckpointError::Missing { path: path.into() });
    }
    for folder in [path.join("checkpoints"), path.to_path_buf()] {
        if let Some(name) = read_pointer(&folder, "last")? {
            let target = folder.join(name);
            return if target.join(STATE).is_file() {
                Ok(target)
            } else {
                Err(CheckpointError::Missing { path: target })
            };
        }
    }
    if path.join("config.toml").is_file() {
        return Err(CheckpointError::Empty { path: path.into() });
    }
    Err(CheckpointError::NotACheckpoint { path: path.into() })
}

fn read_state(path: &Path) -> Result<(Identity, TrainState, BTreeMap<String, String>), CheckpointError> {
    let file = path.join(STATE);
    let corrupt = |why: String| CheckpointError::Corrupt { path: file.clone(), why };
    let value: Value = serde_json::from_slice(&read(&file)?).map_err(|e| corrupt(e.to_string()))?;
    match value.get("format").and_then(Value::as_u64) {
        Some(got) if got == u64::from(FORMAT) => {}
        Some(got) => return Err(CheckpointError::Format { path: file, got }),
        None => return Err(corrupt("it has no `format`".into())),
    }
    let state: StateFile = serde_json::from_value(value).map_err(|e| corrupt(e.to_string()))?;
    Ok((state.identity, state.state, state.files))
}

fn read(file: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(file).map_err(|e| {
        let why = if e.kind() == io::ErrorKind::NotFound { "it is not there".into() } else { e.to_string() };
        CheckpointError::Corrupt { path: file.into(), why }
    })
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Tensors, CheckpointError> {
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu);
    let corrupt = |e: candle_core::Error| CheckpointError::Corrupt { path: file.into(), why: e.to_string() };
    Ok(tensors.map_err(corrupt)?.into_iter().collect())
}

fn serialise(file: &Path, tensors: &Tensors) -> Result<Vec<u8>, CheckpointError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]); // transformers insists on it
    safetensors::serialize(tensors, Some(metadata))
        .map_err(|e| CheckpointError::Tensors { path: file.into(), why: e.to_string() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of `bytes` as 64 hex digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// One line naming a checkpoint; `None` if the pointer is not there.
fn read_pointer(folder: &Path, name: &str) -> Result<Option<String>, CheckpointError> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Ok(text) if is_step(text.trim()) => Ok(Some(text.trim().to_string())),
        Ok(text) => {
            let why = format!("expected the name of a checkpoint folder, got {:?}", text.trim());
            Err(CheckpointError::Corrupt { path, why })
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(CheckpointError::Corrupt { path, why: e.to_string() }),
    }
}

fn is_step(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

/// Saves checkpoints of one run and keeps the newest and the best.
#[derive(Debug)]
pub struct Checkpointer {
    folder: PathBuf,
    keep_last: usize,
    keep_best: bool,
    best: Option<(String, f64)>,
}

impl Checkpointer {
    /// For the `checkpoints` folder of a run, new or resumed. What a killed process left half done is removed:
    /// temporary files, and folders newer than `last`, which the resumed run will make again.
    ///
    /// # Errors
    /// [`CheckpointError`] if the folder cannot be read or written.
    pub fn open(folder: &Path, config: &CheckpointConfig) -> Result<Self, CheckpointError> {
        atomic::remove_stale(folder)?;
        let mut this = Self {
            folder: folder.into(),
            keep_last: config.keep_last,
            keep_best: config.keep_best,
            best: None,
        };
        let last = read_pointer(folder, "last")?;
        for step in this.steps()? {
            if last.as_ref().is_none_or(|last| step > *last) {
                this.remove(&step)?;
            }
        }
        if let Some(step) = read_pointer(folder, "best")?
            && folder.join(&step).join(STATE).is_file()
        {
            let score = read_state(&folder.join(&step))?.1.score;
            this.best = score.map(|score| (step, score));
        }
        Ok(this)
    }

    /// Writes a checkpoint, moves the pointers, and removes those that are no longer kept.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] or [`CheckpointError::Tensors`]; `last` then still names the one before.
    pub fn save(
        &mut self,
        identity: &Identity,
        state: &TrainState,
        model: &Tensors,
        optimizer: &Tensors,
    ) -> Result<PathBuf, CheckpointError> {
        let name = format!("{:08}", state.step);
        let path = self.folder.join(&name);
        let mut files = BTreeMap::new();
        let mut contents = Vec::new();
        for (file, tensors) in [(MODEL, model), (OPTIMIZER, optimizer)] {
            let bytes = serialise(&path.join(file), tensors)?;
            files.insert(file.to_string(), sha256(&bytes));
            contents.push((file, bytes));
        }
        let program = format!("efference {}", env!("CARGO_PKG_VERSION"));
        let state_file =
            StateFile { format: FORMAT, program, identity: identity.clone(), state: state.clone(), files };
        let text = serde_json::to_string_pretty(&state_file)
            .map_err(|e| CheckpointError::Tensors { path: path.join(STATE), why: e.to_string() })?;
        contents.push((STATE, text.into_bytes()));
        atomic::write_dir::<CheckpointError>(&path, |temp| {
            for (file, bytes) in &contents {
                let written = fs::write(temp.join(file), bytes);
                written.map_err(|e| atomic::Error::from_io("write", &path.join(file), e))?;
            }
            Ok(())
        })?;
        if let Some(score) = state.score
            && self.keep_best
            && self.best.as_ref().is_none_or(|(_, best)| score > *best)
        {
            self.point("best", &name)?;
            self.best = Some((name.clone(), score));
        }
        self.point("last", &name)?;
        self.prune(&name)?;
        Ok(path)
    }

    fn point(&self, pointer: &str, step: &str) -> Result<(), CheckpointError> {
        Ok(atomic::write_file(&self.folder.join(pointer), format!("{step}\n").as_bytes())?)
    }

    fn prune(&self, last: &str) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(self.keep_last);
        for step in steps.iter().take(old) {
            let best = self.keep_best && self.best.as_ref().is_some_and(|(best, _)| best == step);
            if !best && step != last {
                self.remove(step)?;
            }
        }
        Ok(())
    }

    fn remove(&self, step: &str) -> Result<(), CheckpointError> {
        let path = self.folder.join(step);
        Ok(fs::remove_dir_all(&path).map_err(|e| atomic::Error::from_io("remove", &path, e))?)
    }

    /// Names of the checkpoint folders, oldest first.
    fn steps(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| atomic::Error::from_io("list", &self.folder, e))?,
        };
        let mut steps: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_step(name))
            .collect();
        steps.sort_by_key(|name| (name.len(), name.clone()));
        Ok(steps)
    }
}
