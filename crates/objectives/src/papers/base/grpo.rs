//! GRPO: Group Relative Policy Optimization (arXiv 2402.03300), in verl's form.
//!
//! n answers to one prompt are each other's baseline: a_i = (R_i - mean) / (std + eps), the same for all tokens of an
//! answer; clipped ratio as in PPO; no critic.
//!
//! ```text
//! A_it = (R_i - mean_g) / (std_g + 1e-6)                         std unbiased; equal rewards give exactly 0
//! r_it = exp(clamp(log p - log p_old, -20, 20))
//! L_it = max(-A r, -A clamp(r, 0.8, 1.2)),  at most -3 A where A < 0
//! loss = sum_it L_it / number of valid tokens
//! ```
//!
//! What others changed is a setting each: `dr_grpo` (no spread, constant length), `dapo` (bounds, filter, penalty),
//! `grpo_trl` (TRL's form). KL: `regularizer.kl`, off as in verl's defaults.
//!
//! For action tokens SimpleVLA-RL and SRPO average inside a trajectory first (`seq-mean-token-mean`).

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "grpo",
    title: "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arxiv: "2402.03300",
    summary: "Answers to one prompt are each other's baseline.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: Some("configs/tabletop_grpo.toml"),
};

/// Group-standardised rewards, clipped ratio with dual clip, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean).advantage(&GroupNorm::default())
}
