//! `efference eval`: success of a policy on the fixed evaluation states.

mod libero;
mod tabletop;

use clap::Subcommand;

use crate::errors::Result;
use crate::ui::Ui;

/// Measure a policy's success on the fixed evaluation states of a suite
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Tabletop(tabletop::Args),
    Libero(Box<libero::Args>),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Tabletop(args) => tabletop::run(args, ui),
        What::Libero(args) => libero::run(args, ui),
    }
}
