//! SofT-GRPO: Gumbel-reparameterised GRPO for soft thinking (arXiv 2511.06411).
//!
//! Base: GRPO in verl's form; advantage, clipping, KL and aggregation are unchanged. New: while it thinks, the model
//! feeds itself a mixture of the embeddings of its top K tokens (a "soft token"). What is random is Gumbel noise on
//! the log-probabilities of those K, so a position's action is the vector of K perturbed log-probabilities, and its
//! likelihood is the density of the noise that the current policy would have needed. After the end-of-thinking token
//! positions are ordinary tokens with ordinary log-probabilities.
//!
//! ```text
//! rollout ([`perturb`])
//!   g_i = clamp(-ln E_i, -1.5, 3), E ~ Exp(1);   g'_i = ln(p_i + 1e-6) + noise g_i;   y = softmax(g' / tau), sorted
//!   output id = first;   next input = sum y_i Emb[id_i], no gradient ([`soft_embeddings`])
//! training ([`SoftLikelihood::log_probs`])
//!   q = softmax of the current logits over the K stored ids;   l_i = ln(q_i + 1e-6)
//!   e_i = clamp(g'_i - l_i, -1.5, 3);   f_i = -e_i - exp(-e_i)           (log-density of Gumbel(0, 1))
//!   log_prob = mean of f_i over entries with l_i > -3;   a discrete row: log_softmax over the vocabulary
//! loss   clip 0.2, dual clip 3, token mean; + 0.001 k3 on the same log-probabilities
//! ```
//!
//! Gradient flows through the logits only; d f_i / d l_i = 1 - exp(-e_i) inside of the clamp, 0 outside, and 0 on
//! average over unclamped noise. The likelihood is a MEAN over the kept entries, and which are kept may change
//! between old and new policy: the ratio is no true ratio of densities. `log_probs`, `old_log_probs` and
//! `ref_log_probs` of the batch are all made by the same function. The rollout's own log-density is not used for the
//! loss.
//!
//! Source: the authors' repository (sampler, verl actor). Followed: noise on ln p after top-k and top-p (the paper
//! says logits); renormalisation over the stored ids only, so that an entry that top-p had cut saturates and still
//! counts (`SoftLikelihood` sees no p; leave such entries out of the stored ids to have it clean). Where we differ:
//! discrete rows have a flag of their own, as token 0 is a real token and a single stored id would always look
//! discrete ([`looks_discrete`] is the authors' rule); a row without a kept entry scores 0 instead of 0 / 0; nothing
//! ever falls back to discrete log-probabilities silently. The ablations with Dirichlet and Gaussian noise are the
//! other two kinds.

mod density;
mod rollout;

pub use density::{Noise, SoftLikelihood, SoftTokens};
pub use rollout::{
    GumbelNoise, Perturbed, candidates, looks_discrete, mixture_weights, perturb, soft_embeddings,
};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::kl::KlEstimator;
use crate::regularizer::{Anchor, Kl};
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "soft_grpo",
    title: "SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via Gumbel-Reparameterized Soft-Thinking \
            Policy Optimization",
    arxiv: "2511.06411",
    summary: "GRPO on soft tokens, whose likelihood is the density of the Gumbel noise that made them.",
    blocks: &[],
    recipe,
    vectors: Some(("soft_grpo.json", 11)),
    end_to_end: None,
};

/// GRPO with a KL in the loss: what is new is where the log-probabilities come from.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: Some(3.0) };
    let kl = Kl { coef: 0.001, estimator: KlEstimator::K3, anchor: Anchor::Reference, aggregation: None };
    Composition::new(&surrogate, Aggregation::TokenMean).advantage(&GroupNorm::default()).regularizer(&kl)
}
