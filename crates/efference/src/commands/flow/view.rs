//! `efference flow view`: an episode of flow as a page, a film, a recording.

use std::path::PathBuf;
use std::time::Instant;

use efference_data::flow::{FlowEpisode, FlowStore};
use efference_viz::flow::{FlowRecorder, MovieOptions, movie, page};
use serde_json::json;

use super::scenes::Scenes;
use super::show;
use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// See how an object moves in 3D, and how it was predicted to move
///
/// The scene is an episode of a set (`efference data flow`) or of the simulated workbench (`--task`, `--arm`, `--scene`).
/// A page (--png) has the camera's picture with true and predicted tracks, the scene from beside with the object where
/// the flow leaves it, the errors. A recording (--rerun) opens in the rerun viewer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder that `efference data flow` made; without it a scene of the workbench
    #[arg(value_name = "DATA_DIR")]
    data: Option<PathBuf>,
    /// Number of the episode in the set, from 0
    #[arg(long, value_name = "I", default_value_t = 0, requires = "data")]
    episode: usize,
    #[command(flatten)]
    scenes: Scenes,
    /// What `efference flow predict` wrote for this scene: its folder or prediction.json
    #[arg(long, value_name = "FILE")]
    prediction: Option<PathBuf>,
    /// Sample to show first [default: the one in the middle of the others]
    #[arg(long, value_name = "K", requires = "prediction")]
    sample: Option<usize>,
    /// Recording for the rerun viewer
    #[arg(long, value_name = "OUT.rrd")]
    rerun: Option<PathBuf>,
    /// The same record as JSON lines
    #[arg(long, value_name = "OUT.jsonl")]
    jsonl: Option<PathBuf>,
    /// Page with pictures and numbers
    #[arg(long, value_name = "OUT.png")]
    png: Option<PathBuf>,
    /// Film: .gif, animated .png, or .mp4 (by ffmpeg)
    #[arg(long, value_name = "OUT")]
    video: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if [&args.rerun, &args.jsonl, &args.png, &args.video].iter().all(|out| out.is_none()) {
        return Err(Failure::usage("nothing to write: give --png, --rerun, --video or --jsonl"));
    }
    let episode = episode(args)?;
    let mut scene = show::episode(&episode);
    if let Some(path) = &args.prediction {
        show::add_predictions(&mut scene, path)?;
    }
    show::complete(&mut scene, &episode)?;
    if let Some(sample) = args.sample {
        scene.chosen = Some(sample);
    }
    scene.validate()?;
    let written = |path: &PathBuf, begun: Instant| {
        let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
        let seconds = begun.elapsed().as_secs_f64();
        ui.object(&json!({ "file": path, "bytes": bytes, "seconds": seconds }));
        ui.line(format!("{}: {:.2} MB in {seconds:.1} s", path.display(), bytes as f64 / 1e6));
    };
    for path in [&args.rerun, &args.jsonl].into_iter().flatten() {
        let begun = Instant::now();
        let mut recorder = FlowRecorder::create(path)?;
        recorder.scene(&scene)?;
        recorder.finish()?;
        written(path, begun);
    }
    if let Some(path) = &args.png {
        let begun = Instant::now();
        page(&scene)?.save(path)?;
        written(path, begun);
    }
    if let Some(path) = &args.video {
        let begun = Instant::now();
        movie(&scene, path, &MovieOptions::default())?;
        written(path, begun);
    }
    if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
        let (ade_cm, fde_cm) = (errors.ade_cm(), errors.fde_cm());
        ui.object(&json!({ "instruction": scene.instruction, "ade_cm": ade_cm, "fde_cm": fde_cm }));
        ui.line(format!("\"{}\": mean error {ade_cm:.2} cm, final error {fde_cm:.2} cm", scene.instruction));
    }
    Ok(())
}

fn episode(args: &Args) -> Result<FlowEpisode> {
    let Some(dir) = &args.data else { return args.scenes.episode() };
    Ok(FlowStore::open(dir)?.load(args.episode)?)
}
