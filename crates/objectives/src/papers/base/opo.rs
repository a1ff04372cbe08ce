//! OPO: on-policy reinforcement learning with the optimal reward baseline (arXiv 2505.23585), in verl's form.
//!
//! Base: GRPO on exactly on-policy data. If the gradients of different tokens are uncorrelated, the baseline of least
//! variance is the length-weighted mean reward:
//!
//! ```text
//! A_it = R_i - sum_g(L R) / sum_g(L)
//! L_it = -A_it log p_it                                           mean over the batch's valid tokens
//! ```
//!
//! One update per batch; no ratio, no clip, no KL, no entropy term.

use super::{Paper, VECTORS};
use crate::advantage::Opo;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::PolicyGradient;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "opo",
    title: "On-Policy RL with Optimal Reward Baseline",
    arxiv: "2505.23585",
    summary: "The length-weighted mean reward is the baseline of least variance on-policy.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Rewards less their length-weighted mean, plain policy gradient, token mean.
pub fn recipe() -> Composition {
    Composition::new(&PolicyGradient {}, Aggregation::TokenMean).advantage(&Opo {})
}
