//! What flows of limited precision are good for: the oracle's with errors of some centimetres at the end, executed as they
//! are and with a judge that may choose among four. `flow_disturbed [TRIALS] [JUDGE.safetensors]`.

use std::sync::Arc;

use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed};
use efference_rollout::flow::{Checker, LearnedJudge, LoopOptions, Source, System, run_trial};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let trials: u64 = args.first().map_or(Ok(10), |n| n.parse())?;
    let mut checkers = vec![("no check", Checker::Nobody), ("predicate", Checker::Predicate)];
    if let Some(path) = args.get(1) {
        checkers
            .push(("learned", Checker::Learned(Arc::new(LearnedJudge::load(std::path::Path::new(path))?))));
    }
    for (m, rad) in [(0.0, 0.0), (0.01, 0.05), (0.02, 0.1), (0.04, 0.2)] {
        for (name, checker) in &checkers {
            let samples = if matches!(checker, Checker::Nobody) { 1 } else { 4 };
            let system = System {
                source: Source::Disturbed { m, rad },
                checker: checker.clone(),
                propose: LoopOptions { samples, ..LoopOptions::default() },
                ..System::oracle()
            };
            let mut line = format!("{:.0} cm, {rad} rad, {name}:", 100.0 * m);
            for task in FlowTask::EXECUTED {
                let mut env = FlowEnv::new(task, ArmKind::Arm7, &FlowOptions::default())?;
                let (mut won, mut good, mut refused) = (0, 0, 0);
                for i in 0..trials {
                    let report = run_trial(&mut env, &system, eval_seed(i))?.report;
                    won += u64::from(report.success);
                    good += u64::from(report.plan_good == Some(true));
                    refused += u64::from(report.steps == 0);
                }
                line += &format!("  {} {won}/{trials} (good {good}, refused {refused})", task.id());
            }
            println!("{line}");
        }
    }
    Ok(())
}
