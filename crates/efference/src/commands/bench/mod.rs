//! `efference bench`: how fast this machine does what a run consists of.

mod rollout;

use crate::errors::Result;
use crate::ui::Ui;

/// Measure this machine's speed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Rollout(rollout::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Rollout(args) => rollout::run(args, ui),
    }
}
