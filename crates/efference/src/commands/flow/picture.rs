//! `efference flow picture`: the four families on one sheet, each predicted, judged and done.

use std::path::PathBuf;

use efference_envs::Env;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed};
use efference_envs::tabletop::Quality;
use efference_rollout::flow::{OracleFlow, Predictor, System, run_trial};
use efference_viz::flow::{FlowRecorder, FlowScene, page, sheet};
use serde_json::json;

use super::show;
use super::systems::Models;
use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// Families on the sheet, in this order.
const TASKS: [&str; 4] = ["pour", "insert", "hang", "drawer"];

/// Draw the sheet of the README: the four families, predicted, judged and done by an arm
///
/// Each column is one trial of the whole system on an evaluation scene: the flow that the model predicted, a true flow
/// (a way of the simulator's own), the scene from beside, the final state as it was judged, and what came of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    models: Models,
    /// System: full, full_exact, no_check, oracle, ...
    #[arg(long, value_name = "NAME", default_value = "full")]
    system: String,
    /// Arm: arm7 or arm6
    #[arg(long, default_value = "arm7")]
    arm: String,
    /// Evaluation scene, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    scene: u64,
    /// Side of the pictures that the camera draws, pixels; the model sees them reduced
    #[arg(long, value_name = "PIXELS", default_value_t = 384)]
    image_size: usize,
    /// The sheet
    #[arg(long, value_name = "OUT.png", default_value = "flow.png")]
    out: PathBuf,
    /// Folder for a page and a recording of each trial
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let systems = args.models.systems(std::slice::from_ref(&args.system))?;
    let Some((_, system)) = systems.first() else { return Ok(()) };
    let arm = ArmKind::from_id(&args.arm)?;
    if let Some(dir) = &args.records {
        std::fs::create_dir_all(dir)
            .map_err(|e| Failure::from(e).doing(format!("cannot make {}", dir.display())))?;
    }
    let mut scenes = Vec::new();
    for name in TASKS {
        let rounds = play(system, FlowTask::from_id(name)?, arm, args)?;
        let Some(first) = rounds.first() else {
            return Err(Failure::new(format!("{name}: the object is hidden in scene {}", args.scene))
                .help("choose another with --scene"));
        };
        let ade_cm = first.errors(first.chosen.unwrap_or(0)).map(|e| e.ade_cm());
        ui.object(&json!({ "task": name, "success": first.success, "ade_cm": ade_cm }));
        ui.line(format!(
            "{name}: {}, {:.1} cm from one true flow",
            if first.success == Some(true) { "done" } else { "not done" },
            ade_cm.unwrap_or(f64::NAN)
        ));
        if let Some(dir) = &args.records {
            page(first)?.save(dir.join(format!("{name}.png")))?;
            if efference_viz::HAS_RERUN {
                let mut recorder = FlowRecorder::create(&dir.join(format!("{name}.rrd")))?;
                rounds.iter().try_for_each(|scene| recorder.scene(scene))?;
                recorder.finish()?;
            }
        }
        scenes.extend(rounds.into_iter().next());
    }
    sheet(&scenes)?.save(&args.out)?;
    ui.note(format!("written: {}", args.out.display()));
    Ok(())
}

/// The rounds of one trial, the first with a true flow beside it.
fn play(system: &System, task: FlowTask, arm: ArmKind, args: &Args) -> Result<Vec<FlowScene>> {
    let options =
        FlowOptions { image_size: args.image_size, quality: Quality::Pretty, ..FlowOptions::default() };
    let seed = eval_seed(args.scene);
    let mut env = FlowEnv::new(task, arm, &options)?;
    let trial = run_trial(&mut env, system, seed)?;
    let mut scenes = show::trial(&trial, task.id(), seed);
    // The same start again, for a way that is known to do the task.
    env.reset(seed)?;
    if let (Some(scene), Some(round)) = (scenes.first_mut(), trial.rounds.first()) {
        let poses = env.motion(seed)?.poses;
        let truth = OracleFlow::new(move |_| Ok(poses.clone())).predict(&round.query, 1, seed)?;
        scene.truth = truth.into_iter().next();
        scene.fit()?;
    }
    Ok(scenes)
}
