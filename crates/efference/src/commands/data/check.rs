//! `efference data check`: whether a set of flows is whole and agrees with itself, and what it consists of.

use std::path::PathBuf;

use efference_data::flow::{FlowStore, Statistics, check};
use rayon::prelude::*;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::{bytes, count, table};
use crate::ui::Ui;

/// Read every episode of a set of flows, check it against its own pictures, and show what the set consists of
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder that `data flow` made
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// At most so many episodes are in memory.
const AT_ONCE: usize = 64;

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let store = FlowStore::open(&args.dir)?;
    let mut statistics = Statistics::default();
    let (mut bad, mut points, mut on_mask, mut depth) = (0, 0.0, 0.0, 0.0);
    for start in (0..store.len()).step_by(AT_ONCE) {
        let end = store.len().min(start + AT_ONCE);
        let loaded: Vec<_> = (start..end).into_par_iter().map(|i| (i, store.load(i))).collect();
        for (i, episode) in loaded {
            let problems: Vec<String> = match episode {
                Ok(episode) => {
                    let found = check(&episode);
                    let visible = found.visible as f64;
                    points += visible;
                    on_mask += visible * found.on_mask;
                    depth += visible * found.depth_agrees;
                    statistics.add(&episode);
                    found.problems(episode.source).iter().map(ToString::to_string).collect()
                }
                Err(error) if error.is_corrupt_episode() => vec![error.to_string()],
                Err(error) => return Err(error.into()),
            };
            bad += usize::from(!problems.is_empty());
            for problem in problems {
                ui.line(format!("episode {i}: {problem}"));
                ui.object(&json!({ "episode": i, "problem": problem }));
            }
        }
    }
    show(&statistics, ui);
    let size = bytes(store.entries().iter().map(|e| e.bytes).sum());
    ui.line(format!("{}, {size} in {}", count(store.len(), "episode"), args.dir.display()));
    let share = |sum: f64| if points > 0.0 { sum / points } else { 0.0 };
    ui.line(format!(
        "of {points} visible points at frame 0, {:.2}% are on the mask and {:.2}% within 5 mm of the depth picture",
        100.0 * share(on_mask),
        100.0 * share(depth)
    ));
    ui.object(&json!({
        "episodes": store.len(), "bad": bad, "on_mask": share(on_mask), "depth_agrees": share(depth),
    }));
    match bad {
        0 => Ok(()),
        n => Err(Failure::new(format!("{} of {} with problems", n, count(store.len(), "episode")))),
    }
}

/// The table of statistics.
pub(super) fn show(statistics: &Statistics, ui: &Ui) {
    let header = ["task", "source", "episodes", "wordings", "moved cm", "turned deg", "visible later"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (task, source, s) in statistics.tasks() {
        let range = |[low, mean, high]: [f64; 3], unit: f64| {
            format!("{:.1} ({:.1}-{:.1})", unit * mean, unit * low, unit * high)
        };
        ui.object(&json!({
            "task": task, "source": source, "episodes": s.episodes, "instructions": s.instructions,
            "moved_m": s.moved_m, "turned_deg": s.turned_deg, "visibility": s.visibility,
        }));
        rows.push(vec![
            task,
            source.to_owned(),
            s.episodes.to_string(),
            s.instructions.to_string(),
            range(s.moved_m, 100.0),
            range(s.turned_deg, 1.0),
            format!("{:.0}%", 100.0 * s.visibility),
        ]);
    }
    for line in table(&rows) {
        ui.line(line);
    }
}
