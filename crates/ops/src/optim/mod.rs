//! From gradients to new weights: named gradients, clipping, AdamW, learning-rate schedules.

mod adamw;
mod grads;
mod schedule;

pub use adamw::{AdamW, AdamWConfig, ParamGroup};
pub use grads::{GradNorm, Grads, clip_grad_norm};
pub use schedule::Schedule;
