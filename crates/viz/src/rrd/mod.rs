//! The rerun sink: one `.rrd` file with two recordings.
//!
//! A viewer shows curves only on the active timeline, and training steps and control steps are different
//! timelines. So the file holds the recording "training" (timeline `update`) and the recording "rollouts"
//! (timelines `frame` and `sim_time`), each with its own layout. The viewer opens the recording whose layout
//! comes last in the file, "rollouts"; the other is a click away in its left panel.
//!
//! Messages are collected in memory and written here, not by rerun's own file sink, because that one only
//! logs a failed write; training must know that its recording ended.

mod blueprint;
mod contents;
mod entities;
mod file;
mod flow;
mod layout;
mod shapes;
mod stream;
mod training;

pub(crate) use contents::contents;
pub(crate) use flow::FlowRrd;

use crate::episode::EpisodeRecord;
use crate::error::{Error, Result};
use crate::recorder::{RecorderOptions, Sink};
use file::RrdFile;
use layout::Layout;
use std::collections::BTreeMap;
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
    /// The saved layout is out of date.
    is_layout_stale: bool,
    /// The drawing of the training curves beside the episodes is out of date.
    is_drawing_stale: bool,
    /// The arrangement the viewer shows is out of date.
    is_blueprint_stale: bool,
    /// [`Layout::shown`] of that arrangement.
    shown_before: usize,
    /// Training points that are not yet written, per curve: a message per point would be mostly overhead.
    points: BTreeMap<String, Vec<(i64, f64)>>,
    pending_points: usize,
    options: RecorderOptions,
}

impl RrdSink {
    /// Starts `path`, or continues the recording in it.
    pub(crate) fn open(path: &Path, options: &RecorderOptions) -> Result<Self> {
        let (file, layout) =
            if options.resume { file::resume(path)? } else { (RrdFile::create(path)?, None) };
        let is_new = layout.is_none();
        let sink = Self {
            file,
            training: Stream::new(TRAINING, &options.run_id, &options.title)?,
            rollouts: Stream::new(ROLLOUTS, &options.run_id, &options.title)?,
            layout: layout.unwrap_or_default(),
            is_layout_stale: is_new,
            is_drawing_stale: true,
            is_blueprint_stale: true,
            shown_before: 0,
            points: BTreeMap::new(),
            pending_points: 0,
            options: options.clone(),
        };
        // A recording is announced with its first data, and a continued file has announced it already.
        if !is_new {
            sink.training.take(TRAINING)?;
            sink.rollouts.take(ROLLOUTS)?;
        }
        Ok(sink)
    }

    /// Training points that wait, one message per curve.
    fn write_points(&mut self) -> Result<()> {
        self.pending_points = 0;
        for (path, points) in std::mem::take(&mut self.points) {
            let times = rerun::TimeColumn::new_sequence(UPDATE, points.iter().map(|(update, _)| *update));
            let values = rerun::Scalars::new(points.iter().map(|(_, value)| *value));
            let columns = values.columns_of_unit_batches().encode(&path)?;
            self.training.rec.send_columns(path.as_str(), [times], columns).encode(&path)?;
        }
        self.file.append(&self.training.take(TRAINING)?)
    }

    /// The run's card, in the recording that the viewer opens.
    fn write_card(&mut self) -> Result<()> {
        let text = rerun::TextDocument::from_markdown(self.layout.card.as_str());
        self.main_stream().rec.log_static(layout::CARD, &text).encode(layout::CARD)?;
        let messages = self.main_stream().take(layout::CARD)?;
        self.file.append(&messages)
    }

    fn write_blueprints(&mut self) -> Result<()> {
        self.is_blueprint_stale = false;
        self.shown_before = self.layout.shown();
        // Without data, a layout would only make the viewer complain about a missing timeline.
        if self.has_curves() {
            let messages = blueprint::curves(&self.layout).messages(&self.training)?;
            self.file.append(&messages)?;
        }
        if self.has_episodes() {
            let messages = blueprint::rollouts(&self.layout).messages(&self.rollouts)?;
            self.file.append(&messages)?;
        }
        Ok(())
    }

    fn has_curves(&self) -> bool {
        !self.layout.curves.is_empty()
    }

    fn has_episodes(&self) -> bool {
        !self.layout.stages.is_empty()
    }

    /// The recording to put something in that belongs to the whole run.
    fn main_stream(&self) -> &Stream {
        if self.has_episodes() { &self.rollouts } else { &self.training }
    }
}

impl Sink for RrdSink {
    fn episode(&mut self, episode: &EpisodeRecord) -> Result<()> {
        let is_first = !self.has_episodes();
        let slot = self.layout.add(episode);
        self.is_layout_stale = true;
        if is_first && !self.layout.card.is_empty() {
            self.write_card()?;
        }
        entities::log_episode(&self.rollouts.rec, &slot, episode, &self.options)?;
        self.file.append(&self.rollouts.take(&slot)?)
    }

    fn training(&mut self, update: u64, values: &[(&str, f64)]) -> Result<()> {
        for (name, value) in values.iter().filter(|(_, value)| value.is_finite()) {
            let (path, is_new) = self.layout.curve(name);
            if is_new {
                self.is_layout_stale = true;
                let color = self.layout.curve_color(name);
                entities::log_curve_style(&self.training.rec, &path, name, color).encode(&path)?;
            }
            let points = self.points.entry(path).or_default();
            points.push((i64::try_from(update).unwrap_or(i64::MAX), *value));
            self.is_drawing_stale |= self.layout.remember(name, update, *value);
            self.pending_points += 1;
        }
        if self.pending_points >= MAX_PENDING_POINTS { self.write_points() } else { Ok(()) }
    }

    fn summary(&mut self, markdown: &str) -> Result<()> {
        self.is_layout_stale |= self.layout.card != markdown;
        self.layout.card = markdown.into();
        self.write_card()
    }

    fn flush(&mut self) -> Result<()> {
        self.write_points()?;
        // The layout keeps the points of the drawing for a resumed run.
        self.is_layout_stale |= self.is_drawing_stale;
        if self.is_drawing_stale && self.has_curves() && self.has_episodes() {
            self.is_drawing_stale = false;
            training::draw(&self.rollouts.rec, &self.layout)?;
            let messages = self.rollouts.take(training::DRAWING)?;
            self.file.append(&messages)?;
        }
        if std::mem::take(&mut self.is_layout_stale) {
            self.layout.save(&self.main_stream().rec).encode(layout::PROPERTY)?;
            let messages = self.main_stream().take(layout::PROPERTY)?;
            self.file.append(&messages)?;
        }
        // Arrangements cannot be taken back from the file. Waiting until there is half as much again to show
        // keeps all of them together as small as about three times the last one.
        let shown = self.layout.shown();
        self.is_blueprint_stale |= shown != self.shown_before;
        if self.is_blueprint_stale && 2 * shown >= 3 * self.shown_before {
            self.write_blueprints()?;
        }
        self.file.sync()
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        if self.is_blueprint_stale {
            self.write_blueprints()?;
        }
        self.file.finish()
    }
}

impl Drop for RrdSink {
    fn drop(&mut self) {
        // Errors were for `finish` to return; here nobody can hear them, and the file ends with a whole message.
        let _ = self.finish();
    }
}

/// Training points held back at most before they are written.
const MAX_PENDING_POINTS: usize = 1000;

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
