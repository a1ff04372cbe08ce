//! Replay of what Python LIBERO did, recorded per version of MuJoCo.
//!
//! A folder of recordings holds `VERSION/*.json` and, beside the version folders, the packs that they need
//! (`packs_physics/SUITE_TASK`). Three kinds of files:
//! - *trajectories*: closed loop from a saved initial state; state, predicates and observation after every step;
//! - *substeps*: the controls of every physics step, replayed without the controller;
//! - *predicates*: the truth of many facts in fifty states.
//!
//! A file of another MuJoCo version than the one in use is skipped: physics differ between versions.

mod files;
mod functions;
mod replay;

use std::path::{Path, PathBuf};

use super::{Error, Result};

pub use functions::{function, known_functions};

/// What became of one replay.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseResult {
    /// Version folder and file, for example `3.3.2/libero_goal_7`.
    pub file: String,
    /// `exact`, `fused`, `substeps`, ...
    pub case: String,
    /// How it ended.
    pub verdict: Verdict,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Everything agrees within the tolerance.
    Passed {
        /// The largest difference in `qpos` (metres, radians); 0 where only truth values are compared.
        worst: f64,
    },
    /// Something differs.
    Failed {
        /// What, where, and by how much.
        reason: String,
    },
    /// The file belongs to another version of MuJoCo.
    Skipped {
        /// Which.
        reason: String,
    },
}

/// Whether a path is a recording of Python LIBERO, or a folder of such recordings.
pub fn is_recording(path: &Path) -> bool {
    if path.is_dir() {
        return !recordings(path).is_empty();
    }
    files::Kind::of(path).is_some()
}

/// The recordings in a folder (a version folder, or the one that holds those), in order of their names.
fn recordings(folder: &Path) -> Vec<PathBuf> {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let is_version = |path: &Path| {
        path.is_dir()
            && path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.split('.').all(is_number))
    };
    let folders = if is_version(folder) {
        vec![folder.to_path_buf()]
    } else {
        inside(folder).into_iter().filter(|path| is_version(path)).collect()
    };
    let mut found: Vec<PathBuf> = folders.iter().flat_map(|folder| inside(folder)).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "json"));
    found.sort();
    found
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Replays a recording or a folder of them.
///
/// # Errors
/// Files that cannot be read or have no meaning, and packs that are missing; a difference is a result, not an error.
pub fn run(path: &Path) -> Result<Vec<CaseResult>> {
    if !path.is_dir() {
        return replay::file(path);
    }
    let found = recordings(path);
    if found.is_empty() {
        let source =
            std::io::Error::new(std::io::ErrorKind::NotFound, "it holds no recordings `VERSION/*.json`");
        return Err(Error::Read { path: path.into(), source });
    }
    let results = found.iter().map(|path| replay::file(path)).collect::<Result<Vec<_>>>()?;
    Ok(results.concat())
}
