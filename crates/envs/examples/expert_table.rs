//! Success and length of the experts' episodes on evaluation and training states, and of random actions.
//!
//! `cargo run --release -p efference-envs --example expert_table [SPEED [NOISE]]`

use efference_envs::tabletop::{
    EVAL_STATES, Expert, TabletopEnv, TabletopOptions, Task, eval_seed, train_seed,
};
use efference_envs::{Env, Result, VecEnv};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() -> Result<()> {
    let number = |i| std::env::args().nth(i).and_then(|arg| arg.parse::<f64>().ok());
    let (speed, noise) = (number(1).unwrap_or(Expert::SPEED), number(2).unwrap_or(0.0));
    println!("MuJoCo {}, expert speed {speed}, noise {noise}", efference_envs::mujoco_version());
    println!("task                 evaluation  training  steps mean min max  random");
    for task in Task::ALL {
        let eval: Vec<u64> = (0..EVAL_STATES).map(eval_seed).collect();
        let train: Vec<u64> = (0..EVAL_STATES as u64).map(train_seed).collect();
        let expert = |seed| Some(Expert::new(task).with_speed(speed).with_noise(noise, seed));
        let (eval, lengths) = run(task, &eval, expert)?;
        let (train, _) = run(task, &train, expert)?;
        let random: Vec<u64> = (1000..1200).map(train_seed).collect();
        let (random, _) = run(task, &random, |_| None)?;
        let steps = || lengths.iter().copied();
        println!(
            "{:20} {eval:7}/50 {train:6}/50 {:11.1} {:3} {:3} {random:5}/200",
            task.id(),
            steps().sum::<usize>() as f64 / lengths.len().max(1) as f64,
            steps().min().unwrap_or(0),
            steps().max().unwrap_or(0),
        );
    }
    Ok(())
}

/// Successes and their lengths; without an expert, actions are uniform.
fn run(
    task: Task,
    seeds: &[u64],
    expert: impl Fn(u64) -> Option<Expert> + Sync,
) -> Result<(usize, Vec<usize>)> {
    let envs = seeds.iter().map(|_| TabletopEnv::with_task(task, &TabletopOptions::default()));
    let mut envs = VecEnv::new(envs.collect::<Result<_>>()?, 0)?;
    let ends = envs.map(|i, env| {
        env.reset(seeds[i])?;
        let mut expert = expert(seeds[i]);
        let mut rng = ChaCha8Rng::seed_from_u64(seeds[i]);
        loop {
            let action = match &mut expert {
                Some(expert) => expert.act(env),
                None => std::array::from_fn(|_| rng.random_range(-1.0..=1.0)),
            };
            let outcome = env.step(&action)?;
            if outcome.done {
                if !outcome.success && expert.is_some() {
                    eprintln!("  {} failed on seed {}", task.id(), seeds[i]);
                }
                return Ok((outcome.success, outcome.steps));
            }
        }
    })?;
    let lengths: Vec<usize> = ends.iter().filter(|end| end.0).map(|end| end.1).collect();
    Ok((lengths.len(), lengths))
}
