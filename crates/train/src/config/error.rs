//! What can be wrong with a configuration, said so that a reader can repair it.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A configuration file; line and column count from 1.
    File {
        /// The file as it was named on the command line.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A `--set key=value` on the command line.
    Set(String),
    /// Nobody wrote it: it is a default, or the value is missing.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Place::Set(text) => write!(f, "--set {text}"),
            Place::Default => write!(f, "defaults"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// Dotted path of the setting, for example `rl.group`.
    pub field: String,
    /// What is wrong: expected and got.
    pub what: String,
    /// What to do about it; empty when `what` says it all.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}`: {}", self.place, self.field, self.what)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, " ({})", self.help) }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration `{}`: {source}", path.display())]
    Read {
        /// File named on the command line.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: not valid TOML: {message}")]
    Syntax {
        /// Where the parser stopped.
        place: Place,
        /// What it expected.
        message: String,
    },
    /// `--set` without `=`, or with an empty key.
    #[error("--set {text}: expected `section.key=value`, for example `--set rl.group=8`")]
    Override {
        /// The argument as it was given.
        text: String,
    },
    /// One or more settings are wrong; all of them are listed.
    #[error("{}", list(problems))]
    Invalid {
        /// At least one.
        problems: Vec<Problem>,
    },
    /// The configuration could not be written as TOML (a fault of ours, not of the user).
    #[error("cannot write the configuration as TOML: {message}")]
    Write {
        /// What the serialiser said.
        message: String,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
