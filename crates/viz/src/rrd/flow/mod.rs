//! Flows as a recording: one `.rrd` file per episode; rounds of planning follow each other on its timeline.
//!
//! ```text
//! world                        z up
//! world/scene                  the cloud that the depth camera saw, without the object
//! world/object                 the rigid motion; below it the object's cloud
//! world/flow/truth/{points,trail}      per frame; one colour per point
//! world/flow/pred/{k}/{points,trail}   sample k; the same hues, paler
//! world/flow/error             lines from the true to the predicted points, green to red (0 to 5 cm)
//! world/fit/{axes,outliers,residual}   of the shown sample
//! world/goal/ghost             the object's cloud where the shown sample leaves it
//! world/ee/{plan,plan/axes,executed}, world/grasps/{chosen,possible,rejected}
//! world/cam/{rgb,depth,tracks/truth,tracks/pred}
//! judged/{k}                   the picture that was judged
//! plot/{error_cm/*,rigid_rms_mm/*,...}, phase, verdict, card
//! denoise/flow                 the shown sample on its way out of the noise, timeline `denoise`
//! ```
//!
//! Trails are strips that grow with the frames: the viewer has no setting in a file for how long old data stay visible.
//! They are drawn for a part of the points only, because their size is the square of the number of frames.

mod entities;
mod layout;
mod plans;
mod words;

use std::path::Path;

use super::file::RrdFile;
use super::stream::Stream;
use crate::error::Result;
use crate::flow::{FlowScene, FlowSink};
use layout::Shown;

/// Name of the recording, as the viewer lists it.
pub(super) const FLOW: &str = "efference flow";
/// Timeline of the sampler's steps.
const DENOISE: &str = "denoise";
/// Timeline of the rounds of planning.
const ROUND: &str = "round";

/// Writes an episode of flow to an `.rrd` file.
pub(crate) struct FlowRrd {
    file: RrdFile,
    /// Made with the first scene, whose name and seed are the recording's.
    stream: Option<Stream>,
    shown: Shown,
}

impl FlowRrd {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: RrdFile::create(path)?, stream: None, shown: Shown::default() })
    }
}

impl FlowSink for FlowRrd {
    fn scene(&mut self, scene: &FlowScene) -> Result<()> {
        let is_first = self.stream.is_none();
        if is_first {
            let id = format!("{}_{}", super::layout::part(&scene.name), scene.seed);
            let title = format!("{} (seed {})", scene.instruction, scene.seed);
            self.stream = Some(Stream::new(FLOW, &id, &title)?);
        }
        let Some(stream) = &self.stream else { return Ok(()) };
        if is_first {
            entities::log_fixed(&stream.rec, scene)?;
        }
        entities::log(&stream.rec, scene, self.shown.predictions)?;
        self.shown.add(scene);
        self.file.append(&stream.take(FLOW)?)
    }

    fn finish(&mut self) -> Result<()> {
        // Once: a second call (by `drop`) finds no stream.
        if let Some(stream) = self.stream.take() {
            let messages = layout::book(&self.shown).messages(&stream)?;
            self.file.append(&messages)?;
        }
        self.file.finish()
    }
}

impl Drop for FlowRrd {
    fn drop(&mut self) {
        // Errors were for `finish` to return; the file ends with a whole message.
        let _ = self.finish();
    }
}
