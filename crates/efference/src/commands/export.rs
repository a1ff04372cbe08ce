//! `efference export`: the weights of a checkpoint as one file.

use std::path::PathBuf;

use efference_train::checkpoint::{self, Dtype};

use crate::errors::Result;
use crate::text::{bytes, count};
use crate::ui::Ui;

/// Write the weights of a checkpoint or run as one .safetensors file
///
/// The file can be the `init_from` of another run's [model], and other programs read it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checkpoint folder, or run folder (its last checkpoint)
    checkpoint: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Round the numbers to 16 bits: half the size
    #[arg(long)]
    f16: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let weights = checkpoint::load_weights(&args.checkpoint)?;
    let dtype = if args.f16 { Dtype::F16 } else { Dtype::F32 };
    let size = checkpoint::export(&weights, dtype, &args.out)?;
    ui.line(format!("{}: {} of {}", args.out.display(), bytes(size), count(weights.len(), "tensor")));
    Ok(())
}
