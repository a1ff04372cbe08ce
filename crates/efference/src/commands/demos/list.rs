//! `efference demos list`: what a folder of episodes holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use efference_data::{Entry, EpisodeStore, OnCorrupt, Source};
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::{bytes, count, range, table};
use crate::ui::Ui;

/// Show what a folder of episodes holds
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder that `demos tabletop` or `demos import` made
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Also read every episode and check it against its checksum
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let store = EpisodeStore::open(&args.dir)?;
    for entry in store.entries() {
        ui.object(entry);
    }
    for line in table(&rows(store.entries())) {
        ui.line(line);
    }
    let size = bytes(store.entries().iter().map(|e| e.bytes).sum());
    ui.line(format!("{}, {size} in {}", count(store.len(), "episode"), args.dir.display()));
    if args.check { check(&store, ui) } else { Ok(()) }
}

fn rows(entries: &[Entry]) -> Vec<Vec<String>> {
    let header = ["task", "episodes", "successful", "steps", "pictures", "made by", "instruction"];
    let mut by_task: BTreeMap<(&str, &str), Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        by_task.entry((&entry.meta.task, source(entry.meta.source))).or_default().push(entry);
    }
    let row = |((task, source), entries): (&(&str, &str), &Vec<&Entry>)| {
        let successful = entries.iter().filter(|e| e.meta.success).count();
        let steps: Vec<usize> = entries.iter().map(|e| e.steps).collect();
        let pictures: usize = entries.iter().map(|e| e.frames).sum();
        let instruction = entries.first().map_or("", |e| &e.meta.instruction);
        vec![
            (*task).to_owned(),
            entries.len().to_string(),
            successful.to_string(),
            range(&steps),
            pictures.to_string(),
            (*source).to_owned(),
            instruction.to_owned(),
        ]
    };
    std::iter::once(header.map(str::to_owned).to_vec()).chain(by_task.iter().map(row)).collect()
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Scripted => "expert",
        Source::Human => "person",
        Source::Policy => "policy",
        Source::Play => "play",
    }
}

fn check(store: &EpisodeStore, ui: &Ui) -> Result<()> {
    let mut episodes = store.iter(OnCorrupt::Skip);
    let whole = episodes.by_ref().try_fold(0, |n, episode| episode.map(|_| n + 1))?;
    for problem in episodes.skipped() {
        ui.line(format!("damaged: {problem}"));
        ui.object(&json!({ "damaged": problem.to_string() }));
    }
    ui.line(format!("{whole} whole, {} damaged", episodes.skipped().len()));
    ui.object(&json!({ "whole": whole, "damaged": episodes.skipped().len() }));
    match episodes.skipped().len() {
        0 => Ok(()),
        n => Err(Failure::new(format!("{} damaged", count(n, "episode")))),
    }
}
