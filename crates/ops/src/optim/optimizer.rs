//! One of the optimisers, chosen by a setting.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::adafactor::{Adafactor, AdafactorConfig};
use super::adamw::{AdamW, AdamWConfig};
use super::adamw8bit::AdamW8bit;
use super::grads::Grads;
use super::params::ParamGroup;
use crate::Result;

/// Which optimiser, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// AdamW: 8 bytes of moments per f32 weight.
    AdamW(AdamWConfig),
    /// AdamW with moments of 8 bits: 2 bytes.
    AdamW8bit(AdamWConfig),
    /// Adafactor: for an n x m matrix n + m numbers.
    Adafactor(AdafactorConfig),
}

impl OptimizerConfig {
    /// The words `kind` may be.
    pub const KINDS: [&'static str; 3] = ["adamw", "adamw8bit", "adafactor"];
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::AdamW(AdamWConfig::default())
    }
}

/// An optimiser of any kind.
pub enum Optimizer {
    /// See [`AdamW`].
    AdamW(AdamW),
    /// See [`AdamW8bit`].
    AdamW8bit(AdamW8bit),
    /// See [`Adafactor`].
    Adafactor(Adafactor),
}

macro_rules! each {
    ($self:expr, $optimizer:ident => $result:expr) => {
        match $self {
            Optimizer::AdamW($optimizer) => $result,
            Optimizer::AdamW8bit($optimizer) => $result,
            Optimizer::Adafactor($optimizer) => $result,
        }
    };
}

impl Optimizer {
    /// With moments zero.
    ///
    /// # Errors
    /// Settings out of range, parameters that this kind cannot take.
    pub fn new(groups: Vec<ParamGroup>, config: OptimizerConfig) -> Result<Self> {
        Ok(match config {
            OptimizerConfig::AdamW(config) => Self::AdamW(AdamW::new(groups, config)?),
            OptimizerConfig::AdamW8bit(config) => Self::AdamW8bit(AdamW8bit::new(groups, config)?),
            OptimizerConfig::Adafactor(config) => Self::Adafactor(Adafactor::new(groups, config)?),
        })
    }

    /// Names of the parameters, sorted.
    pub fn names(&self) -> Vec<&str> {
        each!(self, optimizer => optimizer.names().collect())
    }

    /// One update at learning rate `lr` (times each group's `lr_scale`), see [`AdamW::step`].
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step(&mut self, grads: &Grads, lr: f64) -> Result<()> {
        each!(self, optimizer => optimizer.step(grads, lr))
    }

    /// Everything needed to go on bit for bit, by names of the kind's own.
    ///
    /// # Errors
    /// candle cannot make a tensor.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        each!(self, optimizer => optimizer.state())
    }

    /// Takes over what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing, unexpected (another kind's, say), or has another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        each!(self, optimizer => optimizer.load_state(state))
    }

    /// Bytes of the state.
    pub fn state_bytes(&self) -> usize {
        each!(self, optimizer => optimizer.state_bytes())
    }
}
