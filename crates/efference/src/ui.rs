//! Where a command's words go: results to stdout, everything else to stderr, all of it as JSON if asked for.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use efference_train::report::{Event, Reporter};
use indicatif::MultiProgress;
use serde::Serialize;

use crate::console::Console;

/// How to talk. Cheap to clone; clones share the bars.
#[derive(Clone, Debug)]
pub struct Ui {
    quiet: bool,
    json: bool,
    bars: MultiProgress,
    /// Whether a bar is on the screen.
    bar_shown: Arc<AtomicBool>,
}

impl Ui {
    /// As the flags `--quiet` and `--json` say.
    pub fn new(quiet: bool, json: bool) -> Self {
        Self { quiet, json, bars: MultiProgress::new(), bar_shown: Arc::default() }
    }

    /// Whether a machine listens.
    pub fn json(&self) -> bool {
        self.json
    }

    /// A line of the result for a person, on stdout; nothing with `--json`.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            self.bars.suspend(|| write_line(text.as_ref()));
        }
    }

    /// A part of the result for a machine, on stdout; nothing without `--json`.
    pub fn object(&self, value: &impl Serialize) {
        if self.json
            && let Ok(line) = serde_json::to_string(value)
        {
            write_line(&line);
        }
    }

    /// A sentence aside, on stderr: not part of the result. Silent with `--quiet` and `--json`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            self.aside(text.as_ref());
        }
    }

    /// As [`Ui::note`], also with `--quiet`: for what a person must know.
    pub fn warn(&self, text: impl AsRef<str>) {
        if !self.json {
            self.aside(text.as_ref());
        }
    }

    /// As [`Ui::warn`], from the handler of Ctrl-C.
    pub fn interrupted(&self, text: &str) {
        // The cursor waits at the end of the bar's padded last line, so the `^C` that the terminal echoed stands on the
        // next one. Unless it is taken back, the bar is cleared one line too low and its top stays.
        if self.bar_shown.load(Ordering::Relaxed) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K\x1b[1A");
        }
        self.warn(text);
    }

    /// Tells whether a bar is on the screen.
    pub(crate) fn set_bar_shown(&self, shown: bool) {
        self.bar_shown.store(shown, Ordering::Relaxed);
    }

    fn aside(&self, text: &str) {
        self.bars.suspend(|| {
            // As for stdout: nobody listening is no reason to fail.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }

    /// Receives the events of a loop.
    pub fn reporter(&self) -> Box<dyn Reporter> {
        if self.json {
            Box::new(JsonLines { ui: self.clone() })
        } else {
            Box::new(Console::new(self.clone(), self.bars.clone(), self.quiet))
        }
    }
}

/// Writes a whole line to stdout at once. When nobody reads any more (`| head`), the work goes on in silence.
fn write_line(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// One event per line. With `--quiet`, no progress.
struct JsonLines {
    ui: Ui,
}

impl Reporter for JsonLines {
    fn report(&self, event: &Event) {
        let is_chatter = matches!(event, Event::Progress { .. } | Event::Note { .. });
        if !(self.ui.quiet && is_chatter) {
            self.ui.object(event);
        }
    }
}
