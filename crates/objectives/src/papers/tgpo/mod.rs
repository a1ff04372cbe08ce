//! TGPO: Temporal Grounded Policy Optimization for Signal Temporal Logic tasks (arXiv 2510.00225).
//!
//! Base: PPO for control with a critic. New: a task is a formula of signal temporal logic ([`stl`]), taken apart into
//! subgoals with times and constraints that hold over intervals ([`ground`]). A high level proposes the times; a low-level
//! policy that sees them is trained with PPO on a dense reward in an augmented problem ([`staged`]). The critic's value
//! guides which times are proposed, by Metropolis-Hastings ([`sampler`]; the paper's variant TGPO*).
//!
//! ```text
//! robustness      rho(F[a,b] p, t) = max over t' in t+a..t+b of rho(p, t'), G min, U max of min; satisfied: rho >= 0
//! grounding       F -> a time tau and its child at base + tau;  G -> an invariance;  U -> both;  or -> a branch
//!                 max over times and branches of the worst constraint = rho(formula, 0)
//! observation     [state, t / T, (tau_k - t) / T, flags, one-hot of the current subgoal]
//! reward at t+1   -w_d max(0, distance to the current region) + w_p (subgoals due and reached)
//!                 + w_i sum of min(0, rho of active invariances) + w_s [end, all flags set, no violation]
//! proposal        change one time, accept when u < min(1, exp((V' - V) / temperature))
//! ```
//!
//! Token t of a sequence is the control step from t to t + 1; times are whole steps. Source: the paper's text and
//! figures; the authors have published no code. The semantics of formulas is standard (closed intervals; checked
//! against a monitor library). The exact reward, the observation and the sampler are reconstructions: their four
//! terms and names are the paper's, their form and weights are ours. Recurrence (G F) is not grounded, as in the
//! paper. Left side of until: `closed` (the textbook) or `half_open` (the monitor library).

pub mod dynamics;
pub mod ground;
pub mod sampler;
pub mod staged;
pub mod stl;

use super::Paper;
use crate::advantage::Gae;
use crate::aggregation::Aggregation;
use crate::block::BlockKind;
use crate::composition::Composition;
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "tgpo",
    title: "TGPO: Temporal Grounded Policy Optimization for Signal Temporal Logic Tasks",
    arxiv: "2510.00225",
    summary: "Formulas become timed subgoals with a staged reward; the critic guides the times.",
    blocks: &[BlockKind::reward::<staged::StagedReward>()],
    recipe,
    vectors: Some(("tgpo.json", 44)),
    end_to_end: None,
};

/// Staged reward, GAE, clipped ratio without dual clip, mean over control steps.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: None };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&staged::StagedReward::default())
        .advantage(&Gae { gamma: 0.99, lambda: 0.95, ..Gae::default() })
}
