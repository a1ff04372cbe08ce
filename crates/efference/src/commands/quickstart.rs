//! `efference quickstart`: from nothing to a policy that learned by reinforcement, in one command.

use std::path::Path;

use efference_train::config::TrainConfig;
use efference_train::evaluate::EvalTable;
use efference_train::run;
use efference_train::run_dir::Taken;

use super::train;
use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::text::percent;
use crate::ui::Ui;

/// The configuration, part of the program so that the command works in any folder.
const CONFIG: &str = include_str!("../../../../configs/quickstart.toml");

/// Watch a small vision-language-action policy learn six tasks: one demonstration each, then SRPO
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change a setting of configs/quickstart.toml; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let config = TrainConfig::from_text(Path::new("configs/quickstart.toml"), CONFIG, &args.sets)?;
    let stop = interrupt::install(ui)?;
    ui.note(
        "A policy of 1.5 million weights that has only learned to move to things it is told (play data) sees ONE\n\
         demonstration of each of six tasks, then practises with SRPO. Success counts on 50 held-out states per task.",
    );
    let reporter = ui.reporter();
    let summary = run::start(&config, Taken::Suffix, &*reporter, &stop)?;
    drop(reporter);
    train::finish(&summary, ui)?;
    let (Some(before), Some(after)) = (summary.eval("before_rl"), summary.eval("after_rl")) else {
        let help = "leave [rl] and eval.episodes_per_task as they are";
        return Err(Failure::new("success before and after RL was not measured").help(help));
    };
    let episodes = |table: &EvalTable| table.tasks.iter().map(|t| t.episodes).sum::<u64>();
    let (b, a) = (percent(before.mean()), percent(after.mean()));
    ui.line(format!("quickstart: success before RL {b}, after {a} ({} episodes each)", episodes(after)));
    Ok(())
}
