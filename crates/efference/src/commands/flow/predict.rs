//! `efference flow predict`: flows of a scene, in a file that other programs read.

use std::path::PathBuf;

use efference_data::atomic;
use efference_geometry::rigid::{FlowFitOptions, fit_flow};
use efference_geometry::{Flow3d, metrics};
use efference_train::flow::{BUILT_IN_FLOW, FlowModel};
use serde_json::{Value, json};

use super::scenes::Scenes;
use crate::errors::Result;
use crate::ui::Ui;

/// Predict how the object of a scene will move
///
/// Writes prediction.json: instruction, camera, and for every sample positions [frames][points][3] in metres (world
/// frame, z up, frame 0 is the present), the probability that the camera sees each point, and for every frame the rigid
/// motion that fits and the rms it leaves. The true motion stands beside them in the same form; picture.png is what the
/// predictor saw.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run folder, checkpoint, weights file, or `builtin:flow_world`
    #[arg(long, default_value = BUILT_IN_FLOW)]
    model: String,
    #[command(flatten)]
    scenes: Scenes,
    /// How many flows
    #[arg(long, default_value_t = 8)]
    samples: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write into
    #[arg(long, value_name = "DIR", default_value = "prediction")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let model = FlowModel::load(&args.model, efference_train::device::open("cpu")?)?;
    let episode = args.scenes.episode()?;
    let flows = model.flows(&episode.query(), None, &model.spec.sampler, args.samples.max(1), args.seed)?;
    let samples = flows.iter().map(described).collect::<Result<Vec<_>>>()?;
    let out = json!({
        "instruction": episode.instruction,
        "task": episode.task,
        "model": args.model,
        "seed": args.seed,
        "camera": episode.camera,
        "samples": samples,
        "truth": described(&episode.flow)?,
    });
    std::fs::create_dir_all(&args.out).map_err(|e| atomic::Error::from_io("create", &args.out, e))?;
    let file = args.out.join("prediction.json");
    atomic::write_file(&file, out.to_string().as_bytes())?;
    episode.image.save(args.out.join("picture.png"))?;
    ui.line(format!("\"{}\": {} flows of {} points", episode.instruction, flows.len(), flows[0].points()));
    let known = flows[0].frames() == episode.flow.frames();
    let report = known.then(|| metrics::evaluate(&flows, &episode.flow)).transpose()?;
    ui.object(&json!({ "file": file, "instruction": episode.instruction, "report": report }));
    if let Some(report) = report {
        ui.line(format!(
            "mean displacement error {:.2} cm, best of {} {:.2} cm, predicting no motion {:.2} cm",
            100.0 * report.ade_m,
            flows.len(),
            100.0 * report.min_ade_m,
            100.0 * report.static_ade_m
        ));
    }
    ui.note(format!("written: {}", file.display()));
    Ok(())
}

/// Positions, visibility and rigid motions of a flow.
fn described(flow: &Flow3d) -> Result<Value> {
    let fit = fit_flow(flow, &FlowFitOptions::default())?;
    let frames = 0..flow.frames();
    let positions: Vec<Vec<[f64; 3]>> =
        frames.clone().map(|t| flow.at(t).iter().map(|p| [p.x, p.y, p.z]).collect()).collect();
    let visibility: Vec<&[f32]> = frames.map(|t| flow.visibility_at(t)).collect();
    Ok(json!({
        "positions_m": positions,
        "visibility": visibility,
        "motion": fit.poses,
        "rigid_rms_m": fit.rms_m,
    }))
}
