//! A run is a folder:
//!
//! ```text
//! RUN/config.toml               resolved configuration, can be trained again as it is
//!     metrics.jsonl             one line of numbers per update
//!     events.out.tfevents.…     the same for TensorBoard
//!     checkpoints/STEP/         weights, optimiser, state
//!     checkpoints/last, best    one line: the STEP
//!     recording.rrd             for the rerun viewer
//!     summary.json              what came out
//!     report.html               the curves
//!     .lock                     held by the process that writes
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use efference_data::atomic;

use crate::config::{ConfigError, RunConfig, TrainConfig};

/// Why a run folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A folder or file could not be written.
    #[error(transparent)]
    Write(#[from] atomic::Error),
    /// The folder holds something already.
    #[error(
        "`{}` exists and is not empty\n  hint: continue it with `--resume {}`, number the new one with `--suffix`, or \
         choose another `run.name`", path.display(), path.display()
    )]
    NotEmpty {
        /// The run folder.
        path: PathBuf,
    },
    /// The folder to resume is not a run.
    #[error(
        "`{}` is not a run folder: {}\n  hint: give the folder that holds the run's config.toml and checkpoints", path.display(),
        if path.exists() { "it has no `config.toml`" } else { "nothing is there" }
    )]
    NotARun {
        /// What was given.
        path: PathBuf,
    },
    /// Another process writes to this run.
    #[error(
        "`{}` is in use by another process\n  hint: wait for it to end, or train under another `run.name`", path.display()
    )]
    InUse {
        /// The run folder.
        path: PathBuf,
    },
    /// The stored configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What to do when the folder of a new run is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// [`RunDirError::NotEmpty`].
    Refuse,
    /// Try `NAME-2`, `NAME-3`, …
    Suffix,
}

/// An open run folder; no other process can open it while this lives.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// Held, never read: the lock goes with it, also when the process is killed.
    _lock: File,
}

impl RunDir {
    /// Makes `out/name` and writes the configuration into it.
    ///
    /// # Errors
    /// [`RunDirError`]: folder taken, not writable, in use, disk full.
    pub fn create(config: &TrainConfig, taken: Taken) -> Result<Self, RunDirError> {
        Self::create_as(&config.run, &config.to_toml()?, taken)
    }

    /// Makes `out/name` of `[run]` and writes the text of a configuration into it.
    ///
    /// # Errors
    /// As [`RunDir::create`].
    pub fn create_as(run: &RunConfig, text: &str, taken: Taken) -> Result<Self, RunDirError> {
        let out = Path::new(&run.out);
        fs::create_dir_all(out).map_err(|e| atomic::Error::from_io("create", out, e))?;
        for n in 1u32.. {
            let name = if n == 1 { run.name.clone() } else { format!("{}-{n}", run.name) };
            let root = out.join(name);
            match (Self::claim(&root), taken) {
                (Err(RunDirError::NotEmpty { .. } | RunDirError::InUse { .. }), Taken::Suffix) => {}
                (Err(error), _) => return Err(error),
                (Ok(run), _) => {
                    run.write_config_text(text).inspect_err(|_| {
                        // A folder without a configuration is no run; the first error is the one to report.
                        let _ = fs::remove_dir_all(run.root());
                    })?;
                    return Ok(run);
                }
            }
        }
        Err(RunDirError::NotEmpty { path: out.join(&run.name) })
    }

    /// Opens an existing run and its configuration, with `overrides` applied.
    ///
    /// # Errors
    /// [`RunDirError`]: not a run, in use, not writable, or a configuration that is not valid (any more).
    pub fn resume(root: &Path, overrides: &[String]) -> Result<(Self, TrainConfig), RunDirError> {
        let file = root.join("config.toml");
        if !file.is_file() {
            return Err(RunDirError::NotARun { path: root.into() });
        }
        let config = TrainConfig::load(&file, overrides)?;
        Ok((Self::open(root)?, config))
    }

    /// Opens an existing run, whatever its configuration says.
    ///
    /// # Errors
    /// [`RunDirError`]: not a run, in use, not writable.
    pub fn open(root: &Path) -> Result<Self, RunDirError> {
        if !root.join("config.toml").is_file() {
            return Err(RunDirError::NotARun { path: root.into() });
        }
        let run = Self { root: root.into(), _lock: lock(root)? };
        atomic::remove_stale(root)?;
        Ok(run)
    }

    /// Takes a folder that is new or empty.
    fn claim(root: &Path) -> Result<Self, RunDirError> {
        match fs::create_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(root).map_err(|e| atomic::Error::from_io("list", root, e))?;
                if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != LOCK)) {
                    return Err(RunDirError::NotEmpty { path: root.into() });
                }
            }
            other => other.map_err(|e| atomic::Error::from_io("create", root, e))?,
        }
        Ok(Self { root: root.into(), _lock: lock(root)? })
    }

    /// Replaces `config.toml`.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn write_config(&self, config: &TrainConfig) -> Result<(), RunDirError> {
        self.write_config_text(&config.to_toml()?)
    }

    fn write_config_text(&self, text: &str) -> Result<(), RunDirError> {
        Ok(atomic::write_file(&self.config_file(), text.as_bytes())?)
    }

    /// Replaces `summary.json`.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn write_summary(&self, summary: &serde_json::Value) -> Result<(), RunDirError> {
        Ok(atomic::write_file(&self.summary_file(), format!("{summary:#}\n").as_bytes())?)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.toml`.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// `metrics.jsonl`.
    pub fn metrics_file(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The TensorBoard event file.
    pub fn events_file(&self) -> PathBuf {
        self.root.join(crate::tensorboard::FILE)
    }

    /// `checkpoints/`.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// `recording.rrd`.
    pub fn recording_file(&self) -> PathBuf {
        self.root.join("recording.rrd")
    }

    /// `summary.json`.
    pub fn summary_file(&self) -> PathBuf {
        self.root.join("summary.json")
    }

    /// `report.html`.
    pub fn report_file(&self) -> PathBuf {
        self.root.join("report.html")
    }
}

const LOCK: &str = ".lock";

fn lock(root: &Path) -> Result<File, RunDirError> {
    let path = root.join(LOCK);
    let file = File::create(&path).map_err(|e| atomic::Error::from_io("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunDirError::InUse { path: root.into() }),
        // A file system without locks: two writers cannot be told apart there, one writer is fine.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(atomic::Error::from_io("lock", &path, e).into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(out: &Path) -> TrainConfig {
        let sets = [format!("run.out={}", out.display())];
        TrainConfig::from_text(Path::new("x.toml"), "[run]\nname = \"a\"\n[rl]\n", &sets).unwrap()
    }

    #[test]
    fn a_taken_name_is_refused_or_counted_up() {
        let dir = tempfile::tempdir().unwrap();
        let c = config(&dir.path().join("deep/runs"));
        let first = RunDir::create(&c, Taken::Refuse).unwrap();
        assert!(first.root().ends_with("a"));
        assert!(RunDir::create(&c, Taken::Suffix).unwrap().root().ends_with("a-2"));
        drop(first);
        let e = RunDir::create(&c, Taken::Refuse).unwrap_err();
        assert!(matches!(e, RunDirError::NotEmpty { .. }), "{e}");
        assert!(e.to_string().contains("--resume"));
    }

    #[test]
    fn a_run_is_resumed_with_its_configuration_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let c = config(dir.path());
        let root = RunDir::create(&c, Taken::Refuse).unwrap().root().to_path_buf();
        let (run, again) = RunDir::resume(&root, &[]).unwrap();
        assert_eq!(again, c);
        assert!(matches!(RunDir::resume(&root, &[]), Err(RunDirError::InUse { .. })));
        drop(run);
        assert_eq!(RunDir::resume(&root, &["run.threads=3".into()]).unwrap().1.run.threads, 3);
    }

    #[test]
    fn what_is_no_run_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(RunDir::resume(dir.path(), &[]), Err(RunDirError::NotARun { .. })));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let e = RunDir::create(&config(&file), Taken::Suffix).unwrap_err();
        assert!(matches!(e, RunDirError::Write(atomic::Error::NotAFolder { .. })), "{e:?}");
    }
}
