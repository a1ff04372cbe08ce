//! From a predicted 3D flow to a robot that makes it come true.
//!
//! - [`Predictor`]: says how the points of an object will move; a network, or [`OracleFlow`], or [`FrozenDepth`] around
//!   another one (the 2D baseline).
//!
//! Source: 3DFlowAction (arXiv 2506.06199), sections on the closed loop and on action generation.

mod error;
mod predictor;

pub use error::{Error, Result};
pub use predictor::{FrozenDepth, OracleFlow, Predictor};
