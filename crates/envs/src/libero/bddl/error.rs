//! What can be wrong with a task file.

use std::fmt;
use std::path::PathBuf;

/// A place in a text, both counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Character in the line.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Errors of reading task files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read, or is no text.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An error, and the file that it is in.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// Longer than any task.
    #[error("the text has {bytes} bytes; a task file has at most {}", super::MAX_BYTES)]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// The text is no task.
    #[error("{place}: expected {expected}, found {found}")]
    Syntax {
        /// Where.
        place: Place,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
}

/// A syntax error before it becomes an [`Error`].
#[derive(Debug)]
pub(super) struct Wrong {
    pub place: Place,
    pub expected: String,
    pub found: String,
}

impl Wrong {
    pub fn new(place: Place, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { place, expected: expected.into(), found: found.into() }
    }
}

impl From<Wrong> for Error {
    fn from(wrong: Wrong) -> Self {
        let Wrong { place, expected, found } = wrong;
        Self::Syntax { place, expected, found }
    }
}
