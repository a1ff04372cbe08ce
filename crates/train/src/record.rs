//! What a run leaves for people to look at: the recording and the report. Nothing here can stop a run: what goes
//! wrong is said once, and training goes on.

use std::path::Path;

use efference_rollout::{Trajectory, VlaPolicy};
use efference_viz::{Recorder, RecorderOptions};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::metrics::Record;
use crate::report::Reporter;
use crate::run::Summary;
use crate::run_dir::RunDir;
use crate::world::Tabletop;

/// Recording and report of one run.
pub struct Album {
    recorder: Recorder,
}

impl Album {
    /// Opens the recording that `[record]` asks for.
    pub fn open(root: &Path, config: &TrainConfig, resume: bool, reporter: &dyn Reporter) -> Self {
        let options = RecorderOptions {
            title: config.run.name.clone(),
            run_id: config.run.name.clone(),
            rrd: config.record.rerun && efference_viz::HAS_RERUN,
            jsonl: false,
            resume,
            ..RecorderOptions::default()
        };
        let recorder = Recorder::open(root, &options).unwrap_or_else(|error| {
            reporter.note(format!("no recording: {error}"));
            Recorder::null()
        });
        Self { recorder }
    }

    pub fn wants_episodes(&self) -> bool {
        self.recorder.is_active()
    }
    pub fn numbers(&mut self, record: &Record) {}
    pub fn iteration(
        &mut self,
        world: &Tabletop,
        policy: &VlaPolicy,
        i: u64,
        t: &[Trajectory],
        scores: &[f64],
    ) {
    }
    pub fn evaluation(
        &mut self,
        world: &Tabletop,
        policy: &VlaPolicy,
        label: &str,
        step: u64,
        t: &[Trajectory],
    ) {
    }
    pub fn flush(&mut self) {}
    pub fn close(
        &mut self,
        dir: &RunDir,
        config: &TrainConfig,
        records: &[Record],
        summary: &Summary,
    ) -> Result<()> {
        Ok(())
    }
}
