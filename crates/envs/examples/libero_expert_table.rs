//! How often the scripted expert solves each task: a table over initial states, on all cores.
//!
//! ```text
//! cargo run --release -p efference-envs --example libero_expert_table -- [SUITE|SUITE_TASK]... [--states N] [--first I] [--noise X] [--fused]
//! ```
//! Packs are those of `cargo xtask libero` (`EFFERENCE_LIBERO`).
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;

use efference_envs::libero::expert::{Expert, ExpertEpisode, ExpertOptions};
use efference_envs::libero::{IDLE_ACTION, IDLE_STEPS, LiberoSim, Pack, Result, SimOptions, SubstepOrder, packs_dir};
use rayon::prelude::*;

struct Args {
    names: Vec<String>,
    states: usize,
    first: usize,
    noise: f64,
    order: SubstepOrder,
    ways: bool,
}

fn args() -> Option<Args> {
    let mut args =
        Args { names: Vec::new(), states: 5, first: 0, noise: 0.0, order: SubstepOrder::Exact, ways: false };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        match arg.as_str() {
            "--states" => args.states = given.next()?.parse().ok()?,
            "--first" => args.first = given.next()?.parse().ok()?,
            "--noise" => args.noise = given.next()?.parse().ok()?,
            "--fused" => args.order = SubstepOrder::Fused,
            "--ways" => args.ways = true,
            name if !name.starts_with('-') => args.names.push(name.to_owned()),
            _ => return None,
        }
    }
    if args.names.is_empty() {
        args.names = ["libero_spatial", "libero_object", "libero_goal"].map(str::to_owned).to_vec();
    }
    Some(args)
}

fn packs(names: &[String]) -> Vec<PathBuf> {
    let root = packs_dir();
    let mut dirs = Vec::new();
    for name in names {
        if root.join(name).join("meta.json").is_file() {
            dirs.push(root.join(name));
        } else {
            let of_suite = (0..100).map(|task| root.join(format!("{name}_{task}")));
            dirs.extend(of_suite.filter(|dir| dir.join("meta.json").is_file()));
        }
    }
    dirs
}

fn play(pack: &Arc<Pack>, state: usize, args: &Args) -> Result<ExpertEpisode> {
    let mut sim = LiberoSim::new(pack, &SimOptions { order: args.order, ..SimOptions::default() })?;
    sim.reset(state)?;
    sim.set_init_state(pack.init_state(state % pack.init_states()).unwrap_or_default())?;
    for _ in 0..IDLE_STEPS {
        sim.step(&IDLE_ACTION)?;
    }
    let mut expert = Expert::new(ExpertOptions { noise: args.noise, ..ExpertOptions::default() });
    expert.plan(&mut sim, state as u64)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let Some(args) = args() else {
        println!("usage: libero_expert_table [SUITE|SUITE_TASK]... [--states N] [--first I] [--noise X] [--fused] [--ways]");
        return Ok(());
    };
    println!("MuJoCo {}, {:?} order, noise {}", efference_envs::mujoco_version(), args.order, args.noise);
    println!("| task | solved | steps | trial steps | language |\n|---|---|---|---|---|");
    let (mut solved, mut all) = (0, 0);
    for dir in packs(&args.names) {
        let pack = Pack::open(&dir)?;
        let states: Vec<usize> = (args.first..args.first + args.states).collect();
        let episodes: Vec<ExpertEpisode> =
            states.par_iter().map(|&state| play(&pack, state, &args)).collect::<Result<_>>()?;
        let good: Vec<&ExpertEpisode> = episodes.iter().filter(|e| e.success).collect();
        let lengths = || good.iter().map(|e| e.labels.len());
        println!(
            "| {} | {}/{} | {} to {} | {} | {} |",
            dir.file_name().unwrap_or_default().to_string_lossy(),
            good.len(),
            episodes.len(),
            lengths().min().unwrap_or(0),
            lengths().max().unwrap_or(0),
            episodes.iter().map(|e| e.simulated).sum::<usize>() / episodes.len().max(1),
            pack.language(),
        );
        if args.ways {
            for (state, episode) in states.iter().zip(&episodes) {
                println!("    {state} {} {:?}", episode.success, episode.ways);
            }
        }
        solved += good.len();
        all += episodes.len();
    }
    println!("\n{solved} of {all} episodes solved");
    Ok(())
}
