//! GPG: group policy gradient (arXiv 2504.02546), in verl's form.
//!
//! Base: REINFORCE with a group baseline; no ratio, no clip, no KL, no deviation. Groups that are all right or all wrong
//! have no gradient; `alpha` makes up for them.
//!
//! ```text
//! A_it = alpha (R_i - mean_g) / f_norm        alpha = B / number of nonzero rewards
//! L_it = -A_it log p_it                       mean over the batch's valid tokens
//! ```

use super::{Paper, VECTORS};
use crate::advantage::Gpg;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::PolicyGradient;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "gpg",
    title: "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning",
    arxiv: "2504.02546",
    summary: "REINFORCE with the group's mean as the baseline, scaled up for prompts without a signal.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Scaled centred rewards, plain policy gradient, token mean.
pub fn recipe() -> Composition {
    Composition::new(&PolicyGradient {}, Aggregation::TokenMean).advantage(&Gpg::default())
}
