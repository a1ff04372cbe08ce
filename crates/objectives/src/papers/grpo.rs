//! GRPO: Group Relative Policy Optimization (arXiv 2402.03300), in verl's form, with the switches that make Dr.GRPO
//! (2503.20783) and DAPO's loss (2503.14476).
//!
//! n answers to one prompt are each other's baseline: a_i = (R_i - mean) / (std + eps), the same for all tokens of an
//! answer; clipped ratio as in PPO; no critic.
//!
//! | setting | GRPO (verl) | Dr.GRPO | DAPO |
//! |---|---|---|---|
//! | `advantage.spread` | unbiased | none | unbiased |
//! | `surrogate.clip_high` | 0.2 | 0.2 | 0.28 |
//! | `surrogate.dual_clip` | 3 | 3 | 10 |
//! | `aggregation` | token-mean | seq-mean-token-sum-norm | token-mean |
//!
//! For action tokens SimpleVLA-RL and SRPO average inside a trajectory first (`seq-mean-token-mean`).

use super::Paper;
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
    vectors: Some(("base_grpo.json", 74)),
    end_to_end: Some("configs/tabletop_grpo.toml"),
};

/// Group-standardised rewards, clipped ratio with dual clip, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean).advantage(&GroupNorm::default())
}
