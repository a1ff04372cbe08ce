//! `efference demos`: episodes to learn from.

mod import;
mod libero;
mod list;
mod tabletop;

use clap::Subcommand;

use crate::errors::Result;
use crate::ui::Ui;

/// Make, import or list demonstrations
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Tabletop(tabletop::Args),
    Libero(libero::Args),
    Import(import::Args),
    List(list::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Tabletop(args) => tabletop::run(args, ui),
        What::Libero(args) => libero::run(args, ui),
        What::Import(args) => import::run(args, ui),
        What::List(args) => list::run(args, ui),
    }
}
