//! RLOO: REINFORCE leave-one-out (arXiv 2402.14740), in verl's form.
//!
//! Base: REINFORCE. The baseline of an answer is the mean reward of the OTHER answers to its prompt, so it is unbiased.
//!
//! ```text
//! R_i  = outcome - beta sum_t (log p_old - log p_ref)
//! A_it = R_i - mean of the others' R = n / (n - 1) (R_i - mean_g)
//! L_it = max(-A r, -A clamp(r, 0.8, 1.2)),  at most -3 A where A < 0   mean over the batch's valid tokens
//! ```
//!
//! The paper is on-policy and needs no ratio (`surrogate.kind` = "policy_gradient"); verl clips it as in PPO, which allows
//! several updates per batch. `beta` is verl's 0.001. A lone answer keeps its reward (`advantage.alone`).

use super::{Paper, VECTORS};
use crate::advantage::{GroupBaseline, LeaveOneOut};
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::shaping::{KlInReward, Terminal};
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "rloo",
    title: "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    arxiv: "2402.14740",
    summary: "The mean reward of the other answers is the baseline.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Outcome less KL, the others' mean as the baseline, clipped ratio, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&Terminal {})
        .reward(&KlInReward::default())
        .advantage(&LeaveOneOut { alone: GroupBaseline::KeepsReward })
}
