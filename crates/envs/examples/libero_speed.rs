//! How fast LIBERO runs: control steps per second, resets, pictures.
//!
//! `cargo run --release -p efference-envs --example libero_speed [PACK ...]` (default: the sample pack of the tests).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use efference_envs::libero::{LiberoSim, Pack, Profile, SimOptions, SubstepOrder};

const CAMERAS: [&str; 2] = ["agentview", "robot0_eye_in_hand"];
const CHUNK: usize = 8;

fn main() {
    let mut packs: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if packs.is_empty() {
        packs.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero/pack_sample"));
    }
    for dir in packs {
        let pack = Pack::open(&dir).unwrap();
        println!("{} on MuJoCo {}, load {}", pack.id(), efference_envs::mujoco_version(), load());
        let clock = Instant::now();
        start(&pack, &SimOptions::default());
        println!("  first simulation (compiles the scene)   {:8.1} ms", 1e3 * clock.elapsed().as_secs_f64());
        time("  another simulation", 20, "ms", 1e3, |_| drop(start(&pack, &SimOptions::default())));
        let mut sim = start(&pack, &SimOptions::default());
        time("  reset", 200, "ms", 1e3, |k| sim.reset(k).unwrap());
        time("  reset and initial state", 200, "ms", 1e3, |k| begin(&mut sim, k));
        time("  snapshot", 2000, "ms", 1e3, |_| drop(sim.snapshot()));
        let snapshot = sim.snapshot();
        time("  restore", 500, "ms", 1e3, |_| sim.restore(&snapshot).unwrap());
        for order in [SubstepOrder::Exact, SubstepOrder::Fused] {
            let mut sim = start(&pack, &SimOptions { order, ..SimOptions::default() });
            rate(&format!("  {order:?}, no pictures"), &mut sim, 400, None);
            for profile in [Profile::Faithful, Profile::Fast] {
                let mut sim = start(&pack, &SimOptions { order, profile, ..SimOptions::default() });
                CAMERAS.iter().for_each(|camera| drop(sim.render(camera).unwrap()));
                rate(
                    &format!("  {order:?}, {profile:?}, two cameras per {CHUNK} steps"),
                    &mut sim,
                    160,
                    Some(CHUNK),
                );
                rate(&format!("  {order:?}, {profile:?}, two cameras every step"), &mut sim, 40, Some(1));
            }
        }
        println!("  load at the end {}", load());
    }
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .split(' ')
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

fn start(pack: &Arc<Pack>, options: &SimOptions) -> LiberoSim {
    let mut sim = LiberoSim::new(pack, options).unwrap();
    begin(&mut sim, 0);
    sim
}

fn begin(sim: &mut LiberoSim, k: usize) {
    let pack = Arc::clone(sim.pack());
    sim.reset(k).unwrap();
    sim.set_init_state(pack.init_state(k % pack.init_states()).unwrap()).unwrap();
}

fn time(what: &str, times: usize, unit: &str, scale: f64, mut run: impl FnMut(usize)) {
    let clock = Instant::now();
    (0..times).for_each(&mut run);
    println!("{what:58} {:8.3} {unit}", scale * clock.elapsed().as_secs_f64() / times as f64);
}

/// Moves that reach the objects, turn the hand and work the gripper.
fn action(i: usize) -> [f64; 7] {
    let t = i as f64 / 20.0;
    let grip = if (i / 40).is_multiple_of(2) { -1.0 } else { 1.0 };
    [
        0.6 * (1.3 * t).sin(),
        0.6 * (0.9 * t).cos(),
        -0.3 * (0.7 * t).sin(),
        0.0,
        0.2 * t.sin(),
        0.3 * (0.5 * t).cos(),
        grip,
    ]
}

fn rate(what: &str, sim: &mut LiberoSim, steps: usize, every: Option<usize>) {
    begin(sim, 0);
    let side = sim.options().image_size;
    let mut rgb = vec![0; side * side * 3];
    let clock = Instant::now();
    for i in 0..steps {
        sim.step(&action(i)).unwrap();
        if every.is_some_and(|every| i.is_multiple_of(every)) {
            CAMERAS.iter().for_each(|camera| sim.render_into(camera, &mut rgb).unwrap());
        }
    }
    println!("{what:58} {:8.1} control steps/s", steps as f64 / clock.elapsed().as_secs_f64());
}
