//! Everything that can be wrong with stored episodes; each variant says which file, which field, and what to do.

use std::io;
use std::path::PathBuf;

use crate::{atomic, episode};

/// Why episodes could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Writing failed; what was stored before is untouched.
    #[error(transparent)]
    Write(#[from] atomic::Error),

    /// Somebody else's demonstration file cannot be read.
    #[error(transparent)]
    Import(#[from] crate::robomimic::ImportError),

    /// The episode contradicts itself, so it is neither stored nor returned.
    #[error("{what}: {problem}")]
    Invalid {
        /// Which episode: a file or its task.
        what: String,
        /// The contradiction.
        problem: episode::Invalid,
    },

    /// The flow episode contradicts itself, so it is neither stored nor returned.
    #[error("{what}: {problem}")]
    InvalidFlow {
        /// Which episode: a file and its place in it, or its task.
        what: String,
        /// The contradiction.
        problem: crate::flow::Invalid,
    },

    /// A set of flows was made in another way than what is to be added.
    #[error("`{}` was made with other settings ({there}), not with {wanted}; choose another folder, or the same settings", path.display())]
    OtherRecipe {
        /// The folder.
        path: PathBuf,
        /// Its settings.
        there: String,
        /// What was asked for.
        wanted: String,
    },

    /// The folder has no `index.json`.
    #[error("`{}` holds no episodes: there is no `index.json` in it; give the folder that `--out` of `efference demos` or `efference data` made", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
    },

    /// Another process is adding episodes to the folder.
    #[error("`{}` is being written by another process; wait for it or choose another folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },

    /// A new store was asked for where one is already.
    #[error("`{}` already holds {episodes} episodes; choose another folder, or append to it", path.display())]
    AlreadyThere {
        /// The folder.
        path: PathBuf,
        /// How many.
        episodes: usize,
    },

    /// `index.json` is not what the format says.
    #[error("`{}` is not a valid index: {problem}; restore it from a backup, or make the episodes again", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A format this program does not read.
    #[error("`{}` has format version {got}, this program reads {expected}; use the program version that wrote it", path.display())]
    Version {
        /// Index or episode file.
        path: PathBuf,
        /// Its version.
        got: u64,
        /// Ours.
        expected: u64,
    },

    /// A file the index names is gone.
    #[error("`{}` is listed in the index but missing; copy it again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },

    /// A file is not as long as the index says.
    #[error("`{}` has {got} bytes, the index says {expected}: {}; copy it again", path.display(), if got < expected { "it is truncated" } else { "something was appended" })]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        got: u64,
        /// The length in the index.
        expected: u64,
    },

    /// A file's content changed.
    #[error("`{}` is corrupt: its SHA-256 is {got}, the index says {expected}; copy it again", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Of the content.
        got: String,
        /// In the index.
        expected: String,
    },

    /// The file is not safetensors, or its header is broken.
    #[error("`{}` is not an episode file: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A tensor the format asks for is absent.
    #[error("`{}` has no tensor `{field}`", path.display())]
    NoField {
        /// The file.
        path: PathBuf,
        /// The tensor.
        field: String,
    },

    /// A tensor of another type or shape.
    #[error("`{}`, tensor `{field}`: got {got}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The tensor.
        field: String,
        /// Type and shape in the file.
        got: String,
        /// Type and shape of the format.
        expected: String,
    },

    /// The offsets of a camera's pictures do not cut its bytes into pieces.
    #[error("`{}`, tensor `{field}`: entry {entry} is {got}; offsets must rise from 0 to the {bytes} bytes of the pictures", path.display())]
    Offset {
        /// The file.
        path: PathBuf,
        /// The offsets' tensor.
        field: String,
        /// Which offset.
        entry: usize,
        /// Its value.
        got: i64,
        /// Bytes of all pictures together.
        bytes: usize,
    },

    /// A stored picture is not a PNG, or not of the size its camera has.
    #[error("`{}`, camera `{camera}`, frame {frame}: {problem}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// The camera.
        camera: String,
        /// Which frame.
        frame: usize,
        /// What is wrong with it.
        problem: String,
    },

    /// An episode number past the end.
    #[error("episode {index} was asked for, `{}` holds {episodes} (numbered from 0)", path.display())]
    NoEpisode {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        index: usize,
        /// What there is.
        episodes: usize,
    },

    /// The system refused to read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// True for damage to a single episode, which [`crate::OnCorrupt::Skip`] may pass over; false for problems
    /// of the folder, the index or the machine.
    pub fn is_corrupt_episode(&self) -> bool {
        use Error::*;
        match self {
            Invalid { .. }
            | InvalidFlow { .. }
            | Version { .. }
            | Missing { .. }
            | Size { .. }
            | Checksum { .. }
            | Header { .. } => true,
            NoField { .. } | Field { .. } | Offset { .. } | Picture { .. } => true,
            Write(_)
            | Import(_)
            | NotAStore { .. }
            | Busy { .. }
            | AlreadyThere { .. }
            | OtherRecipe { .. }
            | Index { .. } => false,
            NoEpisode { .. } | Read { .. } => false,
        }
    }
}

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
