//! `efference flow view`: an episode of flow as a page, a film, a recording.

use std::path::PathBuf;

use serde_json::json;

use super::scenes::Scenes;
use super::show::{self, Outputs};
use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// See how an object moves in 3D, and how it was predicted to move
///
/// The scene is an episode of a set (`--data`, `--episode`) or of the simulated workbench (`--task`, `--arm`, `--scene`).
/// A page (--png) has the camera's picture with true and predicted tracks, the scene from beside with the object where
/// the flow leaves it, the errors. A recording (--rerun) opens in the rerun viewer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scenes: Scenes,
    /// What `efference flow predict` wrote for this scene: its folder or prediction.json
    #[arg(long, value_name = "FILE")]
    prediction: Option<PathBuf>,
    /// Sample to show first [default: the one in the middle of the others]
    #[arg(long, value_name = "K", requires = "prediction")]
    sample: Option<usize>,
    #[command(flatten)]
    outputs: Outputs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.outputs.is_empty() {
        return Err(Failure::usage("nothing to write: give --png, --rerun, --video or --jsonl"));
    }
    let episode = args.scenes.episode()?;
    let mut scene = show::episode(&episode);
    if let Some(path) = &args.prediction {
        show::add_predictions(&mut scene, path)?;
    }
    show::complete(&mut scene, &episode)?;
    if let Some(sample) = args.sample {
        scene.chosen = Some(sample);
    }
    args.outputs.write(std::slice::from_ref(&scene), ui)?;
    if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
        let (ade_cm, fde_cm) = (errors.ade_cm(), errors.fde_cm());
        ui.object(&json!({ "instruction": scene.instruction, "ade_cm": ade_cm, "fde_cm": fde_cm }));
        ui.line(format!("\"{}\": mean error {ade_cm:.2} cm, final error {fde_cm:.2} cm", scene.instruction));
    }
    Ok(())
}
