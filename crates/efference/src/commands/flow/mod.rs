//! `efference flow`: how objects will move in 3D, from learning it to acting on it.

mod demos;
mod judge;
mod metrics;
mod picture;
mod predict;
mod run;
mod scenes;
mod show;
mod systems;
mod table;
mod train;
mod view;

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
    Train(Box<train::Args>),
    Predict(Box<predict::Args>),
    Metrics(metrics::Args),
    Judge(judge::Args),
    Run(Box<run::Args>),
    Table(Box<table::Args>),
    Demos(demos::Args),
    View(Box<view::Args>),
    Picture(picture::Args),
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.what {
        What::Train(args) => train::run(args, ui),
        What::Predict(args) => predict::run(args, ui),
        What::Metrics(args) => metrics::run(args, ui),
        What::Judge(args) => judge::run(args, ui),
        What::Run(args) => run::run(args, ui),
        What::Table(args) => table::run(args, ui),
        What::Demos(args) => demos::run(args, ui),
        What::View(args) => view::run(args, ui),
        What::Picture(args) => picture::run(args, ui),
    }
}
