//! The log of an evaluation: one line per finished episode, on disk before the next one counts.
//!
//! The first line holds the settings. Whoever goes on from a journal must have the same ones; what differs is listed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use efference_data::atomic;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::episode::Place;

/// Version of the journal's lines.
const FORMAT: u32 = 1;
/// Longest line that is read: settings with a large server's metadata stay far below.
const MAX_LINE: u64 = 16 << 20;

/// What became of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The goal was reached.
    Success,
    /// The step limit came first, or the simulation became unstable.
    Failure,
    /// The policy failed: played again by a resumed evaluation.
    PolicyError,
    /// The simulator failed or its process ended: played again by a resumed evaluation.
    SimulatorError,
}

impl Verdict {
    /// Whether the episode counts.
    pub fn finished(self) -> bool {
        matches!(self, Self::Success | Self::Failure)
    }
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeLine {
    /// Which episode.
    #[serde(flatten)]
    pub place: Place,
    /// How it ended.
    pub verdict: Verdict,
    /// Control steps, idle ones included.
    pub steps: usize,
    /// How often the policy was asked.
    pub queries: usize,
    /// Why it was no success, if there is more to say than that time ran out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it took; not part of the result.
    pub seconds: f64,
}

/// A setting in which two evaluations differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Dotted name, for example `protocol.executed`.
    pub field: String,
    /// What was recorded.
    pub recorded: Value,
    /// What is asked for now.
    pub now: Value,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` was {}, now it is {}", self.field, self.recorded, self.now)
    }
}

/// Every field in which two sets of settings differ, down to single values.
pub fn differences(recorded: &Value, now: &Value) -> Vec<Difference> {
    fn walk(field: &str, recorded: &Value, now: &Value, out: &mut Vec<Difference>) {
        match (recorded, now) {
            (Value::Object(a), Value::Object(b)) => {
                let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in names {
                    let field = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                    let of = |map: &serde_json::Map<_, _>| map.get(name).cloned().unwrap_or(Value::Null);
                    walk(&field, &of(a), &of(b), out);
                }
            }
            (a, b) if a == b => {}
            (a, b) => out.push(Difference { field: field.into(), recorded: a.clone(), now: b.clone() }),
        }
    }
    let mut out = Vec::new();
    walk("", recorded, now, &mut out);
    // A task that only one of them plays changes nothing for the others.
    let other_tasks =
        |d: &Difference| d.field.starts_with(PER_TASK) && (d.recorded.is_null() || d.now.is_null());
    out.retain(|difference| !other_tasks(difference));
    out
}

/// The setting that has one entry per task.
const PER_TASK: &str = "packs_sha256.";

/// Why a journal cannot be written or gone on from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// An evaluation is there already.
    #[error("`{}` is there already\n  hint: `--resume` goes on with it; or choose another folder with `--out`", path.display())]
    Exists {
        /// The journal.
        path: PathBuf,
    },
    /// The settings are not those of the evaluation that is to go on.
    #[error("`{}` was begun with other settings: {}\n  hint: use the same settings, or another folder with `--out`", path.display(), list(differences))]
    Different {
        /// The journal.
        path: PathBuf,
        /// At least one.
        differences: Vec<Difference>,
    },
    /// A line that is none.
    #[error("`{}`, line {line}: {why}\n  hint: cut the file off before this line, or choose another folder with `--out`", path.display())]
    Corrupt {
        /// The journal.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// The system refused.
    #[error(transparent)]
    Write(#[from] atomic::Error),
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    settings: Value,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: BTreeMap<Place, EpisodeLine>,
}

impl Journal {
    /// Begins a journal, or goes on with one of the same settings if `resume` says so. A last line that was cut off by a
    /// crash is taken away.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, settings: &Value, resume: bool) -> Result<Self, JournalError> {
        let exists = path.exists();
        if exists && !resume {
            return Err(JournalError::Exists { path: path.into() });
        }
        if !exists {
            let header = Header { format: FORMAT, settings: settings.clone() };
            let json = serde_json::to_string(&header).unwrap_or_default();
            atomic::write_file(path, format!("{json}\n").as_bytes())?;
        }
        let (header, done, good) = read(path)?;
        let differences = differences(&header.settings, settings);
        if !differences.is_empty() {
            return Err(JournalError::Different { path: path.into(), differences });
        }
        let open = || {
            let file = OpenOptions::new().append(true).open(path)?;
            file.set_len(good)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|e| atomic::Error::from_io("write", path, e))?;
        Ok(Self { path: path.into(), file, done })
    }

    /// The last line of each episode that was played, in order.
    pub fn lines(&self) -> impl Iterator<Item = &EpisodeLine> {
        self.done.values()
    }

    /// Whether this episode is finished: it need not be played again.
    pub fn finished(&self, place: Place) -> bool {
        self.done.get(&place).is_some_and(|line| line.verdict.finished())
    }

    /// Writes a line; when this returns, it survives a loss of power.
    ///
    /// # Errors
    /// The disk is full, or worse.
    pub fn append(&mut self, line: &EpisodeLine) -> Result<(), JournalError> {
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        let write = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        write.map_err(|e| atomic::Error::from_io("write", &self.path, e))?;
        self.done.insert(line.place, line.clone());
        Ok(())
    }
}

/// Header, lines, and the length of the part that is whole.
fn read(path: &Path) -> Result<(Header, BTreeMap<Place, EpisodeLine>, u64), JournalError> {
    let failed = |e: io::Error| atomic::Error::from_io("read", path, e);
    let corrupt = |line: usize, why: String| JournalError::Corrupt { path: path.into(), line, why };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut next = |good: u64| -> Result<Option<(String, u64)>, JournalError> {
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(&mut reader, MAX_LINE);
        limited.read_until(b'\n', &mut bytes).map_err(failed)?;
        // Without its end the line was never finished.
        if bytes.pop() != Some(b'\n') {
            return Ok(None);
        }
        let length = bytes.len() as u64 + 1;
        Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), good + length)))
    };
    let Some((first, mut good)) = next(0)? else {
        return Err(corrupt(1, "there is no line with the settings".into()));
    };
    let header: Header = serde_json::from_str(&first).map_err(|e| corrupt(1, e.to_string()))?;
    if header.format != FORMAT {
        return Err(corrupt(1, format!("format {} instead of {FORMAT}", header.format)));
    }
    let mut done = BTreeMap::new();
    let mut number = 1;
    while let Some((text, length)) = next(good)? {
        number += 1;
        let line: EpisodeLine = serde_json::from_str(&text).map_err(|e| corrupt(number, e.to_string()))?;
        done.insert(line.place, line);
        good = length;
    }
    Ok((header, done, good))
}
