//! Whole training steps: forward, loss, backward, clipping, AdamW.

use candle_core::Tensor;
use efference_nets::llama::{Llama, Sight};
use efference_nets::{
    ParamStore, Placeholders, SpecialIds, TextConfig, Vla, VlaConfig, VlaInput, action_nll,
};
use efference_ops::{self as ops, AdamW, AdamWConfig, AttentionMask, Grads, ParamGroup};

use crate::cases::{Case, Floor, ids, numbers};

pub fn all() -> Vec<Case> {
    vec![
        llama("4x256", 4, 256, 4, 688, 512, 16, 128),
        llama("12x768", 12, 768, 12, 2048, 512, 4, 256),
        vla(64),
    ]
}

/// Calls `loss` and trains on it.
fn trainer(store: ParamStore, loss: impl Fn() -> Tensor + 'static) -> Box<dyn FnMut()> {
    let groups = ParamGroup::split(store.trainable(), 0.01, ParamStore::decays);
    let mut optimizer = AdamW::new(groups, AdamWConfig::default()).unwrap();
    Box::new(move || {
        let (_, found) = ops::value_and_grad(|| Ok::<_, ops::Error>(loss())).unwrap();
        let mut grads = Grads::from_store(found, store.trainable()).unwrap();
        ops::clip_grad_norm(&mut grads, 1.0).unwrap();
        optimizer.step(&grads, 1e-4).unwrap();
    })
}

#[allow(clippy::too_many_arguments)]
fn llama(
    headline: &'static str,
    layers: usize,
    d: usize,
    heads: usize,
    m: usize,
    v: usize,
    b: usize,
    t: usize,
) -> Case {
    let per_token = layers * (4 * d * d + 3 * d * m) + d * v;
    let attention = layers * 14 * b * heads * t * t * (d / heads) / 2;
    Case {
        name: format!("llama_step {layers} {d} {heads} {m} {v} {b} {t}"),
        label: format!("training step {layers}x{d}, batch {b}x{t}"),
        floor: Floor { flops: (6 * per_token * b * t + attention) as f64, bytes: 0.0 },
        headline: Some(headline),
        build: Box::new(move || {
            let config = TextConfig {
                hidden_size: d,
                num_hidden_layers: layers,
                num_attention_heads: heads,
                num_key_value_heads: heads,
                intermediate_size: m,
                vocab_size: v,
                vocab_padding: 0,
                rms_norm_eps: 1e-6,
                rope_theta: 10_000.0,
            };
            let mut store = ParamStore::new(0, candle_core::Device::Cpu);
            let model = Llama::new(&mut store.root(), &config, t).unwrap();
            let (tokens, targets) = (ids(v, &[b, t]), ids(v, &[b * t]));
            trainer(store, move || {
                let x = model.embed(&tokens).unwrap();
                let sight = Sight { mask: AttentionMask::Causal, key_valid: None };
                let x = model.forward(&x, &sight, None).unwrap();
                let logits = model.logits(&x, 0, v).unwrap().flatten_to(1).unwrap();
                ops::cross_entropy(&logits, &targets, None).unwrap().mean_all().unwrap()
            })
        }),
    }
}

/// The quickstart's network on `b` decisions.
fn vla(b: usize) -> Case {
    let mut config = VlaConfig::quickstart();
    config.vision.patch_size = 16;
    config.placeholders = Placeholders::Learned;
    Case {
        name: format!("vla_step {b}"),
        label: format!("training step of the quickstart's VLA, batch {b}"),
        floor: Floor { flops: 3.0 * b as f64 * config.flops_per_decision() as f64, bytes: 0.0 },
        headline: None,
        build: Box::new(move || {
            let mut store = ParamStore::new(0, candle_core::Device::Cpu);
            let special = SpecialIds { bos: 1, eos: 2, pad: 0 };
            let model = Vla::new(&mut store, &config, special).unwrap();
            let side = config.vision.image_size;
            let input = VlaInput {
                pixels: numbers(&[b, 2, 3, side, side], 1.0),
                proprio: numbers(&[b, config.proprio_dim], 1.0),
                prompts: vec![(5..17).collect(); b],
            };
            let tokens = config.action_tokens();
            let bins: Vec<Vec<u32>> =
                (0..b).map(|row| (0..tokens).map(|t| ((row * 31 + t * 17) % 256) as u32).collect()).collect();
            trainer(store, move || {
                let rows: Vec<&[u32]> = bins.iter().map(Vec::as_slice).collect();
                let logits = model.forward(&input).unwrap();
                action_nll(&logits, &rows, &[0.0]).unwrap().mean_all().unwrap()
            })
        }),
    }
}
