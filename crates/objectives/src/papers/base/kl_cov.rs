//! KL-Cov: the entropy mechanism of reinforcement learning (arXiv 2505.22617), in verl's form.
//!
//! Base: GRPO. Entropy falls by the covariance of log p and advantage, and a few tokens carry nearly all of it. Those are
//! pulled back to the policy that sampled; nothing is clipped.
//!
//! ```text
//! cov_it = (A_it - mean A)(log p_it - mean log p)                 means over the update's valid tokens
//! L_it   = -A_it r_it + [among the largest N share] kl_coef |log p_it - log p_old_it|
//! ```
//!
//! The choice is made anew in every update over that update's tokens, so micro-batches do not add up to the batch exactly.

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::KlCov;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "kl_cov",
    title: "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    arxiv: "2505.22617",
    summary: "Holds back the few tokens whose advantage and probability co-vary most.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Group-standardised rewards, unclipped ratio with a KL on the largest covariances, token mean.
pub fn recipe() -> Composition {
    Composition::new(&KlCov::default(), Aggregation::TokenMean).advantage(&GroupNorm::default())
}
