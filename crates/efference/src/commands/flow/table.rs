//! `efference flow table`: success of several systems over tasks and arms.

use std::path::PathBuf;

use efference_data::atomic;
use efference_envs::flow::{ArmKind, FlowOptions, FlowTask};
use efference_envs::mujoco_version;
use efference_rollout::flow::{TableOptions, TrialJournal, TrialLine, run_table};
use efference_train::report::Event;
use efference_viz::stats::{Tally, Z_95};
use efference_viz::wilson;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

use super::systems::Models;
use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::text::{percent, table};
use crate::ui::Ui;

/// Measure systems that act on predicted flow: four tasks, two arms, many seeded trials
///
/// Writes trials.jsonl (one line per trial, as they finish), table.json and table.md with Wilson's 95% intervals. All systems
/// and arms play the same scenes. Results depend on nothing but the arguments; --resume goes on after an interruption, with
/// more trials if wanted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    models: Models,
    /// Systems, separated by commas: oracle, full, full_exact, insist (as full, but what the judge refuses least is
    /// executed where it refuses all), no_check, frozen_depth, from_scratch, finetuned [default: all whose models are given]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    systems: Vec<String>,
    /// Task families, separated by commas [default: pour, insert, hang, drawer]
    #[arg(long, value_delimiter = ',', value_name = "TASKS")]
    tasks: Vec<String>,
    /// Arms, separated by commas [default: arm7, arm6]
    #[arg(long, value_delimiter = ',', value_name = "ARMS")]
    arms: Vec<String>,
    /// Trials per cell
    #[arg(long, value_name = "N", default_value_t = 50)]
    trials: u64,
    /// Folder to write into
    #[arg(long, value_name = "DIR", default_value = "flow_table")]
    out: PathBuf,
    /// Go on with the folder's trials
    #[arg(long)]
    resume: bool,
    /// Trials at the same time [default: the number of cores]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let stop = interrupt::install(ui)?;
    let ids = |given: &[String], of: fn(&str) -> efference_envs::Result<FlowTask>| {
        given.iter().map(|id| of(id)).collect::<efference_envs::Result<Vec<_>>>()
    };
    let mut tasks = ids(&args.tasks, FlowTask::from_id)?;
    if tasks.is_empty() {
        tasks = FlowTask::EXECUTED.to_vec();
    }
    let mut arms =
        args.arms.iter().map(|id| ArmKind::from_id(id)).collect::<efference_envs::Result<Vec<_>>>()?;
    if arms.is_empty() {
        arms = ArmKind::ALL.to_vec();
    }
    let systems = args.models.systems(&args.systems)?;
    let names: Vec<&str> = systems.iter().map(|(name, _)| name.as_str()).collect();
    let settings = json!({ "models": args.models.settings(), "mujoco": mujoco_version() });
    std::fs::create_dir_all(&args.out).map_err(|e| atomic::Error::from_io("create", &args.out, e))?;
    let mut journal = TrialJournal::open(&args.out.join("trials.jsonl"), &settings, args.resume)?;
    let options = TableOptions {
        systems: &systems,
        tasks: &tasks,
        arms: &arms,
        trials: args.trials,
        env: FlowOptions::default(),
        workers: args.workers.unwrap_or_else(rayon::current_num_threads),
    };
    let reporter = ui.reporter();
    let total = (names.len() * tasks.len() * arms.len()) as u64 * args.trials;
    let wanted = |line: &TrialLine| {
        line.place.trial < args.trials
            && names.contains(&line.place.system.as_str())
            && tasks.contains(&line.place.task)
            && arms.contains(&line.place.arm)
    };
    let done = AtomicU64::new(journal.lines().filter(|line| wanted(line)).count() as u64);
    let (name, unit) = ("trials".into(), "trial".into());
    reporter.report(&Event::Stage { name, unit, total, done: done.load(Ordering::Relaxed) });
    let on_line = |_: &TrialLine| {
        let done = 1 + done.fetch_add(1, Ordering::Relaxed);
        reporter.report(&Event::Progress { done });
    };
    let played = run_table(&options, &mut journal, &on_line, &|| stop.requested());
    drop(reporter);
    played?;
    let lines: Vec<&TrialLine> = journal.lines().filter(|line| wanted(line)).collect();
    let summary = Summary { names: &names, tasks: &tasks, arms: &arms, lines: &lines };
    atomic::write_file(&args.out.join("table.json"), summary.json(&settings).to_string().as_bytes())?;
    atomic::write_file(&args.out.join("table.md"), summary.markdown().as_bytes())?;
    ui.object(&summary.json(&settings));
    for line in table(&summary.rows()) {
        ui.line(line);
    }
    ui.note(format!("written: {}", args.out.join("table.md").display()));
    if (lines.len() as u64) < total {
        let what = format!("{} of {total} trials are played", lines.len());
        return Err(Failure::interrupted(what).help("the same command with --resume plays the rest"));
    }
    Ok(())
}

struct Summary<'a> {
    names: &'a [&'a str],
    tasks: &'a [FlowTask],
    arms: &'a [ArmKind],
    lines: &'a [&'a TrialLine],
}

impl Summary<'_> {
    /// Successes among the trials that fit.
    fn tally(&self, name: &str, task: Option<FlowTask>, arm: Option<ArmKind>) -> Tally {
        let fits = |line: &&&TrialLine| {
            line.place.system == name
                && task.is_none_or(|t| line.place.task == t)
                && arm.is_none_or(|a| line.place.arm == a)
        };
        let lines: Vec<_> = self.lines.iter().filter(fits).collect();
        Tally::new(lines.iter().filter(|l| l.report.success).count() as u64, lines.len() as u64)
    }

    /// Share of the system's trials for which something holds.
    fn share(&self, name: &str, is: fn(&TrialLine) -> bool) -> f64 {
        let of: Vec<_> = self.lines.iter().filter(|l| l.place.system == name).collect();
        of.iter().filter(|l| is(l)).count() as f64 / of.len().max(1) as f64
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let columns = self.tasks.iter().flat_map(|t| self.arms.iter().map(move |a| (*t, *a)));
        let mut header = vec!["system".to_owned()];
        header.extend(columns.clone().map(|(task, arm)| format!("{} {}", task.id(), arm.id())));
        header.extend(["all", "95%", "refused", "plan good"].map(str::to_owned));
        let mut rows = vec![header];
        for name in self.names {
            let mut row = vec![(*name).to_owned()];
            row.extend(columns.clone().map(|(task, arm)| {
                let Tally { successes, n } = self.tally(name, Some(task), Some(arm));
                format!("{successes}/{n}")
            }));
            let Tally { successes, n } = self.tally(name, None, None);
            let (low, high) = wilson(successes, n, Z_95);
            row.push(percent(successes as f64 / n.max(1) as f64));
            row.push(format!("[{}, {}]", percent(low), percent(high)));
            row.push(percent(self.share(name, |l| l.report.refused.is_some() && l.report.steps == 0)));
            row.push(percent(self.share(name, |l| l.report.plan_good == Some(true))));
            rows.push(row);
        }
        rows
    }

    fn markdown(&self) -> String {
        let rows = self.rows();
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = line(&rows[0]);
        text.push_str(&line(&vec!["---".to_owned(); rows[0].len()]));
        rows[1..].iter().for_each(|row| text.push_str(&line(row)));
        text.push_str("\nSuccess with 95% intervals (Wilson), by task and arm:\n\n");
        text.push_str("| system | task | arm | success |\n| --- | --- | --- | --- |\n");
        for name in self.names {
            for &task in self.tasks {
                for &arm in self.arms {
                    let tally = self.tally(name, Some(task), Some(arm));
                    text.push_str(&format!("| {name} | {} | {} | {tally} |\n", task.id(), arm.id()));
                }
            }
        }
        text.push_str(
            "\n`refused`: trials in which nothing moved, because no prediction passed the checks or no grasp serves. `plan good`: \
             trials whose executed prediction ends where the simulator's predicate holds.\n",
        );
        text
    }

    fn json(&self, settings: &Value) -> Value {
        let cell = |tally: Tally| {
            let (low, high) = wilson(tally.successes, tally.n, Z_95);
            json!({ "successes": tally.successes, "trials": tally.n, "low": low, "high": high })
        };
        let systems = self.names.iter().map(|name| {
            let cells = self.tasks.iter().flat_map(|t| self.arms.iter().map(move |a| (*t, *a)));
            let cells = cells.map(|(task, arm)| {
                json!({ "task": task, "arm": arm, "success": cell(self.tally(name, Some(task), Some(arm))) })
            });
            json!({
                "system": name,
                "cells": cells.collect::<Vec<_>>(),
                "all": cell(self.tally(name, None, None)),
                "refused": self.share(name, |l| l.report.refused.is_some() && l.report.steps == 0),
                "plan_good": self.share(name, |l| l.report.plan_good == Some(true)),
            })
        });
        json!({ "settings": settings, "systems": systems.collect::<Vec<_>>() })
    }
}
