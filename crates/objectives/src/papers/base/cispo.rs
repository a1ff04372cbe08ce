//! CISPO: clipped importance sampling policy optimisation (MiniMax-M1, arXiv 2506.13585), in verl's form.
//!
//! Base: GRPO. A clipped ratio stops the gradient of exactly the rare tokens that turn an answer around. CISPO clips the
//! importance weight, without gradient, and leaves log p its own:
//!
//! ```text
//! L_it = -sg(clamp(r_it, 1 - low, 1 + high)) A_it log p_it        r, A as in GRPO; mean over the batch's valid tokens
//! ```
//!
//! `surrogate.clip_low` = 1 frees the weight below, which is the paper's setting; verl keeps 0.2.

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::Cispo;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "cispo",
    title: "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    arxiv: "2506.13585",
    summary: "Clips the importance weight instead of the objective: no token loses its gradient.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Group-standardised rewards, log p weighted by its clipped ratio, token mean.
pub fn recipe() -> Composition {
    Composition::new(&Cispo::default(), Aggregation::TokenMean).advantage(&GroupNorm::default())
}
