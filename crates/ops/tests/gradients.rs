//! Every operation: gradients against central differences in f64, f32 against f64, and rows that do not depend on
//! their batch or on the number of threads.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use efference_ops as ops;
use efference_ops::Activation;

type Function = Box<dyn Fn(&[Tensor]) -> Tensor + Sync>;

/// Deterministic numbers in about [-1.5, 1.5].
fn numbers(dims: &[usize], seed: u64) -> Tensor {
    let n: usize = dims.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 3.0 - 1.5
    };
    Tensor::from_vec((0..n).map(|_| next()).collect::<Vec<f64>>(), dims, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Name, operation, shapes of its differentiable arguments.
fn cases() -> Vec<(&'static str, Function, Vec<Vec<usize>>)> {
    let mut all: Vec<(&'static str, Function, Vec<Vec<usize>>)> = Vec::new();
    for (rows, i, o) in [(1, 1, 1), (5, 7, 3), (13, 33, 40)] {
        let shapes = vec![vec![rows, i], vec![o, i], vec![o]];
        all.push(("linear", Box::new(|a| ops::linear(&a[0], &a[1], Some(&a[2])).unwrap()), shapes.clone()));
        all.push((
            "linear without bias",
            Box::new(|a| ops::linear(&a[0], &a[1], None).unwrap()),
            shapes[..2].to_vec(),
        ));
        for act in [Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
            let f: Function = Box::new(move |a| ops::linear_act(&a[0], &a[1], Some(&a[2]), act).unwrap());
            all.push(("linear_act", f, shapes.clone()));
        }
    }
    for dims in [vec![1, 1], vec![3, 5], vec![2, 3, 37]] {
        let d = vec![*dims.last().unwrap()];
        let one = vec![dims.clone()];
        all.push(("gelu_tanh", Box::new(|a| ops::gelu_tanh(&a[0]).unwrap()), one.clone()));
        all.push(("gelu_erf", Box::new(|a| ops::gelu_erf(&a[0]).unwrap()), one.clone()));
        all.push(("silu", Box::new(|a| ops::silu(&a[0]).unwrap()), one.clone()));
        let two = vec![dims.clone(), dims.clone()];
        all.push(("swiglu", Box::new(|a| ops::swiglu(&a[0], &a[1]).unwrap()), two));
        let norm = vec![dims.clone(), d.clone(), d.clone()];
        all.push((
            "layer_norm",
            Box::new(|a| ops::layer_norm(&a[0], &a[1], &a[2], 1e-3).unwrap()),
            norm.clone(),
        ));
        all.push(("rms_norm", Box::new(|a| ops::rms_norm(&a[0], &a[1], 1e-3).unwrap()), norm[..2].to_vec()));
    }
    for (b, h, t, d) in [(1, 1, 1, 2), (2, 3, 5, 8)] {
        let table = ops::RotaryTable::new(d, t + 3, 100.0).unwrap();
        all.push(("rotary", Box::new(move |a| table.apply(&a[0], 3).unwrap()), vec![vec![b, h, t, d]]));
    }
    for (b, h, kv, tq, tk, d) in [(1, 1, 1, 1, 1, 1), (2, 4, 2, 5, 5, 3), (2, 2, 1, 3, 6, 8)] {
        let shapes = vec![vec![b, h, tq, d], vec![b, kv, tk, d], vec![b, kv, tk, d]];
        // sample 0 sees no key at all, the last key of the others is padding
        let valid: Vec<Vec<bool>> =
            (0..b).map(|i| (0..tk).map(|j| b == 1 || (i > 0 && j + 1 < tk)).collect()).collect();
        let mut masks = vec![ops::AttentionMask::Full, ops::AttentionMask::Causal];
        if tq == tk {
            masks.push(ops::AttentionMask::Blocks((0..tk as u32).map(|i| i / 2).collect()));
        }
        for mask in masks {
            for padding in [None, Some(valid.clone())] {
                let mask = mask.clone();
                let f: Function = Box::new(move |a| {
                    ops::attention(&a[0], &a[1], &a[2], &mask, padding.as_deref(), 0.7).unwrap()
                });
                all.push(("attention", f, shapes.clone()));
            }
        }
    }
    let ids = Tensor::new(&[[0u32, 2, 2], [1, 0, 2]], &Device::Cpu).unwrap();
    all.push(("embedding", Box::new(move |a| ops::embedding(&a[0], &ids).unwrap()), vec![vec![4, 5]]));
    all.push(("patchify", Box::new(|a| ops::patchify(&a[0], 2).unwrap()), vec![vec![2, 3, 6, 6]]));
    for (n, v) in [(1, 1), (4, 3), (7, 70)] {
        let ids =
            Tensor::from_vec((0..n as u32).map(|i| (i * 5) % v as u32).collect(), n, &Device::Cpu).unwrap();
        let (a, b) = (ids.clone(), ids.clone());
        all.push((
            "log_probs",
            Box::new(move |x| ops::token_scores(&x[0], &a, 1.6).unwrap().log_probs),
            vec![vec![n, v]],
        ));
        all.push((
            "entropy",
            Box::new(move |x| ops::token_scores(&x[0], &b, 0.7).unwrap().entropy),
            vec![vec![n, v]],
        ));
        all.push((
            "cross_entropy",
            Box::new(move |x| ops::cross_entropy(&x[0], &ids, None).unwrap()),
            vec![vec![n, v]],
        ));
        let targets = numbers(&[n, v], 9).abs().unwrap();
        let soft: Function = Box::new(move |x| {
            ops::cross_entropy_soft(&x[0], &targets.to_dtype(x[0].dtype()).unwrap()).unwrap()
        });
        all.push(("cross_entropy_soft", soft, vec![vec![n, v]]));
    }
    all
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (name, f, shapes) in cases() {
        let args: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| numbers(s, i as u64 + 1)).collect();
        let weights = numbers(f(&args).dims(), 77);
        let loss = |args: &[Tensor]| (f(args) * &weights).unwrap().sum_all().unwrap();
        let vars: Vec<Var> = args.iter().map(|a| Var::from_tensor(a).unwrap()).collect();
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let grads = loss(&tracked).backward().unwrap();
        for (which, var) in vars.iter().enumerate() {
            let grad = flat(grads.get(var.as_tensor()).unwrap());
            let values = flat(&args[which]);
            for at in 0..values.len() {
                let moved = |by: f64| {
                    let mut values = values.clone();
                    values[at] += by;
                    let mut args = args.clone();
                    args[which] = Tensor::from_vec(values, shapes[which].as_slice(), &Device::Cpu).unwrap();
                    loss(&args).to_scalar::<f64>().unwrap()
                };
                let h = 1e-5;
                let slope = (moved(h) - moved(-h)) / (2.0 * h);
                let error = (slope - grad[at]).abs() / slope.abs().max(1.0);
                assert!(
                    error < 2e-6,
                    "{name} {shapes:?}, argument {which} at {at}: {} against {slope}",
                    grad[at]
                );
            }
        }
    }
}

/// Attention against its definition, written with candle's own operations.
#[test]
fn attention_is_what_it_says() {
    let (q, k, v) = (numbers(&[2, 3, 5, 4], 1), numbers(&[2, 3, 7, 4], 2), numbers(&[2, 3, 7, 4], 3));
    let scores = (q.matmul(&k.transpose(2, 3).unwrap()).unwrap() * 0.3).unwrap().exp().unwrap();
    let p = scores.broadcast_div(&scores.sum_keepdim(3).unwrap()).unwrap();
    let expected = flat(&p.matmul(&v).unwrap());
    let got = flat(&ops::attention(&q, &k, &v, &ops::AttentionMask::Full, None, 0.3).unwrap());
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn patches_are_in_the_order_of_a_convolution() {
    let (images, kernel) = (numbers(&[2, 3, 6, 6], 1), numbers(&[4, 3, 3, 3], 2));
    let expected = images.conv2d(&kernel, 0, 3, 1, 1).unwrap(); // [2, 4, 2, 2]
    let expected = flat(&expected.flatten_from(2).unwrap().transpose(1, 2).unwrap());
    let patches = ops::patchify(&images, 3).unwrap();
    let got = flat(&ops::linear(&patches, &kernel.reshape((4, 27)).unwrap(), None).unwrap());
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn f32_follows_f64() {
    for (name, f, shapes) in cases() {
        let args: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| numbers(s, i as u64 + 1)).collect();
        let single: Vec<Tensor> = args.iter().map(|a| a.to_dtype(DType::F32).unwrap()).collect();
        for (a, b) in flat(&f(&args)).iter().zip(flat(&f(&single))) {
            assert!((a - b).abs() < 2e-5 * a.abs().max(1.0), "{name} {shapes:?}: {b} against {a}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_the_threads() {
    let (x, w, b) = (numbers(&[37, 24], 1), numbers(&[50, 24], 2), numbers(&[50], 3));
    let [x, w, b] = [x, w, b].map(|t| t.to_dtype(DType::F32).unwrap());
    let bits = |t: &Tensor| {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let run = |x: &Tensor| {
        let y = ops::linear_act(x, &w, Some(&b), Activation::GeluTanh).unwrap();
        let y = ops::layer_norm(&y, &b, &b, 1e-6).unwrap();
        ops::rms_norm(&y, &b, 1e-6).unwrap()
    };
    let whole = bits(&run(&x));
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| bits(&run(&x))), whole);
        for row in [0, 17, 36] {
            let alone = pool.install(|| bits(&run(&x.narrow(0, row, 1).unwrap())));
            assert_eq!(alone, whole[row * 50..(row + 1) * 50]);
        }
    }
}

#[test]
fn extreme_logits_stay_finite() {
    let logits = Tensor::new(
        &[[1e30f32, -1e30, 0.0], [f32::NEG_INFINITY, 0.0, 0.0], [-1e-30, 0.0, 1e-30]],
        &Device::Cpu,
    );
    let logits = Var::from_tensor(&logits.unwrap()).unwrap();
    let ids = Tensor::new(&[0u32, 1, 2], &Device::Cpu).unwrap();
    let scores = ops::token_scores(logits.as_tensor(), &ids, 1.0).unwrap();
    let log_probs = flat(&scores.log_probs);
    assert!((log_probs[0]).abs() < 1e-6 && (log_probs[1] + 2f64.ln()).abs() < 1e-6);
    let loss = (scores.log_probs + scores.entropy).unwrap().sum_all().unwrap();
    assert!(flat(loss.backward().unwrap().get(logits.as_tensor()).unwrap()).iter().all(|g| g.is_finite()));
}

#[test]
fn wrong_shapes_are_named() {
    let (x, w) = (numbers(&[2, 3], 1), numbers(&[4, 5], 2));
    let message = ops::linear(&x, &w, None).unwrap_err().to_string();
    assert!(message.contains("[2, 3]") && message.contains("[4, 5]"), "{message}");
    assert!(ops::layer_norm(&x, &w, &w, 1e-6).is_err());
    assert!(ops::rms_norm(&x, &numbers(&[3], 1), 0.0).is_err());
    let ids = Tensor::new(&[0u32, 9], &Device::Cpu).unwrap();
    assert!(ops::token_scores(&x, &ids, 1.0).unwrap_err().to_string().contains("ids"));
    assert!(ops::token_scores(&x, &ids, 0.0).unwrap_err().to_string().contains("temperature"));
    assert!(ops::RotaryTable::new(3, 8, 10.0).is_err());
}
