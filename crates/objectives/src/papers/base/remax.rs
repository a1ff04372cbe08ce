//! ReMax (arXiv 2310.10505), in verl's form.
//!
//! Base: REINFORCE. The baseline is what the greedy answer to the same prompt earns, one more rollout per prompt.
//!
//! ```text
//! A_t = sum_{s >= t} r_s - R(greedy)                              undiscounted, valid tokens only
//! L_t = -A_t log p_t                                              mean over the batch's valid tokens
//! ```

use super::{Paper, VECTORS};
use crate::advantage::Remax;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::shaping::Terminal;
use crate::surrogate::PolicyGradient;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "remax",
    title: "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
    arxiv: "2310.10505",
    summary: "The greedy answer's reward is the baseline.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Outcome on the last token, less the greedy answer's, plain policy gradient, token mean.
pub fn recipe() -> Composition {
    Composition::new(&PolicyGradient {}, Aggregation::TokenMean).reward(&Terminal {}).advantage(&Remax {})
}
