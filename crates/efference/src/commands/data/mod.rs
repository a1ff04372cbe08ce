//! `efference data`: sets of flows.

mod check;
mod flow;
mod video;

use clap::Subcommand;

use crate::errors::Result;
use crate::ui::Ui;

/// Make or check sets of object flows
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Flow(flow::Args),
    Video(video::Args),
    Check(check::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Flow(args) => flow::run(args, ui),
        What::Video(args) => video::run(args, ui),
        What::Check(args) => check::run(args, ui),
    }
}
