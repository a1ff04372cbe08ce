//! REINFORCE++ (arXiv 2501.03262), in verl's form.
//!
//! Base: PPO without a critic. One answer per prompt is enough: the baseline is the whole batch.
//!
//! ```text
//! r_t  = [t is the last token] R - beta (log p_old - log p_ref)
//! G_t  = r_t + gamma G_{t+1}
//! A_t  = (G_t - mean) / std                                       over all valid tokens of the batch
//! L_t  = max(-A r, -A clamp(r, 0.8, 1.2)),  at most -3 A where A < 0
//! ```
//!
//! With several answers per prompt `advantage.kind` = "reinforce_plus_plus_baseline" takes the group's mean away first.
//! `beta` is verl's 0.001; `reward.kl_in_reward.target` makes it adaptive.

use super::{Paper, VECTORS};
use crate::advantage::ReinforcePlusPlus;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::shaping::{KlInReward, Terminal};
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "reinforce_plus_plus",
    title: "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models",
    arxiv: "2501.03262",
    summary: "PPO's clip with rewards-to-go that are whitened over the whole batch; no critic, no groups.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Outcome on the last token less KL, whitened rewards-to-go, clipped ratio, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&Terminal {})
        .reward(&KlInReward::default())
        .advantage(&ReinforcePlusPlus::default())
}
