//! SAPO: soft adaptive policy optimisation (arXiv 2511.20347), in verl's form.
//!
//! Base: GRPO. A sigmoid gate lets go of a token step by step where the clip drops it at once; bad tokens are let go sooner.
//!
//! ```text
//! L_it = -A_it sigmoid(tau (r_it - 1)) 4 / tau                    tau = 1 where A > 0, else 1.05
//! loss = mean_i(mean_t L_it)
//! ```

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::Sapo;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "sapo",
    title: "Soft Adaptive Policy Optimization",
    arxiv: "2511.20347",
    summary: "A soft gate in place of the clip.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Group-standardised rewards, gated ratio, mean inside and over sequences.
pub fn recipe() -> Composition {
    Composition::new(&Sapo::default(), Aggregation::SeqMeanTokenMean).advantage(&GroupNorm::default())
}
