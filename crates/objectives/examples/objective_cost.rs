//! What an objective costs beside the network: advantages, loss and the gradient with respect to every token's
//! log-probability on 512 x 1024 tokens in f32, against a training step of a decoder of 12 layers, 768 wide, on the same
//! tokens.
//!
//! The network's step takes hours on a CPU, so one sequence of 1024 tokens is trained (forward and backward pass) and
//! counts 512 times; the update of the weights counts once. The vocabulary's projection is left out, which makes the
//! network cheaper than a real one. The best of all rounds counts.
//!
//! `cargo run --release -p efference-objectives --example objective_cost [ROUNDS]`; 0 rounds of the network with
//! `objective_cost ROUNDS objectives`.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use efference_objectives::batch::VALUE_PREDICTIONS;
use efference_objectives::batch::{
    ENTROPY, GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, SUCCESS, VALUES,
};
use efference_objectives::{Algorithm, Batch, Prepared, State, Table};
use efference_ops as ops;
use efference_ops::{Activation, AttentionMask};

const ROWS: usize = 512;
const LEN: usize = 1024;
/// Answers to one prompt.
const GROUP: usize = 8;

/// Numbers in 0..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn tensor(&mut self, dims: &[usize], low: f32, high: f32) -> Tensor {
        let n: usize = dims.iter().product();
        let numbers: Vec<f32> = (0..n).map(|_| low + (high - low) * self.next()).collect();
        Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
    }
}

/// Everything the algorithms below ask for, and the tensors that get a gradient.
fn batch(random: &mut Random) -> (Batch, Var) {
    let lengths: Vec<usize> =
        (0..ROWS).map(|_| LEN / 4 + (random.next() * (LEN * 3 / 4) as f32) as usize).collect();
    let mask = lengths.iter().flat_map(|&l| (0..LEN).map(move |t| f64::from(u8::from(t < l))));
    let mask = Table { rows: ROWS, cols: LEN, values: mask.collect() };
    let log_probs = random.tensor(&[ROWS, LEN], -3.0, -0.1);
    let near = |random: &mut Random| (&log_probs + random.tensor(&[ROWS, LEN], -0.2, 0.2)).unwrap();
    let (old, reference) = (near(random), near(random));
    let success: Vec<f64> = (0..ROWS).map(|_| f64::from(u8::from(random.next() < 0.4))).collect();
    let groups: Vec<u64> = (0..ROWS).map(|i| (i / GROUP) as u64).collect();
    let var = Var::from_tensor(&log_probs).unwrap();
    let predictions = Var::from_tensor(&random.tensor(&[ROWS, LEN], 0.0, 1.0)).unwrap();
    let batch = Batch::new(mask)
        .with(LOG_PROBS, var.as_tensor().clone())
        .and_then(|b| b.with(OLD_LOG_PROBS, old))
        .and_then(|b| b.with(REF_LOG_PROBS, reference))
        .and_then(|b| b.with(ENTROPY, random.tensor(&[ROWS, LEN], 0.2, 2.0)))
        .and_then(|b| b.with(VALUES, random.tensor(&[ROWS, LEN], 0.0, 1.0)))
        .and_then(|b| b.with(VALUE_PREDICTIONS, predictions.as_tensor().clone()))
        .and_then(|b| b.with(REWARDS, success.clone()))
        .and_then(|b| b.with(SUCCESS, success))
        .and_then(|b| b.with(GROUP_IDS, groups));
    (batch.unwrap(), var)
}

/// Milliseconds of advantages, loss and gradient; the best of `rounds`, each part by itself.
fn cost(id: &str, settings: &str, rounds: usize) -> [f64; 4] {
    let objective = Algorithm::from_table(id, &settings.parse().unwrap()).unwrap().objective;
    let mut best = [f64::INFINITY; 4];
    for _ in 0..rounds {
        let mut clock = Instant::now();
        let mut lap = || {
            let ms = clock.elapsed().as_secs_f64() * 1e3;
            clock = Instant::now();
            ms
        };
        // Putting the batch together cleans its tensors, and is part of the cost.
        let (given, var) = batch(&mut Random(7));
        let inputs = objective.needs();
        let mut batch = Batch::new(given.mask().clone());
        lap();
        for input in inputs {
            batch.set(input, given.field(input).unwrap().clone()).unwrap();
        }
        let mut state = State::default();
        let Prepared { batch, signals, .. } = objective.prepare(batch, &mut state).unwrap();
        let prepare = lap();
        let whole = batch.normaliser();
        let loss = objective.loss(&batch, &signals, &whole, &state).unwrap().loss;
        let forward = lap();
        let grads = loss.backward().unwrap();
        assert!(grads.get(var.as_tensor()).is_some());
        let backward = lap();
        for (best, ms) in best.iter_mut().zip([prepare, forward, backward, prepare + forward + backward]) {
            *best = best.min(ms);
        }
    }
    best
}

/// A decoder: 12 layers, 768 wide, 12 heads, feed-forward 3072; weights as [out, in].
struct Decoder {
    layers: Vec<[Var; 6]>,
    rotary: ops::RotaryTable,
}

const WIDTH: usize = 768;
const HEADS: usize = 12;

impl Decoder {
    fn new(random: &mut Random) -> Self {
        let mut weight = |dims: &[usize]| Var::from_tensor(&random.tensor(dims, -0.03, 0.03)).unwrap();
        let layers = (0..12).map(|_| {
            [
                weight(&[WIDTH]),
                weight(&[3 * WIDTH, WIDTH]),
                weight(&[WIDTH, WIDTH]),
                weight(&[WIDTH]),
                weight(&[4 * WIDTH, WIDTH]),
                weight(&[WIDTH, 4 * WIDTH]),
            ]
        });
        Self { layers: layers.collect(), rotary: ops::RotaryTable::new(WIDTH / HEADS, LEN, 1e4).unwrap() }
    }

    fn forward(&self, x: &Tensor) -> ops::Result<Tensor> {
        let mut x = x.clone();
        for [norm1, qkv, out, norm2, up, down] in &self.layers {
            let h = ops::linear(&ops::rms_norm(&x, norm1, 1e-6)?, qkv, None)?;
            let h = h.reshape((1, LEN, 3, HEADS, WIDTH / HEADS))?;
            let part = |i: usize| h.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
            let (q, k, v) = (self.rotary.apply(&part(0)?, 0)?, self.rotary.apply(&part(1)?, 0)?, part(2)?);
            let scale = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
            let a = ops::attention(&q, &k, &v, &AttentionMask::Causal, None, scale)?;
            let a = a.transpose(1, 2)?.contiguous()?.reshape((LEN, WIDTH))?;
            x = (x + ops::linear(&a, out, None)?)?;
            let h = ops::linear_act(&ops::rms_norm(&x, norm2, 1e-6)?, up, None, Activation::GeluTanh)?;
            x = (x + ops::linear(&h, down, None)?)?;
        }
        Ok(x)
    }
}

/// Seconds of the forward and backward pass of one sequence, and of one update; weights in millions.
fn network(rounds: usize) -> (f64, f64, f64) {
    let mut random = Random(3);
    let net = Decoder::new(&mut random);
    let x = random.tensor(&[LEN, WIDTH], -1.0, 1.0);
    let vars: Vec<(String, Var)> =
        net.layers.iter().flatten().enumerate().map(|(i, v)| (format!("w{i}"), v.clone())).collect();
    let params = || vars.iter().map(|(name, var)| (name.as_str(), var));
    let groups = ops::ParamGroup::split(params(), 0.1, |_, _| true);
    let mut optimizer = ops::AdamW::new(groups, ops::AdamWConfig::default()).unwrap();
    let (mut pass, mut update) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        let start = Instant::now();
        let store = net.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        pass = pass.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let mut grads = ops::Grads::from_store(store, params()).unwrap();
        ops::clip_grad_norm(&mut grads, 1.0).unwrap();
        optimizer.step(&grads, 1e-6).unwrap();
        update = update.min(start.elapsed().as_secs_f64());
    }
    let weights: usize = vars.iter().map(|(_, var)| var.elem_count()).sum();
    (pass, update, weights as f64 / 1e6)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let rounds: usize = args.next().and_then(|a| a.parse().ok()).unwrap_or(5);
    let step = if args.next().is_none() {
        let (pass, update, weights) = network(rounds.min(3));
        let step = pass * ROWS as f64 + update;
        println!("network of {weights:.0} M weights: {pass:.2} s for 1024 tokens, {update:.2} s per update");
        println!("training step on {ROWS} x {LEN} tokens: {ROWS} x {pass:.2} + {update:.2} = {step:.0} s\n");
        Some(step)
    } else {
        None
    };
    println!(
        "{:34} {:>9} {:>9} {:>9} {:>9}  of a step",
        "ms on 512 x 1024 tokens", "prepare", "loss", "gradient", "all"
    );
    let kl_and_entropy = "regularizer = [{ kind = \"kl\" }, { kind = \"entropy_bonus\" }]";
    for (id, settings, extra) in [
        ("grpo", "", ""),
        ("grpo", kl_and_entropy, " + KL + entropy"),
        ("dapo", "", ""),
        ("gspo", "", ""),
        ("ppo", "", " (critic, GAE)"),
    ] {
        let ms = cost(id, settings, rounds);
        let share = step.map_or(String::new(), |step| format!("{:9.4}%", ms[3] / step / 10.0));
        println!(
            "{:34} {:9.1} {:9.1} {:9.1} {:9.1} {share}",
            format!("{id}{extra}"),
            ms[0],
            ms[1],
            ms[2],
            ms[3]
        );
    }
}
