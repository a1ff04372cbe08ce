//! `efference view`: opens a recording in the rerun viewer.

use std::path::PathBuf;

use efference_viz::Error;
use efference_viz::view::{INSTALL, Viewer, recording_of};
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// Open a run's recording in the rerun viewer, or say how to install it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A run folder, or a .rrd file
    #[arg(value_name = "RUN|FILE.rrd")]
    path: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let recording = recording_of(&args.path)?;
    let viewer = Viewer::find().map_err(|error| match error {
        Error::ViewerMissing { .. } => Failure::new("the rerun viewer is not installed")
            .help(INSTALL)
            .help(format!("or open {} with a viewer elsewhere", recording.display())),
        other => other.into(),
    })?;
    let mut command = viewer.open_command(&recording);
    ui.note(format!("opening {} with rerun {}", recording.display(), viewer.version));
    ui.object(&json!({ "recording": recording, "viewer": viewer.version }));
    let status = command.status().map_err(|e| Failure::from(e).doing(format!("cannot start {command:?}")))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("the viewer ended with {status}"))) }
}
