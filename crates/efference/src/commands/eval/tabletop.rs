//! `efference eval tabletop`: success of a checkpoint on the fixed evaluation states.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use efference_envs::tabletop::Task;
use efference_train::config::{EnvConfig, EvalConfig};
use efference_train::evaluate::EvalTable;
use efference_train::report::{Event, Reporter};
use efference_train::run::in_pool;
use efference_train::world::{Tabletop, World};
use efference_train::{evaluate, policy_file};
use serde::Serialize;

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::ui::Ui;

/// Measure a checkpoint's success on the fixed evaluation states of the tabletop
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checkpoint folder, or run folder (its last checkpoint)
    #[arg(long, value_name = "CHECKPOINT")]
    policy: PathBuf,
    /// Only this task; may be given several times
    #[arg(long = "task", value_name = "ID", value_parser = PossibleValuesParser::new(Task::ids()))]
    tasks: Vec<String>,
    /// Episodes per task: the first N evaluation states
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    episodes: u32,
    /// Sampling temperature; 0 takes the most likely action
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Which weights act: those that were trained, or their moving average (`optimizer.ema`)
    #[arg(long, default_value = "trained", value_parser = ["trained", "ema"])]
    weights: String,
    /// Extra objects that no instruction names
    #[arg(long)]
    distractors: bool,
    /// Light that changes from reset to reset
    #[arg(long)]
    lighting: bool,
    /// Episode limit in control steps; 0 takes the suite's limit
    #[arg(long, default_value_t = 0)]
    max_steps: usize,
    /// Worker threads; 0 takes all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// For `--json`.
#[derive(Serialize)]
struct Outcome<'a> {
    checkpoint: &'a std::path::Path,
    mujoco_version: &'a str,
    mean_success: f64,
    #[serde(flatten)]
    table: &'a EvalTable,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Failure::usage("--temperature must be 0 or more"));
    }
    let stop = interrupt::install(ui)?;
    let loaded = policy_file::load(&args.policy, "tabletop", None, args.weights == "ema")?;
    let env = EnvConfig {
        tasks: args.tasks.clone(),
        image_size: loaded.policy.image_size(),
        max_steps: args.max_steps,
        distractors: args.distractors,
        lighting: args.lighting,
        ..EnvConfig::default()
    };
    let world = Tabletop::new(&env)?;
    let config = EvalConfig {
        episodes_per_task: args.episodes as usize,
        temperature: args.temperature,
        ..EvalConfig::default()
    };
    let reporter = ui.reporter();
    let total = (config.episodes_per_task * world.tasks().len()) as u64;
    reporter.report(&Event::Stage { name: "eval".into(), unit: "episode".into(), total, done: 0 });
    let reporting: &dyn Reporter = &*reporter;
    let result = in_pool(args.threads, || {
        evaluate::evaluate(&world, &loaded.policy, &config, false, &stop, &mut |done| {
            reporting.report(&Event::Progress { done: done as u64 });
        })
    })?;
    let Some((tasks, _)) = result else {
        return Err(Failure::interrupted("stopped before all episodes were played; nothing is reported"));
    };
    let table = EvalTable { label: "eval".into(), step: loaded.step, tasks };
    reporter.report(&Event::Eval {
        label: table.label.clone(),
        step: table.step,
        tasks: table.tasks.clone(),
    });
    ui.object(&Outcome {
        checkpoint: &loaded.path,
        mujoco_version: &loaded.mujoco_version,
        mean_success: table.mean(),
        table: &table,
    });
    ui.note(format!("checkpoint {}, MuJoCo {}", loaded.path.display(), loaded.mujoco_version));
    Ok(())
}
