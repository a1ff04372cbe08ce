//! PPO: proximal policy optimisation (arXiv 1707.06347) with GAE (1506.02438) and a critic, in verl's form.
//!
//! ```text
//! delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1}       through valid tokens only
//! A       = whitened over the batch's valid tokens;  R_t = A_t + V_t               R before whitening
//! L_t     = max(-A r, -A clamp(r, 0.8, 1.2)),  at most -3 A where A < 0            dual clip: 1912.09729
//! value   = 0.5 max((v - R)^2, (clamp(v, V - c, V + c) - R)^2)
//! ```
//!
//! The reward stands on the last token (`reward.terminal`); where an environment pays on the way, take that block away and
//! give `token_rewards`. A critic with an optimiser of its own sees the same gradient: the value loss shares no weights
//! with the policy then. `lambda` 0.95; verl's own default is 1.

use super::{Paper, VECTORS};
use crate::advantage::Gae;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::critic::{ClippedValue, ValueTargets};
use crate::shaping::Terminal;
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "ppo",
    title: "Proximal Policy Optimization Algorithms",
    arxiv: "1707.06347",
    summary: "A critic says what was expected; the ratio to the policy that sampled is clipped.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Outcome on the last token, GAE, clipped ratio, clipped value loss, token mean.
pub fn recipe() -> Composition {
    let gae = Gae { lambda: 0.95, ..Gae::default() };
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&Terminal {})
        .advantage(&gae)
        .weight(&ValueTargets { gamma: gae.gamma, lambda: gae.lambda, one_longer: false })
        .regularizer(&ClippedValue { clip: 0.5, ..ClippedValue::default() })
}
