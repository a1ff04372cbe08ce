//! Time of one update of 85 million weights (12 layers of 768) for each optimiser, beside what memory allows: AdamW reads
//! four f32 per weight and writes three. `cargo run --release -p efference-ops --example optimizer_bandwidth [ROUNDS]`
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use efference_ops::{
    AdafactorConfig, AdamWConfig, Ema, EmaConfig, Grads, Optimizer, OptimizerConfig, ParamGroup,
    clip_grad_norm, host,
};
use rayon::prelude::*;

/// Best time of `rounds` runs in seconds.
fn best(rounds: usize, mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let began = Instant::now();
        run();
        best = best.min(began.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    host::prepare();
    let rounds: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(5);
    let shapes: Vec<(usize, usize)> = (0..12)
        .flat_map(|_| [(768, 768), (768, 768), (768, 768), (768, 768), (2048, 768), (2048, 768), (768, 2048)])
        .collect();
    let fill = |value: f32, (n, m): (usize, usize)| {
        let data = (0..n * m).map(|i| value * (1.0 + (i % 97) as f32)).collect::<Vec<f32>>();
        Tensor::from_vec(data, (n, m), &Device::Cpu).unwrap()
    };
    let vars: Vec<Var> = shapes.iter().map(|&dims| Var::from_tensor(&fill(1e-3, dims)).unwrap()).collect();
    let norms: Vec<Var> = (0..24).map(|_| Var::from_tensor(&fill(1e-3, (1, 768))).unwrap()).collect();
    let vars: Vec<Var> = vars.into_iter().chain(norms).collect();
    let names: Vec<String> = (0..vars.len()).map(|i| format!("w{i}")).collect();
    let params = || names.iter().map(String::as_str).zip(&vars);
    let mut grads = Grads::new();
    for (name, var) in params() {
        grads.add_one(name, &(var.as_detached_tensor() * 0.01).unwrap()).unwrap();
    }
    let n: usize = vars.iter().map(|v| v.elem_count()).sum();
    let gigabytes = |floats: f64, seconds: f64| floats * 4.0 * n as f64 / seconds / 1e9;
    println!("{:.1} M weights, {} threads, best of {rounds}", n as f64 / 1e6, rayon::current_num_threads());

    // The machine: y += a x over three arrays at once moves as many bytes as a copy of each and a read of one more.
    let source = vec![1.0f32; n];
    let mut target = vec![0.0f32; n];
    let chunk = 1 << 14;
    let copy = best(rounds, || {
        target.par_chunks_mut(chunk).zip(source.par_chunks(chunk)).for_each(|(t, s)| t.copy_from_slice(s));
    });
    println!("{:34} {:8.1} ms {:6.1} GB/s", "copy", copy * 1e3, gigabytes(2.0, copy));
    let add = best(rounds, || {
        target.par_chunks_mut(chunk).zip(source.par_chunks(chunk)).for_each(|(t, s)| {
            t.iter_mut().zip(s).for_each(|(t, &s)| *t += s);
        });
    });
    let rate = gigabytes(3.0, add);
    println!("{:34} {:8.1} ms {rate:6.1} GB/s", "add in place", add * 1e3);
    drop((source, target));

    let norm = best(rounds, || assert!(clip_grad_norm(&mut grads, f64::INFINITY).unwrap().finite));
    println!("{:34} {:8.1} ms {:6.1} GB/s", "norm", norm * 1e3, gigabytes(1.0, norm));
    grads.scale(0.5);
    for (name, config, floats) in [
        ("adamw", OptimizerConfig::AdamW(AdamWConfig::default()), 7.0),
        // A byte each way for both moments; weight and gradient as before.
        ("adamw8bit", OptimizerConfig::AdamW8bit(AdamWConfig::default()), 4.0),
        // The gradient thrice, the weight read and written.
        (
            "adafactor",
            OptimizerConfig::Adafactor(AdafactorConfig {
                scale_parameter: false,
                ..AdafactorConfig::default()
            }),
            5.0,
        ),
    ] {
        let mut optimizer = Optimizer::new(ParamGroup::split(params(), 0.1, |_, _| true), config).unwrap();
        let seconds = best(rounds, || optimizer.step(&grads, 1e-6).unwrap());
        let moved = gigabytes(floats, seconds);
        println!(
            "{name:34} {:8.1} ms {moved:6.1} GB/s, {:3.0}% of add in place, state {:.0} MB",
            seconds * 1e3,
            100.0 * moved / rate,
            optimizer.state_bytes() as f64 / 1e6
        );
    }
    let mut ema = Ema::new(params(), EmaConfig::default()).unwrap();
    let seconds = best(rounds, || ema.update().unwrap());
    println!("{:34} {:8.1} ms {:6.1} GB/s", "ema", seconds * 1e3, gigabytes(3.0, seconds));
}
