//! Filmstrips of recorded episodes: the scene's camera above, the hand's below.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use efference_data::atomic;
use efference_rollout::libero::{Outcome, Place, Recording};
use efference_viz::sheet::{Row, Style, compose, png, spread};
use efference_viz::theme;

/// Pictures side by side.
const FRAMES: usize = 12;

/// Writes them below `OUT/pictures`. A picture that cannot be written stops nothing; it is told at the end.
pub(super) struct Album {
    dir: PathBuf,
    problems: Mutex<Vec<String>>,
}

impl Album {
    pub fn new(out: &Path) -> Self {
        Self { dir: out.join("pictures"), problems: Mutex::default() }
    }

    pub fn keep(&self, place: Place, outcome: &Outcome, recording: &Recording) {
        let mark = Some(if outcome.success { theme::SUCCESS } else { theme::FAILURE });
        let rows =
            [&recording.scene, &recording.hand].map(|frames| Row { frames: spread(frames, FRAMES), mark });
        let verdict = if outcome.success { "success" } else { "failure" };
        let path = self.dir.join(format!("task{:02}_episode{:02}_{verdict}.png", place.task, place.episode));
        let written = png(&compose(&rows, Style::default()))
            .map_err(|e| e.to_string())
            .and_then(|bytes| atomic::write_file(&path, &bytes).map_err(|e| e.to_string()));
        if let Err(why) = written {
            self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(why);
        }
    }

    pub fn problems(&self) -> Vec<String> {
        std::mem::take(&mut *self.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
