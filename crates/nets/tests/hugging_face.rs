//! The encoder and the decoder against Hugging Face's, on tiny random weights (`fixtures/make_hf_tiny.py`).
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use efference_nets::llama::{Llama, Sight};
use efference_nets::vit::SiglipVision;
use efference_nets::{ParamStore, TextConfig, VisionConfig};
use efference_ops::AttentionMask;

fn fixture() -> HashMap<String, Tensor> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf_tiny.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Fills every weight of `store` with the one of that name below `prefix`; none may be left over on either side.
fn fill(store: &ParamStore, fixture: &HashMap<String, Tensor>, prefix: &str) {
    assert_eq!(store.vars().len(), fixture.keys().filter(|name| name.starts_with(prefix)).count());
    for (name, var) in store.vars() {
        var.set(&fixture[&format!("{prefix}{name}")]).unwrap();
    }
}

fn assert_close(got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims());
    let gap = (got - want)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert!(gap < 2e-5, "{gap}");
}

#[test]
fn siglip_features_agree() {
    let fixture = fixture();
    let config = VisionConfig {
        image_size: 16,
        patch_size: 8,
        hidden_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 20,
        layer_norm_eps: 1e-6,
    };
    let mut store = ParamStore::new(0, Device::Cpu);
    let net = SiglipVision::new(&mut store.root(), &config).unwrap();
    fill(&store, &fixture, "siglip.");
    assert_close(&net.forward(&fixture["io.siglip.pixels"]).unwrap(), &fixture["io.siglip.out"]);
}

#[test]
fn llama_logits_agree_under_both_masks() {
    let fixture = fixture();
    let config = TextConfig {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        intermediate_size: 24,
        vocab_size: 20,
        vocab_padding: 0,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
    };
    let mut store = ParamStore::new(0, Device::Cpu);
    let net = Llama::new(&mut store.root(), &config, 64).unwrap();
    fill(&store, &fixture, "llama.");
    let x = net.embed(&fixture["io.llama.ids"].to_dtype(DType::U32).unwrap()).unwrap();
    let logits = |sight: Sight<'_>, read| net.logits(&net.forward(&x, &sight, read).unwrap(), 0, 20).unwrap();

    let causal = logits(Sight { mask: AttentionMask::Causal, key_valid: None }, None);
    assert_close(&causal, &fixture["io.llama.causal"]);

    let mut valid = vec![vec![true; 9]; 2];
    valid[1][3..5].fill(false);
    let both_ways = logits(Sight { mask: AttentionMask::Full, key_valid: Some(&valid) }, None);
    assert_close(&both_ways, &fixture["io.llama.both_ways"]);

    // Reading a part gives the same bits at less cost.
    let part = logits(Sight { mask: AttentionMask::Full, key_valid: Some(&valid) }, Some((2, 5)));
    let bits = |x: &Tensor| {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits(&part), bits(&both_ways.narrow(1, 2, 5).unwrap().contiguous().unwrap()));
}
