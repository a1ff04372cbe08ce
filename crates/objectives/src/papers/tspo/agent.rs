//! The temporal agent: scores every frame of a video for a question.
//!
//! ```text
//! x   = frames + PE                                  frames [T, C] image embeddings, PE of the fraction t / T
//! ctx = windowed attention of x (no output projection)
//! e   = W2 relu(W1 ctx + b1) + b2 + frames           residual WITHOUT the positions
//! S   = (<e, f> / (|e| |f| + 1e-6) + clip) / tau     f [1, C] text embedding, clip [T] raw cosines;  S [T]
//! ```
//!
//! Because of the residual, S begins near twice the raw cosine ranking.

use candle_core::{D, DType, Tensor};

use crate::error::{Error, Result};
use crate::table::Table;

/// What the encoding's sine and cosine are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Position {
    /// t / T in [0, 1): the authors'. Nearly constant between neighbours of a long video.
    #[default]
    Fraction,
    /// t, which keeps the order inside a window apart.
    Index,
}

/// Sinusoidal positions, [T, C]: sine in even columns, cosine in odd ones.
pub fn positional_encoding(t: usize, c: usize, position: Position) -> Table {
    let mut values = Vec::with_capacity(t * c);
    for row in 0..t {
        let at = match position {
            Position::Fraction => row as f64 / t as f64,
            Position::Index => row as f64,
        };
        values.extend((0..c).map(|col| {
            let angle = at * (-((col - col % 2) as f64) * 10_000f64.ln() / c as f64).exp();
            if col % 2 == 0 { angle.sin() } else { angle.cos() }
        }));
    }
    Table { rows: t, cols: c, values }
}

/// Which frames (columns) each frame (row) attends to, [T, T], 1 or 0: `window` places from window / 2 before it,
/// those beyond an end being the end itself. An even window reaches one further back than forward.
pub fn window_mask(t: usize, window: usize) -> Table {
    let mut mask = Table { rows: t, cols: t, values: vec![0.0; t * t] };
    for row in 0..t {
        for place in 0..window {
            let col = (row + place).saturating_sub(window / 2).min(t - 1);
            mask.values[row * t + col] = 1.0;
        }
    }
    mask
}

/// y = x W^T + b.
#[derive(Clone, Debug)]
pub struct Linear {
    /// [out, in].
    pub weight: Tensor,
    /// [out].
    pub bias: Tensor,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.weight.t()?.contiguous()?)?.broadcast_add(&self.bias)?)
    }
}

/// The agent's weights and shape. All layers are C x C.
#[derive(Clone, Debug)]
pub struct TemporalAgent {
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
    /// First layer of the projection.
    pub hidden: Linear,
    /// Second layer of the projection.
    pub output: Linear,
    /// Heads; must divide C. The authors use 8.
    pub heads: usize,
    /// Frames that a frame attends to, 1 or more. The authors use 12.
    pub window: usize,
    /// What positions are made of.
    pub position: Position,
}

impl TemporalAgent {
    /// Scores [T] of frames: `frames` [T, C], `question` [1, C], `clip_scores` [T], `temperature` above 0. With
    /// gradient in the weights.
    ///
    /// # Errors
    /// Shapes that differ, heads that do not divide C, a temperature of 0 or less.
    pub fn scores(
        &self,
        frames: &Tensor,
        question: &Tensor,
        clip_scores: &Tensor,
        temperature: f64,
    ) -> Result<Tensor> {
        let (t, c) = frames.dims2()?;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::Setting { name: "temperature", got: temperature, expected: "above 0" });
        }
        if t == 0 || self.window == 0 || self.heads == 0 || c % self.heads != 0 {
            let reason = format!("{t} frames of {c} numbers, {} heads, window {}", self.heads, self.window);
            return Err(Error::Invalid { what: "temporal agent", reason });
        }
        let positions = positional_encoding(t, c, self.position).to_tensor(frames)?;
        let context = self.attend(&(frames + positions)?)?;
        let hidden = self.hidden.forward(&context)?.relu()?;
        let e = (self.output.forward(&hidden)? + frames)?;
        let product = e.broadcast_mul(question)?.sum(D::Minus1)?;
        // The root has no gradient at 0.
        let norm = |x: &Tensor| (x.sqr()?.sum(D::Minus1)? + 1e-30)?.sqrt();
        let similarity = (product / (norm(&e)?.broadcast_mul(&norm(question)?)? + 1e-6)?)?;
        Ok(((similarity + clip_scores)? / temperature)?)
    }

    fn attend(&self, x: &Tensor) -> Result<Tensor> {
        let (t, c) = x.dims2()?;
        let d = c / self.heads;
        let split = |layer: &Linear| -> Result<Tensor> {
            Ok(layer.forward(x)?.reshape((t, self.heads, d))?.transpose(0, 1)?.contiguous()?)
        };
        let (q, k, v) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? / (d as f64).sqrt())?;
        let mask = window_mask(t, self.window).values.iter().map(|&m| u8::from(m != 0.0)).collect();
        let mask =
            Tensor::from_vec(mask, (1, t, t), x.device())?.broadcast_as(scores.shape())?.contiguous()?;
        let far = (scores.zeros_like()? - 1e6)?;
        let scores = mask.where_cond(&scores, &far)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let attention = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        Ok(attention.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((t, c))?)
    }
}

/// log softmax of scores [T], without underflow.
///
/// # Errors
/// Another rank, no frame.
pub fn log_softmax(scores: &Tensor) -> Result<Tensor> {
    scores.dims1()?;
    let largest = scores.detach().max(0)?;
    let shifted = scores.broadcast_sub(&largest)?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum(0)?.log()?)?)
}

/// Numbers of a [T] tensor in f64, without gradient.
///
/// # Errors
/// Another rank.
pub fn score_values(scores: &Tensor) -> Result<Vec<f64>> {
    Ok(scores.detach().to_dtype(DType::F64)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn far_frames_have_a_finite_log_probability_and_gradient() {
        let s = Var::from_slice(&[200.0f64, -200.0, 0.0], 3, &Device::Cpu).unwrap();
        let l = log_softmax(s.as_tensor()).unwrap();
        assert_eq!(score_values(&l).unwrap(), [0.0, -400.0, -200.0]);
        let grads = l.narrow(0, 1, 1).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(s.as_tensor()).unwrap().to_vec1::<f64>().unwrap();
        assert!(grad.iter().zip([-1.0, 1.0, 0.0]).all(|(g, want)| (g - want).abs() < 1e-12), "{grad:?}");
    }

    #[test]
    fn frames_outside_of_the_window_do_not_matter() {
        let layer = |seed: usize| {
            let numbers = |n: usize| {
                (0..n).map(|i| ((i * 37 + seed * 11) % 19) as f64 / 19.0 - 0.5).collect::<Vec<_>>()
            };
            Linear {
                weight: Tensor::from_vec(numbers(16), (4, 4), &Device::Cpu).unwrap(),
                bias: Tensor::from_vec(numbers(4), 4, &Device::Cpu).unwrap(),
            }
        };
        let agent = TemporalAgent {
            query: layer(1),
            key: layer(2),
            value: layer(3),
            hidden: layer(4),
            output: layer(5),
            heads: 2,
            window: 3,
            position: Position::Fraction,
        };
        let scores = |last: f64| {
            let mut frames: Vec<f64> = (0..24).map(|i| (i % 7) as f64 / 7.0).collect();
            frames[23] = last;
            let frames = Tensor::from_vec(frames, (6, 4), &Device::Cpu).unwrap();
            let question = Tensor::from_vec(vec![0.3, -0.2, 0.5, 0.1], (1, 4), &Device::Cpu).unwrap();
            let clip = Tensor::zeros(6, DType::F64, &Device::Cpu).unwrap();
            score_values(&agent.scores(&frames, &question, &clip, 0.025).unwrap()).unwrap()
        };
        let (a, b) = (scores(0.0), scores(3.0));
        assert_eq!(a[..4], b[..4]);
        assert!(a[4] != b[4] && a[5] != b[5]);
    }
}
