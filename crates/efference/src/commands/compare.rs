//! `efference compare`: several runs as one table.

use std::path::PathBuf;

use efference_train::compare;

use crate::errors::Result;
use crate::ui::Ui;

/// Success against rollouts of several runs, as a Markdown table
///
/// Runs that are named LABEL-sSEED are averaged over their seeds; lowest and highest stand in parentheses.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run folders
    #[arg(required = true)]
    runs: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let rows = args.runs.iter().map(|run| compare::read(run)).collect::<efference_train::Result<Vec<_>>>()?;
    for row in &rows {
        ui.object(row);
    }
    ui.line(compare::markdown(&compare::lines(&rows)).trim_end());
    Ok(())
}
