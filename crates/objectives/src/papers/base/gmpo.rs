//! GMPO: geometric-mean policy optimisation (arXiv 2507.20673), in verl's form (`geo_mean`).
//!
//! Base: GRPO. Token ratios are averaged as logarithms, so one outlier does not carry an answer; the clip works on
//! log-ratios and can be wide.
//!
//! ```text
//! d_it    = log p - log p_old                                     not clamped
//! k_it    = sgn(A) min(sgn(A) d, sgn(A) clamp(d, -low, high))
//! ratio_i = exp(sum_t k_it / (L_i + 1e-8))
//! loss    = mean_i(-mean_t(A_it) ratio_i)
//! ```
//!
//! verl's mean counts sequences without a valid token, which contribute 0; ours does not.

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::GeoMean;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "gmpo",
    title: "Geometric-Mean Policy Optimization",
    arxiv: "2507.20673",
    summary: "The geometric mean of an answer's token ratios, clipped as log-ratios.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Group-standardised rewards, geometric mean of clipped ratios; one loss per sequence.
pub fn recipe() -> Composition {
    Composition::new(&GeoMean::default(), Aggregation::SeqMeanTokenMean).advantage(&GroupNorm::default())
}
