//! The policy network as a whole: shapes, gradients, masks, invariances, files, errors.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, IndexOp, Tensor};
use efference_nets::{
    ACTION_BINS, Error, ParamStore, Placeholders, SpecialIds, TextConfig, VisionConfig, Vla, VlaConfig,
    VlaInput, action_nll,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SPECIAL: SpecialIds = SpecialIds { pad: 0, bos: 1, eos: 2 };

fn tiny() -> VlaConfig {
    VlaConfig {
        num_images: 2,
        vision: VisionConfig {
            image_size: 16,
            patch_size: 8,
            hidden_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 20,
            layer_norm_eps: 1e-6,
        },
        dino: None,
        text: TextConfig {
            hidden_size: 16,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            intermediate_size: 24,
            vocab_size: 30 + ACTION_BINS + 6,
            vocab_padding: 6,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
        },
        chunk: 2,
        action_dim: 7,
        proprio_dim: 8,
        max_prompt_len: 6,
        placeholders: Placeholders::Zero,
    }
}

fn network(config: &VlaConfig, seed: u64) -> (ParamStore, Vla) {
    let mut store = ParamStore::new(seed, Device::Cpu);
    let net = Vla::new(&mut store, config, SPECIAL).unwrap();
    (store, net)
}

/// Row i is a function of its seed only.
fn input(config: &VlaConfig, seeds: &[u64]) -> VlaInput {
    let (s, b) = (config.vision.image_size, seeds.len());
    let (mut pixels, mut proprio, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    for &seed in seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        pixels.extend((0..config.num_images * 3 * s * s).map(|_| rng.random_range(-1.0f32..1.0)));
        proprio.extend((0..8).map(|_| rng.random_range(-1.0f32..1.0)));
        let len = rng.random_range(1..=config.max_prompt_len);
        prompts.push((0..len).map(|_| rng.random_range(3..30)).collect());
    }
    VlaInput {
        pixels: Tensor::from_vec(pixels, (b, config.num_images, 3, s, s), &Device::Cpu).unwrap(),
        proprio: Tensor::from_vec(proprio, (b, 8), &Device::Cpu).unwrap(),
        prompts,
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Adds 1 to every number of one row of a weight.
fn nudge_row(store: &ParamStore, name: &str, row: usize) {
    let var = &store.vars()[name];
    let (rows, width) = var.dims2().unwrap();
    let mask = (0..rows * width).map(|i| f32::from(u8::from(i / width == row))).collect();
    let mask = Tensor::from_vec(mask, (rows, width), &Device::Cpu).unwrap();
    var.set(&(var.as_tensor().detach() + mask).unwrap()).unwrap();
}

#[test]
fn shapes_and_sizes() {
    for placeholders in [Placeholders::Zero, Placeholders::Learned] {
        let config = VlaConfig { placeholders, ..tiny() };
        let (store, net) = network(&config, 1);
        assert_eq!(store.count() as u64, config.param_count());
        let logits = net.forward(&input(&config, &[1, 2, 3])).unwrap();
        assert_eq!(logits.dims(), [3, 14, 256]);
        assert!(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }
    let (store, _) = network(&VlaConfig::quickstart(), 1);
    assert_eq!(store.count() as u64, VlaConfig::quickstart().param_count());
}

#[test]
fn names_are_those_of_the_checkpoints() {
    let (store, _) = network(&tiny(), 1);
    for name in [
        "vision_backbone.vision_model.embeddings.patch_embedding.weight",
        "vision_backbone.vision_model.embeddings.position_embedding.weight",
        "vision_backbone.vision_model.encoder.layers.1.self_attn.out_proj.bias",
        "vision_backbone.vision_model.encoder.layers.0.mlp.fc2.weight",
        "vision_backbone.vision_model.post_layernorm.weight",
        "projector.fc3.bias",
        "proprio_projector.fc1.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.2.mlp.down_proj.weight",
        "language_model.model.layers.0.post_attention_layernorm.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
    ] {
        assert!(store.vars().contains_key(name), "{name}");
    }
}

#[test]
fn every_weight_receives_a_gradient() {
    let config = VlaConfig { placeholders: Placeholders::Learned, ..tiny() };
    let (store, net) = network(&config, 1);
    let bins: Vec<u32> = (0..14).map(|i| i * 17).collect();
    let scores = net.score(&input(&config, &[1, 2]), &[&bins, &bins], 1.6).unwrap();
    let grads = scores.log_probs.sum_all().unwrap().backward().unwrap();
    for (name, var) in store.trainable() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let largest = grad.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        // A key's bias moves all scores of a query alike, which softmax does not see.
        assert!(largest.is_finite() && (largest > 0.0 || name.ends_with("k_proj.bias")), "{name}: {largest}");
    }
}

#[test]
fn frozen_parts_receive_none_and_give_the_same_numbers() {
    let config = tiny();
    let (mut store, net) = network(&config, 1);
    let before = net.forward(&input(&config, &[1])).unwrap();
    store.freeze(&["vision_backbone.", "language_model.model.embed_tokens"]);
    let net = Vla::new(&mut store, &config, SPECIAL).unwrap();
    let after = net.forward(&input(&config, &[1])).unwrap();
    assert_eq!(bits(&before), bits(&after));
    let grads = after.sum_all().unwrap().backward().unwrap();
    for (name, var) in store.vars() {
        let frozen = name.starts_with("vision_backbone.") || name.contains("embed_tokens");
        assert_eq!(grads.get(var).is_none(), frozen, "{name}");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let config = tiny();
    let (_, net) = network(&config, 4);
    let seeds = [11, 12, 13, 14, 15, 16, 17];
    let together = net.infer(&input(&config, &seeds)).unwrap();
    for (i, &seed) in seeds.iter().enumerate() {
        let alone = net.infer(&input(&config, &[seed])).unwrap();
        assert_eq!(bits(&together.i(i).unwrap()), bits(&alone), "row {i}");
    }
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let alone = one_thread.install(|| net.infer(&input(&config, &seeds)).unwrap());
    assert_eq!(bits(&together), bits(&alone));
}

#[test]
fn what_was_sampled_is_scored_with_the_same_bits() {
    let config = tiny();
    let (_, net) = network(&config, 4);
    let seeds = [21, 22, 23];
    for temperature in [1.6, 0.0] {
        let choices =
            net.sample(&input(&config, &seeds), temperature, &[7.into(), 8.into(), 9.into()]).unwrap();
        let rows: Vec<&[u32]> = choices.iter().map(|c| c.ids.as_slice()).collect();
        let at = if temperature > 0.0 { temperature } else { 1.0 };
        let scores = net.score(&input(&config, &seeds), &rows, at).unwrap();
        let flat = |f: fn(&efference_nets::Choice) -> &Vec<f32>| {
            choices.iter().flat_map(f).map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        assert_eq!(flat(|c| &c.log_probs), bits(&scores.log_probs));
        assert_eq!(flat(|c| &c.entropy), bits(&scores.entropy));
        let alone = net.sample(&input(&config, &seeds[1..2]), temperature, &[8.into()]).unwrap();
        assert_eq!(alone[0], choices[1]);
    }
}

#[test]
fn weights_survive_a_file_bit_for_bit() {
    let config = tiny();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let (store, net) = network(&config, 4);
    store.save(&path).unwrap();
    let (other_store, other) = network(&config, 5);
    let look = input(&config, &[1, 2]);
    assert_ne!(bits(&net.infer(&look).unwrap()), bits(&other.infer(&look).unwrap()));
    other_store.load(&path).unwrap();
    assert_eq!(bits(&net.infer(&look).unwrap()), bits(&other.infer(&look).unwrap()));
    let wider = VlaConfig { chunk: 3, placeholders: Placeholders::Learned, ..tiny() };
    assert!(matches!(network(&wider, 1).0.load(&path), Err(Error::Names { .. })));
    let mut wider = tiny();
    wider.text.intermediate_size = 28;
    assert!(matches!(network(&wider, 1).0.load(&path), Err(Error::Shape { .. })));
}

/// With OFT's causal mistake (the stock attention instead of a bidirectional one) these fail.
#[test]
fn placeholders_see_what_comes_after_them() {
    let config = VlaConfig { placeholders: Placeholders::Learned, ..tiny() };
    let (store, net) = network(&config, 4);
    let look = input(&config, &[31]);
    let first = |net: &Vla| bits(&net.infer(&look).unwrap().i((0, 0)).unwrap());
    let before = first(&net);
    nudge_row(&store, "action_queries.weight", 13); // the last placeholder
    let after = first(&net);
    assert_ne!(before, after);
    nudge_row(&store, "language_model.model.embed_tokens.weight", SPECIAL.eos as usize);
    assert_ne!(after, first(&net));
}

#[test]
fn padding_is_seen_by_nobody() {
    let config = tiny();
    let (store, net) = network(&config, 4);
    let mut look = input(&config, &[31, 32]);
    look.prompts = vec![vec![5, 6], vec![7, 8, 9, 10, 11, 12]];
    let before = bits(&net.infer(&look).unwrap());
    nudge_row(&store, "language_model.model.embed_tokens.weight", SPECIAL.pad as usize);
    assert_eq!(before, bits(&net.infer(&look).unwrap()));
    nudge_row(&store, "language_model.model.embed_tokens.weight", 5);
    let after = bits(&net.infer(&look).unwrap());
    let half = before.len() / 2;
    assert_ne!(before[..half], after[..half]);
    assert_eq!(before[half..], after[half..]);
}

#[test]
fn every_input_matters() {
    let config = tiny();
    let (_, net) = network(&config, 4);
    let base = bits(&net.infer(&input(&config, &[41])).unwrap());
    let changed = |change: fn(&mut VlaInput)| {
        let mut look = input(&tiny(), &[41]);
        change(&mut look);
        bits(&net.infer(&look).unwrap())
    };
    assert_ne!(base, changed(|i| i.proprio = (&i.proprio + 0.1).unwrap()));
    assert_ne!(base, changed(|i| i.prompts[0][0] ^= 1));
    for camera in 0..2 {
        let mut look = input(&config, &[41]);
        let mut views = [look.pixels.i((.., 0)).unwrap(), look.pixels.i((.., 1)).unwrap()];
        views[camera] = (&views[camera] * 0.5).unwrap();
        look.pixels = Tensor::stack(&views, 1).unwrap();
        assert_ne!(base, bits(&net.infer(&look).unwrap()));
    }
}

#[test]
fn it_learns_what_depends_on_image_and_instruction() {
    let config = tiny();
    let (store, net) = network(&config, 4);
    let look = input(&config, &[51, 52, 53, 54]);
    let bins: Vec<Vec<u32>> = (0..4u32).map(|r| (0..14).map(|i| (37 * i + 61 * r) % 256).collect()).collect();
    let rows: Vec<&[u32]> = bins.iter().map(Vec::as_slice).collect();
    let loss = || action_nll(&net.forward(&look).unwrap(), &rows, &[0.0]).unwrap().mean_all().unwrap();
    let first = loss().to_scalar::<f32>().unwrap();
    assert!((first - 256f32.ln()).abs() < 0.3, "starts near uniform: {first}");
    // Plain Adam, written out, so that this test needs nothing else.
    let mut moments: Vec<(Tensor, Tensor)> = Vec::new();
    for (_, var) in store.trainable() {
        moments.push((var.zeros_like().unwrap(), var.zeros_like().unwrap()));
    }
    for step in 1..=150 {
        let grads = loss().backward().unwrap();
        for ((_, var), (m, v)) in store.trainable().zip(&mut moments) {
            let g = grads.get(var).unwrap();
            *m = ((&*m * 0.9).unwrap() + (g * 0.1).unwrap()).unwrap();
            *v = ((&*v * 0.99).unwrap() + (g.sqr().unwrap() * 0.01).unwrap()).unwrap();
            let (cm, cv) = (1.0 - 0.9f64.powi(step), 1.0 - 0.99f64.powi(step));
            let root = ((&*v / cv).unwrap().sqrt().unwrap() + 1e-8).unwrap();
            let change = ((&*m * (0.01 / cm)).unwrap() / root).unwrap();
            var.set(&(var.as_tensor().detach() - change).unwrap()).unwrap();
        }
    }
    let last = loss().to_scalar::<f32>().unwrap();
    assert!(last < 1.0, "{first} -> {last}");
}

#[test]
fn wrong_input_is_named() {
    let config = tiny();
    let (_, net) = network(&config, 1);
    let message = |change: fn(&mut VlaInput)| {
        let mut look = input(&tiny(), &[1, 2]);
        change(&mut look);
        net.forward(&look).unwrap_err().to_string()
    };
    assert!(message(|i| i.prompts[1].clear()).contains("1 to 6 tokens"));
    assert!(message(|i| i.prompts[1] = vec![3; 7]).contains("1 to 6 tokens"));
    assert!(message(|i| i.prompts.clear()).contains("prompts"));
    assert!(message(|i| i.pixels = i.pixels.i(..1).unwrap()).contains("pixels"));
    assert!(message(|i| i.proprio = i.proprio.i((.., ..7)).unwrap()).contains("proprio"));
    let mut look = input(&config, &[1]);
    look.prompts[0] = vec![9999];
    assert!(net.forward(&look).is_err());
    let look = input(&config, &[1]);
    assert!(net.score(&look, &[&[1, 2]], 1.0).is_err());
    assert!(net.score(&look, &[&[256; 14]], 1.0).is_err());
    assert!(net.score(&look, &[&[0; 14]], 0.0).is_err());
    assert!(net.sample(&look, 1.0, &[1.into(), 2.into()]).is_err());
    let build = |config: &VlaConfig, special| Vla::new(&mut ParamStore::new(0, Device::Cpu), config, special);
    assert!(build(&config, SpecialIds { eos: 9999, ..SPECIAL }).is_err());
    assert!(build(&VlaConfig { chunk: 0, ..tiny() }, SPECIAL).is_err());
    let error = build(&VlaConfig { dino: Some(config.vision.clone()), ..tiny() }, SPECIAL).err().unwrap();
    assert!(error.to_string().contains("DINOv2"));
}
