//! Peak memory and time of a training step with and without gradient checkpointing: a decoder of 12 layers, 768 wide,
//! sequences of 1024 tokens. `cargo run --release -p efference-ops --example checkpoint_memory [BATCH]...`
//!
//! "Step" is what a user sees: weights, gradients, moments and everything between. "Activations" is the step without
//! the four numbers per weight that are there either way (weight, gradient, two moments of AdamW); gradients come into
//! being while activations go, so where activations are small it falls below zero.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use efference_ops::memory::{self, CountingAllocator};
use efference_ops::{
    self as ops, AdamW, AdamWConfig, AttentionMask, Grads, ParamGroup, RotaryTable, checkpoint,
    clip_grad_norm, cross_entropy, host, value_and_grad,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const LEN: usize = 1024;
const VOCAB: usize = 512;

const WIDTH: usize = 768;
const HEADS: usize = 12;
const INNER: usize = 2048;
const LAYERS: usize = 12;

/// Weights of a Llama-shaped decoder by name.
struct Decoder {
    params: Vec<(String, Var)>,
    rotary: RotaryTable,
}

impl Decoder {
    const BLOCK: [(&'static str, &'static [usize]); 9] = [
        ("input_norm", &[WIDTH]),
        ("q", &[WIDTH, WIDTH]),
        ("k", &[WIDTH, WIDTH]),
        ("v", &[WIDTH, WIDTH]),
        ("o", &[WIDTH, WIDTH]),
        ("post_norm", &[WIDTH]),
        ("gate", &[INNER, WIDTH]),
        ("up", &[INNER, WIDTH]),
        ("down", &[WIDTH, INNER]),
    ];

    fn new() -> Self {
        let mut state = 1u64;
        let mut params = Vec::new();
        let mut add = |name: String, dims: &[usize]| {
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            let n: usize = dims.iter().product();
            // Norms start at 1; matrices small enough that twelve residual blocks keep the scale.
            let one = |x: f32| if dims.len() == 1 { 1.0 } else { 0.05 * x };
            let data: Vec<f32> = (0..n).map(|_| one(next())).collect();
            let tensor = Tensor::from_vec(data, dims, &Device::Cpu).unwrap();
            params.push((name, Var::from_tensor(&tensor).unwrap()));
        };
        for layer in 0..LAYERS {
            Self::BLOCK.iter().for_each(|(name, dims)| add(format!("{layer}.{name}"), dims));
        }
        add("embed".into(), &[VOCAB, WIDTH]);
        add("norm".into(), &[WIDTH]);
        add("head".into(), &[VOCAB, WIDTH]);
        Self { params, rotary: RotaryTable::new(WIDTH / HEADS, LEN, 1e4).unwrap() }
    }

    fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.params.iter().map(|(name, var)| (name.as_str(), var))
    }

    fn block(w: &[Tensor], rotary: &RotaryTable, x: &Tensor) -> ops::Result<Tensor> {
        let h = ops::rms_norm(x, &w[0], 1e-6)?;
        let q = rotary.apply_tokens(&ops::linear(&h, &w[1], None)?, 0)?;
        let k = rotary.apply_tokens(&ops::linear(&h, &w[2], None)?, 0)?;
        let v = ops::linear(&h, &w[3], None)?;
        let scale = ((WIDTH / HEADS) as f64).sqrt().recip();
        let heads = (HEADS, HEADS);
        let seen = ops::attention_tokens(&q, &k, &v, heads, &AttentionMask::Causal, None, scale)?;
        let x = ops::add(x, &ops::linear(&seen, &w[4], None)?)?;
        let h = ops::rms_norm(&x, &w[5], 1e-6)?;
        let h = ops::swiglu(&ops::linear(&h, &w[6], None)?, &ops::linear(&h, &w[7], None)?)?;
        ops::add(&x, &ops::linear(&h, &w[8], None)?)
    }

    /// Mean negative log-likelihood of each token given those up to it.
    fn loss(&self, ids: &Tensor, forget: bool) -> ops::Result<Tensor> {
        let weights: Vec<Tensor> = self.params.iter().map(|(_, var)| var.as_tensor().clone()).collect();
        let (blocks, rest) = weights.split_at(LAYERS * Self::BLOCK.len());
        let mut x = ops::embedding(&rest[0], ids)?;
        for block in blocks.chunks(Self::BLOCK.len()) {
            let (block, rotary) = (block.to_vec(), self.rotary.clone());
            let piece = move |x: &[Tensor]| Self::block(&block, &rotary, &x[0]);
            x = if forget { checkpoint(&[&x], piece)? } else { piece(&[x])? };
        }
        let hidden = ops::rms_norm(&x, &rest[1], 1e-6)?;
        let logits = ops::linear(&hidden, &rest[2], None)?.flatten(0, 1)?;
        Ok(cross_entropy(&logits, &ids.flatten_all()?, None)?.mean_all()?)
    }
}

/// What one step needed and gave.
struct Step {
    peak: usize,
    seconds: f64,
    loss: f32,
    /// A hash of the bits of all gradients.
    gradients: u64,
}

fn step(net: &Decoder, adamw: &mut AdamW, batch: usize, forget: bool) -> Step {
    let ids: Vec<u32> = (0..batch * LEN).map(|i| (i * i % 8191 % VOCAB) as u32).collect();
    let ids = Tensor::from_vec(ids, (batch, LEN), &Device::Cpu).unwrap();
    memory::reset_peak();
    let began = Instant::now();
    let (loss, store) = value_and_grad(|| net.loss(&ids, forget)).unwrap();
    let value = loss.to_scalar::<f32>().unwrap();
    let mut grads = Grads::from_store(store, net.trainable()).unwrap();
    clip_grad_norm(&mut grads, 1.0).unwrap();
    // A rate of zero: both ways start from the same weights.
    adamw.step(&grads, 0.0).unwrap();
    let (seconds, peak) = (began.elapsed().as_secs_f64(), memory::peak_bytes().unwrap());
    let mut gradients = 0xcbf2_9ce4_8422_2325u64;
    for name in grads.names() {
        let numbers = grads.get(name).unwrap().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for x in numbers {
            gradients = (gradients ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Step { peak, seconds, loss: value, gradients }
}

fn main() {
    host::prepare();
    let batches: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let batches = if batches.is_empty() { vec![1, 4, 8] } else { batches };
    let net = Decoder::new();
    let groups = ParamGroup::split(net.trainable(), 0.0, |_, _| true);
    let mut adamw = AdamW::new(groups, AdamWConfig::default()).unwrap();
    let count: usize = net.trainable().map(|(_, var)| var.elem_count()).sum();
    let fixed = 16 * count;
    let mib = |bytes: i64| bytes as f64 / (1 << 20) as f64;
    println!(
        "{LAYERS} x {WIDTH}, {LEN} tokens a row, {:.1} M weights ({:.0} MiB with gradients and moments)",
        count as f64 / 1e6,
        mib(fixed as i64)
    );
    println!("{:>5} {:13} {:>10} {:>16} {:>8}", "batch", "checkpointing", "step MiB", "activations MiB", "s");
    for batch in batches {
        let [off, on] = [false, true].map(|on| {
            let step = step(&net, &mut adamw, batch, on);
            let word = if on { "on" } else { "off" };
            let (all, beyond) = (mib(step.peak as i64), mib(step.peak as i64 - fixed as i64));
            println!("{batch:5} {word:13} {all:10.0} {beyond:16.0} {:8.1}", step.seconds);
            step
        });
        let same = off.gradients == on.gradients && off.loss.to_bits() == on.loss.to_bits();
        let share = |on: usize, off: usize| 100.0 * on as f64 / off as f64;
        println!(
            "      on / off: step {:.0}%, activations {:.0}%, time {:.2}x; loss and gradients {}",
            share(on.peak, off.peak),
            share(on.peak.saturating_sub(fixed), off.peak - fixed),
            on.seconds / off.seconds,
            if same { "equal bit for bit" } else { "DIFFER" }
        );
        assert!(same, "checkpointing changed the gradients");
    }
}
