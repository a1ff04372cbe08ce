//! From gradients to new weights: named gradients, clipping, optimisers, learning-rate schedules.

mod adamw;
mod grads;
mod params;
mod schedule;
mod storage;

pub use adamw::{AdamW, AdamWConfig};
pub use grads::{GradNorm, Grads, clip_grad_norm};
pub use params::ParamGroup;
pub use schedule::Schedule;
