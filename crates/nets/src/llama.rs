//! Llama's decoder (Touvron et al. 2023; `LlamaModel` of Hugging Face): RMS norm, rotary positions, grouped key and
//! value heads, gated MLP. Works on embeddings, with any attention mask.

use std::sync::Arc;

use candle_core::Tensor;
use efference_ops as ops;
use efference_ops::{AttentionMask, RotaryTable};

use crate::config::TextConfig;
use crate::error::Result;
use crate::layers::{Linear, RmsNorm, fan_in, residual};
use crate::params::{Init, ParamPath};
use crate::vla::expect;

/// Decoder and output layer. Names below the given path: `model.embed_tokens.weight`, `model.layers.N.…`,
/// `model.norm.weight`, `lm_head.weight`.
#[derive(Clone)]
pub struct Llama {
    embed_tokens: Tensor, // [V, D]
    lm_head: Tensor,      // [V, D]
    blocks: Vec<Block>,
    norm: RmsNorm,
    rotary: RotaryTable,
    gradient_checkpointing: bool,
}

#[derive(Clone)]
struct Block {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    heads: usize,
    kv_heads: usize,
    scale: f64,
}

/// Who sees whom in [`Llama::forward`].
pub struct Sight<'a> {
    /// Rule by position.
    pub mask: AttentionMask,
    /// Keys that exist, [B][T]; `None`: all. Padding is false.
    pub key_valid: Option<&'a [Vec<bool>]>,
}

/// A [`Sight`] of its own.
struct OwnedSight {
    mask: AttentionMask,
    key_valid: Option<Vec<Vec<bool>>>,
}

impl Sight<'_> {
    fn to_owned(&self) -> OwnedSight {
        OwnedSight { mask: self.mask.clone(), key_valid: self.key_valid.map(<[_]>::to_vec) }
    }
}

impl OwnedSight {
    fn lend(&self) -> Sight<'_> {
        Sight { mask: self.mask.clone(), key_valid: self.key_valid.as_deref() }
    }
}

impl Llama {
    /// Creates or finds the weights below `path`; rotary positions for sequences of at most `max_len`.
    ///
    /// # Errors
    /// A weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, config: &TextConfig, max_len: usize) -> Result<Self> {
        let (d, v) = (config.hidden_size, config.vocab_size);
        // Logits start near zero (all bins alike); token vectors start near the size of projected patches.
        let lm_head = path.pp("lm_head").get("weight", &[v, d], Init::Normal(0.02))?;
        let mut model = path.pp("model");
        let embed_tokens = model.pp("embed_tokens").get("weight", &[v, d], Init::Normal(0.2))?;
        let mut layers = model.pp("layers");
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(&mut layers.pp(&i.to_string()), config))
            .collect::<Result<_>>()?;
        let norm = RmsNorm::new(model.pp("norm"), d, config.rms_norm_eps)?;
        let rotary = RotaryTable::new(d / config.num_attention_heads, max_len, config.rope_theta)?;
        Ok(Self { embed_tokens, lm_head, blocks, norm, rotary, gradient_checkpointing: false })
    }

    /// Whether blocks keep only their inputs for the backward pass and compute the rest again there: about a third more
    /// time for a fraction of the memory. The gradients are the same, bit for bit on CPU. Off at first.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.gradient_checkpointing = on;
    }

    /// Token ids [..] (u32) to vectors [.., D].
    ///
    /// # Errors
    /// An id beyond the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(ops::embedding(&self.embed_tokens, ids)?)
    }

    /// Vectors [B, T, D] through all blocks and the last norm. With `read` = (start, len) only the outputs of those
    /// positions are computed in the last block: [B, len, D], the same numbers at less cost. Under a mask that goes by
    /// position they must be the last ones.
    ///
    /// # Errors
    /// Longer than the rotary table, a mask of another size, or `read` beyond the sequence.
    pub fn forward(&self, x: &Tensor, sight: &Sight<'_>, read: Option<(usize, usize)>) -> Result<Tensor> {
        let len = x.dims3()?.1;
        if let Some((start, count)) = read {
            let end = start.saturating_add(count);
            let fits = match sight.mask {
                AttentionMask::Full => end <= len && count > 0,
                AttentionMask::Causal | AttentionMask::Prefix(_) => end == len && count > 0,
                AttentionMask::Blocks(_) | AttentionMask::CausalSegments(_) => start == 0 && end == len,
            };
            expect("read", &[start, count], fits, &format!("positions below {len} that fit the mask"))?;
        }
        let mut x = x.clone();
        // What a block that is computed again needs must outlive this call.
        let kept = self.gradient_checkpointing.then(|| Arc::new(sight.to_owned()));
        for (i, block) in self.blocks.iter().enumerate() {
            let last = i + 1 == self.blocks.len();
            let out = if last { read.unwrap_or((0, len)) } else { (0, len) };
            x = match &kept {
                None => block.forward(&x, sight, &self.rotary, out)?,
                Some(kept) => {
                    let (block, kept, rotary) = (block.clone(), kept.clone(), self.rotary.clone());
                    ops::checkpoint(&[&x], move |x| block.forward(&x[0], &kept.lend(), &rotary, out))?
                }
            };
        }
        self.norm.forward(&x)
    }

    /// Logits of the vocabulary rows `first..first + count` only: [.., D] -> [.., count].
    ///
    /// # Errors
    /// Rows beyond the vocabulary.
    pub fn logits(&self, x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
        Ok(ops::linear(x, &self.lm_head.narrow(0, first, count)?, None)?)
    }
}

impl Block {
    fn new(path: &mut ParamPath<'_>, config: &TextConfig) -> Result<Self> {
        let (d, m, eps) = (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let kv = d / config.num_attention_heads * config.num_key_value_heads;
        Ok(Self {
            input_layernorm: RmsNorm::new(path.pp("input_layernorm"), d, eps)?,
            q_proj: Linear::new(path.pp("self_attn").pp("q_proj"), d, d, false, fan_in(d))?,
            k_proj: Linear::new(path.pp("self_attn").pp("k_proj"), d, kv, false, fan_in(d))?,
            v_proj: Linear::new(path.pp("self_attn").pp("v_proj"), d, kv, false, fan_in(d))?,
            o_proj: Linear::new(
                path.pp("self_attn").pp("o_proj"),
                d,
                d,
                false,
                residual(d, config.num_hidden_layers),
            )?,
            post_attention_layernorm: RmsNorm::new(path.pp("post_attention_layernorm"), d, eps)?,
            gate_proj: Linear::new(path.pp("mlp").pp("gate_proj"), d, m, false, fan_in(d))?,
            up_proj: Linear::new(path.pp("mlp").pp("up_proj"), d, m, false, fan_in(d))?,
            down_proj: Linear::new(
                path.pp("mlp").pp("down_proj"),
                m,
                d,
                false,
                residual(m, config.num_hidden_layers),
            )?,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            scale: ((d / config.num_attention_heads) as f64).sqrt().recip(),
        })
    }

    /// [B, T, D] -> [B, len, D], the outputs of positions `start..start + len`.
    fn forward(
        &self,
        x: &Tensor,
        sight: &Sight<'_>,
        rotary: &RotaryTable,
        (start, len): (usize, usize),
    ) -> Result<Tensor> {
        let all = len == x.dims3()?.1;
        let part = |x: &Tensor| if all { Ok(x.clone()) } else { x.narrow(1, start, len) };
        let h = self.input_layernorm.forward(x)?; // [B, T, D]
        let q = rotary.apply_tokens(&self.q_proj.forward(&part(&h)?)?, start)?; // [B, len, H * Dh]
        let k = rotary.apply_tokens(&self.k_proj.forward(&h)?, 0)?; // [B, T, Hkv * Dh]
        let v = self.v_proj.forward(&h)?; // [B, T, Hkv * Dh]
        let heads = (self.heads, self.kv_heads);
        let seen = ops::attention_tokens(&q, &k, &v, heads, &sight.mask, sight.key_valid, self.scale)?;
        let (x, h) = self.post_attention_layernorm.add_forward(&part(x)?, &self.o_proj.forward(&seen)?)?;
        let h = ops::swiglu(&self.gate_proj.forward(&h)?, &self.up_proj.forward(&h)?)?; // [B, len, M]
        Ok(ops::add(&x, &self.down_proj.forward(&h)?)?)
    }
}
