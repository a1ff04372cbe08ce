//! AdamW against a plain loop and PyTorch's numbers, clipping, accumulation, and resuming.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use efference_ops::{AdamW, AdamWConfig, Grads, ParamGroup, clip_grad_norm};

fn numbers(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(data: &[f64], dtype: DType) -> Tensor {
    Tensor::new(data, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn grads(step: u64, sizes: &[(&str, usize)], dtype: DType) -> Grads {
    let mut grads = Grads::new();
    for (i, (name, n)) in sizes.iter().enumerate() {
        grads.add_one(name, &tensor(&numbers(*n, step * 10 + i as u64 + 1), dtype)).unwrap();
    }
    grads
}

#[test]
fn adamw_is_the_textbook_loop() {
    let config = AdamWConfig { beta1: 0.8, beta2: 0.95, eps: 1e-6 };
    let sizes = [("a", 1usize), ("b", 40_000)];
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let vars = sizes.map(|(_, n)| Var::from_tensor(&tensor(&numbers(n, n as u64), dtype)).unwrap());
        let group = |i: usize, weight_decay, lr_scale| ParamGroup {
            params: vec![(sizes[i].0.to_string(), vars[i].clone())],
            weight_decay,
            lr_scale,
        };
        let mut optimizer = AdamW::new(vec![group(0, 0.0, 1.0), group(1, 0.1, 0.5)], config).unwrap();
        let mut plain: Vec<_> =
            vars.iter().map(|v| (values(v), vec![0.0; v.elem_count()], vec![0.0; v.elem_count()])).collect();
        for step in 1..=5u64 {
            let lr = 0.01 * step as f64;
            let grads = grads(step, &sizes, dtype);
            optimizer.step(&grads, lr).unwrap();
            for (i, (decay, scale)) in [(0.0, 1.0), (0.1, 0.5)].into_iter().enumerate() {
                let lr = lr * scale;
                let g = values(&grads.get(sizes[i].0).unwrap().unwrap());
                let (w, m, v) = &mut plain[i];
                for j in 0..g.len() {
                    m[j] = 0.8 * m[j] + 0.2 * g[j];
                    v[j] = 0.95 * v[j] + 0.05 * g[j] * g[j];
                    let mean = m[j] / (1.0 - 0.8f64.powi(step as i32));
                    let spread = (v[j] / (1.0 - 0.95f64.powi(step as i32))).sqrt();
                    w[j] = w[j] * (1.0 - lr * decay) - lr * mean / (spread + 1e-6);
                }
            }
        }
        for (var, (w, _, _)) in vars.iter().zip(&plain) {
            let worst = values(var).iter().zip(w).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < tolerance, "{dtype:?}: {worst}");
        }
    }
}

/// torch.optim.AdamW([1.0, -2.0], lr=0.1, weight_decay=0.5), gradients [0.5, -1.0] then [0.0, 3.0]. The first step by
/// hand: 1 * (1 - 0.05) - 0.1 * sign(g) up to eps.
#[test]
fn adamw_is_pytorchs() {
    let w = Var::from_tensor(&tensor(&[1.0, -2.0], DType::F64)).unwrap();
    let groups = ParamGroup::split([("w", &w)], 0.5, |_, _| true);
    let mut optimizer = AdamW::new(groups, AdamWConfig::default()).unwrap();
    let mut step = |g: &[f64]| {
        let mut grads = Grads::new();
        grads.add_one("w", &tensor(g, DType::F64)).unwrap();
        optimizer.step(&grads, 0.1).unwrap();
        values(&w)
    };
    let first = step(&[0.5, -1.0]);
    assert!((first[0] - 0.85).abs() < 1e-8 && (first[1] + 1.8).abs() < 1e-8, "{first:?}");
    let second = step(&[0.0, 3.0]);
    // m = [0.045, 0.21] / 0.19, v = [0.00024975, 0.009999] / 0.001999
    let expected = [
        0.85 * 0.95 - 0.1 * (0.045 / 0.19) / (0.000_249_75f64 / 0.001_999).sqrt(),
        -1.8 * 0.95 - 0.1 * (0.21 / 0.19) / (0.009_999f64 / 0.001_999).sqrt(),
    ];
    assert!(second.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{second:?} {expected:?}");
}

#[test]
fn a_restored_optimizer_goes_on_bit_for_bit() {
    let sizes = [("x.weight", 33usize), ("x.bias", 5)];
    let make = || {
        let vars = sizes.map(|(_, n)| Var::from_tensor(&tensor(&numbers(n, 3), DType::F32)).unwrap());
        let named = sizes.iter().zip(&vars).map(|((name, _), var)| (*name, var));
        let groups = ParamGroup::split(named, 0.1, |name, _| name.ends_with("weight"));
        (vars.clone(), AdamW::new(groups, AdamWConfig::default()).unwrap())
    };
    let (vars, mut optimizer) = make();
    for step in 0..3 {
        optimizer.step(&grads(step, &sizes, DType::F32), 0.01).unwrap();
    }
    let (copies, mut restored) = make();
    for (copy, var) in copies.iter().zip(&vars) {
        copy.set(&var.as_tensor().copy().unwrap()).unwrap();
    }
    restored.load_state(&optimizer.state().unwrap()).unwrap();
    for step in 3..6 {
        optimizer.step(&grads(step, &sizes, DType::F32), 0.01).unwrap();
        restored.step(&grads(step, &sizes, DType::F32), 0.01).unwrap();
    }
    for (copy, var) in copies.iter().zip(&vars) {
        assert_eq!(copy.to_vec1::<f32>().unwrap(), var.to_vec1::<f32>().unwrap());
    }
}

#[test]
fn wrong_state_is_refused_whole() {
    let w = Var::from_tensor(&tensor(&[1.0, 2.0], DType::F32)).unwrap();
    let mut optimizer =
        AdamW::new(ParamGroup::split([("w", &w)], 0.0, |_, _| true), AdamWConfig::default()).unwrap();
    optimizer.step(&grads(1, &[("w", 2)], DType::F32), 0.1).unwrap();
    let good = optimizer.state().unwrap();
    let mut refused = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>), word: &str| {
        let mut state = good.clone();
        change(&mut state);
        let message = optimizer.load_state(&state).unwrap_err().to_string();
        assert!(message.contains("`w") && message.contains(word) || message.contains("extra"), "{message}");
    };
    refused(&|s| drop(s.remove("exp_avg.w")), "missing");
    refused(&|s| drop(s.insert("exp_avg.w".into(), tensor(&[0.0; 3], DType::F32))), "[3]");
    refused(&|s| drop(s.insert("exp_avg.w".into(), tensor(&[0.0; 2], DType::F64))), "F64");
    refused(&|s| drop(s.insert("exp_avg.extra".into(), tensor(&[0.0; 2], DType::F32))), "extra");
    let after = optimizer.state().unwrap();
    for (name, tensor) in &good {
        assert_eq!(values(tensor), values(&after[name]), "{name}");
    }
    let unknown = optimizer.step(&grads(1, &[("u", 2)], DType::F32), 0.1).unwrap_err().to_string();
    assert!(unknown.contains("`u`"), "{unknown}");
    let longer = optimizer.step(&grads(1, &[("w", 3)], DType::F32), 0.1).unwrap_err().to_string();
    assert!(longer.contains("[2]") && longer.contains("[3]"), "{longer}");
    assert!(AdamW::new(vec![], AdamWConfig { beta1: 1.0, ..AdamWConfig::default() }).is_err());
}

#[test]
fn clipping_measures_scales_and_sees_nan() {
    let sizes = [("a", 50_000usize), ("b", 3)];
    let mut g = grads(1, &sizes, DType::F32);
    let exact: f64 =
        sizes.iter().flat_map(|(name, _)| values(&g.get(name).unwrap().unwrap())).map(|x| x * x).sum();
    let found = clip_grad_norm(&mut g, f64::INFINITY).unwrap();
    assert!((found.norm - exact.sqrt()).abs() < 1e-9 * exact && found.finite && !found.clipped);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| g.norm().unwrap()).to_bits(), found.norm.to_bits());
    }
    assert!(clip_grad_norm(&mut g, 0.5).unwrap().clipped);
    assert!((g.norm().unwrap() - 0.5).abs() < 1e-6);
    let mut huge = Grads::new();
    huge.add_one("a", &tensor(&[3e38, 3e38], DType::F32)).unwrap();
    let found = clip_grad_norm(&mut huge, 1.0).unwrap();
    assert!(found.finite && (huge.norm().unwrap() - 1.0).abs() < 1e-6, "{found:?}");
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut g = grads(1, &sizes, DType::F32);
        g.add_one("b", &tensor(&[0.0, bad, 0.0], DType::F32)).unwrap();
        let before = values(&g.get("a").unwrap().unwrap());
        assert!(!clip_grad_norm(&mut g, 0.5).unwrap().finite);
        assert_eq!(values(&g.get("a").unwrap().unwrap()), before);
    }
    assert!(clip_grad_norm(&mut g, 0.0).is_err());
}

#[test]
fn micro_batches_add_up_and_unreached_parameters_are_named() {
    let a = Var::from_tensor(&tensor(&[1.0, 2.0], DType::F64)).unwrap();
    let b = Var::from_tensor(&tensor(&[3.0, 4.0], DType::F64)).unwrap();
    let zero = Var::from_tensor(&tensor(&[0.0, 0.0], DType::F64)).unwrap();
    let params = [("a", &a), ("b", &b), ("zero", &zero)];
    let mut sum = Grads::new();
    for factor in [1.0, 10.0] {
        let loss = ((a.as_tensor() * zero.as_tensor()).unwrap() * factor).unwrap().sum_all().unwrap();
        sum.add(loss.backward().unwrap(), params).unwrap();
    }
    assert_eq!(values(&sum.get("zero").unwrap().unwrap()), [11.0, 22.0]);
    assert_eq!(sum.names().collect::<Vec<_>>(), ["a", "zero"]);
    // `a` got zeros only, `b` nothing at all.
    assert_eq!(sum.unreached(["a", "b", "zero"]).unwrap(), ["a", "b"]);
    assert!(sum.add_one("zero", &tensor(&[1.0], DType::F64)).is_err());
    assert!(sum.add_one("zero", &tensor(&[1.0, 1.0], DType::F32)).is_err());
}
