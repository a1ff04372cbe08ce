//! Trains the learned judge on scenes of the workbench: `flow_judge OUT.safetensors [SCENES per task]`.

use efference_envs::flow::{ArmKind, FlowOptions, FlowTask, train_seed};
use efference_rollout::flow::{JudgeTraining, judge_samples, train_judge};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scenes: u64 = args.get(1).map_or(Ok(300), |n| n.parse())?;
    let seeds: Vec<u64> = (0..scenes).map(train_seed).collect();
    let mut samples = Vec::new();
    for task in FlowTask::EXECUTED {
        let begun = std::time::Instant::now();
        let of_task = judge_samples(task, ArmKind::Arm7, &FlowOptions::default(), &seeds)?;
        let good = of_task.iter().filter(|s| s.accept()).count();
        println!(
            "{}: {} samples, {good} good, {:.1} s",
            task.id(),
            of_task.len(),
            begun.elapsed().as_secs_f64()
        );
        samples.extend(of_task);
    }
    let begun = std::time::Instant::now();
    let (judge, report) = train_judge(&samples, &JudgeTraining::default())?;
    println!("{report:?}, {:.0} s", begun.elapsed().as_secs_f64());
    if let Some(out) = args.first() {
        judge.save(std::path::Path::new(out))?;
    }
    Ok(())
}
