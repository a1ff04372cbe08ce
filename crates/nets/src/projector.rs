//! What carries patches and proprioception into the decoder's width (OpenVLA, OpenVLA-OFT).

use candle_core::Tensor;
use efference_ops::Activation;

use crate::error::Result;
use crate::layers::{Linear, fan_in};
use crate::params::ParamPath;

/// Patch features [.., W] to tokens [.., D]: linear to 4 W, GELU, linear, GELU, linear. Names `fc1`, `fc2`, `fc3`.
#[derive(Clone)]
pub struct PatchProjector {
    fc1: Linear,
    fc2: Linear,
    fc3: Linear,
}

impl PatchProjector {
    /// Creates or finds the weights below `path`, for patch width W and decoder width D.
    ///
    /// # Errors
    /// A weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, patch_width: usize, hidden: usize) -> Result<Self> {
        let (w, d) = (patch_width, hidden);
        Ok(Self {
            fc1: Linear::new(path.pp("fc1"), w, 4 * w, true, fan_in(w))?,
            fc2: Linear::new(path.pp("fc2"), 4 * w, d, true, fan_in(4 * w))?,
            fc3: Linear::new(path.pp("fc3"), d, d, true, fan_in(d))?,
        })
    }

    /// [.., W] -> [.., D]
    ///
    /// # Errors
    /// Another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.fc1.forward_act(x, Activation::GeluErf)?; // [.., 4 W]
        let h = self.fc2.forward_act(&h, Activation::GeluErf)?; // [.., D]
        self.fc3.forward(&h)
    }
}

/// Normalised proprioception [.., P] to one token [.., D]: linear, GELU, linear. Names `fc1`, `fc2`.
#[derive(Clone)]
pub struct ProprioProjector {
    fc1: Linear,
    fc2: Linear,
}

impl ProprioProjector {
    /// Creates or finds the weights below `path`.
    ///
    /// # Errors
    /// A weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, proprio_dim: usize, hidden: usize) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(path.pp("fc1"), proprio_dim, hidden, true, fan_in(proprio_dim))?,
            fc2: Linear::new(path.pp("fc2"), hidden, hidden, true, fan_in(hidden))?,
        })
    }

    /// [.., P] -> [.., D]
    ///
    /// # Errors
    /// Another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.fc1.forward_act(x, Activation::GeluErf)?)
    }
}
