//! Single operations, forward and backward.

use candle_core::{Device, Tensor, Var};
use efference_ops::{self as ops, Activation, AdamW, AdamWConfig, AttentionMask, Grads, ParamGroup};

/// What cannot be avoided: multiply-adds counted as two operations, and bytes that must move.
#[derive(Clone, Copy, Default)]
pub struct Floor {
    pub flops: f64,
    pub bytes: f64,
}

/// A piece of work; its name is the line that PyTorch's side understands.
pub struct Case {
    pub name: String,
    pub label: String,
    pub floor: Floor,
    /// What the last line calls it.
    pub headline: Option<&'static str>,
    pub build: Box<dyn Fn() -> Box<dyn FnMut()>>,
}

impl Case {
    fn new(
        (kind, dims): (&str, &[usize]),
        (flops, floats): (f64, f64),
        build: impl Fn() -> Box<dyn FnMut()> + 'static,
    ) -> Self {
        let list: Vec<String> = dims.iter().map(usize::to_string).collect();
        Self {
            name: format!("{kind} {}", list.join(" ")),
            label: format!("{kind} {}", list.join("x")),
            floor: Floor { flops, bytes: 4.0 * floats },
            headline: None,
            build: Box::new(build),
        }
    }
}

/// Uniform numbers with mean 0 and variance `scale`^2.
pub fn numbers(dims: &[usize], scale: f64) -> Tensor {
    let n: usize = dims.iter().product();
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0) * 3f64.sqrt() * scale
    };
    Tensor::from_vec((0..n).map(|_| next() as f32).collect::<Vec<f32>>(), dims, &Device::Cpu).unwrap()
}

pub fn var(dims: &[usize], scale: f64) -> Var {
    Var::from_tensor(&numbers(dims, scale)).unwrap()
}

pub fn ids(below: usize, dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    let ids: Vec<u32> = (0..n).map(|i| (i * 7919 % below) as u32).collect();
    Tensor::from_vec(ids, dims, &Device::Cpu).unwrap()
}

/// Forward and backward of a function, as training calls them. The gradient of the result is all ones.
fn both(f: impl Fn() -> Tensor + 'static) -> Box<dyn FnMut()> {
    Box::new(move || drop(ops::value_and_grad(|| Ok::<_, ops::Error>(f())).unwrap()))
}

fn unary(kind: &'static str, n: usize, d: usize, f: fn(&Tensor) -> ops::Result<Tensor>) -> Case {
    // x in, y out; x and dy in, dx out
    Case::new((kind, &[n, d]), (0.0, 5.0 * (n * d) as f64), move || {
        let x = var(&[n, d], 1.0);
        both(move || f(&x).unwrap())
    })
}

fn linear(kind: &'static str, (n, i, o): (usize, usize, usize), act: Option<Activation>) -> Case {
    Case::new((kind, &[n, i, o]), (6.0 * (n * i * o) as f64, 0.0), move || {
        let (x, w, b) = (var(&[n, i], 1.0), var(&[o, i], 0.05), var(&[o], 1.0));
        both(move || match act {
            Some(act) => ops::linear_act(&x, &w, Some(&b), act).unwrap(),
            None => ops::linear(&x, &w, Some(&b)).unwrap(),
        })
    })
}

fn attention(kind: &'static str, (b, h, t, d): (usize, usize, usize, usize), mask: AttentionMask) -> Case {
    // Two products forward, five backward (the scores once more); half of them under a causal mask.
    let share = if mask == AttentionMask::Full { 1.0 } else { 0.5 };
    let flops = 14.0 * share * (b * h * t * t * d) as f64;
    Case::new((kind, &[b, h, t, d]), (flops, 12.0 * (b * h * t * d) as f64), move || {
        let (q, k, v) = (var(&[b, h, t, d], 1.0), var(&[b, h, t, d], 1.0), var(&[b, h, t, d], 1.0));
        let mask = mask.clone();
        let scale = (d as f64).sqrt().recip();
        both(move || ops::attention(&q, &k, &v, &mask, None, scale).unwrap())
    })
}

fn adamw(n: usize) -> Case {
    // Weight, gradient and moments in, weight and moments out; the gradient once more for its norm.
    Case::new(("adamw", &[n]), (0.0, 8.0 * n as f64), move || {
        let params: Vec<(String, Var)> = (0..64).map(|i| (format!("p{i}"), var(&[n / 64], 1.0))).collect();
        let mut grads = Grads::new();
        for (name, _) in &params {
            grads.add_one(name, &numbers(&[n / 64], 1.0)).unwrap();
        }
        let group = ParamGroup { params, weight_decay: 0.01, lr_scale: 1.0 };
        let mut optimizer = AdamW::new(vec![group], AdamWConfig::default()).unwrap();
        Box::new(move || {
            ops::clip_grad_norm(&mut grads, 1.0).unwrap();
            optimizer.step(&grads, 1e-4).unwrap();
        })
    })
}

/// The two sizes: 2048 tokens of width 256, and 1024 of width 768.
pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, d, m) in [(2048, 256, 1024), (1024, 768, 3072)] {
        let (b, t) = if d == 256 { (16, 128) } else { (4, 256) };
        let (heads, dh, v) = (d / 64, 64, if d == 256 { 512 } else { 32_000 });
        let size = (n * d) as f64;
        all.push(linear("linear", (n, d, m), None));
        all.push(linear("linear_gelu", (n, d, m), Some(Activation::GeluTanh)));
        all.push(unary("gelu_tanh", n, m, ops::gelu_tanh));
        all.push(unary("gelu_erf", n, m, ops::gelu_erf));
        all.push(unary("silu", n, m, ops::silu));
        all.push(Case::new(("swiglu", &[n, m]), (0.0, 8.0 * (n * m) as f64), move || {
            let (gate, up) = (var(&[n, m], 1.0), var(&[n, m], 1.0));
            both(move || ops::swiglu(&gate, &up).unwrap())
        }));
        all.push(Case::new(("layer_norm", &[n, d]), (0.0, 5.0 * size), move || {
            let (x, w, b) = (var(&[n, d], 1.0), var(&[d], 1.0), var(&[d], 1.0));
            both(move || ops::layer_norm(&x, &w, &b, 1e-6).unwrap())
        }));
        all.push(Case::new(("rms_norm", &[n, d]), (0.0, 5.0 * size), move || {
            let (x, w) = (var(&[n, d], 1.0), var(&[d], 1.0));
            both(move || ops::rms_norm(&x, &w, 1e-6).unwrap())
        }));
        all.push(Case::new(("add_rms_norm", &[n, d]), (0.0, 8.0 * size), move || {
            let (x, r, w) = (var(&[n, d], 1.0), var(&[n, d], 1.0), var(&[d], 1.0));
            both(move || {
                let (sum, normed) = ops::add_rms_norm(&x, &r, &w, 1e-6).unwrap();
                ops::add(&sum, &normed).unwrap()
            })
        }));
        all.push(Case::new(("rotary", &[b, heads, t, dh]), (0.0, 4.0 * size), move || {
            let (x, table) = (var(&[b, heads, t, dh], 1.0), ops::RotaryTable::new(dh, t, 1e4).unwrap());
            both(move || table.apply(&x, 0).unwrap())
        }));
        all.push(attention("attention_full", (b, heads, t, dh), AttentionMask::Full));
        all.push(attention("attention_causal", (b, heads, t, dh), AttentionMask::Causal));
        all.push(Case::new(("cross_entropy", &[n, v]), (0.0, 3.0 * (n * v) as f64), move || {
            let (logits, ids) = (var(&[n, v], 1.0), ids(v, &[n]));
            both(move || ops::cross_entropy(&logits, &ids, None).unwrap())
        }));
        all.push(Case::new(("token_scores", &[n, v]), (0.0, 3.0 * (n * v) as f64), move || {
            let (logits, ids) = (var(&[n, v], 1.0), ids(v, &[n]));
            both(move || {
                let scores = ops::token_scores(&logits, &ids, 1.0).unwrap();
                (scores.log_probs + scores.entropy).unwrap()
            })
        }));
        // Three products of the forward pass's size, and the logits once more for the backward pass.
        let product = 2.0 * (n * d * v) as f64;
        all.push(Case::new(("linear_scores", &[n, d, v]), (4.0 * product, 0.0), move || {
            let (hidden, w, ids) = (var(&[n, d], 1.0), var(&[v, d], 0.02), ids(v, &[n]));
            both(move || {
                let scores = ops::linear_scores(&hidden, &w, &ids, 1.0).unwrap();
                (scores.log_probs + scores.entropy).unwrap()
            })
        }));
        all.push(Case::new(("embedding", &[v, d, n]), (0.0, 3.0 * size), move || {
            let (table, ids) = (var(&[v, d], 1.0), ids(v, &[n]));
            both(move || ops::embedding(&table, &ids).unwrap())
        }));
    }
    for (b, s, p, d) in [(32, 64, 8, 96), (8, 224, 14, 768)] {
        let patches = b * (s / p) * (s / p);
        let flops = 4.0 * (patches * 3 * p * p * d) as f64;
        all.push(Case::new(("patch_embedding", &[b, s, p, d]), (flops, 0.0), move || {
            let (images, w, bias) = (numbers(&[b, 3, s, s], 1.0), var(&[d, 3, p, p], 1.0), var(&[d], 1.0));
            both(move || {
                let patches = ops::patchify(&images, p).unwrap();
                ops::linear(&patches, &w.flatten_from(1).unwrap(), Some(&bias)).unwrap()
            })
        }));
    }
    all.push(adamw(3 << 20));
    all.push(adamw(85 << 20));
    all
}

/// Work that shows what the machine can do.
pub fn probes() -> Vec<Case> {
    let matmul = |n: usize, i: usize, o: usize| {
        Case::new(("matmul", &[n, i, o]), (2.0 * (n * i * o) as f64, 0.0), move || {
            let (x, w) = (numbers(&[n, i], 1.0), numbers(&[o, i], 0.05));
            Box::new(move || drop(ops::linear(&x, &w, None).unwrap()))
        })
    };
    let n: usize = 1 << 25;
    let copy = Case::new(("copy", &[n]), (0.0, 2.0 * n as f64), move || {
        let x = numbers(&[n], 1.0);
        let mut y = vec![0f32; n];
        Box::new(move || {
            let (storage, _) = x.storage_and_layout();
            let candle_core::Storage::Cpu(cpu) = &*storage else { unreachable!("made on the CPU") };
            y.copy_from_slice(cpu.as_slice().unwrap());
        })
    });
    vec![matmul(1024, 768, 3072), matmul(1024, 3072, 768), matmul(2048, 1024, 1024), copy]
}
