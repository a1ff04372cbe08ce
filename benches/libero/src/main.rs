//! `cargo xtask bench libero`: control steps and resets of our LIBERO beside Python's, on the same machine, with the same
//! MuJoCo, the same GL and one thread each.
//!
//! The two take turns, round after round; what is compared is the median of the rounds' ratios, and over tasks their
//! median. Both start from the same saved states and take the same actions; where the hand is afterwards must agree.
//! Python's side is `benches/peers/libero_python.py`. It draws both cameras at every step and cannot leave them out, so it
//! is also the peer of (c), where we draw once per chunk of actions.
#![allow(clippy::unwrap_used)]

mod peer;

use std::sync::Arc;
use std::time::Instant;

use efference_envs::libero::{IDLE_ACTION, LiberoSim, Pack, Profile, SimOptions, SubstepOrder};
use peer::{Order, Peer};

/// Side of the pictures, in pixels.
const SIDE: usize = 128;
/// Steps that one decision of a policy covers.
const CHUNK: usize = 8;
const CAMERAS: [&str; 2] = ["agentview", "robot0_eye_in_hand"];
/// Idle steps before the clock starts: objects have fallen onto the table by then.
const IDLE: usize = 10;
/// Measured control steps of a turn without pictures.
const STEPS: usize = 40;
/// Measured control steps of a turn with pictures; Python takes most of a second for each on two busy cores.
const DRAWN_STEPS: usize = 4;
/// The farthest that the two hands may be apart in the end, metres.
const SAME: f64 = 5e-3;

struct Options {
    peer: String,
    packs: String,
    tasks: Vec<String>,
    rounds: usize,
}

fn options() -> Options {
    let mut options = Options { peer: String::new(), packs: String::new(), tasks: vec![], rounds: 5 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} wants a value"));
        match arg.as_str() {
            "--peer" => options.peer = value(),
            "--packs" => options.packs = value(),
            "--task" => options.tasks.push(value()),
            "--rounds" => options.rounds = value().parse().expect("--rounds wants a number"),
            "--bench" => {} // cargo's own
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// Small movements of every joint, the same on both sides.
fn action(step: usize) -> [f64; 7] {
    let mut action = [0.0; 7];
    for (i, a) in action[..6].iter_mut().enumerate() {
        *a = 0.4 * (0.3 * step as f64 + i as f64).sin();
    }
    action[6] = if step % 40 < 20 { -1.0 } else { 1.0 };
    action
}

fn sim(pack: &Arc<Pack>, order: SubstepOrder, profile: Profile) -> LiberoSim {
    LiberoSim::new(pack, &SimOptions { order, profile, image_size: SIDE }).unwrap()
}

/// To where the clock starts.
fn begin(sim: &mut LiberoSim, k: usize) {
    let pack = Arc::clone(sim.pack());
    sim.reset(k % pack.resets()).unwrap();
    sim.set_init_state(pack.init_state(k % pack.init_states()).unwrap()).unwrap();
    for _ in 0..IDLE {
        sim.step(&IDLE_ACTION).unwrap();
    }
}

/// Seconds per control step; both cameras are drawn after every `drawn`-th step, or never.
fn step_seconds(sim: &mut LiberoSim, steps: usize, drawn: Option<usize>) -> f64 {
    let mut picture = vec![0; SIDE * SIDE * 3];
    let start = Instant::now();
    for step in 0..steps {
        sim.step(&action(step)).unwrap();
        if drawn.is_some_and(|every| (step + 1) % every == 0) {
            for camera in CAMERAS {
                sim.render_into(camera, &mut picture).unwrap();
            }
        }
    }
    start.elapsed().as_secs_f64() / steps as f64
}

fn reset_seconds(sim: &mut LiberoSim, k: usize) -> f64 {
    const REPEATS: usize = 20;
    let pack = Arc::clone(sim.pack());
    let start = Instant::now();
    for i in 0..REPEATS {
        sim.reset((k + i) % pack.resets()).unwrap();
        sim.set_init_state(pack.init_state((k + i) % pack.init_states()).unwrap()).unwrap();
    }
    start.elapsed().as_secs_f64() / REPEATS as f64
}

/// What is compared, in the order of the last line.
const CASES: [&str; 7] = [
    "(a) physics and controller, fused order",
    "(a) exact order",
    "(b) two cameras every step",
    "(c) two cameras once per 8 steps",
    "(b) fast profile",
    "(c) fast profile",
    "reset",
];

/// Seconds of ours and Python's per case and round.
type Times = [Vec<(f64, f64)>; CASES.len()];

fn measure(peer: &mut Peer, pack: &Arc<Pack>, rounds: usize) -> Times {
    let mut fused = sim(pack, SubstepOrder::Fused, Profile::Faithful);
    let mut exact = sim(pack, SubstepOrder::Exact, Profile::Faithful);
    let mut fast = sim(pack, SubstepOrder::Fused, Profile::Fast);
    let order = |pictures, state, idle, steps| Order {
        suite: pack.meta.suite.clone(),
        task: pack.meta.task_id,
        pictures,
        state,
        idle,
        steps,
    };
    // Renderers are made, caches filled and Python's functions compiled before the clock runs.
    for sim in [&mut fused, &mut fast] {
        begin(sim, 0);
        step_seconds(sim, 1, Some(1));
    }
    peer.run(&order(false, 0, 1, 2));
    peer.run(&order(true, 0, 1, 1));

    let mut times = Times::default();
    for round in 0..rounds {
        let python = peer.run(&order(false, round, IDLE, STEPS));
        let python_step = python.seconds / STEPS as f64;
        begin(&mut fused, round);
        times[0].push((step_seconds(&mut fused, 2 * STEPS, None), python_step));
        begin(&mut exact, round);
        times[1].push((step_seconds(&mut exact, STEPS, None), python_step));
        times[6].push((reset_seconds(&mut fused, round), python.reset));
        let apart: f64 =
            exact.observation().eef_pos.iter().zip(python.eef).map(|(a, b)| (a - b).powi(2)).sum();
        assert!(apart.sqrt() < SAME, "{}: the hands are {} m apart", pack.id(), apart.sqrt());

        let python_drawn = peer.run(&order(true, round, 1, DRAWN_STEPS)).seconds / DRAWN_STEPS as f64;
        for (sim, every, chunked) in [(&mut fused, 2, 3), (&mut fast, 4, 5)] {
            begin(sim, round);
            times[every].push((step_seconds(sim, 2 * DRAWN_STEPS, Some(1)), python_drawn));
            times[chunked].push((step_seconds(sim, 3 * CHUNK, Some(CHUNK)), python_drawn));
        }
    }
    times
}

fn main() {
    let options = options();
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = move || load().split(' ').take(3).collect::<Vec<_>>().join(" ");
    let before = load();
    let mut peer = Peer::start(&options.peer, SIDE);
    let ours = efference_envs::mujoco_version();
    println!("peer: Python LIBERO, robosuite {}, MuJoCo {} (ours {ours})", peer.robosuite, peer.mujoco);
    assert_eq!(peer.mujoco, ours, "both sides need the same MuJoCo");
    println!("{SIDE} px, 1 thread each, in turns, {} rounds; load before: {before}\n", options.rounds);
    println!("| task | case | ours, ms | Python, ms | ratio |\n|---|---|---|---|---|");
    let mut ratios: [Vec<f64>; CASES.len()] = Default::default();
    for task in &options.tasks {
        let (suite, number) = task.rsplit_once('_').expect("a task is SUITE_NUMBER");
        let folder = Pack::find(options.packs.as_ref(), suite, number.parse().unwrap());
        let pack = folder.and_then(Pack::open).unwrap_or_else(|error| panic!("{error}"));
        let times = measure(&mut peer, &pack, options.rounds);
        for ((case, times), ratios) in CASES.iter().zip(&times).zip(&mut ratios) {
            let of = |pick: fn(&(f64, f64)) -> f64| median(&times.iter().map(pick).collect::<Vec<_>>());
            let (ours, theirs, ratio) = (of(|t| t.0), of(|t| t.1), of(|t| t.1 / t.0));
            println!("| {task} | {case} | {:.3} | {:.1} | {ratio:.1} |", ours * 1e3, theirs * 1e3);
            ratios.push(ratio);
        }
    }
    println!("\nload after: {}", load());
    let [a, exact, b, c, fast_b, fast_c, reset] = ratios.map(|r| median(&r));
    println!("exact order: (a) {exact:.1}x; fast profile: (b) {fast_b:.1}x");
    println!(
        "libero: (a) {a:.1}x (b) {b:.1}x (c) {c:.1}x fast {fast_c:.1}x reset {reset:.1}x of Python LIBERO"
    );
}
