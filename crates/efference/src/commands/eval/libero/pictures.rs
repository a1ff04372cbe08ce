//! Recorded episodes: a filmstrip each (the scene's camera above, the hand's below), and all of them in a rerun recording.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use efference_data::atomic;
use efference_rollout::libero::{Outcome, Place, Recording, TaskEntry};
use efference_train::show::Filmed;
use efference_viz::recorder::RRD_FILE;
use efference_viz::sheet::{Row, Style, compose, png, spread};
use efference_viz::{HAS_RERUN, Recorder, RecorderOptions, theme};

/// Pictures side by side.
const FRAMES: usize = 12;

/// Writes filmstrips below `OUT/pictures` and `OUT/recording.rrd`. What cannot be written stops nothing; it is told at the
/// end.
pub(super) struct Album<'a> {
    out: PathBuf,
    suite: &'a str,
    tasks: &'a [TaskEntry],
    policy: &'a str,
    /// Control steps per second.
    control_hz: f64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    recorder: Option<Recorder>,
    problems: Vec<String>,
}

impl<'a> Album<'a> {
    pub fn new(out: &Path, suite: &'a str, tasks: &'a [TaskEntry], policy: &'a str, control_hz: f64) -> Self {
        Self { out: out.to_path_buf(), suite, tasks, policy, control_hz, inner: Mutex::default() }
    }

    pub fn keep(&self, place: Place, outcome: &Outcome, recording: Recording) {
        let strip = self.strip(place, outcome, &recording);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.problems.extend(strip.err());
        if HAS_RERUN && let Err(error) = self.record(&mut inner, place, outcome, recording) {
            inner.problems.push(format!("recording: {error}"));
        }
    }

    fn strip(&self, place: Place, outcome: &Outcome, recording: &Recording) -> Result<(), String> {
        let mark = Some(if outcome.success { theme::SUCCESS } else { theme::FAILURE });
        let rows =
            [&recording.scene, &recording.hand].map(|frames| Row { frames: spread(frames, FRAMES), mark });
        let verdict = if outcome.success { "success" } else { "failure" };
        let name = format!("task{:02}_episode{:02}_{verdict}.png", place.task, place.episode);
        let bytes = png(&compose(&rows, Style::default())).map_err(|e| e.to_string())?;
        atomic::write_file(&self.out.join("pictures").join(name), &bytes).map_err(|e| e.to_string())
    }

    fn record(
        &self,
        inner: &mut Inner,
        place: Place,
        outcome: &Outcome,
        recording: Recording,
    ) -> efference_viz::Result<()> {
        let recorder = match &mut inner.recorder {
            Some(recorder) => recorder,
            None => {
                let options = RecorderOptions {
                    title: format!("{} by {}", self.suite, self.policy),
                    run_id: format!("eval-{}", self.suite),
                    rrd: true,
                    jsonl: false,
                    resume: self.out.join(RRD_FILE).exists(),
                    ..RecorderOptions::default()
                };
                inner.recorder.insert(Recorder::open(&self.out, &options)?)
            }
        };
        let instruction = self.tasks.iter().find(|entry| entry.task == place.task);
        let filmed = Filmed {
            stage: "evaluation",
            task: &format!("{}_{}", self.suite, place.task),
            instruction: instruction.map_or("", |entry| &entry.instruction),
            seed: place.episode as u64,
            frames_per_sec: self.control_hz / recording.every.max(1) as f64,
            success: outcome.success,
            states: &recording.states,
            pictures: vec![recording.scene, recording.hand],
            notes: vec![
                ("control steps".into(), outcome.steps.to_string()),
                ("policy was asked".into(), format!("{} times", outcome.queries)),
            ],
        };
        recorder.episode(&filmed.record())?;
        recorder.flush()
    }

    pub fn problems(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner).problems)
    }
}
