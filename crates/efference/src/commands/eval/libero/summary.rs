//! The table: success per task and mean, with Wilson's 95% intervals, for machines, for people, for reading later.

use std::fmt::Write;

use efference_rollout::libero::{EpisodeLine, Journal, TaskEntry, TaskNote, Verdict};
use efference_viz::stats::Z_95;
use efference_viz::wilson;
use serde::Serialize;
use serde_json::Value;

use super::settings;
use crate::errors::Result;
use crate::text;

/// A task's row.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    task: usize,
    instruction: String,
    successes: u64,
    /// Finished episodes.
    episodes: u64,
    /// Episodes whose last attempt failed for the policy or the simulator.
    errors: u64,
    /// Episodes that became unstable; they are among the failures.
    unstable: u64,
    success: f64,
    low: f64,
    high: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// What an evaluation found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    suite: String,
    /// Whether every episode that was asked for is finished.
    pub complete: bool,
    /// Episodes that were asked for.
    pub expected: u64,
    /// Mean over tasks of their success, 0 to 1.
    mean_success: f64,
    successes: u64,
    episodes: u64,
    errors: u64,
    low: f64,
    high: f64,
    /// Mean control steps of the successes, idle ones included.
    mean_steps_of_successes: Option<f64>,
    tasks: Vec<Row>,
    commit: &'static str,
    settings: Value,
}

impl Report {
    pub fn new(
        suite: &str,
        tasks: &[TaskEntry],
        episodes: usize,
        journal: &Journal,
        notes: &[TaskNote],
        settings: Value,
    ) -> Self {
        let asked = |line: &&EpisodeLine| line.place.episode < episodes;
        let lines: Vec<&EpisodeLine> = journal.lines().filter(asked).collect();
        let note_of = |task: usize| notes.iter().find(|note| note.task == task).map(|note| note.why.clone());
        let mut rows: Vec<Row> = tasks
            .iter()
            .map(|entry| {
                let of_task = || lines.iter().filter(|line| line.place.task == entry.task);
                let count = |is: fn(&EpisodeLine) -> bool| of_task().filter(|line| is(line)).count() as u64;
                let finished = count(|line| line.verdict.finished());
                let unstable = count(|line| line.verdict == Verdict::Failure && line.reason.is_some());
                row(entry.task, &entry.instruction, count(|line| line.verdict == Verdict::Success), finished)
                    .with(count(|line| !line.verdict.finished()), unstable, note_of(entry.task))
            })
            .collect();
        // Tasks without a pack have a row, too: they are missing from the mean, and that must be seen.
        let absent = notes.iter().filter(|note| !tasks.iter().any(|entry| entry.task == note.task));
        let absent: Vec<Row> =
            absent.map(|note| row(note.task, "?", 0, 0).with(0, 0, Some(note.why.clone()))).collect();
        let expected = ((tasks.len() + absent.len()) * episodes) as u64;
        rows.extend(absent);
        rows.sort_by_key(|row| row.task);
        let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
        let (successes, finished) = (sum(|row| row.successes), sum(|row| row.episodes));
        let played: Vec<&Row> = rows.iter().filter(|row| row.episodes > 0).collect();
        let mean_success =
            played.iter().map(|row| row.success).sum::<f64>() / (played.len() as f64).max(1.0) + 0.0; // an empty sum is -0
        let (low, high) = wilson(successes, finished, Z_95);
        let steps: Vec<f64> =
            lines.iter().filter(|l| l.verdict == Verdict::Success).map(|l| l.steps as f64).collect();
        let mean_steps_of_successes =
            (!steps.is_empty()).then(|| steps.iter().sum::<f64>() / steps.len() as f64);
        Self {
            suite: suite.into(),
            complete: finished == expected,
            expected,
            mean_success,
            successes,
            episodes: finished,
            errors: sum(|row| row.errors),
            low,
            high,
            mean_steps_of_successes,
            tasks: rows,
            commit: settings::commit(),
            settings,
        }
    }

    pub fn finished(&self) -> u64 {
        self.episodes
    }

    pub fn json(&self) -> Result<String> {
        Ok(format!("{}\n", serde_json::to_string_pretty(self)?))
    }

    /// For the terminal.
    pub fn table(&self) -> String {
        let interval = |low: f64, high: f64| format!("[{}, {}]", text::percent(low), text::percent(high));
        let mut rows = vec![["task", "success", "", "95%", ""].map(str::to_owned).to_vec()];
        for row in &self.tasks {
            let mut remark = short(&row.instruction, 60);
            if row.errors > 0 {
                remark = format!("{}; {remark}", text::count(row.errors as usize, "error"));
            }
            rows.push(vec![
                row.task.to_string(),
                text::percent(row.success),
                format!("{}/{}", row.successes, row.episodes),
                interval(row.low, row.high),
                remark,
            ]);
        }
        let missing = if self.complete {
            String::new()
        } else {
            format!("{} of {} episodes", self.episodes, self.expected)
        };
        rows.push(vec![
            "mean".into(),
            text::percent(self.mean_success),
            format!("{}/{}", self.successes, self.episodes),
            interval(self.low, self.high),
            missing,
        ]);
        text::table(&rows).join("\n")
    }

    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", self.suite);
        let one = |x: f64| format!("{:.1}", 100.0 * x);
        if !self.complete {
            let _ = writeln!(
                out,
                "**Incomplete:** {} of {} episodes are finished.\n",
                self.episodes, self.expected
            );
        }
        out += "| task | instruction | success % | 95% interval | successes / episodes | errors |\n|---|---|---|---|---|---|\n";
        for row in &self.tasks {
            let note = row.note.as_deref().map_or(String::new(), |note| format!(" ({})", cell(first(note))));
            let _ = writeln!(
                out,
                "| {} | {}{note} | {} | {} to {} | {} / {} | {} |",
                row.task,
                cell(&row.instruction),
                one(row.success),
                one(row.low),
                one(row.high),
                row.successes,
                row.episodes,
                row.errors
            );
        }
        let _ = writeln!(
            out,
            "| **mean** | | **{}** | {} to {} | {} / {} | {} |\n\n## Settings\n",
            one(self.mean_success),
            one(self.low),
            one(self.high),
            self.successes,
            self.episodes,
            self.errors
        );
        out += "| setting | value |\n|---|---|\n";
        for (name, value) in settings::lines(&self.settings) {
            let _ = writeln!(out, "| {name} | {} |", cell(&value));
        }
        out += "\nThe interval of the mean is Wilson's for all episodes together; success counts finished episodes only.\n";
        out
    }
}

fn row(task: usize, instruction: &str, successes: u64, episodes: u64) -> Row {
    let (low, high) = wilson(successes, episodes, Z_95);
    let success = if episodes == 0 { 0.0 } else { successes as f64 / episodes as f64 };
    let instruction = instruction.to_owned();
    Row { task, instruction, successes, episodes, errors: 0, unstable: 0, success, low, high, note: None }
}

impl Row {
    fn with(self, errors: u64, unstable: u64, note: Option<String>) -> Self {
        Self { errors, unstable, note, ..self }
    }
}

fn first(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.into()
    } else {
        text.chars().take(most - 1).chain(['…']).collect()
    }
}

/// Text that cannot end a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
