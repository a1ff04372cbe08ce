//! A run's numbers as the data of its page.

use std::collections::BTreeSet;

use efference_viz::curves::YAxis;
use efference_viz::{Chart, ReportData, Series, Strip, Tally, TaskRow};

use super::task_title;
use crate::config::TrainConfig;
use crate::evaluate::EvalTable;
use crate::metrics::Record;
use crate::report::TaskScore;

/// Reading a table.
impl EvalTable {
    fn of(&self, task: &str) -> Option<Tally> {
        self.tasks.iter().find(|t| t.task == task).map(tally)
    }

    fn all(&self) -> Tally {
        self.tasks.iter().map(tally).sum()
    }

    fn is_before(&self) -> bool {
        self.label.starts_with("before_")
    }
}

fn tally(score: &TaskScore) -> Tally {
    Tally::new(score.successes, score.episodes)
}

/// Curves are averaged down to this many points: more cannot be seen, and noise hides the course.
const MAX_POINTS: usize = 200;

/// Everything the page of a run shows.
///
/// `records` are the lines of `metrics.jsonl`, `evals` the success tables in order, `phases` seconds by name,
/// `environment` and `notes` what only the caller knows. Before and after are the first table labelled `before_*` and
/// the last table.
pub fn report(
    config: &TrainConfig,
    records: &[Record],
    evals: &[EvalTable],
    strips: Vec<Strip>,
    phases: Vec<(String, f64)>,
    environment: Vec<(String, String)>,
    mut notes: Vec<String>,
) -> ReportData {
    let skipped =
        records.iter().filter_map(|r| r.values.get("skipped_steps")).fold(0.0, |a, b| f64::max(a, *b));
    if skipped > 0.0 {
        notes
            .push(format!("{skipped} optimiser steps were skipped because a number in them was not finite."));
    }
    ReportData {
        title: config.run.name.clone(),
        subtitle: subtitle(config),
        tasks: tasks(evals),
        charts: charts(records, evals),
        strips,
        phases,
        settings: settings(config),
        environment,
        notes,
    }
}

/// One sentence about the run.
fn subtitle(config: &TrainConfig) -> String {
    let mut parts = Vec::new();
    if let Some(pretrain) = &config.pretrain {
        parts.push(format!("{} steps on play scenes", pretrain.steps));
    }
    if let Some(sft) = &config.sft {
        let demos = match sft.demos_per_task {
            0 => "all demonstrations".to_owned(),
            1 => "one demonstration per task".to_owned(),
            n => format!("{n} demonstrations per task"),
        };
        parts.push(format!("behaviour cloning of {demos}"));
    }
    if let Some(rl) = &config.rl {
        let (algorithm, rollouts) = (rl.algorithm.to_uppercase(), rl.prompts * rl.group);
        let each = format!("{} initial states x {}", rl.prompts, rl.group);
        parts.push(format!(
            "up to {} iterations of {algorithm} with {rollouts} rollouts each ({each})",
            rl.iterations
        ));
    }
    let stages = parts.join(", then ");
    let mut sentence: String = stages.chars().take(1).flat_map(char::to_uppercase).collect();
    sentence.extend(stages.chars().skip(1));
    let episodes = config.eval.episodes_per_task;
    format!(
        "{sentence}. Success is measured on {episodes} held-out initial states per task. Seed {}.",
        config.run.seed
    )
}

fn tasks(evals: &[EvalTable]) -> Vec<TaskRow> {
    let before = evals.iter().find(|table| table.is_before());
    let after = evals.last().filter(|table| !table.is_before());
    let mut rows: Vec<TaskRow> = Vec::new();
    let mut seen = BTreeSet::new();
    for score in before.into_iter().chain(after).flat_map(|table| &table.tasks) {
        if seen.insert(&score.task) {
            rows.push(TaskRow {
                task: task_title(&score.task),
                before: before.and_then(|table| table.of(&score.task)),
                after: after.and_then(|table| table.of(&score.task)),
            });
        }
    }
    rows
}

/// The records of one stage.
struct Stage<'a> {
    /// Name of what is counted.
    unit: &'static str,
    /// Update within the run at which the stage began.
    start: u64,
    records: Vec<&'a Record>,
}

impl<'a> Stage<'a> {
    fn of(records: &'a [Record], stage: &str, unit: &'static str) -> Self {
        let records: Vec<&Record> = records.iter().filter(|r| r.stage == stage).collect();
        let start = records.iter().map(|r| r.step).min().map_or(0, |first| first.saturating_sub(1));
        Self { unit, start, records }
    }

    /// Position of an update of the run on the axis of this stage.
    fn x(&self, step: u64) -> f64 {
        step as f64 - self.start as f64
    }

    /// Points of one metric, averaged in windows if there are very many.
    fn points(&self, metric: &str) -> Vec<(f64, f64)> {
        let points: Vec<(f64, f64)> = self
            .records
            .iter()
            .filter_map(|r| Some((self.x(r.step), *r.values.get(metric)?)))
            .filter(|(_, y)| y.is_finite())
            .collect();
        let window = points.len().div_ceil(MAX_POINTS).max(1);
        let mean = |part: &[(f64, f64)]| {
            let n = part.len() as f64;
            (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
        };
        points.chunks(window).map(mean).collect()
    }

    /// A chart of some metrics: `(metric, name in the legend, colour)`. Those that were not logged are left out.
    fn chart(&self, title: &str, y_label: &str, metrics: &[(&str, &str, usize)]) -> Chart {
        let lines = metrics.iter().map(|(metric, name, color)| (self.points(metric), *name, *color));
        let lines: Vec<_> = lines.filter(|(points, ..)| !points.is_empty()).collect();
        // One line needs no legend: the title says what it is.
        let alone = lines.len() == 1;
        let line = |(points, name, color)| Series::new(if alone { "" } else { name }, points).color(color);
        lines.into_iter().map(line).fold(Chart::new(title, self.unit, y_label), Chart::line)
    }
}

fn charts(records: &[Record], evals: &[EvalTable]) -> Vec<Chart> {
    let pretrain = Stage::of(records, "pretrain", "pre-training step");
    let sft = Stage::of(records, "sft", "behaviour cloning step");
    let rl = Stage::of(records, "rl", "RL iteration");
    let mut charts = Vec::new();
    if !rl.records.is_empty() {
        charts.push(success(&rl, evals));
        charts.extend(success_per_task(&rl, evals));
        let reward = [("reward", "reward", 0), ("progress", "progress of failures", 1)];
        charts.push(rl.chart("Reward of the rollouts", "per episode", &reward));
    }
    charts.push(pretrain.chart("Pre-training loss", "nats per token", &[("loss", "", 0)]));
    let mut cloning = sft.chart(
        "Behaviour cloning loss",
        "nats per token",
        &[("loss", "training", 0), ("heldout_nll", "held-out demonstrations", 1)],
    );
    if cloning.series.len() > 1 {
        let end = sft.records.last().map_or(1.0, |r| sft.x(r.step));
        let uniform = 256f64.ln();
        cloning = cloning
            .line(Series::new("all bins alike (ln 256)", [(1.0, uniform), (end, uniform)]).dashed().color(6));
    }
    charts.push(cloning.y_axis(YAxis::FromZero));
    let kl = [("approx_kl", "approximate", 3), ("kl", "to the reference", 0)];
    let clip = [("clip_frac", "upper or lower", 4), ("clip_frac_lower", "dual clip", 5)];
    charts.push(rl.chart("Entropy of an action token", "nats", &[("entropy", "", 2)]));
    charts.push(rl.chart("KL divergence per update", "nats per token", &kl).y_axis(YAxis::FromZero));
    charts.push(rl.chart("Clipped action tokens", "share", &clip).y_axis(YAxis::FromZero));
    charts.push(
        rl.chart("Gradient norm in RL", "before clipping", &[("grad_norm", "", 0)]).y_axis(YAxis::FromZero),
    );
    charts.push(
        sft.chart("Gradient norm in behaviour cloning", "before clipping", &[("grad_norm", "", 0)])
            .y_axis(YAxis::FromZero),
    );
    for (stage, title) in [
        (&rl, "Peak memory of an RL iteration"),
        (&sft, "Peak memory of a behaviour cloning step"),
        (&pretrain, "Peak memory of a pre-training step"),
    ] {
        let points = stage.points("memory/peak_bytes").into_iter().map(|(x, bytes)| (x, bytes / MIB));
        let chart = Chart::new(title, stage.unit, "MiB").y_axis(YAxis::FromZero);
        charts.push(chart.line(Series::new("", points).color(3)));
    }
    let mut seen = BTreeSet::new();
    for stage in [&rl, &sft, &pretrain] {
        let names =
            stage.records.iter().flat_map(|r| r.values.keys()).filter(|name| name.starts_with("speed/"));
        for name in names.collect::<BTreeSet<_>>() {
            // One chart each: they differ by orders of magnitude.
            if seen.insert(name) {
                charts.push(
                    stage
                        .chart(&speed_title(name), "per second", &[(name.as_str(), "", 5)])
                        .y_axis(YAxis::FromZero),
                );
            }
        }
    }
    charts.retain(|chart| !chart.is_empty());
    charts
}

const MIB: f64 = (1u64 << 20) as f64;

/// `speed/env_steps_per_s` is "Speed: env steps per s".
fn speed_title(name: &str) -> String {
    let words = name.trim_start_matches("speed/").trim_end_matches("_per_s").replace('_', " ");
    format!("Speed: {words} per second")
}

/// Success of the sampled rollouts, and of the evaluations with their intervals.
fn success(rl: &Stage<'_>, evals: &[EvalTable]) -> Chart {
    let held_out = evals.iter().map(|table| (rl.x(table.step), table.all()));
    Chart::new("Success during RL", rl.unit, "success")
        .y_axis(YAxis::Percent)
        .line(Series::new("rollouts (sampled actions)", rl.points("success")).color(5))
        .line(Series::rates("held-out states, 95% interval", held_out).color(1))
}

/// One line per task, if success was measured often enough to make lines.
fn success_per_task(rl: &Stage<'_>, evals: &[EvalTable]) -> Option<Chart> {
    let tasks: Vec<&str> = evals.first()?.tasks.iter().map(|t| t.task.as_str()).collect();
    if evals.len() < 3 || !(2..=7).contains(&tasks.len()) {
        return None;
    }
    let line = |task: &str| {
        let points = evals.iter().filter_map(|table| Some((rl.x(table.step), table.of(task)?.rate())));
        Series::new(&task_title(task), points)
    };
    let chart = Chart::new("Success per task on held-out states", rl.unit, "success").y_axis(YAxis::Percent);
    Some(tasks.into_iter().map(line).fold(chart, Chart::line))
}

/// What decides the result, section by section; not where it went or what was kept.
fn settings(config: &TrainConfig) -> Vec<(String, String)> {
    const ELSEWHERE: [&str; 6] = ["run.name", "run.out", "run.threads", "checkpoint", "record", "rl.minutes"];
    let mut rows = Vec::new();
    // A value without a TOML form would have been refused when the configuration was read.
    if let Ok(tree) = toml::Value::try_from(config) {
        flatten("", &tree, &mut rows);
    }
    rows.retain(|(key, _)| !ELSEWHERE.iter().any(|skip| key == skip || key.starts_with(&format!("{skip}."))));
    rows
}

fn flatten(path: &str, value: &toml::Value, rows: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, rows);
            }
        }
        toml::Value::String(text) => rows.push((path.into(), text.clone())),
        toml::Value::Array(list) if list.is_empty() => {
            // An empty list of tasks means every one; an empty list of what to freeze means just that.
            let words = if path == "model.freeze" { "nothing" } else { "all" };
            rows.push((path.into(), words.into()));
        }
        toml::Value::Array(list) => {
            let words: Vec<String> =
                list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), String::from)).collect();
            rows.push((path.into(), words.join(", ")));
        }
        other => rows.push((path.into(), other.to_string())),
    }
}
