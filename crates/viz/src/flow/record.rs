//! Recordings of flows.

use std::path::Path;

use super::FlowScene;
use super::jsonl::FlowLines;
use crate::error::{Error, Result};

/// Somewhere a recording of flows goes.
pub trait FlowSink: Send {
    /// Records a scene (already validated). Scenes of one recording are rounds of one episode: they follow each other on
    /// the timeline by their `first_frame`.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`], [`Error::Image`].
    fn scene(&mut self, scene: &FlowScene) -> Result<()>;

    /// Ends the recording.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`].
    fn finish(&mut self) -> Result<()>;
}

/// Records one episode of flow to a file: a recording for the rerun viewer, or JSON lines.
pub struct FlowRecorder {
    sink: Box<dyn FlowSink>,
}

impl FlowRecorder {
    /// Starts the file `path`; its ending says what it becomes: `.rrd` or `.jsonl`.
    ///
    /// # Errors
    /// [`Error::Create`] if it cannot be made, [`Error::NoRerun`] for an `.rrd` that this build cannot write,
    /// [`Error::Film`] for another ending.
    pub fn create(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let sink: Box<dyn FlowSink> = match ending {
            "rrd" => open_rrd(path)?,
            "jsonl" => Box::new(FlowLines::create(path)?),
            _ => {
                let reason = "recordings of flow are .rrd or .jsonl".into();
                return Err(Error::Film { path: path.into(), reason });
            }
        };
        Ok(Self { sink })
    }

    /// Records to `sink`.
    #[must_use]
    pub fn with_sink(sink: Box<dyn FlowSink>) -> Self {
        Self { sink }
    }

    /// Records a scene, or the next round of one.
    ///
    /// # Errors
    /// [`Error::Shape`] if its parts do not fit together, and the errors of [`FlowSink::scene`].
    pub fn scene(&mut self, scene: &FlowScene) -> Result<()> {
        scene.validate()?;
        self.sink.scene(scene)
    }

    /// Ends the recording. Dropping the recorder does the same but hides the error.
    ///
    /// # Errors
    /// The errors of [`FlowSink::finish`].
    pub fn finish(mut self) -> Result<()> {
        self.sink.finish()
    }
}

#[cfg(feature = "rerun")]
fn open_rrd(path: &Path) -> Result<Box<dyn FlowSink>> {
    Ok(Box::new(crate::rrd::FlowRrd::create(path)?))
}

#[cfg(not(feature = "rerun"))]
fn open_rrd(_: &Path) -> Result<Box<dyn FlowSink>> {
    Err(Error::NoRerun)
}
