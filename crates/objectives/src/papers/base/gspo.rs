//! GSPO: group sequence policy optimisation (arXiv 2507.18071), in verl's form.
//!
//! Base: GRPO. A reward belongs to an answer, so does the ratio: the geometric mean of its token ratios, clipped as one.
//!
//! ```text
//! s_it = sg(mean_t(log p - log p_old)) + log p_it - sg(log p_it)  at most 10
//! L_it = max(-A exp(s), -A clamp(exp(s), 1 - 3e-4, 1 + 4e-4))
//! loss = mean_i(mean_t L_it)
//! ```

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::Gspo;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "gspo",
    title: "Group Sequence Policy Optimization",
    arxiv: "2507.18071",
    summary: "One importance ratio per answer.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Group-standardised rewards, clipped ratio of the sequence, mean inside and over sequences.
pub fn recipe() -> Composition {
    Composition::new(&Gspo::default(), Aggregation::SeqMeanTokenMean).advantage(&GroupNorm::default())
}
