//! Gradients of networks that compute their blocks again are those of networks that keep everything.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use efference_nets::llama::{Llama, Sight};
use efference_nets::{ParamStore, SpecialIds, TextConfig, Vla, VlaConfig, VlaInput, action_nll};
use efference_ops::AttentionMask;

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Gradients of all trained weights by name.
fn gradients(store: &ParamStore, loss: &Tensor) -> Vec<(String, Option<Vec<u32>>)> {
    let grads = loss.backward().unwrap();
    store.trainable().map(|(name, var)| (name.to_string(), grads.get(var).map(bits))).collect()
}

#[test]
fn twelve_layers_of_a_decoder() {
    let config = TextConfig {
        hidden_size: 32,
        num_hidden_layers: 12,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        intermediate_size: 48,
        vocab_size: 40,
        vocab_padding: 0,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
    };
    let mut store = ParamStore::new(3, Device::Cpu);
    let mut net = Llama::new(&mut store.root(), &config, 33).unwrap();
    let ids: Vec<u32> = (0..66).map(|i| i * 7 % 40).collect();
    let ids = Tensor::from_vec(ids, (2, 33), &Device::Cpu).unwrap();
    let mut valid = vec![vec![true; 33]; 2];
    valid[1][..4].fill(false);
    let mut run = |on: bool, mask: AttentionMask, read: Option<(usize, usize)>| {
        net.set_gradient_checkpointing(on);
        let x = net.embed(&ids).unwrap();
        let y = net.forward(&x, &Sight { mask, key_valid: Some(&valid) }, read).unwrap();
        let loss = net.logits(&y, 0, 40).unwrap().sqr().unwrap().mean_all().unwrap();
        (bits(&loss), gradients(&store, &loss))
    };
    for (mask, read) in [(AttentionMask::Causal, None), (AttentionMask::Full, Some((5, 9)))] {
        let kept = run(false, mask.clone(), read);
        assert!(kept.1.iter().all(|(_, g)| g.as_ref().is_some_and(|g| g.iter().any(|&x| x != 0))));
        assert_eq!(kept, run(true, mask, read));
    }
}

#[test]
fn the_whole_policy_also_with_a_frozen_encoder() {
    let mut config = VlaConfig::quickstart();
    (config.vision.image_size, config.text.num_hidden_layers) = (16, 2);
    for frozen in [&[] as &[&str], &["vision_backbone.*", "language_model.*.mlp.*"]] {
        let mut store = ParamStore::new(1, Device::Cpu);
        store.freeze(frozen);
        let mut net = Vla::new(&mut store, &config, SpecialIds { pad: 0, bos: 1, eos: 2 }).unwrap();
        assert_eq!(store.idle_patterns().count(), 0);
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        let input = VlaInput {
            pixels: Tensor::from_vec(numbers(2 * 3 * 256), (1, 2, 3, 16, 16), &Device::Cpu).unwrap(),
            proprio: Tensor::from_vec(numbers(8), (1, 8), &Device::Cpu).unwrap(),
            prompts: vec![vec![5, 6, 7]],
        };
        let targets: Vec<u32> = (0..56).map(|i| i * 5 % 256).collect();
        let mut run = |on: bool| {
            net.set_gradient_checkpointing(on);
            let logits = net.forward(&input).unwrap();
            let loss = action_nll(&logits, &[&targets], &[0.0]).unwrap().mean_all().unwrap();
            gradients(&store, &loss)
        };
        let kept = run(false);
        assert_eq!(kept, run(true));
        // The zero placeholders leave no weight of the quickstart's network out.
        assert!(kept.iter().all(|(_, g)| g.is_some()));
        let vision = kept.iter().any(|(name, _)| name.starts_with("vision_backbone."));
        assert_eq!(vision, frozen.is_empty());
    }
}
