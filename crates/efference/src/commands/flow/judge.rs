//! `efference flow judge`: trains the learned judge of final states.

use std::path::PathBuf;

use efference_envs::flow::{ArmKind, FlowOptions, FlowTask, train_seed};
use efference_rollout::flow::{JudgeTraining, judge_samples, train_judge};
use efference_train::report::Event;
use serde_json::json;

use crate::errors::Result;
use crate::text::{count, percent};
use crate::ui::Ui;

/// Train the learned judge of final states, on pictures that the simulator calls good or bad
///
/// Scenes are training scenes, never those of the evaluation. A tenth of the pictures is held out for the report.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File to write the weights to
    #[arg(long, value_name = "FILE.safetensors", default_value = "flow_judge.safetensors")]
    out: PathBuf,
    /// Task families, separated by commas [default: pour, insert, hang, drawer]
    #[arg(long, value_delimiter = ',', value_name = "TASKS")]
    tasks: Vec<String>,
    /// Scenes per task; each gives six pictures
    #[arg(long, value_name = "N", default_value_t = 500)]
    scenes: u64,
    /// Times every picture is seen
    #[arg(long, value_name = "N", default_value_t = JudgeTraining::default().epochs)]
    epochs: usize,
    /// Of the initial weights and the order
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let mut tasks =
        args.tasks.iter().map(|id| FlowTask::from_id(id)).collect::<efference_envs::Result<Vec<_>>>()?;
    if tasks.is_empty() {
        tasks = FlowTask::EXECUTED.to_vec();
    }
    let seeds: Vec<u64> = (0..args.scenes).map(train_seed).collect();
    let reporter = ui.reporter();
    let total = tasks.len() as u64;
    reporter.report(&Event::Stage { name: "pictures".into(), unit: "task".into(), total, done: 0 });
    let mut samples = Vec::new();
    for (done, &task) in tasks.iter().enumerate() {
        // Arms alternate over scenes: what stands in the picture must not matter.
        for (arm, seeds) in
            [(ArmKind::Arm7, &seeds[..seeds.len() / 2]), (ArmKind::Arm6, &seeds[seeds.len() / 2..])]
        {
            samples.extend(judge_samples(task, arm, &FlowOptions::default(), seeds)?);
        }
        reporter.report(&Event::Progress { done: done as u64 + 1 });
    }
    drop(reporter);
    ui.note(format!("training on {}", count(samples.len(), "picture")));
    let options = JudgeTraining { epochs: args.epochs, seed: args.seed, ..JudgeTraining::default() };
    let (judge, report) = train_judge(&samples, &options)?;
    judge.save(&args.out)?;
    ui.object(&json!({ "out": args.out, "report": report }));
    ui.line(format!(
        "{} of {} held-out pictures judged rightly ({} are good); of the good ones {} are accepted, of the accepted ones {} \
         are good",
        percent(report.accuracy),
        report.held_out,
        percent(report.good_share),
        percent(report.recall),
        percent(report.precision),
    ));
    ui.note(format!("written: {}", args.out.display()));
    Ok(())
}
