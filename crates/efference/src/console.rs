//! Events as bars and lines on stderr.
//!
//! In a terminal each stage has a bar with its rate and the time left, and below it the latest numbers. Elsewhere (a log
//! file, CI) there are plain lines, at most one every few seconds. Tables of success are results and go to stdout.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use efference_train::report::{Event, Reporter};
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::text::{duration, eval_table, metrics_line, rate};
use crate::ui::Ui;

/// Between two plain lines at least.
const PAUSE: Duration = Duration::from_secs(5);

const BAR: &str = "{prefix:>7} {wide_bar:.cyan/dim} {pos}/{len} {unit}  {rate}  {left}";
const BAR_AND_NUMBERS: &str = "{prefix:>7} {wide_bar:.cyan/dim} {pos}/{len} {unit}  {rate}  {left}\n  {msg}";

/// Tells a person what a loop does.
pub struct Console {
    ui: Ui,
    bars: MultiProgress,
    quiet: bool,
    live: bool,
    stage: Mutex<Option<Stage>>,
}

/// The stage in progress.
struct Stage {
    name: String,
    unit: String,
    total: u64,
    done: u64,
    /// Units that an earlier process had done: they do not count for the rate.
    before: u64,
    began: Instant,
    said: Instant,
    numbers: String,
    bar: Option<ProgressBar>,
}

impl Console {
    /// Speaks on stderr through `bars`; with `quiet` only tables of success are told.
    pub fn new(ui: Ui, bars: MultiProgress, quiet: bool) -> Self {
        let live = !quiet && Term::stderr().is_term() && !bars.is_hidden();
        Self { ui, bars, quiet, live, stage: Mutex::new(None) }
    }

    fn begin(&self, name: &str, unit: &str, total: u64, done: u64) -> Stage {
        let bar = self.live.then(|| {
            let bar = self.bars.add(ProgressBar::new(total));
            bar.set_style(style(BAR, unit));
            bar.set_prefix(name.to_owned());
            bar.set_position(done);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(250));
            self.ui.set_bar_shown(true);
            bar
        });
        if !self.live {
            let from = if done > 0 { format!(", {done} done") } else { String::new() };
            self.ui.note(format!("{name}: {total} {unit}s{from}"));
        }
        let (name, unit, now) = (name.to_owned(), unit.to_owned(), Instant::now());
        Stage { name, unit, total, done, before: done, began: now, said: now, numbers: String::new(), bar }
    }

    /// Takes the bar away; a stage that is complete leaves a line.
    fn end(&self, stage: Stage) {
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
            self.bars.remove(bar);
            self.ui.set_bar_shown(false);
        }
        if stage.done >= stage.total {
            self.ui.note(stage.line(true));
        }
    }

    fn progress(&self, slot: &mut Option<Stage>, done: u64) {
        let Some(stage) = slot else { return };
        stage.done = done;
        if done >= stage.total {
            if let Some(stage) = slot.take() {
                self.end(stage);
            }
        } else if let Some(bar) = &stage.bar {
            bar.set_position(done);
        } else if stage.said.elapsed() >= PAUSE {
            stage.said = Instant::now();
            self.ui.note(stage.line(false));
        }
    }
}

impl Stage {
    /// `sft: 120/400 steps  33.1/s  8.4 s left  loss 0.412`.
    fn line(&self, is_over: bool) -> String {
        let elapsed = self.began.elapsed();
        let done = self.done.saturating_sub(self.before) as f64;
        let per_sec = done / elapsed.as_secs_f64().max(1e-9);
        let time = if is_over {
            format!("in {}", duration(elapsed))
        } else {
            let left = self.total.saturating_sub(self.done) as f64;
            if per_sec > 0.0 { time_left(left / per_sec) } else { "just begun".into() }
        };
        let Self { name, unit, total, done, .. } = self;
        let mut line = format!("{name}: {done}/{total} {unit}s  {time}  {}", rate(per_sec));
        if !self.numbers.is_empty() {
            line.push_str("  ");
            line.push_str(&self.numbers);
        }
        line
    }
}

impl Reporter for Console {
    fn report(&self, event: &Event) {
        let mut slot = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Eval { label, step, tasks } => self.ui.line(eval_table(label, *step, tasks)),
            _ if self.quiet => {}
            Event::Stage { name, unit, total, done } => {
                if let Some(before) = slot.take() {
                    self.end(before);
                }
                *slot = (done < total).then(|| self.begin(name, unit, *total, *done));
            }
            Event::Progress { done } => self.progress(&mut slot, *done),
            // The table that follows says the same.
            Event::Metrics { stage, .. } if stage == "eval" => {}
            Event::Metrics { values, .. } => {
                let Some(stage) = &mut *slot else { return };
                stage.numbers = metrics_line(values);
                if let Some(bar) = &stage.bar {
                    if bar.message().is_empty() {
                        bar.set_style(style(BAR_AND_NUMBERS, &stage.unit));
                    }
                    let room = usize::from(Term::stderr().size().1).saturating_sub(5);
                    bar.set_message(stage.numbers.chars().take(room).collect::<String>());
                }
            }
            Event::Saved { step, path } => {
                self.ui.note(format!("saved {} (step {step})", path.display()));
            }
            Event::Note { text } => self.ui.note(text),
        }
    }
}

impl Drop for Console {
    /// A stage that was stopped leaves no bar behind.
    fn drop(&mut self) {
        let slot = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = slot.take().and_then(|stage| stage.bar) {
            bar.finish_and_clear();
            self.ui.set_bar_shown(false);
        }
    }
}

fn style(template: &str, unit: &str) -> ProgressStyle {
    let units = format!("{unit}s");
    // The templates are constants that a test parses.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸━")
        .with_key("unit", move |_: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(&units);
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(&rate(state.per_sec()));
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn Write| {
            let _ = match state.eta().as_secs_f64() {
                secs if secs > 0.0 => out.write_str(&time_left(secs)),
                _ => out.write_str("-- left"),
            };
        })
}

fn time_left(secs: f64) -> String {
    // A guess does not have tenths of a second.
    let secs = Duration::try_from_secs_f64(secs.round()).unwrap_or(Duration::MAX);
    format!("{} left", duration(secs).replace(".0 s", " s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [BAR, BAR_AND_NUMBERS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn lines_count_only_what_this_process_did() {
        let began = Instant::now().checked_sub(Duration::from_secs(10)).unwrap_or_else(Instant::now);
        let stage = Stage {
            name: "sft".into(),
            unit: "step".into(),
            total: 400,
            done: 120,
            before: 100,
            began,
            said: began,
            numbers: "loss 0.4".into(),
            bar: None,
        };
        assert_eq!(stage.line(false), "sft: 120/400 steps  2 min 20 s left  2.0/s  loss 0.4");
    }
}
