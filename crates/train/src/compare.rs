//! Several runs side by side: success against rollouts, means over seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::evaluate::EvalTable;
use crate::run_dir::RunDirError;

/// What is compared about one run.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its folder.
    pub run: PathBuf,
    /// Runs with the same configuration apart from seed and name share this: the name without `-sSEED`.
    pub label: String,
    /// The run's seed.
    pub seed: u64,
    /// Rollouts and mean success, in order: before RL, in between, after.
    pub curve: Vec<(u64, f64)>,
}

/// Runs with one label.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Their label.
    pub label: String,
    /// How many.
    pub seeds: usize,
    /// Per measurement: rollouts, mean over the seeds, lowest, highest.
    pub points: Vec<(u64, f64, f64, f64)>,
}

/// Reads a finished run.
///
/// # Errors
/// The folder is no run, has no summary yet, or trained without RL.
pub fn read(run: &Path) -> Result<Row> {
    let file = run.join("config.toml");
    if !file.is_file() {
        return Err(RunDirError::NotARun { path: run.into() }.into());
    }
    let config = TrainConfig::load(&file, &[])?;
    let unreadable = |why: String| Error::Setting {
        section: "run",
        source: format!("`{}`: {why}", run.join("summary.json").display()).into(),
    };
    #[derive(serde::Deserialize)]
    struct Stored {
        finished: bool,
        evals: Vec<EvalTable>,
    }
    let text = std::fs::read_to_string(run.join("summary.json")).map_err(|e| unreadable(e.to_string()))?;
    let stored: Stored = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
    if !stored.finished {
        return Err(unreadable(format!(
            "the run is not finished (`efference train --resume {}`)",
            run.display()
        )));
    }
    let Some(rl) = &config.rl else { return Err(unreadable("it has no [rl] stage".into())) };
    let start = stored.evals.iter().find(|e| e.label == "before_rl").map_or(0, |e| e.step);
    let rollouts = |step: u64| (step - start.min(step)) * (rl.prompts * rl.group) as u64;
    let suffix = format!("-s{}", config.run.seed);
    let label = config.run.name.strip_suffix(&suffix).unwrap_or(&config.run.name).to_string();
    let curve = stored.evals.iter().map(|e| (rollouts(e.step), e.mean())).collect();
    Ok(Row { run: run.into(), label, seed: config.run.seed, curve })
}

/// Means over the seeds of each label; points that not all of them have are left out.
pub fn lines(rows: &[Row]) -> Vec<Line> {
    let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry(&row.label).or_default().push(row);
    }
    let line = |(label, rows): (&str, Vec<&Row>)| {
        let points = rows[0].curve.iter().filter_map(|&(x, _)| {
            let at = |row: &&Row| row.curve.iter().find(|p| p.0 == x).map(|p| p.1);
            let ys: Vec<f64> = rows.iter().map(at).collect::<Option<_>>()?;
            let mean = ys.iter().sum::<f64>() / ys.len() as f64;
            let low = ys.iter().copied().fold(f64::INFINITY, f64::min);
            Some((x, mean, low, ys.iter().copied().fold(f64::NEG_INFINITY, f64::max)))
        });
        Line { label: label.to_string(), seeds: rows.len(), points: points.collect() }
    };
    groups.into_iter().map(line).collect()
}

/// The lines as a Markdown table: one row per label, one column per number of rollouts.
pub fn markdown(lines: &[Line]) -> String {
    let columns: std::collections::BTreeSet<u64> =
        lines.iter().flat_map(|line| line.points.iter().map(|p| p.0)).collect();
    let mut out = String::from("| run | seeds |");
    out.extend(columns.iter().map(|x| format!(" {x} rollouts |")));
    out += "\n|---|---|";
    out.extend(columns.iter().map(|_| "---|"));
    for line in lines {
        out += &format!("\n| {} | {} |", line.label, line.seeds);
        for x in &columns {
            match line.points.iter().find(|p| p.0 == *x) {
                None => out += " |",
                Some((_, mean, low, high)) if line.seeds > 1 => {
                    out += &format!(" {:.1}% ({:.1} to {:.1}) |", 100.0 * mean, 100.0 * low, 100.0 * high);
                }
                Some((_, mean, ..)) => out += &format!(" {:.1}% |", 100.0 * mean),
            }
        }
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_averaged_and_missing_points_left_out() {
        let row = |label: &str, seed, curve: &[(u64, f64)]| Row {
            run: "r".into(),
            label: label.into(),
            seed,
            curve: curve.to_vec(),
        };
        let rows = [
            row("a", 0, &[(0, 0.2), (96, 0.4)]),
            row("a", 1, &[(0, 0.4), (96, 0.8)]),
            row("b", 0, &[(0, 0.5), (48, 0.5), (96, 1.0)]),
        ];
        let table = markdown(&lines(&rows));
        let expected = "| run | seeds | 0 rollouts | 48 rollouts | 96 rollouts |\n|---|---|---|---|---|\n\
                        | a | 2 | 30.0% (20.0 to 40.0) | | 60.0% (40.0 to 80.0) |\n\
                        | b | 1 | 50.0% | 50.0% | 100.0% |\n";
        assert_eq!(table, expected);
    }
}
