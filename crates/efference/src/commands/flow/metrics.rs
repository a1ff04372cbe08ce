//! `efference flow metrics`: a world model on scenes whose motion is known.

use std::path::PathBuf;

use efference_train::flow::{
    BUILT_IN_FLOW, FlowModel, evaluate, stored_scenes, text_table, workbench_scenes,
};
use serde_json::json;

use crate::errors::Result;
use crate::ui::Ui;

/// Measure a flow world model on held-out scenes
///
/// Centimetres and degrees: ADE and FDE (mean and last-frame displacement error, mean over samples), minADE and minFDE
/// (best sample of a scene), visADE (visible points), AJ-3D (average Jaccard within 0.5, 1, 2, 4, 8 cm), OA (right
/// occlusion flags), rms (what the best rigid motion leaves), rotation (median) and position error of the implied final
/// pose, and the ADE of predicting no motion.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run folder, checkpoint, weights file, or `builtin:flow_world`
    #[arg(long, default_value = BUILT_IN_FLOW)]
    model: String,
    /// Folder of stored episodes (`efference data flow`) instead of the workbench
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Task families of the simulated workbench, separated by commas; all without it
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Evaluation scenes per task
    #[arg(long, default_value_t = 24)]
    scenes: usize,
    /// Flows per scene
    #[arg(long, default_value_t = 4)]
    samples: usize,
    /// Points per scene, at most
    #[arg(long, default_value_t = 48)]
    points: usize,
    /// Steps of the sampler; the model's own without it
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance towards the instruction; the model's own without it
    #[arg(long)]
    guidance: Option<f64>,
    /// Size of the noise that a flow starts from; the model's own without it
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Do not project onto rigid motions
    #[arg(long)]
    free: bool,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let model = FlowModel::load(&args.model, efference_train::device::open("cpu")?)?;
    let scenes = match &args.data {
        Some(dir) => stored_scenes(dir, &model.spec.net)?,
        None => workbench_scenes(&args.tasks, args.scenes, &model.spec.net)?,
    };
    let mut sampler = model.spec.sampler.clone();
    sampler.steps = args.steps.unwrap_or(sampler.steps).clamp(1, 1000);
    sampler.guidance = args.guidance.unwrap_or(sampler.guidance);
    sampler.temperature = args.temperature.unwrap_or(sampler.temperature);
    sampler.rigid &= !args.free;
    let rows = evaluate(&model, &scenes, &sampler, args.samples.max(1), args.points.max(3), args.seed)?;
    ui.object(&json!({ "model": args.model, "samples": args.samples, "tasks": rows }));
    ui.line(text_table(&rows).trim_end());
    Ok(())
}
