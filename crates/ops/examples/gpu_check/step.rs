//! A training step of decoder layers at the shapes of Qwen2.5-VL: forward, backward, gradient norm, AdamW; f32 weights,
//! bf16 work.

use candle_core::{DType, Device, Tensor, Var};
use efference_ops as ops;
use efference_ops::{AdamW, AdamWConfig, AttentionMask, Grads, ParamGroup, RotaryTable};

use crate::speed::{Ceilings, seconds};
use crate::{Result, peer};

/// Sizes of a language model.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub name: &'static str,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub mlp: usize,
    pub vocab: usize,
}

pub(crate) const HEAD: usize = 128;

const SHAPES: [Shape; 2] = [
    Shape { name: "Qwen2.5-VL-3B", width: 2048, heads: 16, kv_heads: 2, mlp: 11_008, vocab: 151_936 },
    Shape { name: "Qwen2.5-VL-7B", width: 3584, heads: 28, kv_heads: 4, mlp: 18_944, vocab: 152_064 },
];

/// Sequences and their length.
pub(crate) const BATCH: usize = 2;
pub(crate) const LENGTH: usize = 2048;

struct Layer {
    norm1: Var,
    q: Var,
    q_bias: Var,
    k: Var,
    k_bias: Var,
    v: Var,
    v_bias: Var,
    o: Var,
    norm2: Var,
    gate: Var,
    up: Var,
    down: Var,
}

struct Model {
    shape: Shape,
    embedding: Var,
    layers: Vec<Layer>,
    norm: Var,
    head: Var,
    rotary: RotaryTable,
    params: Vec<(String, Var)>,
}

impl Model {
    fn new(shape: Shape, layers: usize, device: &Device) -> Result<Self> {
        let mut params: Vec<(String, Var)> = Vec::new();
        let mut var = |name: String, dims: &[usize]| -> Result<Var> {
            let value = match dims {
                [_] if name.contains("norm") => Tensor::ones(dims, DType::F32, device)?,
                [_] => Tensor::zeros(dims, DType::F32, device)?,
                _ => Tensor::randn(0f32, 0.02, dims, device)?,
            };
            let var = Var::from_tensor(&value)?;
            params.push((name, var.clone()));
            Ok(var)
        };
        let Shape { width: d, heads, kv_heads, mlp, vocab, .. } = shape;
        let embedding = var("embedding".into(), &[vocab, d])?;
        let mut made = Vec::new();
        for i in 0..layers {
            let name = |part: &str| format!("layers.{i:02}.{part}");
            made.push(Layer {
                norm1: var(name("norm1"), &[d])?,
                q: var(name("q"), &[heads * HEAD, d])?,
                q_bias: var(name("q_bias"), &[heads * HEAD])?,
                k: var(name("k"), &[kv_heads * HEAD, d])?,
                k_bias: var(name("k_bias"), &[kv_heads * HEAD])?,
                v: var(name("v"), &[kv_heads * HEAD, d])?,
                v_bias: var(name("v_bias"), &[kv_heads * HEAD])?,
                o: var(name("o"), &[d, heads * HEAD])?,
                norm2: var(name("norm2"), &[d])?,
                gate: var(name("gate"), &[mlp, d])?,
                up: var(name("up"), &[mlp, d])?,
                down: var(name("down"), &[d, mlp])?,
            });
        }
        let norm = var("norm".into(), &[d])?;
        let head = var("head".into(), &[vocab, d])?;
        let rotary = RotaryTable::new(HEAD, LENGTH, 1e6)?;
        Ok(Model { shape, embedding, layers: made, norm, head, rotary, params })
    }

    fn layer(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let w = |var: &Var| var.as_tensor().to_dtype(DType::BF16);
        let (b, t, _) = x.dims3()?;
        let heads = |y: Tensor, n: usize| y.reshape((b, t, n, HEAD))?.transpose(1, 2)?.contiguous();
        let h = ops::rms_norm(x, &w(&layer.norm1)?, 1e-6)?;
        let q = heads(ops::linear(&h, &w(&layer.q)?, Some(&w(&layer.q_bias)?))?, self.shape.heads)?;
        let k = heads(ops::linear(&h, &w(&layer.k)?, Some(&w(&layer.k_bias)?))?, self.shape.kv_heads)?;
        let v = heads(ops::linear(&h, &w(&layer.v)?, Some(&w(&layer.v_bias)?))?, self.shape.kv_heads)?;
        let (q, k) = (self.rotary.apply(&q, 0)?, self.rotary.apply(&k, 0)?);
        let scale = (HEAD as f64).powf(-0.5);
        let y = ops::attention(&q, &k, &v, &AttentionMask::Causal, None, scale)?;
        let y = y.transpose(1, 2)?.reshape((b, t, self.shape.heads * HEAD))?;
        let (x, h) = ops::add_rms_norm(x, &ops::linear(&y, &w(&layer.o)?, None)?, &w(&layer.norm2)?, 1e-6)?;
        let gate = ops::linear(&h, &w(&layer.gate)?, None)?;
        let up = ops::linear(&h, &w(&layer.up)?, None)?;
        Ok((x + ops::linear(&ops::swiglu(&gate, &up)?, &w(&layer.down)?, None)?)?)
    }

    fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let table = self.embedding.as_tensor().to_dtype(DType::BF16)?;
        let mut x = ops::embedding(&table, ids)?;
        for layer in &self.layers {
            x = self.layer(layer, &x)?;
        }
        let x = ops::rms_norm(&x, &self.norm.as_tensor().to_dtype(DType::BF16)?, 1e-6)?;
        let x = x.flatten(0, 1)?;
        let head = self.head.as_tensor().to_dtype(DType::BF16)?;
        Ok(ops::linear_cross_entropy(&x, &head, targets, 0.0)?.mean_all()?)
    }

    /// Floating-point operations in matrix products of one step: three times those of the forward pass.
    fn flops(&self) -> f64 {
        let tokens = (BATCH * LENGTH) as f64;
        let matrices = self.params.iter().filter(|(name, var)| var.rank() == 2 && name != "embedding");
        let weights: usize = matrices.map(|(_, var)| var.elem_count()).sum();
        let pairs = (BATCH * self.shape.heads * LENGTH * LENGTH / 2) as f64;
        3.0 * (2.0 * tokens * weights as f64 + self.layers.len() as f64 * 4.0 * pairs * HEAD as f64)
    }
}

/// Seconds of a step, its floating-point operations, losses of the first and the last step.
fn measure(shape: Shape, layers: usize, device: &Device) -> Result<(f64, f64, f64, f64)> {
    let model = Model::new(shape, layers, device)?;
    let group = ParamGroup { params: model.params.clone(), weight_decay: 0.1, lr_scale: 1.0 };
    let mut optimizer = AdamW::new(vec![group], AdamWConfig::default())?;
    let draw = || -> Result<Tensor> {
        let vocab = shape.vocab as f32;
        Ok(Tensor::rand(0f32, vocab - 1.0, BATCH * LENGTH, device)?.to_dtype(DType::U32)?)
    };
    let (ids, targets) = (draw()?.reshape((BATCH, LENGTH))?, draw()?);
    let mut losses = Vec::new();
    let time = seconds(device, || {
        let loss = model.loss(&ids, &targets)?;
        let store = loss.backward()?;
        let params = model.params.iter().map(|(name, var)| (name.as_str(), var));
        let mut grads = Grads::from_store(store, params)?;
        ops::clip_grad_norm(&mut grads, 1.0)?;
        optimizer.step(&grads, 1e-4)?;
        losses.push(f64::from(loss.to_scalar::<f32>()?));
        Ok(())
    })?;
    let last = losses.last().copied().unwrap_or(f64::NAN);
    Ok((time, model.flops(), losses[0], last))
}

/// Training steps beside PyTorch's.
pub(crate) fn table(device: &Device, ceilings: &Ceilings, layers: usize) -> Result<String> {
    let mut text = format!(
        "Training step, {layers} layers, embedding and vocabulary head, {BATCH} x {LENGTH} tokens, bf16 work on f32 \
         weights, AdamW:\n\n| shape | ours, tokens/s | share of the measured bf16 rate | PyTorch eager, tokens/s | \
         torch.compile, tokens/s | ours / the better |\n|---|---|---|---|---|---|\n"
    );
    for shape in SHAPES {
        let (time, flops, first, last) = measure(shape, layers, device)?;
        if last.is_nan() || last >= first {
            return Err(format!(
                "{}: the loss went from {first} to {last}; a step teaches nothing",
                shape.name
            )
            .into());
        }
        let tokens = (BATCH * LENGTH) as f64 / time;
        let share = 100.0 * flops / time / ceilings.matmul;
        let peers = peer::run(shape, layers);
        let say = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        let better = peers.eager.into_iter().chain(peers.compiled).fold(0.0, f64::max);
        let ratio = if better > 0.0 { format!("{:.2}", tokens / better) } else { "-".to_owned() };
        let (eager, compiled) = (say(peers.eager), say(peers.compiled));
        text += &format!("| {} | {tokens:.0} | {share:.0}% | {eager} | {compiled} | {ratio} |\n", shape.name);
        if let Some(problem) = peers.problem {
            eprintln!("PyTorch: {problem}");
        }
    }
    Ok(text)
}
