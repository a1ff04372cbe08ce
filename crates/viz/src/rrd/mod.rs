//! The rerun sink: one `.rrd` file with two recordings.
//!
//! A viewer shows curves only on the active timeline, and training steps and control steps are different
//! timelines. So the file holds the recording "training" (timeline `update`) and the recording "rollouts"
//! (timelines `frame` and `sim_time`), each with its own layout. The viewer opens the one that comes last in
//! the file, "rollouts"; the other is a click away in its left panel.
//!
//! Messages are collected in memory and written here, not by rerun's own file sink, because that one only
//! logs a failed write; training must know that its recording ended.

mod blueprint;
mod entities;
mod file;
mod layout;
mod stream;

use crate::episode::EpisodeRecord;
use crate::error::{Error, Result};
use crate::recorder::{RecorderOptions, Sink};
use file::RrdFile;
use layout::Layout;
use std::fmt::Display;
use std::path::Path;
use stream::Stream;

/// Name of the recording with the episodes, as the viewer lists it.
const ROLLOUTS: &str = "efference rollouts";
/// Name of the recording with the training curves.
const TRAINING: &str = "efference training";

pub(crate) struct RrdSink {
    file: RrdFile,
    training: Stream,
    rollouts: Stream,
    layout: Layout,
    /// The layout in the file is out of date.
    is_layout_stale: bool,
    options: RecorderOptions,
}

impl RrdSink {
    /// Starts `path`, or continues the recording in it.
    pub(crate) fn open(path: &Path, options: &RecorderOptions) -> Result<Self> {
        let (file, layout) =
            if options.resume { file::resume(path)? } else { (RrdFile::create(path)?, None) };
        let is_new = layout.is_none();
        let mut sink = Self {
            file,
            training: Stream::new(TRAINING, &options.run_id, &options.title)?,
            rollouts: Stream::new(ROLLOUTS, &options.run_id, &options.title)?,
            layout: layout.unwrap_or_default(),
            is_layout_stale: is_new,
            options: options.clone(),
        };
        let (training, rollouts) = (sink.training.take(TRAINING)?, sink.rollouts.take(ROLLOUTS)?);
        // A continued file has announced both recordings already.
        if is_new {
            sink.file.append(&training)?;
            sink.file.append(&rollouts)?;
        }
        Ok(sink)
    }
}

impl Sink for RrdSink {
    fn episode(&mut self, episode: &EpisodeRecord) -> Result<()> {
        let slot = self.layout.add(episode);
        self.is_layout_stale = true;
        entities::log_episode(&self.rollouts.rec, &slot, episode, &self.options)?;
        self.file.append(&self.rollouts.take(&slot)?)
    }

    fn training(&mut self, update: u64, values: &[(&str, f64)]) -> Result<()> {
        let rec = &self.training.rec;
        rec.set_time_sequence(UPDATE, i64::try_from(update).unwrap_or(i64::MAX));
        for (name, value) in values.iter().filter(|(_, value)| value.is_finite()) {
            let (path, is_new) = self.layout.curve(name);
            if is_new {
                self.is_layout_stale = true;
                entities::log_curve_style(rec, &path, name, self.layout.curve_color(name)).encode(&path)?;
            }
            rec.log(path.as_str(), &rerun::Scalars::single(*value)).encode(&path)?;
        }
        self.file.append(&self.training.take(TRAINING)?)
    }

    fn summary(&mut self, markdown: &str) -> Result<()> {
        self.is_layout_stale |= !std::mem::replace(&mut self.layout.has_card, true);
        for stream in [&self.rollouts, &self.training] {
            let text = rerun::TextDocument::from_markdown(markdown);
            stream.rec.log_static(layout::CARD, &text).encode(layout::CARD)?;
        }
        self.file.append(&self.training.take(TRAINING)?)?;
        self.file.append(&self.rollouts.take(ROLLOUTS)?)
    }

    fn flush(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_layout_stale) {
            let mut messages = blueprint::training(&self.layout).messages(&self.training)?;
            messages.extend(blueprint::rollouts(&self.layout).messages(&self.rollouts)?);
            self.layout.save(&self.rollouts.rec).encode(layout::PROPERTY)?;
            messages.extend(self.rollouts.take(ROLLOUTS)?);
            self.file.append(&messages)?;
        }
        self.file.sync()
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.file.finish()
    }
}

impl Drop for RrdSink {
    fn drop(&mut self) {
        // Errors were for `finish` to return; here nobody can hear them, and the file ends with a whole message.
        let _ = self.finish();
    }
}

/// Timeline of training steps.
const UPDATE: &str = "update";
/// Timeline of control steps.
const FRAME: &str = "frame";
/// Timeline of simulated seconds.
const SIM_TIME: &str = "sim_time";

/// Turns the library's errors into ours.
trait OrEncode<T> {
    /// `what`: the entity or message that was encoded.
    fn encode(self, what: &str) -> Result<T>;
}

impl<T, E: Display> OrEncode<T> for std::result::Result<T, E> {
    fn encode(self, what: &str) -> Result<T> {
        self.map_err(|e| Error::Encode { what: what.into(), reason: e.to_string() })
    }
}

#[cfg(test)]
mod tests;
