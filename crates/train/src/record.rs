//! What a run leaves for people to look at: the recording, kept up to date while it trains, and the report at its end.
//! Nothing here can stop a run: what goes wrong is said once, and training goes on.

use std::collections::{BTreeMap, BTreeSet};

use efference_rollout::{Trajectory, VlaPolicy};
use efference_viz::{EpisodeRecord, Recorder, RecorderOptions, Strip};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::metrics::Record;
use crate::report::Reporter;
use crate::run::Summary;
use crate::run_dir::RunDir;
use crate::show::{self, Label};
use crate::world::World;

/// Side of recorded pictures, pixels: larger than what a small policy sees, for people.
const PICTURE_PX: usize = 128;
/// File beside the checkpoints that keeps the report's filmstrips over a resume.
const STRIPS: &str = "strips.json";

/// Recording and report of one run.
pub struct Album<'r> {
    recorder: Recorder,
    reporter: &'r dyn Reporter,
    settings: crate::config::RecordConfig,
    strips: Vec<Strip>,
}

impl<'r> Album<'r> {
    /// Opens the recording that `[record]` asks for; `resume` continues the files that are there.
    pub fn open(dir: &RunDir, config: &TrainConfig, resume: bool, reporter: &'r dyn Reporter) -> Self {
        let options = RecorderOptions {
            title: config.run.name.clone(),
            run_id: config.run.name.replace('.', "-"),
            rrd: config.record.rerun && efference_viz::HAS_RERUN,
            jsonl: false,
            resume,
            ..RecorderOptions::default()
        };
        let recorder = Recorder::open(dir.root(), &options).unwrap_or_else(|error| {
            reporter.note(format!("no recording: {error}"));
            Recorder::null()
        });
        let strips = std::fs::read(dir.root().join(STRIPS)).ok().filter(|_| resume);
        let strips = strips.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { recorder, reporter, settings: config.record.clone(), strips }
    }

    /// Whether evaluations should keep their trajectories' states.
    pub fn wants_episodes(&self) -> bool {
        self.settings.episodes_per_eval > 0
    }

    /// Whether RL iteration `done` (counted from 1) is one of those that are recorded.
    pub fn wants_iteration(&self, done: u64) -> bool {
        let every = self.settings.every as u64;
        let some = self.settings.episodes_per_iteration > 0 && self.recorder.is_active();
        some && every > 0 && (done - 1).is_multiple_of(every)
    }

    /// Curves of one update. The success tables of evaluations stand beside the success of rollouts.
    pub fn numbers(&mut self, record: &Record) {
        let Record { step, stage, values } = record;
        let named: Vec<(String, f64)> = values
            .iter()
            // Twelve curves of a few rollouts each would hide the mean; they are in metrics.jsonl.
            .filter(|(name, _)| !name.starts_with("time/") && !name.starts_with("success/"))
            .map(|(name, x)| (format!("{stage}/{name}"), *x))
            .collect();
        let named: Vec<(&str, f64)> = named.iter().map(|(name, x)| (name.as_str(), *x)).collect();
        let result = self.recorder.training(*step, &named);
        self.tell(result);
    }

    /// Some rollouts of RL iteration `done` (counted from 1): one success and one failure before others.
    pub fn iteration(
        &mut self,
        world: &dyn World,
        policy: &VlaPolicy,
        done: u64,
        trajectories: &[Trajectory],
        scores: &[f64],
    ) {
        if !self.wants_iteration(done) {
            return;
        }
        let mut order: Vec<usize> = (0..trajectories.len()).collect();
        order.sort_by_key(|&i| {
            let t = &trajectories[i];
            let before = trajectories[..i].iter().filter(|b| b.success == t.success).count();
            (before, t.success)
        });
        for &i in order.iter().take(self.settings.episodes_per_iteration) {
            let label = Label { stage: "during RL", update: done, progress: Some(scores[i]) };
            self.episode(world, policy, &trajectories[i], &label);
        }
    }

    /// Some episodes of an evaluation, spread over the tasks, the same initial states each time.
    pub fn evaluation(
        &mut self,
        world: &dyn World,
        policy: &VlaPolicy,
        label: &str,
        step: u64,
        trajectories: &[Trajectory],
    ) {
        let stage = match label {
            "before_rl" => "before RL",
            "after_rl" => "after RL",
            "after_sft" => "after cloning",
            _ => return,
        };
        let mut per_task: BTreeMap<&str, usize> = BTreeMap::new();
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (i, t) in trajectories.iter().enumerate() {
            let nth = per_task.entry(t.plan.task.as_str()).or_default();
            order.push((*nth, i));
            *nth += 1;
        }
        order.sort_unstable();
        let mut seen = BTreeSet::new();
        for &(_, i) in order.iter().take(self.settings.episodes_per_eval) {
            let trajectory = &trajectories[i];
            let record =
                self.episode(world, policy, trajectory, &Label { stage, update: step, progress: None });
            if let Some(record) = record
                && seen.insert(&trajectory.plan.task)
            {
                match show::strip(&record) {
                    Ok(strip) => self.strips.push(strip),
                    Err(error) => self.reporter.note(format!("no filmstrip: {error}")),
                }
            }
        }
    }

    fn episode(
        &mut self,
        world: &dyn World,
        policy: &VlaPolicy,
        trajectory: &Trajectory,
        label: &Label<'_>,
    ) -> Option<EpisodeRecord> {
        let record = world
            .make_for_people(&trajectory.plan.task, PICTURE_PX)
            .and_then(|mut env| Ok(show::episode_record(&mut *env, policy, trajectory, label)?));
        match record {
            Ok(record) => {
                let result = self.recorder.episode(&record);
                self.tell(result);
                Some(record)
            }
            Err(error) => {
                self.reporter.note(format!("an episode is not in the recording: {error}"));
                None
            }
        }
    }

    /// Brings the recording to the disk.
    pub fn flush(&mut self, dir: &RunDir) {
        let result = self.recorder.flush();
        self.tell(result);
        if let Ok(bytes) = serde_json::to_vec(&self.strips)
            && let Err(error) = efference_data::atomic::write_file(&dir.root().join(STRIPS), &bytes)
        {
            self.reporter.note(format!("filmstrips are not kept: {error}"));
        }
    }

    /// Ends the recording and writes the report.
    pub fn close(
        &mut self,
        dir: &RunDir,
        config: &TrainConfig,
        records: &[Record],
        summary: &Summary,
    ) -> Result<()> {
        let card = card(summary);
        let result = self.recorder.summary(&card).and_then(|()| self.recorder.flush());
        self.tell(result);
        let phases = summary
            .seconds
            .iter()
            .filter(|(name, _)| *name != "all")
            .map(|(name, secs)| (name.clone(), *secs))
            .collect();
        let environment = vec![
            ("MuJoCo".to_string(), summary.mujoco_version.clone()),
            ("efference".to_string(), env!("CARGO_PKG_VERSION").to_string()),
            ("threads".to_string(), rayon::current_num_threads().to_string()),
        ];
        let mut notes = Vec::new();
        if !summary.finished {
            notes.push("The run was stopped before its end and can be resumed.".to_string());
        }
        let page =
            show::report(config, records, &summary.evals, self.strips.clone(), phases, environment, notes);
        let html = page.to_html().map_err(show::Error::from)?;
        Ok(efference_data::atomic::write_file(&dir.report_file(), html.as_bytes())?)
    }

    fn tell(&self, result: efference_viz::Result<()>) {
        if let Err(error) = result {
            self.reporter.note(format!("recording: {error}"));
        }
    }
}

/// The run's card in the viewer, Markdown.
fn card(summary: &Summary) -> String {
    let mut text = format!("# Run\n\n{} updates, MuJoCo {}\n", summary.step, summary.mujoco_version);
    for table in &summary.evals {
        text += &format!("\n## {} (update {})\n\n| task | success |\n|---|---|\n", table.label, table.step);
        for t in &table.tasks {
            text += &format!("| {} | {}/{} |\n", show::task_title(&t.task), t.successes, t.episodes);
        }
        text += &format!("| **mean** | **{:.1}%** |\n", 100.0 * table.mean());
    }
    text
}
