//! `report.html`: one page about a run that needs nothing from outside itself.

use crate::curves::Chart;
use crate::error::Result;
use crate::stats::Tally;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::{Deserialize, Serialize};

/// Everything a report shows; empty parts are left out of the page. Serialises to JSON and back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// Heading.
    pub title: String,
    /// One sentence below it.
    pub subtitle: String,
    /// Success per task; the first row's order is kept.
    pub tasks: Vec<TaskRow>,
    /// Curves, two to a row.
    pub charts: Vec<Chart>,
    /// Episodes to look at; strips with the same task stand together.
    pub strips: Vec<Strip>,
    /// Seconds per phase of the run, in order.
    pub phases: Vec<(String, f64)>,
    /// Settings: name and value.
    pub settings: Vec<(String, String)>,
    /// Where it ran: MuJoCo's version, machine, commit.
    pub environment: Vec<(String, String)>,
    /// Sentences the reader should know (limits, warnings).
    pub notes: Vec<String>,
}

/// Success at one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// The task's name or instruction.
    pub task: String,
    /// Before training, if it was measured.
    pub before: Option<Tally>,
    /// After training, if it was measured.
    pub after: Option<Tally>,
}

/// A filmstrip of one episode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Strip {
    /// The task's name or instruction.
    pub task: String,
    /// Part of the run: `"before RL"`.
    pub stage: String,
    /// The environment's verdict.
    pub success: bool,
    /// PNG file contents, see [`crate::sheet::filmstrip`].
    #[serde(with = "base64_text")]
    pub png: Vec<u8>,
}

mod base64_text {
    use super::{BASE64, Engine};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        BASE64.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl ReportData {
    /// The page as HTML text.
    ///
    /// # Errors
    /// [`crate::Error::Chart`] if a chart cannot be drawn, [`crate::Error::Report`] if the template fails.
    pub fn to_html(&self) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_template("report.html", include_str!("../templates/report.html"))?;
        let charts = self
            .charts
            .iter()
            .filter(|chart| !chart.is_empty())
            .map(|chart| Ok(context! { title => chart.title, svg => chart.to_inline_svg()? }))
            .collect::<Result<Vec<Value>>>()?;
        let total_secs: f64 = self.phases.iter().map(|(_, secs)| secs).sum();
        let phases: Vec<Value> = self
            .phases
            .iter()
            .enumerate()
            .map(|(i, (name, secs))| {
                let share = if total_secs > 0.0 { 100.0 * secs / total_secs } else { 0.0 };
                let color = crate::theme::hex(crate::theme::series(i));
                context! { name, secs => duration(*secs), share, color }
            })
            .collect();
        let (before, after) = (self.overall(|row| row.before), self.overall(|row| row.after));
        let page = environment.get_template("report.html")?.render(context! {
            title => self.title,
            subtitle => self.subtitle,
            before => before.map(measured),
            after => after.map(measured),
            tasks => self.tasks.iter().map(|row| context! {
                task => row.task, before => row.before.map(measured), after => row.after.map(measured),
            }).collect::<Vec<_>>(),
            charts,
            galleries => self.galleries(),
            phases,
            total => duration(total_secs),
            settings => self.settings,
            environment => self.environment,
            notes => self.notes,
        })?;
        Ok(page)
    }

    /// All tasks together, if every one was measured.
    fn overall(&self, of: impl Fn(&TaskRow) -> Option<Tally>) -> Option<Tally> {
        let tallies: Option<Vec<Tally>> = self.tasks.iter().map(of).collect();
        tallies.filter(|t| !t.is_empty()).map(|t| t.into_iter().sum())
    }

    /// Strips grouped by task, in order of first appearance.
    fn galleries(&self) -> Vec<Value> {
        let mut tasks: Vec<&str> = Vec::new();
        for strip in &self.strips {
            if !tasks.contains(&strip.task.as_str()) {
                tasks.push(&strip.task);
            }
        }
        let strip =
            |s: &Strip| context! { stage => s.stage, success => s.success, png => BASE64.encode(&s.png) };
        tasks
            .into_iter()
            .map(|task| {
                let strips: Vec<Value> = self.strips.iter().filter(|s| s.task == task).map(strip).collect();
                context! { task, strips }
            })
            .collect()
    }
}

/// A tally as the template needs it: percentages from 0 to 100.
fn measured(tally: Tally) -> Value {
    let (lo, hi) = tally.interval();
    context! {
        rate => 100.0 * tally.rate(), lo => 100.0 * lo, hi => 100.0 * hi, width => 100.0 * (hi - lo),
        successes => tally.successes, n => tally.n,
    }
}

/// `340 ms`, `12.3 s`, `4 min 05 s`, `2 h 07 min`.
fn duration(secs: f64) -> String {
    let whole = secs.round() as u64;
    match whole {
        _ if secs < 1.0 => format!("{:.0} ms", 1e3 * secs),
        0..60 => format!("{secs:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::curves::Series;

    fn data() -> ReportData {
        let png = crate::sheet::png(&image::RgbImage::new(8, 8)).unwrap();
        let strip = |task: &str, stage: &str, success| Strip {
            task: task.into(),
            stage: stage.into(),
            success,
            png: png.clone(),
        };
        let row = |task: &str, k| TaskRow {
            task: task.into(),
            before: Some(Tally::new(k, 50)),
            after: Some(Tally::new(48, 50)),
        };
        ReportData {
            title: "Six tasks <script>alert(1)</script>".into(),
            subtitle: "SRPO".into(),
            tasks: vec![row("pick up the red cube", 20), row("open the drawer", 10)],
            charts: vec![
                Chart::new("Loss", "update", "nats").line(Series::new("", [(0.0, 1.0), (1.0, 0.5)])),
                Chart::new("Nothing yet", "update", ""),
            ],
            strips: vec![
                strip("pick up the red cube", "before RL", false),
                strip("open the drawer", "before RL", false),
                strip("pick up the red cube", "after RL", true),
            ],
            phases: vec![("rollout".into(), 90.0), ("update".into(), 30.0)],
            settings: vec![("algorithm".into(), "srpo".into())],
            environment: vec![("MuJoCo".into(), "3.3.2".into())],
            notes: vec!["A note.".into()],
        }
    }

    #[test]
    fn the_page_stands_alone_and_shows_everything() {
        let html = data().to_html().unwrap();
        for part in [
            "30.0%",
            "96.0%",
            "pick up the red cube",
            "40.0%",
            "20/50",
            "<svg",
            "2 min 00 s",
            "srpo",
            "3.3.2",
            "A note.",
            "data:image/png;base64,",
            "prefers-color-scheme: dark",
        ] {
            assert!(html.contains(part), "`{part}` is missing");
        }
        for outside in ["http://", "https://", "src=\"/", "@import", "<link", "<script"] {
            let html = html.replace("http://www.w3.org/2000/svg", "");
            assert!(!html.contains(outside), "`{outside}` must not be in a self-contained page");
        }
        assert!(!html.contains("Nothing yet"), "empty charts are left out");
        assert_eq!(html.matches("data:image/png").count(), 3);
        let drawer = html.rfind("open the drawer").unwrap();
        assert!(html.rfind("after RL").unwrap() < drawer, "strips of one task stand together");
    }

    #[test]
    fn an_empty_report_is_a_page() {
        let html = ReportData { title: "Nothing".into(), ..Default::default() }.to_html().unwrap();
        assert!(html.contains("Nothing") && html.trim_end().ends_with("</html>"));
        assert!(!html.contains("<table") && !html.contains("<svg") && !html.contains("<img"));
    }

    #[test]
    fn report_data_survives_json() {
        let data = data();
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(serde_json::from_str::<ReportData>(&text).unwrap(), data);
    }

    #[test]
    fn durations_read_well() {
        let texts = [0.0421, 9.96, 61.0, 3599.6, 7620.0].map(duration);
        assert_eq!(texts, ["42 ms", "10.0 s", "1 min 01 s", "1 h 00 min", "2 h 07 min"]);
    }
}
