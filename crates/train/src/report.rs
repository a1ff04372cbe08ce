//! What the loops say while they run, and how they are asked to stop.
//!
//! Loops know nothing of terminals: they emit [`Event`]s to a [`Reporter`]. The command line turns them into
//! bars and lines, `--json` into one object per line, tests into a list.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// Named numbers of one update, in alphabetical order. See [`crate::metrics`] for the names.
pub type Values = BTreeMap<String, f64>;

/// Success on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Task id, for example `press_button`.
    pub task: String,
    /// Episodes that ended in success.
    pub successes: u64,
    /// Episodes run.
    pub episodes: u64,
}

impl TaskScore {
    /// Share of successes, 0 to 1; 0 without episodes.
    pub fn rate(&self) -> f64 {
        if self.episodes == 0 { 0.0 } else { self.successes as f64 / self.episodes as f64 }
    }
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A stage begins (or continues, with `done` > 0 after a resume).
    Stage {
        /// `sft`, `rl`, `eval`, `demos` …
        name: String,
        /// What is counted: `step`, `iteration`, `episode`.
        unit: String,
        /// How many there will be.
        total: u64,
        /// How many are already done.
        done: u64,
    },
    /// The running stage has done this many of its units.
    Progress {
        /// Units done since the stage's beginning.
        done: u64,
    },
    /// Numbers of one update; the same that go to `metrics.jsonl`.
    Metrics {
        /// Stage that produced them.
        stage: String,
        /// Update within the run, counted over all stages, from 1.
        step: u64,
        /// The numbers.
        values: Values,
    },
    /// A table of success per task.
    Eval {
        /// When: `before_rl`, `after_rl`, `iteration` …
        label: String,
        /// Update within the run at which it was measured.
        step: u64,
        /// One row per task.
        tasks: Vec<TaskScore>,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Update within the run.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// A sentence for a person.
    Note {
        /// One line.
        text: String,
    },
}

/// Receives events, possibly from several threads.
pub trait Reporter: Send + Sync {
    /// Must not block for long and must not fail: reporting never stops a run.
    fn report(&self, event: &Event);

    /// Shorthand for [`Event::Note`].
    fn note(&self, text: String) {
        self.report(&Event::Note { text });
    }
}

/// Says nothing.
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _: &Event) {}
}

/// Keeps everything, for tests.
#[derive(Default)]
pub struct Recorded(std::sync::Mutex<Vec<Event>>);

impl Recorded {
    /// Everything reported so far.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Reporter for Recorded {
    fn report(&self, event: &Event) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(event.clone());
    }
}

/// A request to stop, set by Ctrl-C or a time limit and polled by the loops between units of work.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a stop; true if somebody had asked already.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
