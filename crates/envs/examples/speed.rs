//! Rates on one thread and on all: control steps, frames, resets, snapshots, play samples.
//!
//! `cargo run --release -p efference-envs --example speed`

use std::time::Instant;

use efference_envs::tabletop::{CAMERAS, Play, TabletopEnv, TabletopOptions, Task, train_seed};
use efference_envs::{Action, Env, Result, VecEnv};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() -> Result<()> {
    let options = TabletopOptions { max_steps: 10_000, ..TabletopOptions::default() };
    let mut env = TabletopEnv::with_task(Task::PickRedCube, &options)?;
    env.reset(train_seed(0))?;
    env.render(CAMERAS[0])?;

    let rate = |name: &str, n: u64, mut f: Box<dyn FnMut(u64) -> Result<()> + '_>| -> Result<()> {
        let start = Instant::now();
        for i in 0..n {
            f(i)?;
        }
        println!("{name:32} {:10.0} /s", n as f64 / start.elapsed().as_secs_f64());
        Ok(())
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut random = || -> Action { std::array::from_fn(|_| rng.random_range(-1.0..=1.0)) };
    println!("one thread, MuJoCo {}, {} px", efference_envs::mujoco_version(), options.image_size);
    rate("control steps (10 physics each)", 4000, Box::new(|_| env.step(&random()).map(drop)))?;
    rate("frames", 3000, Box::new(|i| env.render(CAMERAS[i as usize % 2]).map(drop)))?;
    rate("resets", 1000, Box::new(|i| env.reset(train_seed(i)).map(drop)))?;
    let snapshot = env.snapshot();
    rate("restores", 5000, Box::new(|_| env.restore(&snapshot)))?;
    rate("frames from snapshots", 3000, Box::new(|_| env.render_snapshot(&snapshot, CAMERAS[0]).map(drop)))?;
    let mut play = Play::new(&options, 8)?;
    rate("play samples (two frames each)", 1000, Box::new(|i| play.sample(i).map(drop)))?;

    for threads in [1, 2] {
        let envs =
            (0..16).map(|_| TabletopEnv::with_task(Task::OpenDrawer, &options)).collect::<Result<_>>()?;
        let mut envs = VecEnv::new(envs, threads)?;
        envs.reset_all(&(0..16).map(train_seed).collect::<Vec<_>>())?;
        let mut pixels = vec![0; 16 * 2 * 64 * 64 * 3];
        envs.render_all(&CAMERAS, &[true; 16], &mut pixels)?;
        let (chunks, start) = (20, Instant::now());
        for _ in 0..chunks {
            envs.render_all(&CAMERAS, &[true; 16], &mut pixels)?;
            let actions: Vec<Vec<Action>> = (0..16).map(|_| (0..8).map(|_| random()).collect()).collect();
            envs.step_all(&actions, false)?;
        }
        let steps = f64::from(chunks) * 16.0 * 8.0 / start.elapsed().as_secs_f64();
        println!("{threads} threads, 16 environments, two frames a chunk of 8: {steps:7.0} control steps/s");
    }
    Ok(())
}
