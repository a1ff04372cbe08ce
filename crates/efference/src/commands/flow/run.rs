//! `efference flow run`: one trial, told step by step.

use std::path::PathBuf;

use efference_data::atomic;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed};
use efference_rollout::flow::{Trial, run_trial, tell};
use serde_json::{Value, json};

use super::show::{self, Outputs};
use super::systems::Models;
use crate::errors::Result;
use crate::ui::Ui;

/// Let an arm do one task from predicted flow, told step by step
///
/// Predictions that are not rigid, leave the workspace or displease the judge are rejected with the reason; if none is
/// left, nothing moves. With --record everything is written as JSON: predictions, verdicts, grasps, the way of the
/// gripper, the actions. --rerun, --png and --video show it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Task family: pour, insert, hang, drawer
    #[arg(long, value_name = "TASK", default_value = "pour")]
    task: String,
    /// Arm: arm7 or arm6
    #[arg(long, default_value = "arm7")]
    arm: String,
    /// Evaluation scene, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    scene: u64,
    /// System: oracle, full, full_exact, insist, no_check, frozen_depth, from_scratch or finetuned
    #[arg(long, value_name = "NAME", default_value = "full")]
    system: String,
    #[command(flatten)]
    models: Models,
    /// File to write the whole trial to
    #[arg(long, value_name = "FILE.json")]
    record: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let (task, arm) = (FlowTask::from_id(&args.task)?, ArmKind::from_id(&args.arm)?);
    let systems = args.models.systems(std::slice::from_ref(&args.system))?;
    let mut env = FlowEnv::new(task, arm, &FlowOptions::default())?;
    for (name, system) in &systems {
        let trial = run_trial(&mut env, system, eval_seed(args.scene))?;
        for line in tell(&trial) {
            ui.line(line);
        }
        ui.object(&json!({
            "system": name, "task": task, "arm": arm, "scene": args.scene, "report": trial.report,
        }));
        args.outputs.write(&show::trial(&trial, task.id(), eval_seed(args.scene)), ui)?;
        if let Some(path) = &args.record {
            atomic::write_file(path, recorded(&trial).to_string().as_bytes())?;
            ui.note(format!("written: {}", path.display()));
        }
    }
    Ok(())
}

/// Everything that happened, in numbers: metres, world frame, quaternions xyzw.
fn recorded(trial: &Trial) -> Value {
    let rounds = trial.rounds.iter().map(|round| {
        let attempts = round.proposal.attempts.iter().map(|attempt| {
            json!({
                "motion": attempt.fit.poses,
                "rigid_rms_m": attempt.fit.rms_all_m,
                "score": attempt.verdict.as_ref().map(|v| v.score),
                "rejection": attempt.rejection,
            })
        });
        let grasp = round.grasp.as_ref().and_then(|grasp| grasp.as_ref().ok());
        json!({
            "instruction": round.query.instruction,
            "attempts": attempts.collect::<Vec<_>>(),
            "chosen": round.chosen,
            "gripper_path": grasp.map(|plan| &plan.path),
            "grasps": grasp.map(|plan| plan.examined.iter()
                .map(|e| json!({ "grip": e.grip, "cost": e.cost, "check": e.check })).collect::<Vec<_>>()),
            "end": round.end,
        })
    });
    let events = trial.trace.events.iter().map(|(step, event)| json!({ "step": step, "event": event }));
    json!({
        "report": trial.report,
        "rounds": rounds.collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
        "grips": trial.trace.grips,
        "actions": trial.trace.actions,
    })
}
