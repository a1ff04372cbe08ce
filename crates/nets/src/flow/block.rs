//! A transformer block whose norms and branches are steered by a condition (adaLN-zero, arXiv 2212.09748).

use candle_core::Tensor;
use efference_ops as ops;
use efference_ops::{Activation, AttentionMask};

use super::modulation::{gated_add, modulated_norm};
use crate::error::{Error, Result};
use crate::layers::{Linear, fan_in};
use crate::params::ParamPath;

/// Epsilon of every layer norm here.
pub(super) const EPS: f64 = 1e-6;

/// x += g1 Attention(LN(x) (1 + c1) + s1); x += g2 MLP(LN(x) (1 + c2) + s2), with
/// (s1, c1, g1, s2, c2, g2) = W silu(condition) and W zero at the start. Attention sees all tokens and no positions.
#[derive(Clone)]
pub struct DitBlock {
    query: Linear,
    key: Linear,
    value: Linear,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
    modulation: Linear,
    heads: usize,
    scale: f64,
}

/// LN(x) (1 + c) + s and a linear layer, both zero at the start.
#[derive(Clone)]
pub struct FinalLayer {
    linear: Linear,
    modulation: Linear,
}

/// `count` equal parts of the last axis of [B, count D].
fn parts(x: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    Ok(x.chunk(count, 1)?)
}

impl DitBlock {
    /// Creates or finds the weights below `path`: `attn.{query,key,value,proj}`, `mlp.{fc1,fc2}`, `modulation`. The MLP
    /// is four times as wide as the tokens.
    ///
    /// # Errors
    /// A weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, width: usize, heads: usize) -> Result<Self> {
        let (d, std) = (width, fan_in(width));
        let mut attention = path.pp("attn");
        let mut square = |name: &str| Linear::new(attention.pp(name), d, d, true, std);
        let (query, key) = (square("query")?, square("key")?);
        let (value, proj) = (square("value")?, square("proj")?);
        Ok(Self {
            query,
            key,
            value,
            proj,
            fc1: Linear::new(path.pp("mlp").pp("fc1"), d, 4 * d, true, std)?,
            fc2: Linear::new(path.pp("mlp").pp("fc2"), 4 * d, d, true, fan_in(4 * d))?,
            modulation: Linear::zeros(path.pp("modulation"), d, 6 * d)?,
            heads,
            scale: ((d / heads.max(1)) as f64).sqrt().recip(),
        })
    }

    /// From tensors by the names of Track2Act's checkpoints: `attn.qkv` (queries, keys, values one below the other),
    /// `attn.proj`, `mlp.fc1`, `mlp.fc2`, `adaLN_modulation.1`, each with `weight` [out, in] and `bias`.
    ///
    /// # Errors
    /// What `get` says; a `qkv` that is no three square matrices, heads that do not divide the width.
    pub fn from_tensors(heads: usize, get: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let (weight, bias) = (get("attn.qkv.weight")?, get("attn.qkv.bias")?);
        let (rows, d) = weight.dims2()?;
        if rows != 3 * d || heads == 0 || d % heads != 0 {
            let expected = format!("[3 D, D] with D a multiple of {heads} heads");
            return Err(Error::Input { name: "attn.qkv.weight", got: vec![rows, d], expected });
        }
        let third = |i: usize| -> Result<Linear> {
            Ok(Linear::of(weight.narrow(0, i * d, d)?.contiguous()?, bias.narrow(0, i * d, d)?.contiguous()?))
        };
        let (query, key, value) = (third(0)?, third(1)?, third(2)?);
        let mut linear = |name: &str| -> Result<Linear> {
            Ok(Linear::of(get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?))
        };
        Ok(Self {
            query,
            key,
            value,
            proj: linear("attn.proj")?,
            fc1: linear("mlp.fc1")?,
            fc2: linear("mlp.fc2")?,
            modulation: linear("adaLN_modulation.1")?,
            heads,
            scale: ((d / heads) as f64).sqrt().recip(),
        })
    }

    /// Tokens [B, N, D] under a condition [B, D], given as silu(condition), which all blocks share. Permuting tokens
    /// permutes the result.
    ///
    /// # Errors
    /// Other shapes.
    pub fn forward(&self, x: &Tensor, activated: &Tensor) -> Result<Tensor> {
        let steer = parts(&self.modulation.forward(activated)?, 6)?; // six of [B, D]
        let h = modulated_norm(x, &steer[0], &steer[1], EPS)?; // [B, N, D]
        let (q, k, v) = (self.query.forward(&h)?, self.key.forward(&h)?, self.value.forward(&h)?);
        let heads = (self.heads, self.heads);
        let seen = ops::attention_tokens(&q, &k, &v, heads, &AttentionMask::Full, None, self.scale)?;
        let x = gated_add(x, &steer[2], &self.proj.forward(&seen)?)?; // [B, N, D]
        let h = modulated_norm(&x, &steer[3], &steer[4], EPS)?; // [B, N, D]
        let h = self.fc1.forward_act(&h, Activation::GeluTanh)?; // [B, N, 4 D]
        gated_add(&x, &steer[5], &self.fc2.forward(&h)?)
    }
}

impl FinalLayer {
    /// Creates or finds the weights below `path`: `linear`, `modulation`.
    ///
    /// # Errors
    /// A weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, width: usize, outputs: usize) -> Result<Self> {
        Ok(Self {
            linear: Linear::zeros(path.pp("linear"), width, outputs)?,
            modulation: Linear::zeros(path.pp("modulation"), width, 2 * width)?,
        })
    }

    /// From tensors by the names of Track2Act's checkpoints: `linear` and `adaLN_modulation.1`.
    ///
    /// # Errors
    /// What `get` says.
    pub fn from_tensors(get: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let mut linear = |name: &str| -> Result<Linear> {
            Ok(Linear::of(get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?))
        };
        Ok(Self { linear: linear("linear")?, modulation: linear("adaLN_modulation.1")? })
    }

    /// Tokens [B, N, D] under silu(condition) [B, D] to [B, N, O].
    ///
    /// # Errors
    /// Other shapes.
    pub fn forward(&self, x: &Tensor, activated: &Tensor) -> Result<Tensor> {
        let steer = parts(&self.modulation.forward(activated)?, 2)?; // two of [B, D]
        self.linear.forward(&modulated_norm(x, &steer[0], &steer[1], EPS)?)
    }
}
