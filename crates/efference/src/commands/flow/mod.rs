//! `efference flow`: how objects will move in 3D, from learning it to acting on it.

mod train;

use clap::Subcommand;

use crate::errors::Result;
use crate::ui::Ui;

/// Predict how objects will move in 3D, and make them move so
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Train(train::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Train(args) => train::run(args, ui),
    }
}
