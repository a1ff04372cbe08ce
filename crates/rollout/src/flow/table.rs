//! Many trials of several systems over tasks and arms, in a journal that survives a crash.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use efference_data::atomic;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, Result, System, TrialReport, run_trial};
use crate::libero::{JournalError, differences};

/// Version of the journal's lines.
const FORMAT: u32 = 1;
/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;

/// One trial's place in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrialPlace {
    /// Name of the system.
    pub system: String,
    /// Family of tasks.
    pub task: FlowTask,
    /// Arm.
    pub arm: ArmKind,
    /// Number of the evaluation scene.
    pub trial: u64,
}

/// A finished trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialLine {
    /// Which.
    #[serde(flatten)]
    pub place: TrialPlace,
    /// How it ended.
    pub report: TrialReport,
}

/// What is tried.
pub struct TableOptions<'a> {
    /// Names and systems.
    pub systems: &'a [(String, System)],
    /// Families of tasks.
    pub tasks: &'a [FlowTask],
    /// Arms.
    pub arms: &'a [ArmKind],
    /// Evaluation scenes per cell, 0 to trials-1: the same ones for every system and arm.
    pub trials: u64,
    /// Of the environments.
    pub env: FlowOptions,
    /// Threads; at least one is used. The results do not depend on it.
    pub workers: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    settings: Value,
}

/// Finished trials, one line each, on disk before the next one counts.
pub struct TrialJournal {
    path: PathBuf,
    file: File,
    done: BTreeMap<TrialPlace, TrialLine>,
}

impl TrialJournal {
    /// Begins a journal, or goes on with one of the same settings if `resume` says so. A last line that a crash cut off is
    /// taken away.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, settings: &Value, resume: bool) -> std::result::Result<Self, JournalError> {
        let exists = path.exists();
        if exists && !resume {
            return Err(JournalError::Exists { path: path.into() });
        }
        if !exists {
            let header = Header { format: FORMAT, settings: settings.clone() };
            let json = serde_json::to_string(&header).unwrap_or_default();
            atomic::write_file(path, format!("{json}\n").as_bytes())?;
        }
        let failed = |e: std::io::Error| atomic::Error::from_io("read", path, e);
        let corrupt = |line: usize, why: String| JournalError::Corrupt { path: path.into(), line, why };
        let mut reader = BufReader::new(File::open(path).map_err(failed)?);
        let (mut done, mut good, mut header) = (BTreeMap::new(), 0, None);
        for number in 1.. {
            let mut bytes = Vec::new();
            reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes).map_err(failed)?;
            if bytes.last() != Some(&b'\n') {
                break;
            }
            good += bytes.len() as u64;
            if number == 1 {
                header =
                    Some(serde_json::from_slice::<Header>(&bytes).map_err(|e| corrupt(1, e.to_string()))?);
                continue;
            }
            let line: TrialLine =
                serde_json::from_slice(&bytes).map_err(|e| corrupt(number, e.to_string()))?;
            done.insert(line.place.clone(), line);
        }
        let header = header.ok_or_else(|| corrupt(1, "there is no line with the settings".into()))?;
        if header.format != FORMAT {
            return Err(corrupt(1, format!("format {} instead of {FORMAT}", header.format)));
        }
        let differences = differences(&header.settings, settings);
        if !differences.is_empty() {
            return Err(JournalError::Different { path: path.into(), differences });
        }
        let open = || {
            let file = OpenOptions::new().append(true).open(path)?;
            file.set_len(good)?;
            Ok(file)
        };
        let file = open().map_err(|e| atomic::Error::from_io("write", path, e))?;
        Ok(Self { path: path.into(), file, done })
    }

    /// Finished trials, in order.
    pub fn lines(&self) -> impl Iterator<Item = &TrialLine> {
        self.done.values()
    }

    fn append(&mut self, line: TrialLine) -> std::result::Result<(), JournalError> {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        let write = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        write.map_err(|e| atomic::Error::from_io("write", &self.path, e))?;
        self.done.insert(line.place.clone(), line);
        Ok(())
    }
}

/// Plays every trial that the journal does not hold yet. `on_line` sees each as it is written; `stop` ends it early, what is
/// written stays.
///
/// # Errors
/// The first environment or predictor that fails, or a journal that cannot be written: everything stops.
pub fn run_table(
    options: &TableOptions<'_>,
    journal: &mut TrialJournal,
    on_line: &(dyn Fn(&TrialLine) + Sync),
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<()> {
    let mut next = VecDeque::new();
    for (index, (name, _)) in options.systems.iter().enumerate() {
        for &task in options.tasks {
            for &arm in options.arms {
                let place = |trial| TrialPlace { system: name.clone(), task, arm, trial };
                let places = (0..options.trials).map(place).filter(|p| !journal.done.contains_key(p));
                next.extend(places.map(|place| (index, place)));
            }
        }
    }
    let workers = options.workers.clamp(1, next.len().max(1));
    let shared = Mutex::new((next, journal, None::<Error>));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
                let mut envs: HashMap<(FlowTask, ArmKind), FlowEnv> = HashMap::new();
                while !stop() {
                    let (index, place) = {
                        let mut shared = lock();
                        if shared.2.is_some() {
                            return;
                        }
                        let Some(next) = shared.0.pop_front() else { return };
                        next
                    };
                    let played = play(options, &mut envs, index, &place);
                    let mut shared = lock();
                    let written = played.and_then(|report| {
                        let line = TrialLine { place, report };
                        shared.1.append(line.clone()).map_err(|e| Error::Journal(Box::new(e)))?;
                        Ok(line)
                    });
                    match written {
                        Ok(line) => {
                            drop(shared);
                            on_line(&line);
                        }
                        Err(error) => {
                            shared.2.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match shared.into_inner().unwrap_or_else(PoisonError::into_inner).2 {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn play(
    options: &TableOptions<'_>,
    envs: &mut HashMap<(FlowTask, ArmKind), FlowEnv>,
    index: usize,
    place: &TrialPlace,
) -> Result<TrialReport> {
    use std::collections::hash_map::Entry;
    let env = match envs.entry((place.task, place.arm)) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(FlowEnv::new(place.task, place.arm, &options.env)?),
    };
    let (_, system) = &options.systems[index];
    Ok(run_trial(env, system, eval_seed(place.trial))?.report)
}
