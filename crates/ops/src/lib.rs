//! Differentiable fused tensor operations with exact gradients.
//!
//! Every operation is a forward and a backward function on plain slices ([`linear`] is the one to read first); `op.rs`
//! is the one place that meets candle's autograd, `matmul.rs` the one that multiplies matrices, `simd.rs` the one that
//! chooses an instruction set. A sample gives the same bits alone and in a batch, on one thread or many.

mod activation;
mod attention;
mod check;
mod checkpoint;
mod conv;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod embedding;
mod error;
mod float;
mod half_weights;
pub mod host;
mod linear;
mod linear_scores;
mod log_softmax;
mod matmul;
pub mod memory;
mod norm;
mod op;
mod optim;
mod pack;
mod patches;
mod residual;
mod rotary;
mod rotary_axes;
mod scores;
mod simd;
mod tape;

pub use activation::{Activation, gelu_erf, gelu_tanh, silu, swiglu};
pub use attention::{AttentionMask, attention, attention_tokens};
pub use checkpoint::checkpoint;
pub use conv::conv2d;
pub use embedding::embedding;
pub use error::{Error, Result};
pub use half_weights::{embedding_half, linear_half};
pub use linear::{linear, linear_act};
pub use linear_scores::{linear_cross_entropy, linear_scores};
pub use norm::{add_layer_norm, add_rms_norm, layer_norm, rms_norm};
pub use op::no_grad;
pub use optim::{
    Adafactor, AdafactorConfig, AdamW, AdamW8bit, AdamWConfig, Ema, EmaConfig, GradNorm, Grads, Optimizer,
    OptimizerConfig, ParamGroup, Schedule, clip_grad_norm,
};
pub use patches::{patches2d, patches3d, patchify};
pub use residual::add;
pub use rotary::RotaryTable;
pub use rotary_axes::{AxialRotary, RotaryAngles};
pub use scores::{TokenScores, cross_entropy, cross_entropy_soft, token_scores};
pub use tape::value_and_grad;
