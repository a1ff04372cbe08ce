//! SigLIP's vision encoder (Zhai et al. 2023; `SiglipVisionModel` of Hugging Face without its pooling head): patches
//! by a strided convolution written as a matrix product, learned positions, pre-norm blocks, a last layer norm.

use candle_core::Tensor;
use efference_ops as ops;
use efference_ops::{Activation, AttentionMask};

use crate::config::VisionConfig;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, fan_in, residual};
use crate::params::{Init, ParamPath};

/// The encoder. Names below the given path: `vision_model.embeddings.…`, `vision_model.encoder.layers.N.…`,
/// `vision_model.post_layernorm.…`.
#[derive(Clone)]
pub struct SiglipVision {
    patch_size: usize,
    patch_weight: Tensor, // [D, 3, p, p]
    patch_bias: Tensor,   // [D]
    positions: Tensor,    // [N, D]
    blocks: Vec<Block>,
    post_layernorm: LayerNorm,
    gradient_checkpointing: bool,
}

#[derive(Clone)]
struct Block {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    scale: f64,
}

impl SiglipVision {
    /// Creates or finds the weights below `path`.
    ///
    /// # Errors
    /// A weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, config: &VisionConfig) -> Result<Self> {
        let (d, p) = (config.hidden_size, config.patch_size);
        let patches = (config.image_size / p) * (config.image_size / p);
        let mut model = path.pp("vision_model");
        let mut embeddings = model.pp("embeddings");
        let mut patch = embeddings.pp("patch_embedding");
        let patch_weight = patch.get("weight", &[d, 3, p, p], Init::Normal(fan_in(3 * p * p)))?;
        let patch_bias = patch.get("bias", &[d], Init::Constant(0.0))?;
        let positions =
            embeddings.pp("position_embedding").get("weight", &[patches, d], Init::Normal(0.1))?;
        let mut encoder = model.pp("encoder");
        let mut layers = encoder.pp("layers");
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(&mut layers.pp(&i.to_string()), config))
            .collect::<Result<_>>()?;
        let post_layernorm = LayerNorm::new(model.pp("post_layernorm"), d, config.layer_norm_eps)?;
        Ok(Self {
            patch_size: p,
            patch_weight,
            patch_bias,
            positions,
            blocks,
            post_layernorm,
            gradient_checkpointing: false,
        })
    }

    /// As [`Llama::set_gradient_checkpointing`](crate::llama::Llama::set_gradient_checkpointing).
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.gradient_checkpointing = on;
    }

    /// Normalised images [B, 3, S, S] to patch features [B, N, D], patches row by row.
    ///
    /// # Errors
    /// Images of another size.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let patches = ops::patchify(images, self.patch_size)?; // [B, N, 3 p p]
        let weight = self.patch_weight.flatten_from(1)?; // [D, 3 p p]
        let x = ops::linear(&patches, &weight, Some(&self.patch_bias))?; // [B, N, D]
        let mut x = x.broadcast_add(&self.positions)?; // [B, N, D]
        for block in &self.blocks {
            x = if self.gradient_checkpointing {
                let block = block.clone();
                ops::checkpoint(&[&x], move |x| block.forward(&x[0]))?
            } else {
                block.forward(&x)?
            };
        }
        self.post_layernorm.forward(&x)
    }
}

impl Block {
    fn new(path: &mut ParamPath<'_>, config: &VisionConfig) -> Result<Self> {
        let (d, m, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let out = residual(d, config.num_hidden_layers);
        Ok(Self {
            layer_norm1: LayerNorm::new(path.pp("layer_norm1"), d, eps)?,
            q_proj: Linear::new(path.pp("self_attn").pp("q_proj"), d, d, true, fan_in(d))?,
            k_proj: Linear::new(path.pp("self_attn").pp("k_proj"), d, d, true, fan_in(d))?,
            v_proj: Linear::new(path.pp("self_attn").pp("v_proj"), d, d, true, fan_in(d))?,
            out_proj: Linear::new(path.pp("self_attn").pp("out_proj"), d, d, true, out)?,
            layer_norm2: LayerNorm::new(path.pp("layer_norm2"), d, eps)?,
            fc1: Linear::new(path.pp("mlp").pp("fc1"), d, m, true, fan_in(d))?,
            fc2: Linear::new(path.pp("mlp").pp("fc2"), m, d, true, residual(m, config.num_hidden_layers))?,
            heads: config.num_attention_heads,
            scale: ((d / config.num_attention_heads) as f64).sqrt().recip(),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.layer_norm1.forward(x)?; // [B, N, D]
        let q = self.q_proj.forward(&h)?; // [B, N, D], as are k and v
        let (k, v) = (self.k_proj.forward(&h)?, self.v_proj.forward(&h)?);
        let heads = (self.heads, self.heads);
        let seen = ops::attention_tokens(&q, &k, &v, heads, &AttentionMask::Full, None, self.scale)?;
        let (x, h) = self.layer_norm2.add_forward(x, &self.out_proj.forward(&seen)?)?; // [B, N, D]
        let h = self.fc1.forward_act(&h, Activation::GeluTanh)?; // [B, N, M]
        Ok(ops::add(&x, &self.fc2.forward(&h)?)?)
    }
}
