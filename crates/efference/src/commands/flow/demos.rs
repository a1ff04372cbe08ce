//! `efference flow demos`: the oracle's flow, executed and stored as episodes.

use std::path::PathBuf;

use efference_data::{Episode, EpisodeWriter};
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, train_seed};
use efference_rollout::flow::{System, demonstrate_flow};
use efference_train::report::Event;
use rayon::prelude::*;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::text::count;
use crate::ui::Ui;

/// Let the planner demonstrate the workbench's tasks from the oracle's flow, and store its episodes
///
/// Every episode holds both cameras at every control step, the 7-number actions, proprioception and the simulator's states;
/// failures are not stored. Scenes are training scenes, never those of the evaluation.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to make; it must not hold episodes yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Task families, separated by commas [default: pour, insert, hang, drawer]
    #[arg(long, value_delimiter = ',', value_name = "TASKS")]
    tasks: Vec<String>,
    /// Arm: arm7 or arm6
    #[arg(long, default_value = "arm7")]
    arm: String,
    /// Successful episodes per task
    #[arg(long, value_name = "N", default_value_t = 10)]
    per_task: usize,
    /// First scene
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// Side of the pictures in pixels, 32 to 1024
    #[arg(long, value_name = "PX", default_value_t = 128)]
    image_size: usize,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let stop = interrupt::install(ui)?;
    let mut tasks =
        args.tasks.iter().map(|id| FlowTask::from_id(id)).collect::<efference_envs::Result<Vec<_>>>()?;
    if tasks.is_empty() {
        tasks = FlowTask::EXECUTED.to_vec();
    }
    let arm = ArmKind::from_id(&args.arm)?;
    let mut writer = EpisodeWriter::create(&args.out)?;
    let options = FlowOptions { image_size: args.image_size, ..FlowOptions::default() };
    let reporter = ui.reporter();
    let total = (tasks.len() * args.per_task) as u64;
    reporter.report(&Event::Stage { name: "demos".into(), unit: "episode".into(), total, done: 0 });
    let round = rayon::current_num_threads() as u64;
    let mut rows = Vec::new();
    for &task in &tasks {
        let (mut stored, mut tried) = (0, 0);
        // A task that fails more often than every second time is given up.
        while stored < args.per_task && tried < 2 * args.per_task as u64 + 8 && !stop.requested() {
            let play = |i: u64| -> Result<Option<Episode>> {
                let mut env = FlowEnv::new(task, arm, &options)?;
                let (episode, _) = demonstrate_flow(&mut env, &System::oracle(), train_seed(args.first + i))?;
                Ok(episode.filter(|episode| episode.meta.success))
            };
            let played: Vec<_> = (tried..tried + round).into_par_iter().map(play).collect();
            for episode in played {
                tried += 1;
                if let Some(episode) = episode?.filter(|_| stored < args.per_task) {
                    writer.append(&episode)?;
                    stored += 1;
                    reporter.report(&Event::Progress { done: writer.entries().len() as u64 });
                }
            }
        }
        rows.push((task, stored, tried));
    }
    drop(reporter);
    for (task, stored, tried) in &rows {
        ui.object(&json!({ "task": task, "stored": stored, "tried": tried, "out": args.out }));
        ui.line(format!(
            "{}: {} from {}",
            task.id(),
            count(*stored, "episode"),
            count(*tried as usize, "scene")
        ));
    }
    match rows.iter().find(|(_, stored, _)| *stored < args.per_task) {
        None => Ok(()),
        Some(_) if stop.requested() => Err(Failure::interrupted("not all episodes are stored")),
        Some((task, stored, tried)) => {
            Err(Failure::new(format!("`{}` was done only {stored} times in {tried} scenes", task.id())))
        }
    }
}
