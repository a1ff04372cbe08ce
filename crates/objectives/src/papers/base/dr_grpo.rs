//! Dr.GRPO (arXiv 2503.20783), in verl's form.
//!
//! Base: GRPO. Takes away two biases: dividing by the group's deviation favours prompts that are almost solved or almost
//! hopeless, dividing by an answer's own length favours long wrong answers.
//!
//! ```text
//! A_it = R_i - mean_g
//! loss = sum_it L_it / T                                          T the padded length; L as in GRPO
//! ```
//!
//! verl divides by T (or a constant) and not by the number of sequences; TRL also divides by that: `grpo_trl` with
//! `aggregation` = "seq-mean-token-sum-norm" and B times the longest answer as the normaliser's `scale`.

use super::{Paper, VECTORS};
use crate::advantage::{GroupNorm, Spread};
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "dr_grpo",
    title: "Understanding R1-Zero-Like Training: A Critical Perspective",
    arxiv: "2503.20783",
    summary: "GRPO without the biases of its two divisions.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Centred rewards, clipped ratio, sum over a constant length.
pub fn recipe() -> Composition {
    let advantage = GroupNorm { spread: Spread::None, ..GroupNorm::default() };
    Composition::new(&ClippedRatio::default(), Aggregation::SeqMeanTokenSumNorm).advantage(&advantage)
}
