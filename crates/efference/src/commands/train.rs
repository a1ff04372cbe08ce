//! `efference train`: runs the stages of a configuration, or continues a run.

use std::path::PathBuf;

use efference_train::config::{TrainConfig, settings_table};
use efference_train::report::TaskScore;
use efference_train::run::{self, Summary};
use efference_train::run_dir::Taken;

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::text::percent;
use crate::ui::Ui;

/// Train a policy as a configuration says, or continue a run
///
/// A run is a folder below `run.out`: config.toml, metrics.jsonl, checkpoints, recording.rrd, report.html, summary.json.
/// Ctrl-C saves and leaves a run that `--resume` continues to the same result, bit for bit.
#[derive(Debug, clap::Args)]
#[command(after_long_help = format!("Settings, defaults and ranges:\n{}", settings_table()))]
pub(crate) struct Args {
    /// TOML file, for example configs/tabletop_srpo.toml
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
            let config = TrainConfig::load(file, &args.sets)?;
            let taken = if args.suffix { Taken::Suffix } else { Taken::Refuse };
            run::start(&config, taken, &*reporter, &stop)?
        }
        (None, None) => return Err(Failure::usage("give a configuration or --resume RUN")),
    };
    drop(reporter);
    finish(&summary, ui)
}

/// Says where the run is and what came out; a run that was stopped is an interruption.
pub(super) fn finish(summary: &Summary, ui: &Ui) -> Result<()> {
    ui.object(&summary);
    let run = summary.run.display();
    if !summary.finished {
        let help = format!("continue with `efference train --resume {run}`");
        return Err(Failure::interrupted(format!("stopped at step {}; saved", summary.step)).help(help));
    }
    if let Some(held_out) = &summary.held_out {
        ui.line(format!(
            "held-out demonstrations: {:.3} nats per action token (uniform {:.3}, action marginals {:.3}; {} tokens)",
            held_out.nll, held_out.uniform, held_out.marginal, held_out.tokens
        ));
    }
    for table in &summary.evals {
        let episodes: u64 = table.tasks.iter().map(|t: &TaskScore| t.episodes).sum();
        ui.line(format!(
            "{:<10} step {:<6} success {} of {episodes} episodes",
            table.label,
            table.step,
            percent(table.mean())
        ));
    }
    ui.note(format!("run: {run} (report.html; `efference view {run}` for the recording)"));
    Ok(())
}
