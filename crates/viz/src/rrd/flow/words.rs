//! Curves and words: errors, costs, phases, verdicts, the card.

use rerun::archetypes::StateChange;
use rerun::{Scalars, TextDocument, TextLog};

use super::super::OrEncode;
use super::super::entities::{log_curve_style, rgb};
use super::super::layout::part;
use super::entities::Logger;
use crate::error::Result;
use crate::flow::{FlowScene, Prediction, verdict_color};

impl Logger<'_> {
    pub(super) fn plots(&self) -> Result<()> {
        let scene = self.scene;
        if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
            self.plot("error_cm/mean", 0, &errors.mean_cm)?;
            self.plot("error_cm/p90", 1, &errors.p90_cm)?;
            self.plot("error_cm/p10", 2, &errors.p10_cm)?;
        }
        if let Some(fit) = scene.shown().and_then(|p| p.fit.as_ref()) {
            let all: Vec<f64> = fit.rms_all_m.iter().map(|m| 1e3 * m).collect();
            self.plot("rigid_rms_mm/all_points", 3, &all)?;
            let inliers: Vec<f64> = fit.rms_m.iter().map(|m| 1e3 * m).collect();
            self.plot("rigid_rms_mm/inliers", 4, &inliers)?;
        }
        for (i, curve) in scene.curves.iter().enumerate() {
            let path: Vec<String> = curve.name.split('/').map(part).collect();
            self.plot(&path.join("/"), 5 + i, &curve.values)?;
        }
        Ok(())
    }

    fn plot(&self, name: &str, color: usize, values: &[f64]) -> Result<()> {
        let entity = format!("plot/{name}");
        let finite: Vec<(usize, f64)> =
            values.iter().copied().enumerate().filter(|(_, v)| v.is_finite()).collect();
        if finite.is_empty() {
            return Ok(());
        }
        let columns =
            Scalars::update_fields().with_scalars(finite.iter().map(|(_, v)| *v)).columns_of_unit_batches();
        self.columns(&entity, finite.iter().map(|(t, _)| *t), columns)?;
        log_curve_style(self.rec, &entity, name, color).encode(&entity)
    }

    /// Phases, verdicts, the card.
    pub(super) fn words(&self) -> Result<()> {
        let scene = self.scene;
        if !scene.phases.is_empty() {
            let names = scene.phases.iter().map(|p| p.name.as_str());
            let columns = StateChange::update_fields().with_state(names).columns_of_unit_batches();
            self.columns("phase", scene.phases.iter().map(|p| p.frame), columns)?;
        }
        for (k, prediction) in scene.predictions.iter().enumerate() {
            for verdict in &prediction.verdicts {
                let word = if verdict.accepted { "accepts" } else { "rejects" };
                let score = verdict.score.map(|s| format!(" ({s:.2})")).unwrap_or_default();
                let text = format!("{} {word} sample {k}{score} {}", verdict.judge, verdict.reason);
                let line =
                    TextLog::new(text.trim_end()).with_level(if verdict.accepted { "INFO" } else { "WARN" });
                let color = rgb(verdict_color(verdict.accepted));
                // An entity per judge and sample: rows of one entity at one time would replace each other.
                let entity = format!("verdict/{k}/{}", part(&verdict.judge));
                self.once(&entity, &line.with_color(color))?;
            }
        }
        self.once("card", &TextDocument::from_markdown(card(scene)))
    }
}

/// The text beside the scene.
fn card(scene: &FlowScene) -> String {
    let mut lines = vec![
        ("task".to_owned(), scene.name.clone()),
        ("seed".into(), scene.seed.to_string()),
        ("points".into(), scene.points.len().to_string()),
        ("samples".into(), scene.predictions.len().to_string()),
    ];
    if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
        lines.push(("mean error (ADE)".into(), format!("{:.2} cm", errors.ade_cm())));
        lines.push(("final error (FDE)".into(), format!("{:.2} cm", errors.fde_cm())));
    }
    if let Some(fit) = scene.shown().and_then(|p| p.fit.as_ref()) {
        lines.push(("off a rigid motion".into(), format!("{:.1} mm", 1e3 * fit.worst_rms_m())));
    }
    lines.extend(scene.notes.iter().cloned());
    let accepted = scene.shown().and_then(Prediction::accepted);
    let words = [
        accepted.map(|a| if a { "✓ accepted" } else { "✗ rejected" }),
        scene.success.map(|s| if s { "✓ done" } else { "✗ not done" }),
    ];
    let words: Vec<String> = words.into_iter().flatten().map(|w| format!("**{w}**")).collect();
    let lines: Vec<String> =
        lines.iter().map(|(what, value)| format!("{what} **{}**", value.replace('\n', " "))).collect();
    format!("## {}\n\n{}\n\n{}", scene.instruction, words.join(" · "), lines.join(" · "))
}
