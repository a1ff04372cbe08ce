//! Ctrl-C: once to stop after the step in progress, twice to stop at once.

use efference_train::report::StopFlag;

use crate::errors::{Failure, INTERRUPTED, Result};
use crate::ui::Ui;

/// Handles Ctrl-C and SIGTERM from now on: the first sets the returned flag, the second ends the process with 130.
/// Call it once per process.
///
/// # Errors
/// The system refused the handler.
pub fn install(ui: &Ui) -> Result<StopFlag> {
    let flag = StopFlag::new();
    let (asked, ui) = (flag.clone(), ui.clone());
    ctrlc::set_handler(move || {
        if asked.request() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        ui.interrupted("stopping after this step; press again to quit at once");
    })
    .map_err(|error| Failure::from(error).doing("cannot handle Ctrl-C"))?;
    Ok(flag)
}
