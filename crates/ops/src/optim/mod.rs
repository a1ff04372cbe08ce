//! From gradients to new weights: named gradients, clipping, optimisers, averages, learning-rate schedules.

mod adafactor;
mod adamw;
mod adamw8bit;
mod ema;
mod grads;
mod optimizer;
mod params;
mod quantized;
mod schedule;
mod storage;

pub use adafactor::{Adafactor, AdafactorConfig};
#[cfg(any(feature = "cuda", test))]
pub(crate) use adamw::Rule;
#[cfg(feature = "cuda")]
pub(crate) use adamw::Update;
pub use adamw::{AdamW, AdamWConfig};
pub use adamw8bit::AdamW8bit;
pub use ema::{Ema, EmaConfig};
pub use grads::{GradNorm, Grads, clip_grad_norm};
pub use optimizer::{Optimizer, OptimizerConfig};
pub use params::ParamGroup;
pub use schedule::Schedule;
