//! The upper bound: trials with the oracle's flow, per task and arm. `flow_oracle [TRIALS] [TASK] [ARM]`; one trial of one
//! task with one arm is told step by step.

use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed};
use efference_rollout::flow::{System, run_trial, tell};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let trials: u64 = args.first().map_or(Ok(10), |n| n.parse())?;
    let tasks =
        args.get(1).map_or(Ok(FlowTask::EXECUTED.to_vec()), |id| FlowTask::from_id(id).map(|t| vec![t]))?;
    let arms = args.get(2).map_or(Ok(ArmKind::ALL.to_vec()), |id| ArmKind::from_id(id).map(|a| vec![a]))?;
    let first: u64 = args.get(3).map_or(Ok(0), |n| n.parse())?;
    let system = System::oracle();
    for &task in &tasks {
        for &arm in &arms {
            let mut env = FlowEnv::new(task, arm, &FlowOptions::default())?;
            let (mut won, mut seconds) = (0, 0.0);
            for i in first..first + trials {
                let trial = run_trial(&mut env, &system, eval_seed(i))?;
                won += u64::from(trial.report.success);
                seconds += trial.report.seconds;
                if trials == 1 {
                    tell(&trial).iter().for_each(|line| println!("{line}"));
                } else if !trial.report.success {
                    let r = &trial.report;
                    println!(
                        "  {i}: {:?} {:?} steps {} plan_good {:?}",
                        r.end, r.refused, r.steps, r.plan_good
                    );
                }
            }
            println!("{} {}: {won}/{trials}, {:.2} s each", task.id(), arm.id(), seconds / trials as f64);
        }
    }
    Ok(())
}
