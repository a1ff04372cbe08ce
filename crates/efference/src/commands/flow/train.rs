//! `efference flow train`: trains the flow world model, or continues a run.

use std::path::PathBuf;

use efference_train::flow::run::{self, Summary};
use efference_train::flow::{FlowConfig, flow_settings_table, text_table};
use efference_train::run_dir::Taken;

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::ui::Ui;

/// Train the flow world model as a configuration says, or continue a run
///
/// A run is a folder below `run.out`: config.toml, metrics.jsonl, checkpoints, summary.json, flow_world.safetensors (the
/// averaged weights in 16 bits with their description). Ctrl-C saves and leaves a run that `--resume` continues to the
/// same result, bit for bit. Fine-tuning is a run whose `model.init_from` names another one.
#[derive(Debug, clap::Args)]
#[command(after_long_help = format!("Settings, defaults and ranges:\n{}", flow_settings_table()))]
pub(crate) struct Args {
    /// TOML file, for example configs/flow/study.toml
    #[arg(required_unless_present = "resume", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Change a setting of the file; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
    /// Continue this run from its last checkpoint
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// If the run's folder exists, use NAME-2, NAME-3, … instead of refusing
    #[arg(long)]
    suffix: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let stop = interrupt::install(ui)?;
    let reporter = ui.reporter();
    let summary = match (&args.resume, &args.config) {
        (Some(root), _) => run::resume(root, &args.sets, &*reporter, &stop)?,
        (None, Some(file)) => {
            let config = FlowConfig::load(file, &args.sets)?;
            let taken = if args.suffix { Taken::Suffix } else { Taken::Refuse };
            run::start(&config, taken, &*reporter, &stop)?
        }
        (None, None) => return Err(Failure::usage("give a configuration or --resume RUN")),
    };
    drop(reporter);
    finish(&summary, ui)
}

fn finish(summary: &Summary, ui: &Ui) -> Result<()> {
    ui.object(summary);
    let run = summary.run.display();
    if !summary.finished {
        let help = format!("continue with `efference flow train --resume {run}`");
        return Err(Failure::interrupted(format!("stopped at step {}; saved", summary.step)).help(help));
    }
    for (title, metrics) in
        [("held-out scenes", &summary.metrics), ("after reinforcement learning", &summary.improved)]
    {
        if !metrics.is_empty() {
            ui.line(format!("{title} (cm, degrees):\n{}", text_table(metrics).trim_end()));
        }
    }
    for (name, x) in &summary.rl {
        ui.line(format!("{name:<36} {x:.4}"));
    }
    ui.note(format!("run: {run}"));
    Ok(())
}
