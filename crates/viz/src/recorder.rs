//! [`Recorder`]: the only way the rest of the code talks to a viewer.

use crate::episode::EpisodeRecord;
use crate::error::{Error, Result};
use crate::jsonl::JsonLines;
use std::collections::BTreeMap;
use std::path::Path;

/// File name of the recording for the rerun viewer inside a run's folder.
pub const RRD_FILE: &str = "recording.rrd";
/// File name of the JSON lines recording inside a run's folder.
pub const JSONL_FILE: &str = "recording.jsonl";

/// Somewhere a recording goes. Calls may write to disk but never wait for a viewer.
pub trait Sink: Send {
    /// Records a whole episode (already validated).
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`], [`Error::Image`].
    fn episode(&mut self, episode: &EpisodeRecord) -> Result<()>;

    /// Records scalars of one training step. Names may group with `/`.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`].
    fn training(&mut self, update: u64, values: &[(&str, f64)]) -> Result<()>;

    /// Sets the text of the run's card (Markdown); the last one counts.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`].
    fn summary(&mut self, markdown: &str) -> Result<()>;

    /// Brings everything to the disk, so that the file can be opened now.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`].
    fn flush(&mut self) -> Result<()>;

    /// Ends the recording.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Encode`].
    fn finish(&mut self) -> Result<()>;
}

/// What to record.
#[derive(Debug, Clone)]
pub struct RecorderOptions {
    /// Title of the run, shown in the viewer.
    pub title: String,
    /// Identity of the run; a resumed run uses the same one. Letters, digits, `-`, `_`.
    pub run_id: String,
    /// Write [`RRD_FILE`].
    pub rrd: bool,
    /// Write [`JSONL_FILE`].
    pub jsonl: bool,
    /// Continue the files that are there instead of starting new ones.
    pub resume: bool,
    /// JPEG quality of camera images, 1 to 100.
    pub jpeg_quality: u8,
    /// Most images per camera and episode; more are thinned out evenly.
    pub max_images: usize,
}

impl Default for RecorderOptions {
    /// Both files (the `.rrd` if this build can), quality 88, 200 images.
    fn default() -> Self {
        Self {
            title: "efference".into(),
            run_id: "run".into(),
            rrd: crate::HAS_RERUN,
            jsonl: true,
            resume: false,
            jpeg_quality: 88,
            max_images: 200,
        }
    }
}

/// Records episodes and training curves to every sink that still works.
///
/// An error never needs to stop a run. After [`Error::Write`] or [`Error::Encode`] that sink is closed and
/// stays silent; the error is returned once, for the caller to print. [`Error::Shape`] means this one episode
/// was skipped. All sinks get the data even if an earlier one fails; the first error is returned.
pub struct Recorder {
    sinks: Vec<Box<dyn Sink>>,
}

impl Recorder {
    /// Records to the files in `dir` that `options` ask for.
    ///
    /// # Errors
    /// [`Error::Create`] if a file cannot be made, [`Error::Resume`] if an old one cannot be continued,
    /// [`Error::NoRerun`] if an `.rrd` is asked for that this build cannot write.
    pub fn open(dir: &Path, options: &RecorderOptions) -> Result<Self> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if options.rrd {
            sinks.push(open_rrd(&dir.join(RRD_FILE), options)?);
        }
        if options.jsonl {
            sinks.push(Box::new(JsonLines::open(&dir.join(JSONL_FILE), options.resume)?));
        }
        Ok(Self { sinks })
    }

    /// Records to the given sinks.
    #[must_use]
    pub fn with_sinks(sinks: Vec<Box<dyn Sink>>) -> Self {
        Self { sinks }
    }

    /// Records nothing.
    #[must_use]
    pub fn null() -> Self {
        Self { sinks: Vec::new() }
    }

    /// Whether anything is still recorded; if not, callers can save the work of building records.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.sinks.is_empty()
    }

    /// Records a whole episode. See [`Sink::episode`] and the note on errors at [`Recorder`].
    ///
    /// # Errors
    /// [`Error::Shape`] if its parts do not fit together, and the errors of [`Sink::episode`].
    pub fn episode(&mut self, episode: &EpisodeRecord) -> Result<()> {
        if self.is_active() {
            episode.validate()?;
        }
        self.each(|sink| sink.episode(episode))
    }

    /// Records scalars of one training step. See [`Sink::training`].
    ///
    /// # Errors
    /// The errors of [`Sink::training`].
    pub fn training(&mut self, update: u64, values: &[(&str, f64)]) -> Result<()> {
        self.each(|sink| sink.training(update, values))
    }

    /// Sets the run's card. See [`Sink::summary`].
    ///
    /// # Errors
    /// The errors of [`Sink::summary`].
    pub fn summary(&mut self, markdown: &str) -> Result<()> {
        self.each(|sink| sink.summary(markdown))
    }

    /// Brings everything to the disk with an up-to-date layout; call at checkpoints and between phases.
    ///
    /// # Errors
    /// The errors of [`Sink::flush`].
    pub fn flush(&mut self) -> Result<()> {
        self.each(|sink| sink.flush())
    }

    /// Ends the recording. Dropping a recorder does the same but hides the error.
    ///
    /// # Errors
    /// The errors of [`Sink::finish`].
    pub fn finish(mut self) -> Result<()> {
        self.each(|sink| sink.finish())
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Sink) -> Result<()>) -> Result<()> {
        let mut first = Ok(());
        self.sinks.retain_mut(|sink| match act(sink.as_mut()) {
            Ok(()) => true,
            Err(e) => {
                let alive = !matches!(e, Error::Write { .. } | Error::Encode { .. });
                if first.is_ok() {
                    first = Err(e);
                }
                alive
            }
        });
        first
    }
}

#[cfg(feature = "rerun")]
fn open_rrd(path: &Path, options: &RecorderOptions) -> Result<Box<dyn Sink>> {
    Ok(Box::new(crate::rrd::RrdSink::open(path, options)?))
}

#[cfg(not(feature = "rerun"))]
fn open_rrd(_: &Path, _: &RecorderOptions) -> Result<Box<dyn Sink>> {
    Err(Error::NoRerun)
}

/// Recordings of a file by name, each with its entities and how many timed rows they have (0 for entities that do
/// not change).
pub type Contents = BTreeMap<String, BTreeMap<String, usize>>;

/// What an `.rrd` file holds, read back with the viewer's own library. Of a file that ends within a message (its
/// run was killed), what is whole.
///
/// # Errors
/// [`Error::NoRecording`] if the file cannot be opened, [`Error::Encode`] if there is no recording in it,
/// [`Error::NoRerun`] if this build cannot read it.
#[cfg(feature = "rerun")]
pub fn contents(path: &Path) -> Result<Contents> {
    crate::rrd::contents(path)
}

/// What an `.rrd` file holds: not in this build, which cannot read it.
///
/// # Errors
/// [`Error::NoRerun`].
#[cfg(not(feature = "rerun"))]
pub fn contents(_: &Path) -> Result<Contents> {
    Err(Error::NoRerun)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::episode::Pose;
    use std::sync::{Arc, Mutex};

    /// Counts calls; fails with a write error from call number `fails_at`.
    struct Counting {
        calls: Arc<Mutex<usize>>,
        fails_at: usize,
    }

    impl Counting {
        fn call(&self) -> Result<()> {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            let full = || Error::Write { path: "x".into(), source: std::io::ErrorKind::StorageFull.into() };
            if *calls >= self.fails_at { Err(full()) } else { Ok(()) }
        }
    }

    impl Sink for Counting {
        fn episode(&mut self, _: &EpisodeRecord) -> Result<()> {
            self.call()
        }
        fn training(&mut self, _: u64, _: &[(&str, f64)]) -> Result<()> {
            self.call()
        }
        fn summary(&mut self, _: &str) -> Result<()> {
            self.call()
        }
        fn flush(&mut self) -> Result<()> {
            self.call()
        }
        fn finish(&mut self) -> Result<()> {
            self.call()
        }
    }

    #[test]
    fn a_broken_sink_is_reported_once_and_others_go_on() {
        let counts: [Arc<Mutex<usize>>; 2] = Default::default();
        let sink =
            |i: usize, fails_at| Box::new(Counting { calls: counts[i].clone(), fails_at }) as Box<dyn Sink>;
        let mut recorder = Recorder::with_sinks(vec![sink(0, 2), sink(1, 99)]);
        recorder.training(0, &[]).unwrap();
        assert!(matches!(recorder.training(1, &[]), Err(Error::Write { .. })));
        recorder.training(2, &[]).unwrap();
        recorder.flush().unwrap();
        assert_eq!((*counts[0].lock().unwrap(), *counts[1].lock().unwrap()), (2, 4));
    }

    #[test]
    fn a_bad_episode_is_skipped_and_recording_goes_on() {
        let calls = Arc::default();
        let sink = Counting { calls: Arc::clone(&calls), fails_at: 99 };
        let mut recorder = Recorder::with_sinks(vec![Box::new(sink)]);
        let mut episode = EpisodeRecord {
            stage: "s".into(),
            name: "n".into(),
            control_hz: 20.0,
            gripper: vec![Pose::identity()],
            rewards: vec![0.0],
            ..Default::default()
        };
        assert!(matches!(recorder.episode(&episode), Err(Error::Shape { .. })));
        episode.rewards.clear();
        recorder.episode(&episode).unwrap();
        assert_eq!(*calls.lock().unwrap(), 1);
        Recorder::null().episode(&episode).unwrap();
    }

    #[test]
    fn a_missing_folder_is_named() {
        let options = RecorderOptions { rrd: false, ..Default::default() };
        let error = Recorder::open(Path::new("/nonexistent/run"), &options).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/run/recording.jsonl"), "{error}");
    }

    #[cfg(not(feature = "rerun"))]
    #[test]
    fn without_rerun_an_rrd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = RecorderOptions { rrd: true, ..Default::default() };
        assert!(matches!(Recorder::open(dir.path(), &options), Err(Error::NoRerun)));
    }
}
