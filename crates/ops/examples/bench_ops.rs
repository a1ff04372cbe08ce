//! Milliseconds of the main operations at the small policy's shapes, against the same formula written with candle's own
//! operations. Both are run in turns; the best of all rounds counts. `cargo run --release -p efference-ops --example
//! bench_ops [ROUNDS] [WORD IN THE NAME]`
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use efference_ops as ops;
use efference_ops::{Activation, AttentionMask};

fn numbers(dims: &[usize], seed: u64) -> Tensor {
    let n: usize = dims.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    };
    Tensor::from_vec((0..n).map(|_| next()).collect::<Vec<f32>>(), dims, &Device::Cpu).unwrap()
}

type Function<'a> = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>;

/// One line of the table: arguments' shapes, multiply-adds of the forward pass, ours and the peer.
struct Case<'a> {
    name: &'static str,
    args: Vec<Vec<usize>>,
    products: usize,
    ours: Function<'a>,
    peer: Function<'a>,
}

fn best(rounds: usize, mut runs: [&mut dyn FnMut(); 2]) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..rounds {
        for (best, run) in best.iter_mut().zip(&mut runs) {
            let start = Instant::now();
            run();
            *best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    best
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?;
    x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let rounds: usize = args.next().and_then(|a| a.parse().ok()).unwrap_or(7);
    let word = args.next().unwrap_or_default();
    let rows = 64 * 102;
    let ids = Tensor::from_vec((0..64 * 56).map(|i| (i * 37 % 256) as u32).collect(), 64 * 56, &Device::Cpu)
        .unwrap();
    let column = ids.unsqueeze(1).unwrap();
    let table_ids =
        Tensor::from_vec((0..rows).map(|i| (i * 37 % 768) as u32).collect(), rows, &Device::Cpu).unwrap();
    let linear = |a: &[Tensor]| a[0].matmul(&a[1].t()?)?.broadcast_add(&a[2]);
    let cases = [
        Case {
            name: "linear 128 -> 512",
            args: vec![vec![rows, 128], vec![512, 128], vec![512]],
            products: rows * 128 * 512,
            ours: Box::new(|a| Ok(ops::linear(&a[0], &a[1], Some(&a[2]))?)),
            peer: Box::new(linear),
        },
        Case {
            name: "linear 512 -> 128",
            args: vec![vec![rows, 512], vec![128, 512], vec![128]],
            products: rows * 128 * 512,
            ours: Box::new(|a| Ok(ops::linear(&a[0], &a[1], Some(&a[2]))?)),
            peer: Box::new(linear),
        },
        Case {
            name: "linear 96 -> 96, 8192 rows",
            args: vec![vec![8192, 96], vec![96, 96], vec![96]],
            products: 8192 * 96 * 96,
            ours: Box::new(|a| Ok(ops::linear(&a[0], &a[1], Some(&a[2]))?)),
            peer: Box::new(linear),
        },
        Case {
            name: "linear 128 -> 512, one sample",
            args: vec![vec![102, 128], vec![512, 128], vec![512]],
            products: 102 * 128 * 512,
            ours: Box::new(|a| Ok(ops::linear(&a[0], &a[1], Some(&a[2]))?)),
            peer: Box::new(linear),
        },
        Case {
            name: "linear + gelu 128 -> 512",
            args: vec![vec![rows, 128], vec![512, 128], vec![512]],
            products: rows * 128 * 512,
            ours: Box::new(|a| Ok(ops::linear_act(&a[0], &a[1], Some(&a[2]), Activation::GeluTanh)?)),
            peer: Box::new(move |a| linear(a)?.gelu()),
        },
        Case {
            name: "attention 64 x 4 x 207 x 32",
            args: vec![vec![64, 4, 207, 32]; 3],
            products: 2 * 64 * 4 * 207 * 207 * 32,
            ours: Box::new(|a| Ok(ops::attention(&a[0], &a[1], &a[2], &AttentionMask::Full, None, 0.2)?)),
            peer: Box::new(|a| softmax(&(a[0].matmul(&a[1].t()?)? * 0.2)?)?.matmul(&a[2])),
        },
        Case {
            name: "attention 128 x 3 x 64 x 32",
            args: vec![vec![128, 3, 64, 32]; 3],
            products: 2 * 128 * 3 * 64 * 64 * 32,
            ours: Box::new(|a| Ok(ops::attention(&a[0], &a[1], &a[2], &AttentionMask::Full, None, 0.2)?)),
            peer: Box::new(|a| softmax(&(a[0].matmul(&a[1].t()?)? * 0.2)?)?.matmul(&a[2])),
        },
        Case {
            name: "layer norm 128",
            args: vec![vec![rows, 128], vec![128], vec![128]],
            products: 0,
            ours: Box::new(|a| Ok(ops::layer_norm(&a[0], &a[1], &a[2], 1e-6)?)),
            peer: Box::new(|a| {
                let x = a[0].broadcast_sub(&a[0].mean_keepdim(1)?)?;
                let x = x.broadcast_div(&(x.sqr()?.mean_keepdim(1)? + 1e-6)?.sqrt()?)?;
                x.broadcast_mul(&a[1])?.broadcast_add(&a[2])
            }),
        },
        Case {
            name: "rms norm 128",
            args: vec![vec![rows, 128], vec![128]],
            products: 0,
            ours: Box::new(|a| Ok(ops::rms_norm(&a[0], &a[1], 1e-6)?)),
            peer: Box::new(|a| {
                let x = a[0].broadcast_div(&(a[0].sqr()?.mean_keepdim(1)? + 1e-6)?.sqrt()?)?;
                x.broadcast_mul(&a[1])
            }),
        },
        Case {
            name: "gelu 512",
            args: vec![vec![rows, 512]],
            products: 0,
            ours: Box::new(|a| Ok(ops::gelu_tanh(&a[0])?)),
            peer: Box::new(|a| a[0].gelu()),
        },
        Case {
            name: "swiglu 352",
            args: vec![vec![rows, 352]; 2],
            products: 0,
            ours: Box::new(|a| Ok(ops::swiglu(&a[0], &a[1])?)),
            peer: Box::new(|a| a[0].silu()? * &a[1]),
        },
        Case {
            name: "scores 3584 x 256",
            args: vec![vec![64 * 56, 256]],
            products: 0,
            ours: Box::new(|a| {
                let s = ops::token_scores(&a[0], &ids, 1.6)?;
                s.log_probs + s.entropy
            }),
            peer: Box::new(|a| {
                let l = log_softmax(&(&a[0] / 1.6)?)?;
                l.gather(&column, 1)?.squeeze(1)? - (l.exp()? * &l)?.sum(1)?
            }),
        },
        Case {
            name: "embedding 768 x 128",
            args: vec![vec![768, 128]],
            products: 0,
            ours: Box::new(|a| Ok(ops::embedding(&a[0], &table_ids)?)),
            peer: Box::new(|a| a[0].index_select(&table_ids, 0)),
        },
    ];
    println!(
        "{:34} {:>9} {:>9} {:>6}  {:>9} {:>9} {:>6} {:>8}",
        "", "forward", "candle", "ratio", "fwd+bwd", "candle", "ratio", "GFLOP/s"
    );
    for case in cases.iter().filter(|case| case.name.contains(&word)) {
        let vars: Vec<Var> = case
            .args
            .iter()
            .enumerate()
            .map(|(i, d)| Var::from_tensor(&numbers(d, i as u64)).unwrap())
            .collect();
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let constant: Vec<Tensor> = tracked.iter().map(Tensor::detach).collect();
        let forward = |f: &Function| drop(black_box(f(&constant).unwrap()));
        let both = |f: &Function| {
            // candle wants a scalar to start from; a sum over everything is the cheapest one.
            let loss = f(&tracked).unwrap().sum_all().unwrap();
            drop(black_box(loss.backward().unwrap()));
        };
        let f = best(rounds, [&mut || forward(&case.ours), &mut || forward(&case.peer)]);
        let b = best(rounds, [&mut || both(&case.ours), &mut || both(&case.peer)]);
        let flops = if case.products > 0 {
            format!("{:8.0}", 2e-6 * case.products as f64 / f[0])
        } else {
            String::new()
        };
        println!(
            "{:34} {:9.3} {:9.3} {:6.2}  {:9.3} {:9.3} {:6.2} {flops}",
            case.name,
            f[0],
            f[1],
            f[1] / f[0],
            b[0],
            b[1],
            b[1] / b[0]
        );
    }
    if "adamw".contains(&word) {
        adamw(rounds);
    }
}

/// One update of 60 matrices of 128 x 160 (1.2 million weights) with clipping.
fn adamw(rounds: usize) {
    let vars: Vec<Var> = (0..60).map(|i| Var::from_tensor(&numbers(&[128, 160], i)).unwrap()).collect();
    let names: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
    let params = || names.iter().map(String::as_str).zip(&vars);
    let loss =
        vars.iter().map(|v| v.sqr().unwrap().sum_all().unwrap()).reduce(|a, b| (a + b).unwrap()).unwrap();
    let store = loss.backward().unwrap();
    let groups = ops::ParamGroup::split(params(), 0.1, |_, _| true);
    let mut optimizer = ops::AdamW::new(groups, ops::AdamWConfig::default()).unwrap();
    let mut moments: Vec<(Tensor, Tensor)> =
        vars.iter().map(|v| (v.zeros_like().unwrap(), v.zeros_like().unwrap())).collect();
    let ours = &mut || {
        let mut grads = ops::Grads::new();
        params().for_each(|(name, var)| grads.add_one(name, store.get(var).unwrap()).unwrap());
        ops::clip_grad_norm(&mut grads, 1.0).unwrap();
        optimizer.step(&grads, 1e-6).unwrap();
    };
    let peer = &mut || {
        let total = vars.iter().map(|v| store.get(v).unwrap().sqr().unwrap().sum_all().unwrap());
        let norm: f32 =
            total.map(|t| t.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap()).sum::<f32>().sqrt();
        let factor = (1.0 / (norm + 1e-6)).min(1.0) as f64;
        for (v, (m, s)) in vars.iter().zip(&mut moments) {
            let g = (store.get(v).unwrap() * factor).unwrap();
            *m = ((&*m * 0.9).unwrap() + (&g * 0.1).unwrap()).unwrap();
            *s = ((&*s * 0.999).unwrap() + (g.sqr().unwrap() * 0.001).unwrap()).unwrap();
            let step = (&*m / (s.sqrt().unwrap() + 1e-8).unwrap()).unwrap();
            v.set(&((v.as_tensor() * (1.0 - 1e-7)).unwrap() - (step * 1e-6).unwrap()).unwrap()).unwrap();
        }
    };
    let [a, b] = best(rounds, [ours, peer]);
    println!("{:34} {a:9.3} {b:9.3} {:6.2}", "clip + adamw, 1.2 M weights", b / a);
}
