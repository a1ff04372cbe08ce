//! `cargo xtask bench ops`: every operation and whole training steps beside PyTorch on the same machine.
//!
//! The two run in turns, round after round, with the same number of threads; what is compared is the median of their
//! ratios. PyTorch's side is `benches/peers/torch_ops.py`, given by `--peer PYTHON`; without it only our times are
//! printed. `--only WORD` keeps the cases that contain the word, `--rounds N` sets the number of rounds.
#![allow(clippy::unwrap_used)]

mod cases;
mod peer;
mod step;

use std::time::{Duration, Instant};

use cases::{Case, Floor};
use peer::Peer;

/// How long one side of one round should take: long beside the clock, short beside the changes of a shared machine.
const TURN: Duration = Duration::from_millis(250);

/// PyTorch's threads spin for a while after their work; ours must not start meanwhile.
const SETTLE: Duration = Duration::from_millis(250);

struct Options {
    peer: Option<String>,
    only: Option<String>,
    rounds: usize,
}

fn options() -> Options {
    let mut options = Options { peer: None, only: None, rounds: 7 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} wants a value"));
        match arg.as_str() {
            "--peer" => options.peer = Some(value()),
            "--only" => options.only = Some(value()),
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

fn seconds(run: &mut dyn FnMut(), repeats: usize) -> f64 {
    let times: Vec<f64> = (0..repeats)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    median(&times)
}

/// Runs of one side in a row: several of the long ones too, because the first finds the caches full of the other side's.
fn repeats(one: f64) -> usize {
    ((TURN.as_secs_f64() / one.max(1e-6)) as usize).clamp(3, 200)
}

/// What this machine can do at best: the rate of matrix products (the better of the two sides) and of a copy.
struct Machine {
    flops: f64,
    bytes: f64,
}

fn machine(peer: &mut Option<Peer>) -> Machine {
    let (mut flops, mut bytes) = (0f64, 0f64);
    for probe in cases::probes() {
        let time = |case: &Case| {
            let mut run = (case.build)();
            run();
            seconds(&mut *run, 5)
        };
        let (ours, candle) = (time(&probe.case), probe.candle.as_ref().map_or(f64::NAN, time));
        let theirs = peer.as_mut().map_or(f64::NAN, |peer| median(&peer.run(&probe.case.name, 5)));
        std::thread::sleep(SETTLE);
        let best = ours.min(theirs).min(candle);
        let Floor { flops: f, bytes: b } = probe.case.floor;
        if f > 0.0 {
            let [ours, theirs, candle] = [ours, theirs, candle].map(|time| f / time / 1e9);
            println!("{}: ours {ours:.0}, PyTorch {theirs:.0}, gemm {candle:.0} GFLOP/s", probe.case.label);
        }
        flops = flops.max(f / best);
        bytes = bytes.max(b / best);
    }
    Machine { flops, bytes }
}

impl Machine {
    /// Seconds below which this machine cannot go.
    fn floor(&self, floor: Floor) -> f64 {
        (floor.flops / self.flops).max(floor.bytes / self.bytes)
    }
}

struct Measured {
    ours: f64,
    theirs: f64,
    ratio: f64,
}

fn measure(case: &Case, peer: &mut Option<Peer>, rounds: usize) -> Measured {
    let mut run = (case.build)();
    run();
    let ours_once = seconds(&mut *run, 1);
    let theirs_once = peer.as_mut().map(|peer| peer.run(&case.name, 1)[0]);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        std::thread::sleep(if peer.is_some() { SETTLE } else { Duration::ZERO });
        ours.push(seconds(&mut *run, repeats(ours_once)));
        if let (Some(peer), Some(once)) = (peer.as_mut(), theirs_once) {
            theirs.push(median(&peer.run(&case.name, repeats(once))));
            ratios.push(theirs[theirs.len() - 1] / ours[ours.len() - 1]);
        }
    }
    let of = |numbers: &[f64]| if numbers.is_empty() { f64::NAN } else { median(numbers) };
    Measured { ours: of(&ours), theirs: of(&theirs), ratio: of(&ratios) }
}

fn main() {
    let options = options();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    efference_ops::host::prepare();
    // This thread becomes a worker, as `install` makes the trainer's one: a step is some hundred short loops, and handing
    // each over to a sleeping pool costs two wake-ups.
    rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global().unwrap();
    let mut peer = options.peer.as_deref().map(|python| Peer::start(python, threads));
    if let Some(peer) = &peer {
        println!("peer: PyTorch {} on CPU, {threads} threads each, in turns", peer.version);
    }
    let machine = machine(&mut peer);
    println!(
        "this machine: {:.0} GFLOP/s in matrix products, {:.1} GB/s copied\n",
        machine.flops / 1e9,
        machine.bytes / 1e9
    );
    println!("| case | ours, ms | PyTorch, ms | ratio | floor, ms |\n|---|---|---|---|---|");
    let mut headline = Vec::new();
    for case in cases::all().into_iter().chain(step::all()) {
        if options.only.as_ref().is_some_and(|word| !case.label.contains(word.as_str())) {
            continue;
        }
        let Measured { ours, theirs, ratio } = measure(&case, &mut peer, options.rounds);
        let floor = machine.floor(case.floor);
        println!(
            "| {} | {:.3} | {:.3} | {ratio:.2} | {:.3} |",
            case.label,
            ours * 1e3,
            theirs * 1e3,
            floor * 1e3
        );
        headline.extend(case.headline.map(|name| format!("{name} {ratio:.2}x")));
    }
    // Without the steps, or without a peer, there is nothing to sum up.
    if peer.is_some() && !headline.is_empty() {
        println!("\nops: {} of PyTorch", headline.join(", "));
    }
}
