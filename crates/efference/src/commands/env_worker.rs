//! `efference env-worker`: a LIBERO simulator on standard input and output, for `eval libero --isolate`.

use std::io;

use efference_rollout::libero::worker;

use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// Serve a simulator over standard input and output (started by `eval libero --isolate`)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, _: &Ui) -> Result<()> {
    let served = worker::serve(io::stdin().lock(), io::stdout().lock());
    match served {
        // Whoever started this is gone: nobody is left to be told.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        served => served.map_err(|e| Failure::from(e).doing("the pipe to the evaluation broke")),
    }
}
