//! The three layers everything is built from, named as in checkpoints (`weight`, `bias`).

use candle_core::Tensor;
use efference_ops as ops;
use efference_ops::Activation;

use crate::error::Result;
use crate::params::{Init, ParamPath};

/// y = x W^T + b.
#[derive(Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` [O, I] with standard deviation `std`, `bias` [O] zero if wanted.
    pub fn new(mut path: ParamPath<'_>, inputs: usize, outputs: usize, bias: bool, std: f32) -> Result<Self> {
        let weight = path.get("weight", &[outputs, inputs], Init::Normal(std))?;
        let bias = if bias { Some(path.get("bias", &[outputs], Init::Constant(0.0))?) } else { None };
        Ok(Self { weight, bias })
    }

    /// With zeros everywhere: what it adds to a residual stream is nothing at the start.
    pub fn zeros(mut path: ParamPath<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = path.get("weight", &[outputs, inputs], Init::Constant(0.0))?;
        Ok(Self { weight, bias: Some(path.get("bias", &[outputs], Init::Constant(0.0))?) })
    }

    /// With these numbers, of any float type.
    pub fn of(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias: Some(bias) }
    }

    /// [.., I] -> [.., O]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, self.bias.as_ref())?)
    }

    /// As `forward`, then the activation.
    pub fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        Ok(ops::linear_act(x, &self.weight, self.bias.as_ref(), activation)?)
    }
}

/// Standard deviation that keeps the scale of its input: 1 / sqrt(I).
pub(crate) fn fan_in(inputs: usize) -> f32 {
    (inputs.max(1) as f32).sqrt().recip()
}

/// [`fan_in`] for a layer that adds to the residual stream: made smaller so that `layers` blocks with two additions
/// each leave its scale alone at the start (GPT-2).
pub(crate) fn residual(inputs: usize, layers: usize) -> f32 {
    fan_in(inputs) / (2.0 * layers.max(1) as f32).sqrt()
}

#[derive(Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn new(mut path: ParamPath<'_>, width: usize, eps: f64) -> Result<Self> {
        let weight = path.get("weight", &[width], Init::Constant(1.0))?;
        let bias = path.get("bias", &[width], Init::Constant(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }

    /// x + r and its norm.
    pub fn add_forward(&self, x: &Tensor, r: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(ops::add_layer_norm(x, r, &self.weight, &self.bias, self.eps)?)
    }
}

#[derive(Clone)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub fn new(mut path: ParamPath<'_>, width: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: path.get("weight", &[width], Init::Constant(1.0))?, eps })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x, &self.weight, self.eps)?)
    }

    /// x + r and its norm.
    pub fn add_forward(&self, x: &Tensor, r: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(ops::add_rms_norm(x, r, &self.weight, self.eps)?)
    }
}
