//! `cargo xtask bench flow`: hand poses from a flow, ours beside SciPy's, and how long the parts take.
//!
//! A chunk is the 8 hand poses for a flow of 8 future frames, 16 keypoints. Two costs are planned for: the distance to the
//! flow alone, and ReKep's objective of it (60 points against a grid of distances, distance from the pose before, flow).
//! SciPy minimises the same costs of the same inputs with SLSQP from the pose before, as ReKep does; and the first pose of a
//! chunk also by dual annealing, as ReKep does where it has no solution before. The two sides take turns, one thread each;
//! what is compared is the median of the rounds' ratios. Python's side is `benches/peers/flow_scipy.py`.
#![allow(clippy::unwrap_used)]

mod peer;
mod scene;

use std::hint::black_box;
use std::time::Instant;

use efference_envs::flow::{GenerateOptions, generate};
use efference_geometry::plan::{Solution, SolveOptions, Subgoal, flow_to_ee_chunk, solve_chunk};
use efference_geometry::rigid::{FlowFitOptions, RansacOptions, ransac_rigid};
use efference_geometry::{Flow3d, Frame, Isometry3, Point3, Vector3};
use peer::Peer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scene::{FRAMES, POINTS, Scene};

/// How much dearer than SciPy's our poses may be.
const SAME: f64 = 0.02;

struct Options {
    peer: Option<String>,
    rounds: usize,
    scenes: usize,
}

fn options() -> Options {
    let mut options = Options { peer: None, rounds: 5, scenes: 3 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} wants a value"));
        match arg.as_str() {
            "--peer" => options.peer = Some(value()),
            "--rounds" => options.rounds = value().parse().expect("--rounds wants a number"),
            "--scenes" => options.scenes = value().parse().expect("--scenes wants a number"),
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

/// Seconds of one call: the best of several moments, each of enough calls; others use the machine, too.
fn seconds<T>(mut call: impl FnMut() -> T) -> f64 {
    black_box(call());
    let moment = |call: &mut dyn FnMut()| {
        let (start, mut calls) = (Instant::now(), 0);
        while calls < 3 || start.elapsed().as_secs_f64() < 0.001 {
            call();
            calls += 1;
        }
        start.elapsed().as_secs_f64() / f64::from(calls)
    };
    let mut call = || {
        black_box(call());
    };
    (0..15).map(|_| moment(&mut call)).fold(f64::INFINITY, f64::min)
}

fn plan(problem: &Subgoal, scene: &Scene) -> Vec<Solution> {
    // Both sides only minimise: nothing is sampled where a pose touches something.
    let options = SolveOptions { samples: 0, ..SolveOptions::new(Scene::bounds()) };
    solve_chunk(problem, &scene.targets, &options).unwrap()
}

/// What is compared: the cost and whether SciPy anneals first.
const CASES: [(&str, &str, bool); 4] = [
    ("flow alone, SLSQP", "flow", false),
    ("flow alone, annealing first", "flow", true),
    ("ReKep's objective, SLSQP", "rekep", false),
    ("ReKep's objective, annealing first", "rekep", true),
];

fn problem<'a>(scene: &'a Scene, cost: &str) -> Subgoal<'a> {
    if cost == "flow" { scene.flow_only() } else { scene.objective() }
}

/// Medians of ours in seconds, SciPy's, and the ratio, for each case.
fn beside_scipy(peer: &mut Peer, options: &Options) -> [f64; CASES.len()] {
    let scenes: Vec<Scene> = (0..options.scenes).map(|k| Scene::new(k as u64)).collect();
    let mut times: [Vec<(f64, f64)>; CASES.len()] = Default::default();
    let (mut lower, mut plans) = (0usize, 0usize);
    for round in 0..=options.rounds {
        for (index, scene) in scenes.iter().enumerate() {
            for ((name, cost, annealing), times) in CASES.iter().zip(&mut times) {
                let problem = problem(scene, cost);
                let theirs = peer.plan(scene, cost, *annealing);
                if round > 0 {
                    // For as long as SciPy took, so that both share the machine with others alike.
                    let (start, mut plans) = (Instant::now(), 0);
                    while start.elapsed().as_secs_f64() < theirs.seconds.clamp(0.2, 2.0) {
                        black_box(plan(&problem, scene));
                        plans += 1;
                    }
                    times.push((start.elapsed().as_secs_f64() / f64::from(plans), theirs.seconds));
                    continue;
                }
                // The first round warms up and compares what was found, pose by pose in sum.
                let found: f64 = plan(&problem, scene).iter().map(|s| s.terms.total).sum();
                let other: f64 = theirs.costs.iter().sum();
                plans += 1;
                lower += usize::from(found < other * (1.0 - SAME));
                assert!(
                    found <= other * (1.0 + SAME),
                    "scene {index}, {name}: {found} against SciPy's {other}"
                );
            }
        }
    }
    println!(
        "{plans} plans compared: none dearer than SciPy's by more than {SAME}, {lower} cheaper by more\n"
    );
    println!("| cost, SciPy's solver | ours, chunks/s | SciPy, chunks/s | ratio |\n|---|---|---|---|");
    let mut ratios = [0.0; CASES.len()];
    for (((name, ..), times), ratio) in CASES.iter().zip(&times).zip(&mut ratios) {
        let of = |pick: fn(&(f64, f64)) -> f64| median(&times.iter().map(pick).collect::<Vec<_>>());
        *ratio = of(|t| t.1 / t.0);
        println!("| {name} | {:.0} | {:.2} | {ratio:.0} |", 1.0 / of(|t| t.0), 1.0 / of(|t| t.1));
    }
    ratios
}

/// A rigid fit of 256 points of which three in ten are wrong, seconds.
fn ransac_seconds() -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut noise = |size: f64| Vector3::from_fn(|_, _| rng.random_range(-size..=size));
    let source: Vec<Point3<f64>> = (0..256).map(|_| Point3::from(noise(0.1))).collect();
    let motion = Isometry3::new(Vector3::new(0.1, 0.2, 0.3), Vector3::new(0.4, -0.5, 0.6));
    let mut target: Vec<Point3<f64>> = source.iter().map(|p| motion * p + noise(0.002)).collect();
    for (i, p) in target.iter_mut().enumerate() {
        if i % 10 < 3 {
            *p += noise(0.1);
        }
    }
    let mut seed = 0;
    let fit = |seed: u64| ransac_rigid(&source, &target, None, &RansacOptions::default(), seed).unwrap();
    assert!(fit(0).inliers.iter().filter(|x| **x).count() >= 175, "the fit is wrong");
    seconds(|| {
        seed += 1;
        fit(seed)
    })
}

/// A chunk from a whole flow by robust fits, seconds.
fn robust_chunk_seconds() -> f64 {
    let scene = Scene::new(1);
    let first = &scene.targets[0];
    let poses: Vec<_> = (0..=FRAMES)
        .map(|t| Isometry3::new(Vector3::z() * 0.02 * t as f64, Vector3::x() * 0.05 * t as f64))
        .collect();
    let object: Vec<_> =
        (0..POINTS).map(|i| first[i % first.len()] + Vector3::new(0.0, 1e-4, 1e-5) * i as f64).collect();
    let flow = Flow3d::rigid(Frame::World, &object, &poses, vec![1.0; POINTS * (FRAMES + 1)]).unwrap();
    seconds(|| flow_to_ee_chunk(&flow, &scene.hand, &FlowFitOptions::default()).unwrap())
}

/// Episodes of the workbench per second, all families and arms, pictures of 128 pixels, on all cores; and how many there are.
fn episodes_per_second() -> (f64, usize) {
    let options = GenerateOptions::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let make = |indices: std::ops::Range<u64>| {
        generate::<efference_envs::Error>(&options, indices, 0, |_, _| Ok(())).unwrap().made
    };
    // Scenes are compiled once per family, arm and thread.
    make(0..20);
    let start = Instant::now();
    let made = make(20..100);
    (made as f64 / start.elapsed().as_secs_f64(), threads)
}

fn main() {
    let options = options();
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = move || load().split(' ').take(3).collect::<Vec<_>>().join(" ");
    println!("chunks of {FRAMES} poses, 1 thread each, in turns; load before: {}", load());
    println!("RANSAC rigid fit of 256 points: {:.1} us", ransac_seconds() * 1e6);
    println!("chunk from a flow of {POINTS} points by RANSAC: {:.0} chunks/s", 1.0 / robust_chunk_seconds());
    let (episodes, threads) = episodes_per_second();
    println!("data generation: {episodes:.1} episodes/s on {threads} threads");
    let Some(python) = &options.peer else { return };
    let mut peer = Peer::start(python);
    println!("peer: SciPy {}, NumPy {}", peer.scipy, peer.numpy);
    let [flow, _, objective, _] = beside_scipy(&mut peer, &options);
    println!("\nload after: {}", load());
    // The peer's best side counts: SLSQP from the pose before, and the cost that is harder for us.
    println!("flow: planning {:.1}x of SciPy", flow.min(objective));
}
