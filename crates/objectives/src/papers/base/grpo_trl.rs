//! GRPO (arXiv 2402.03300) in the form of TRL's `GRPOTrainer` with its defaults.
//!
//! | | verl (`grpo`) | TRL (this) |
//! |---|---|---|
//! | epsilon | 1e-6 | 1e-4 |
//! | log-ratio | clamped to +-20 | free |
//! | dual clip | 3 | none; `surrogate.delta` caps the unclipped ratio |
//! | KL | `regularizer.kl`, clamped | `regularizer.trl_kl`, not clamped |
//! | denominators | of the batch | of the batch (`loss_type` "dapo") |
//!
//! Other loss types are settings: `surrogate.form` (clip, cispo, sapo, vespo), `surrogate.sequence_level`, `aggregation`,
//! `weight.top_entropy`, `weight.off_policy_mask`; several reward functions: `advantage.weights`, `advantage.combine`.
//! [`TrlConfig`](crate::trl::TrlConfig) makes the composition from TRL's names.

use super::{Paper, VECTORS};
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::trl::{TrlNorm, TrlSurrogate};

/// The paper.
pub const PAPER: Paper = Paper {
    id: "grpo_trl",
    title: "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arxiv: "2402.03300",
    summary: "GRPO as TRL trains it.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// TRL's group advantages and clipped ratio, token mean.
pub fn recipe() -> Composition {
    Composition::new(&TrlSurrogate::default(), Aggregation::TokenMean).advantage(&TrlNorm::default())
}
