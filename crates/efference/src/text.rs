//! Numbers as a person reads them.

use std::time::Duration;

use efference_train::report::{TaskScore, Values};
use efference_viz::stats::Z_95;
use efference_viz::wilson;

/// Names of metrics with the word for them and how to write them; the first name of a word that is there counts.
type Shown = (&'static str, &'static str, fn(f64) -> String);
const SHOWN: [Shown; 11] = [
    ("success", "success", percent),
    ("reward", "reward", two),
    ("loss", "loss", three),
    ("kl", "kl", exponent),
    ("approx_kl", "kl", exponent),
    ("entropy", "entropy", two),
    ("clip_frac", "clip", percent),
    ("skipped_steps", "skipped", whole_unless_zero),
    ("speed/env_steps_per_s", "env steps/s", thousands),
    ("speed/tokens_per_s", "tokens/s", thousands),
    ("memory/peak_bytes", "peak", mebibytes),
];

/// The numbers worth watching, in one line; those that a stage does not have are left out.
pub fn metrics_line(values: &Values) -> String {
    let mut parts: Vec<(&str, String)> = Vec::new();
    for (name, word, write) in SHOWN {
        let Some(&x) = values.get(name) else { continue };
        let text = write(x);
        if !text.is_empty() && !parts.iter().any(|(seen, _)| *seen == word) {
            parts.push((word, text));
        }
    }
    let part = |(word, text): (&str, String)| {
        if word.ends_with("/s") { format!("{text} {word}") } else { format!("{word} {text}") }
    };
    parts.into_iter().map(part).collect::<Vec<_>>().join("  ")
}

/// Success per task with Wilson's 95% interval, and the mean over tasks.
pub fn eval_table(label: &str, step: u64, tasks: &[TaskScore]) -> String {
    let words = match label {
        "before_rl" => "before RL",
        "after_rl" => "after RL",
        other => other,
    };
    let width = tasks.iter().map(|t| t.task.len()).max().unwrap_or(0).max("mean".len());
    let row = |name: &str, rate: f64, successes: u64, episodes: u64| {
        let (low, high) = wilson(successes, episodes, Z_95);
        let count = format!("{successes}/{episodes}");
        format!("  {name:width$}  {count:>9}  {:>6}  [{}, {}]", percent(rate), percent(low), percent(high))
    };
    let mut lines = vec![format!("success {words} (step {step}), with 95% intervals")];
    lines.extend(tasks.iter().map(|t| row(&t.task, t.rate(), t.successes, t.episodes)));
    if tasks.len() > 1 {
        let mean = tasks.iter().map(TaskScore::rate).sum::<f64>() / tasks.len() as f64;
        let (successes, episodes) = tasks.iter().fold((0, 0), |(s, n), t| (s + t.successes, n + t.episodes));
        lines.push(row("mean", mean, successes, episodes));
    }
    lines.join("\n")
}

/// `31.0%`.
pub fn percent(x: f64) -> String {
    format!("{:.1}%", 100.0 * x)
}

fn two(x: f64) -> String {
    format!("{x:.2}")
}

fn three(x: f64) -> String {
    format!("{x:.3}")
}

fn exponent(x: f64) -> String {
    format!("{x:.1e}")
}

fn whole_unless_zero(x: f64) -> String {
    if x == 0.0 { String::new() } else { format!("{x:.0}") }
}

/// `950 MiB`, `4.6 GiB`.
fn mebibytes(x: f64) -> String {
    const MIB: f64 = (1u64 << 20) as f64;
    if x < 1000.0 * MIB { format!("{:.0} MiB", x / MIB) } else { format!("{:.1} GiB", x / MIB / 1024.0) }
}

/// `950`, `12.3k`, `4.56M`.
pub fn thousands(x: f64) -> String {
    match x.abs() {
        a if a >= 1e6 => format!("{:.2}M", x / 1e6),
        a if a >= 1e4 => format!("{:.1}k", x / 1e3),
        _ => format!("{x:.0}"),
    }
}

/// `12.3/s`, or `4.5 s each` for what takes longer than a second.
pub fn rate(per_sec: f64) -> String {
    match per_sec {
        r if !r.is_finite() || r <= 0.0 => "-/s".into(),
        r if r >= 100.0 => format!("{}/s", thousands(r)),
        r if r >= 1.0 => format!("{r:.1}/s"),
        r => format!("{:.1} s each", 1.0 / r),
    }
}

/// `9.4 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(time: Duration) -> String {
    let secs = time.as_secs_f64();
    match secs {
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {} s", s as u64 / 60, s as u64 % 60),
        s => format!("{} h {} min", s as u64 / 3600, s as u64 / 60 % 60),
    }
}

/// `640 B`, `12.3 MB`, in powers of ten.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1e3 => format!("{n} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

/// `1 episode`, `2 episodes`.
pub fn count(n: usize, unit: &str) -> String {
    if n == 1 { format!("1 {unit}") } else { format!("{n} {unit}s") }
}

/// `28 to 41`, or the one number there is.
pub fn range(numbers: &[usize]) -> String {
    match (numbers.iter().min(), numbers.iter().max()) {
        (Some(low), Some(high)) if low == high => low.to_string(),
        (Some(low), Some(high)) => format!("{low} to {high}"),
        _ => "-".into(),
    }
}

/// Columns as wide as their widest cell; the last one is left ragged.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_shown() {
        let values = |pairs: &[(&str, f64)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
        assert_eq!(metrics_line(&values(&[])), "");
        let rl = values(&[
            ("approx_kl", 0.00213),
            ("clip_frac", 0.041),
            ("speed/tokens_per_s", 12_345.0),
            ("success", 0.625),
            ("skipped_steps", 0.0),
        ]);
        assert_eq!(metrics_line(&rl), "success 62.5%  kl 2.1e-3  clip 4.1%  12.3k tokens/s");
    }

    #[test]
    fn the_table_has_every_task_and_the_mean() {
        let task = |task: &str, successes| TaskScore { task: task.into(), successes, episodes: 50 };
        let text = eval_table("before_rl", 200, &[task("press_button", 47), task("open_drawer", 50)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "success before RL (step 200), with 95% intervals");
        assert_eq!(lines[1], "  press_button      47/50   94.0%  [83.8%, 97.9%]");
        assert_eq!(lines[3], "  mean             97/100   97.0%  [91.5%, 99.0%]");
    }

    #[test]
    fn units_fit_the_size() {
        assert_eq!(
            (rate(0.25), rate(3.12), rate(54_321.0)),
            ("4.0 s each".into(), "3.1/s".into(), "54.3k/s".into())
        );
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!((bytes(999), bytes(12_345_678)), ("999 B".into(), "12.3 MB".into()));
    }
}
