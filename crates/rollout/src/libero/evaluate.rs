//! Many episodes over many workers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::episode::{EpisodeError, Outcome, Place, Recording, Rules, play};
use super::journal::{EpisodeLine, Journal, JournalError, Verdict};
use super::policy::{PolicySource, Start};
use super::protocol::Protocol;
use super::simulator::{Simulator, SimulatorError};

/// A task of the evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEntry {
    /// Its number in the suite.
    pub task: usize,
    /// Its instruction, as the task pack has it.
    pub instruction: String,
}

/// What is played.
#[derive(Clone, Debug)]
pub struct Evaluation<'a> {
    /// Suite.
    pub suite: &'a str,
    /// Tasks, in order.
    pub tasks: &'a [TaskEntry],
    /// Saved initial states per task: 0 to N-1.
    pub episodes: usize,
    /// The rules.
    pub protocol: &'a Protocol,
    /// Time for one control step.
    pub step_limit: Duration,
    /// Threads, each with a simulator and a policy of its own; at least one is used.
    pub workers: usize,
    /// Of how many episodes per task pictures are kept: the first ones.
    pub record: usize,
    /// A picture every so many control steps.
    pub record_every: usize,
}

/// Makes a worker's simulator.
pub type MakeSimulator<'a> = dyn Fn() -> Box<dyn Simulator> + Sync + 'a;
/// Receives the pictures of an episode.
pub type OnRecording<'a> = dyn Fn(Place, &Outcome, Recording) + Sync + 'a;

/// What the evaluation calls.
#[derive(Clone, Copy)]
pub struct Hooks<'a> {
    /// A simulator for a worker.
    pub simulator: &'a MakeSimulator<'a>,
    /// A line is in the journal.
    pub on_line: &'a (dyn Fn(&EpisodeLine) + Sync),
    /// Pictures of an episode.
    pub on_recording: &'a OnRecording<'a>,
    /// Whether to stop; episodes being played are abandoned.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// Why some episodes of a task were not played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskNote {
    /// Task number.
    pub task: usize,
    /// In a sentence.
    pub why: String,
}

/// So many errors in a row in one task, and the rest of it is left out: a policy that never answers would otherwise take its
/// time limit fifty times.
const GIVE_UP: usize = 3;

struct Shared<'j> {
    next: VecDeque<(usize, Place)>,
    in_a_row: BTreeMap<usize, usize>,
    notes: BTreeMap<usize, String>,
    journal: &'j mut Journal,
    failed: Option<JournalError>,
}

/// Plays every episode that the journal does not hold yet. A policy or simulator that fails costs its episode (three in a
/// row: the rest of its task); all others are played. Returns what was left out and why.
///
/// # Errors
/// The journal cannot be written: everything stops, what is in it stays.
pub fn evaluate(
    evaluation: &Evaluation<'_>,
    policies: &dyn PolicySource,
    journal: &mut Journal,
    hooks: &Hooks<'_>,
) -> Result<Vec<TaskNote>, JournalError> {
    let mut next = VecDeque::new();
    for (index, entry) in evaluation.tasks.iter().enumerate() {
        let places = (0..evaluation.episodes).map(|episode| Place { task: entry.task, episode });
        next.extend(places.filter(|&place| !journal.finished(place)).map(|place| (index, place)));
    }
    let workers = evaluation.workers.clamp(1, next.len().max(1));
    let shared = Shared { next, in_a_row: BTreeMap::new(), notes: BTreeMap::new(), journal, failed: None };
    let shared = Mutex::new(shared);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work(evaluation, policies, &shared, hooks));
        }
    });
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    match shared.failed {
        Some(error) => Err(error),
        None => Ok(shared.notes.into_iter().map(|(task, why)| TaskNote { task, why }).collect()),
    }
}

fn work(
    evaluation: &Evaluation<'_>,
    policies: &dyn PolicySource,
    shared: &Mutex<Shared<'_>>,
    hooks: &Hooks<'_>,
) {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let mut simulator = (hooks.simulator)();
    let mut policy = policies.open();
    let protocol = evaluation.protocol;
    let rules = Rules { protocol, step_limit: evaluation.step_limit, stop: hooks.stop };
    while !(hooks.stop)() {
        let Some((index, place)) = lock().take() else { return };
        let instruction = protocol.say(&evaluation.tasks[index].instruction);
        let start = Start {
            suite: evaluation.suite,
            task: place.task,
            episode: place.episode,
            instruction: &instruction,
            seed: protocol.seed,
        };
        let mut recording = (place.episode < evaluation.record)
            .then(|| Recording { every: evaluation.record_every, ..Recording::default() });
        let begun = Instant::now();
        let played = play(&mut *simulator, &mut *policy, &rules, &start, recording.as_mut());
        if matches!(played, Err(EpisodeError::Stopped)) {
            return;
        }
        let line = line(place, &played, begun.elapsed().as_secs_f64());
        if !lock().record(&line, played.as_ref().err()) {
            return;
        }
        (hooks.on_line)(&line);
        if let (Ok(outcome), Some(recording)) = (&played, recording) {
            (hooks.on_recording)(place, outcome, recording);
        }
    }
}

impl Shared<'_> {
    /// The next episode of a task that was not given up.
    fn take(&mut self) -> Option<(usize, Place)> {
        if self.failed.is_some() {
            return None;
        }
        loop {
            let (index, place) = self.next.pop_front()?;
            if !self.notes.contains_key(&place.task) {
                return Some((index, place));
            }
        }
    }

    /// False when the journal cannot be written.
    fn record(&mut self, line: &EpisodeLine, error: Option<&EpisodeError>) -> bool {
        if let Err(failed) = self.journal.append(line) {
            self.failed.get_or_insert(failed);
            return false;
        }
        let task = line.place.task;
        let in_a_row = self.in_a_row.entry(task).or_default();
        *in_a_row = if error.is_some() { *in_a_row + 1 } else { 0 };
        let in_a_row = *in_a_row;
        match error {
            // No other episode of this task can be played either.
            Some(EpisodeError::Simulator(why @ SimulatorError::Task { .. })) => {
                self.notes.entry(task).or_insert_with(|| why.to_string());
            }
            Some(EpisodeError::Simulator(why @ SimulatorError::NoState { .. })) => {
                self.notes.entry(task).or_insert_with(|| why.to_string());
            }
            Some(why) if in_a_row >= GIVE_UP => {
                let note = || format!("given up after {in_a_row} errors in a row; the last: {why}");
                self.notes.entry(task).or_insert_with(note);
            }
            _ => {}
        }
        true
    }
}

fn line(place: Place, played: &Result<Outcome, EpisodeError>, seconds: f64) -> EpisodeLine {
    let (verdict, steps, queries, reason) = match played {
        Ok(outcome) => {
            let verdict = if outcome.success { Verdict::Success } else { Verdict::Failure };
            (verdict, outcome.steps, outcome.queries, outcome.aborted.clone())
        }
        Err(error) => {
            let verdict = match error {
                EpisodeError::Policy(_) => Verdict::PolicyError,
                EpisodeError::Simulator(_) | EpisodeError::Stopped => Verdict::SimulatorError,
            };
            (verdict, 0, 0, Some(error.to_string()))
        }
    };
    EpisodeLine { place, verdict, steps, queries, reason, seconds }
}
