//! The shape of the policy network, its presets and what it costs.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bins of an action token, and so logits per token.
pub const ACTION_BINS: usize = 256;

/// A SigLIP-style vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Side S of the square images, px. A multiple of `patch_size`.
    pub image_size: usize,
    /// Side of a patch, px.
    pub patch_size: usize,
    /// Width D. A multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the MLP between its two layers.
    pub intermediate_size: usize,
    /// Added to the variance in layer norms. Default 1e-6 (SigLIP).
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
}

/// A Llama-style decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Width D. `hidden_size / num_attention_heads` must be even (rotary embedding turns pairs).
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Rows of the token table and of the output layer, V.
    pub vocab_size: usize,
    /// How many of those rows, at the end, are padding that no token uses (OpenVLA: 64). The action bins are the last
    /// 256 rows before it.
    #[serde(default)]
    pub vocab_padding: usize,
    /// Added to the mean square in RMS norms. Default 1e-6.
    #[serde(default = "rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies. Default 10000.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
}

/// What stands in the slots whose outputs become actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placeholders {
    /// Zero vectors, told apart by their rotary position only: OpenVLA-OFT.
    #[default]
    Zero,
    /// One learned vector per slot (`action_queries.weight`): a small network learns faster with them, because zero
    /// vectors are all alike until the second block. Not in OpenVLA-OFT.
    Learned,
}

/// The shape of a [`Vla`](crate::Vla): OpenVLA-OFT with discrete actions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlaConfig {
    /// Cameras, each seen through the same encoder: I.
    pub num_images: usize,
    /// The SigLIP tower.
    pub vision: VisionConfig,
    /// A DINOv2 tower whose channels are put before SigLIP's (OpenVLA). It is counted in sizes and costs only:
    /// building a network with it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dino: Option<VisionConfig>,
    /// The decoder.
    pub text: TextConfig,
    /// Actions per decision, K.
    pub chunk: usize,
    /// Numbers per action, A.
    pub action_dim: usize,
    /// Numbers of proprioception.
    pub proprio_dim: usize,
    /// Prompt slots, P. Fixed, so that no position depends on the batch.
    pub max_prompt_len: usize,
    /// What stands in the action slots. Default zero vectors.
    #[serde(default)]
    pub placeholders: Placeholders,
}

fn layer_norm_eps() -> f64 {
    1e-6
}
fn rms_norm_eps() -> f64 {
    1e-6
}
fn rope_theta() -> f64 {
    10_000.0
}

impl VlaConfig {
    /// The network of the quickstart: about 1.2 million parameters, two cameras of 64 px, prompts of the built-in
    /// tokenizer.
    pub fn quickstart() -> Self {
        Self {
            num_images: 2,
            vision: VisionConfig {
                image_size: 64,
                patch_size: 8,
                hidden_size: 96,
                num_hidden_layers: 3,
                num_attention_heads: 3,
                intermediate_size: 256,
                layer_norm_eps: layer_norm_eps(),
            },
            dino: None,
            text: TextConfig {
                hidden_size: 128,
                num_hidden_layers: 4,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                intermediate_size: 352,
                vocab_size: 512 + ACTION_BINS,
                vocab_padding: 0,
                rms_norm_eps: rms_norm_eps(),
                rope_theta: rope_theta(),
            },
            chunk: 8,
            action_dim: 7,
            proprio_dim: 8,
            max_prompt_len: 20,
            placeholders: Placeholders::Zero,
        }
    }

    /// The numbers of OpenVLA-OFT 7B as used for LIBERO: two cameras of 224 px, chunk 8, Llama-2-7B.
    pub fn openvla_oft_7b() -> Self {
        let tower = |hidden_size, num_hidden_layers, intermediate_size| VisionConfig {
            image_size: 224,
            patch_size: 14,
            hidden_size,
            num_hidden_layers,
            num_attention_heads: 16,
            intermediate_size,
            layer_norm_eps: 1e-6,
        };
        Self {
            num_images: 2,
            vision: tower(1152, 27, 4304),
            dino: Some(tower(1024, 24, 4096)),
            text: TextConfig {
                hidden_size: 4096,
                num_hidden_layers: 32,
                num_attention_heads: 32,
                num_key_value_heads: 32,
                intermediate_size: 11008,
                vocab_size: 32064,
                vocab_padding: 64,
                rms_norm_eps: 1e-6,
                rope_theta: rope_theta(),
            },
            chunk: 8,
            action_dim: 7,
            proprio_dim: 8,
            max_prompt_len: 64,
            placeholders: Placeholders::Zero,
        }
    }

    /// Says what is wrong with the shape, if anything.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let rule = |ok: bool, field: &'static str, got: &dyn std::fmt::Display, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(Error::Config { field, got: got.to_string(), expected: expected.into() })
        };
        let (v, t) = (&self.vision, &self.text);
        for (field, value) in [
            ("num_images", self.num_images),
            ("vision.patch_size", v.patch_size),
            ("vision.hidden_size", v.hidden_size),
            ("vision.num_hidden_layers", v.num_hidden_layers),
            ("vision.num_attention_heads", v.num_attention_heads),
            ("vision.intermediate_size", v.intermediate_size),
            ("text.hidden_size", t.hidden_size),
            ("text.num_hidden_layers", t.num_hidden_layers),
            ("text.num_attention_heads", t.num_attention_heads),
            ("text.num_key_value_heads", t.num_key_value_heads),
            ("text.intermediate_size", t.intermediate_size),
            ("chunk", self.chunk),
            ("action_dim", self.action_dim),
            ("proprio_dim", self.proprio_dim),
            ("max_prompt_len", self.max_prompt_len),
        ] {
            rule((1..=1 << 20).contains(&value), field, &value, "between 1 and 1048576")?;
        }
        let (p, heads) = (v.patch_size, v.num_attention_heads);
        let fits = v.image_size >= p && v.image_size <= 1 << 14 && v.image_size.is_multiple_of(p);
        let multiple = format!("a multiple of `patch_size` ({p}), at most 16384");
        rule(fits, "vision.image_size", &v.image_size, &multiple)?;
        let multiple = format!("a multiple of `num_attention_heads` ({heads})");
        rule(v.hidden_size.is_multiple_of(heads), "vision.hidden_size", &v.hidden_size, &multiple)?;
        let heads = t.num_attention_heads;
        let multiple = format!("a multiple of 2 x `num_attention_heads` (2 x {heads})");
        rule(t.hidden_size.is_multiple_of(2 * heads), "text.hidden_size", &t.hidden_size, &multiple)?;
        let (kv, divisor) = (t.num_key_value_heads, format!("a divisor of `num_attention_heads` ({heads})"));
        rule(heads.is_multiple_of(kv), "text.num_key_value_heads", &kv, &divisor)?;
        let padding_ok = t.vocab_padding <= 1 << 20;
        rule(padding_ok, "text.vocab_padding", &t.vocab_padding, "at most 1048576")?;
        let least = ACTION_BINS + t.vocab_padding;
        let room = t.vocab_size > least && t.vocab_size <= 1 << 24;
        let more = format!("more than {least} (action bins and padding), at most 16777216");
        rule(room, "text.vocab_size", &t.vocab_size, &more)?;
        for (field, eps) in
            [("vision.layer_norm_eps", v.layer_norm_eps), ("text.rms_norm_eps", t.rms_norm_eps)]
        {
            rule(eps > 0.0 && eps < 1.0, field, &eps, "between 0 and 1, both excluded")?;
        }
        rule(t.rope_theta > 1.0 && t.rope_theta.is_finite(), "text.rope_theta", &t.rope_theta, "above 1")
    }

    /// Patches of one image, N.
    pub fn patches(&self) -> usize {
        let side = self.vision.image_size / self.vision.patch_size;
        side * side
    }

    /// Action tokens of a decision, K * A.
    pub fn action_tokens(&self) -> usize {
        self.chunk * self.action_dim
    }

    /// Slots before the prompt: BOS, the patches of all images, proprioception.
    pub fn prefix_len(&self) -> usize {
        1 + self.num_images * self.patches() + 1
    }

    /// Slots of the whole sequence, T.
    pub fn sequence_len(&self) -> usize {
        self.prefix_len() + self.max_prompt_len + self.action_tokens() + 1
    }

    /// The slot whose output is the first action token: one to the left of the first placeholder.
    pub fn first_output(&self) -> usize {
        self.prefix_len() + self.max_prompt_len - 1
    }

    /// First of the 256 vocabulary rows that are action bins.
    pub fn first_bin(&self) -> usize {
        self.text.vocab_size - self.text.vocab_padding - ACTION_BINS
    }

    /// Width of a patch on its way into the projector.
    pub fn patch_width(&self) -> usize {
        self.vision.hidden_size + self.dino.as_ref().map_or(0, |d| d.hidden_size)
    }

    /// Number of parameters.
    pub fn param_count(&self) -> u64 {
        let linear = |i: usize, o: usize, bias: bool| (i * o + if bias { o } else { 0 }) as u64;
        let tower = |v: &VisionConfig| {
            let block = 4 * linear(v.hidden_size, v.hidden_size, true)
                + linear(v.hidden_size, v.intermediate_size, true)
                + linear(v.intermediate_size, v.hidden_size, true)
                + 4 * v.hidden_size as u64;
            let patch = linear(3 * v.patch_size * v.patch_size, v.hidden_size, true);
            patch
                + (self.patches() * v.hidden_size) as u64
                + v.num_hidden_layers as u64 * block
                + 2 * v.hidden_size as u64
        };
        // DINOv2 has beside that a class token, four registers, and two layer scales per block.
        let dino = self
            .dino
            .as_ref()
            .map_or(0, |d| tower(d) + (d.hidden_size * (5 + 2 * d.num_hidden_layers)) as u64);
        let t = &self.text;
        let d = t.hidden_size;
        let kv = d / t.num_attention_heads * t.num_key_value_heads;
        let block = 2 * linear(d, d, false)
            + 2 * linear(d, kv, false)
            + 3 * linear(d, t.intermediate_size, false)
            + 2 * d as u64;
        let text = 2 * linear(t.vocab_size, d, false) + t.num_hidden_layers as u64 * block + d as u64;
        let wide = 4 * self.patch_width();
        let projector = linear(self.patch_width(), wide, true) + linear(wide, d, true) + linear(d, d, true);
        let proprio = linear(self.proprio_dim, d, true) + linear(d, d, true);
        let queries = match self.placeholders {
            Placeholders::Zero => 0,
            Placeholders::Learned => (self.action_tokens() * d) as u64,
        };
        tower(&self.vision) + dino + projector + proprio + text + queries
    }

    /// Floating-point operations (a multiply and an add count as two) of the matrix products of one decision.
    pub fn flops_per_decision(&self) -> u64 {
        let product = |m: usize, i: usize, o: usize| 2 * m as u64 * i as u64 * o as u64;
        let n = self.patches();
        let tower = |v: &VisionConfig| {
            let block = 4 * product(n, v.hidden_size, v.hidden_size)
                + 2 * product(n, v.hidden_size, v.intermediate_size)
                + 2 * product(n, v.hidden_size, n);
            product(n, 3 * v.patch_size * v.patch_size, v.hidden_size) + v.num_hidden_layers as u64 * block
        };
        let t = &self.text;
        let (d, kv) = (t.hidden_size, t.hidden_size / t.num_attention_heads * t.num_key_value_heads);
        let (len, out) = (self.sequence_len(), self.action_tokens());
        // The last block computes queries only where an action is read.
        let block = |queries: usize| {
            2 * product(len, d, kv)
                + 2 * product(queries, d, d)
                + 2 * product(queries, d, len)
                + 3 * product(queries, d, t.intermediate_size)
        };
        let text = (t.num_hidden_layers as u64 - 1) * block(len) + block(out) + product(out, d, ACTION_BINS);
        let wide = 4 * self.patch_width();
        let projector = product(n, self.patch_width(), wide) + product(n, wide, d) + product(n, d, d);
        let images = self.num_images as u64;
        images * (tower(&self.vision) + self.dino.as_ref().map_or(0, tower) + projector) + text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn presets_are_valid_and_have_the_published_size() {
        let (small, large) = (VlaConfig::quickstart(), VlaConfig::openvla_oft_7b());
        small.validate().unwrap();
        large.validate().unwrap();
        assert!((1_000_000..1_600_000).contains(&small.param_count()), "{}", small.param_count());
        // 7.5 billion, and the action bins are ids 31744..32000.
        assert_eq!((large.param_count() as f64 / 1e8).round(), 75.0);
        assert_eq!(large.first_bin(), 31744);
        assert_eq!(large.patches(), 256);
        // Two images and about 120 other tokens through 6.6 billion weights, two operations each, and the towers.
        let per_token = large.flops_per_decision() as f64 / 1e12;
        assert!((8.0..12.0).contains(&per_token), "{per_token}");
    }

    #[test]
    fn serde_round_trip_defaults_and_unknown_fields() {
        let config = VlaConfig::quickstart();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VlaConfig>(&text).unwrap(), config);
        let typo = text.replace("\"chunk\"", "\"chunks\"");
        assert!(serde_json::from_str::<VlaConfig>(&typo).unwrap_err().to_string().contains("chunks"));
        let shorter = text.replace(",\"placeholders\":\"zero\"", "");
        assert_ne!(shorter, text);
        assert_eq!(serde_json::from_str::<VlaConfig>(&shorter).unwrap(), config);
    }

    #[test]
    fn wrong_shapes_name_the_field() {
        let field = |change: fn(&mut VlaConfig)| {
            let mut config = VlaConfig::quickstart();
            change(&mut config);
            match config.validate() {
                Err(Error::Config { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(field(|c| c.vision.image_size = 65), "vision.image_size");
        assert_eq!(field(|c| c.vision.image_size = 0), "vision.image_size");
        assert_eq!(field(|c| c.vision.patch_size = 0), "vision.patch_size");
        assert_eq!(field(|c| c.vision.num_attention_heads = 5), "vision.hidden_size");
        assert_eq!(field(|c| c.text.num_attention_heads = 3), "text.hidden_size");
        assert_eq!(field(|c| c.text.num_key_value_heads = 3), "text.num_key_value_heads");
        assert_eq!(field(|c| c.text.vocab_size = 256), "text.vocab_size");
        assert_eq!(field(|c| c.text.rope_theta = f64::NAN), "text.rope_theta");
        assert_eq!(field(|c| c.vision.layer_norm_eps = 0.0), "vision.layer_norm_eps");
        assert_eq!(field(|c| c.chunk = 0), "chunk");
    }
}
