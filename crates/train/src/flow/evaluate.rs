//! Predictions on scenes whose motion is known.

use std::collections::BTreeMap;

use efference_geometry::Flow3d;
use efference_geometry::metrics::{self, FlowReport, FlowSummary};
use serde::Serialize;

use efference_rollout::{Purpose, seed_for};

use super::config::SamplerConfig;
use super::model::FlowModel;
use super::random::Gaussian;
use super::scene::{Jitter, Scene};
use crate::error::Result;
use crate::report::Values;

/// Scenes that are asked about at once.
const SCENES: usize = 16;

/// Numbers of one task, or of all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskMetrics {
    /// Family of the task; `all` for the mean over scenes of every task.
    pub task: String,
    /// Means over scenes, metres and degrees.
    pub summary: FlowSummary,
}

/// `samples` flows for each scene against the truth, by task, `all` last. At most `points` points of a scene take part,
/// the same ones whenever the seed is.
///
/// # Errors
/// A scene that the network cannot read.
pub fn evaluate(
    model: &FlowModel,
    scenes: &[Scene],
    sampler: &SamplerConfig,
    samples: usize,
    points: usize,
    seed: u64,
) -> Result<Vec<TaskMetrics>> {
    let mut reports: BTreeMap<String, Vec<FlowReport>> = BTreeMap::new();
    let mut all = Vec::with_capacity(scenes.len());
    // Scenes of equally many points go together.
    let mut sizes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, scene) in scenes.iter().enumerate() {
        sizes.entry(scene.flow.points().min(points)).or_default().push(i);
    }
    for (n, indices) in sizes {
        for part in indices.chunks(SCENES) {
            let (mut codes, mut truths, mut seeds) = (Vec::new(), Vec::new(), Vec::new());
            for &i in part {
                let seed = seed_for(seed, Purpose::Prompts, &[i as u64]);
                let mut random = Gaussian::new(seed);
                let chosen = random.choose(n, scenes[i].flow.points());
                codes.push(scenes[i].code(&model.spec.net, &chosen, Jitter::default(), &mut random)?);
                truths.push(scenes[i].flow.select(&chosen)?);
                seeds.push(seed);
            }
            let flows = model.of_codes(&codes, sampler, samples, &seeds)?;
            for ((&i, flows), truth) in part.iter().zip(&flows).zip(&truths) {
                let report = metrics::evaluate(flows, truth)?;
                reports.entry(scenes[i].task.clone()).or_default().push(report);
                all.push(report);
            }
        }
    }
    reports.insert("all".into(), all);
    let mut rows: Vec<TaskMetrics> = reports
        .into_iter()
        .filter_map(|(task, reports)| Some(TaskMetrics { task, summary: FlowSummary::of(&reports)? }))
        .collect();
    rows.sort_by_key(|row| row.task == "all");
    Ok(rows)
}

/// One flow per scene against the truth, whoever predicted it: the row of a baseline.
///
/// # Errors
/// Another number of frames or points than the truth.
pub fn compare(predicted: &[Vec<Flow3d>], truths: &[Flow3d]) -> Result<Option<FlowSummary>> {
    let reports: Vec<FlowReport> = predicted
        .iter()
        .zip(truths)
        .map(|(flows, truth)| metrics::evaluate(flows, truth))
        .collect::<std::result::Result<_, _>>()?;
    Ok(FlowSummary::of(&reports))
}

/// The table for a person: centimetres and degrees.
#[must_use]
pub fn text_table(rows: &[TaskMetrics]) -> String {
    let mut out = format!(
        "{:<10} {:>6} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7}\n",
        "task",
        "scenes",
        "ADE",
        "FDE",
        "minADE",
        "minFDE",
        "visADE",
        "AJ-3D",
        "OA",
        "rms",
        "rot deg",
        "pos cm",
        "static"
    );
    for TaskMetrics { task, summary } in rows {
        let m = &summary.mean;
        let cm = |x: f64| 100.0 * x;
        out += &format!(
            "{task:<10} {:>6} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>6.3} {:>6.3} {:>6.2} {:>7.2} {:>7.2} {:>7.2}\n",
            summary.scenes,
            cm(m.ade_m),
            cm(m.fde_m),
            cm(m.min_ade_m),
            cm(m.min_fde_m),
            cm(m.visible_ade_m),
            m.aj_3d,
            m.occlusion_accuracy,
            cm(m.rigid_rms_m),
            summary.median_rotation_deg,
            cm(m.translation_m),
            cm(m.static_ade_m),
        );
    }
    out
}

/// The same as named numbers: `eval/TASK/ade_cm` and so on.
#[must_use]
pub fn values(rows: &[TaskMetrics]) -> Values {
    let mut values = Values::new();
    for TaskMetrics { task, summary } in rows {
        let m = &summary.mean;
        for (name, x) in [
            ("ade_cm", 100.0 * m.ade_m),
            ("fde_cm", 100.0 * m.fde_m),
            ("min_ade_cm", 100.0 * m.min_ade_m),
            ("min_fde_cm", 100.0 * m.min_fde_m),
            ("visible_ade_cm", 100.0 * m.visible_ade_m),
            ("aj_3d", m.aj_3d),
            ("rigid_rms_cm", 100.0 * m.rigid_rms_m),
            ("rotation_deg", summary.median_rotation_deg),
            ("translation_cm", 100.0 * m.translation_m),
            ("ade_over_static", summary.ade_ratio),
        ] {
            values.insert(format!("eval/{task}/{name}"), x);
        }
    }
    values
}
