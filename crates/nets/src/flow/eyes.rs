//! The first RGB-D picture as scene tokens: a coarse map of it, and queries that find places in a fine one.
//!
//! A coarse cell covers about a decimetre of a table, and where an object has to go must be known to a centimetre. So a
//! few learned queries attend to a map four times as fine whose values hold each cell's place in space beside what it
//! looks like. A sharp query is a soft arg max over places, a keypoint in metres (spatial softmax, arXiv 1504.00702,
//! with depth); cells may also vote for a place beside them.

use candle_core::Tensor;
use efference_ops as ops;
use efference_ops::AttentionMask;

use super::config::FlowNetConfig;
use super::picture::SCENE_CHANNELS;
use crate::error::Result;
use crate::layers::{Linear, fan_in};
use crate::params::{Init, ParamPath};

/// Pixels along a side of a fine cell.
pub(super) const FINE: usize = 4;
/// Pixels along a side of a coarse cell.
pub(super) const COARSE: usize = 16;
/// Numbers of a fine cell's place: whether its depth is known, x, y, z.
pub(super) const PLACE: usize = 4;

/// Kernel, stride and padding of the layers: a side of 128 becomes 32, 32 (the fine map), 16, 8 (the coarse one).
const LAYERS: [(usize, usize, usize); 4] = [(4, 4, 0), (3, 1, 1), (3, 2, 1), (3, 2, 1)];
/// Layers up to the fine map.
const FINE_LAYERS: usize = 2;

/// See the head of this file.
#[derive(Clone)]
pub(super) struct Eyes {
    layers: [(Tensor, Tensor); 4],
    positions: Tensor, // [S, D]
    queries: Tensor,   // [K, D]
    key: Linear,
    value: Linear,
    proj: Linear,
    heads: usize,
    scale: f64,
}

impl Eyes {
    /// Creates or finds the weights below `path`: `conv1` to `conv4`, `position_embedding`, `look.{queries,key,value,proj}`.
    pub fn new(path: &mut ParamPath<'_>, config: &FlowNetConfig) -> Result<Self> {
        let d = config.width;
        let fine = 3 * d / 8;
        let widths = [SCENE_CHANNELS, fine, fine, 3 * d / 4, d];
        let mut layer = |i: usize| -> Result<(Tensor, Tensor)> {
            let (inputs, outputs, kernel) = (widths[i], widths[i + 1], LAYERS[i].0);
            let mut path = path.pp(&format!("conv{}", i + 1));
            let std = fan_in(inputs * kernel * kernel);
            let weight = path.get("weight", &[outputs, inputs, kernel, kernel], Init::Normal(std))?;
            Ok((weight, path.get("bias", &[outputs], Init::Constant(0.0))?))
        };
        let layers = [layer(0)?, layer(1)?, layer(2)?, layer(3)?];
        let cells = config.cells() * config.cells();
        let positions = path.pp("position_embedding").get("weight", &[cells, d], Init::Normal(0.1))?;
        let mut look = path.pp("look");
        let seen = fine + PLACE;
        Ok(Self {
            layers,
            positions,
            queries: look.get("queries", &[config.looks, d], Init::Normal(1.0))?,
            key: Linear::new(look.pp("key"), seen, d, true, fan_in(seen))?,
            value: Linear::new(look.pp("value"), seen, d, true, fan_in(seen))?,
            proj: Linear::new(look.pp("proj"), d, d, true, fan_in(d))?,
            heads: config.heads,
            scale: ((d / config.heads.max(1)) as f64).sqrt().recip(),
        })
    }

    /// A picture [B, SCENE_CHANNELS, side, side] and the places of its fine cells [B, P, PLACE], row by row, as coarse
    /// tokens [B, S, D] and what the queries found [B, K, D].
    pub fn forward(&self, scene: &Tensor, places: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut x = scene.clone();
        let mut fine = None;
        for (i, ((weight, bias), (_, stride, padding))) in self.layers.iter().zip(LAYERS).enumerate() {
            x = ops::conv2d(&x, weight, Some(bias), (stride, stride), (padding, padding))?;
            if i + 1 < LAYERS.len() {
                x = ops::gelu_tanh(&x)?;
            }
            if i + 1 == FINE_LAYERS {
                fine = Some(x.clone());
            }
        }
        let coarse = tokens(&x)?.broadcast_add(&self.positions)?;
        let fine = tokens(&fine.unwrap_or(x))?; // [B, P, F]
        let seen = Tensor::cat(&[&fine, places], 2)?; // [B, P, F + PLACE]
        let (k, v) = (self.key.forward(&seen)?, self.value.forward(&seen)?);
        let (looks, d) = self.queries.dims2()?;
        let q = self.queries.unsqueeze(0)?.broadcast_as((seen.dims()[0], looks, d))?.contiguous()?;
        let heads = (self.heads, self.heads);
        let found = ops::attention_tokens(&q, &k, &v, heads, &AttentionMask::Full, None, self.scale)?;
        Ok((coarse, self.proj.forward(&found)?))
    }
}

/// [B, C, H, W] -> [B, H W, C], row by row.
fn tokens(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// Appends the places of the fine cells of one scene [SCENE_CHANNELS, side, side]: those of the pixel in their middle.
pub(super) fn fine_places(scene: &[f32], side: usize, out: &mut Vec<f32>) {
    let pixels = side * side;
    for row in (FINE / 2..side).step_by(FINE) {
        for column in (FINE / 2..side).step_by(FINE) {
            let at = row * side + column;
            out.extend((0..PLACE).map(|i| scene[(SCENE_CHANNELS - 1 - PLACE + i) * pixels + at]));
        }
    }
}
