//! DAPO: decoupled clip and dynamic sampling policy optimisation (arXiv 2503.14476), in verl's form.
//!
//! Base: GRPO, with four changes.
//!
//! ```text
//! 1. clip higher        ratio in [1 - 0.2, 1 + 0.28], dual clip 10
//! 2. token mean         sum_it L_it / number of valid tokens
//! 3. dynamic sampling   keep a prompt iff its answers differ in accuracy; generate until enough are kept
//! 4. overlong shaping   R += min(-(len - (max - buffer)) / buffer * factor, 0)
//! ```
//!
//! No KL, no entropy term. The accuracy (`success`) that the filter looks at does not know the overlong penalty, as in the
//! authors' recipe. [`DynamicSampling`] is the loop around the filter.

use super::{Paper, VECTORS};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::filter::VaryingSuccess;
use crate::shaping::DapoOverlong;
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "dapo",
    title: "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    arxiv: "2503.14476",
    summary: "Clip higher, token mean, only prompts that teach, a penalty for length.",
    blocks: &[],
    recipe,
    vectors: Some(VECTORS),
    end_to_end: None,
};

/// Overlong penalty, groups that differ, group-standardised rewards, clip higher, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(10.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&DapoOverlong::default())
        .filter(&VaryingSuccess {})
        .advantage(&GroupNorm::default())
}

/// When to stop generating: as many prompts as an update needs, or too many tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicSampling {
    /// Prompts of an update; more are cut off.
    pub train_prompts: usize,
    /// Batches that may be generated for one update; 0 is without end.
    pub max_batches: usize,
}

/// What to do after a generated batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Generate another batch.
    Generate,
    /// Train on the first so many kept prompts.
    Train(usize),
    /// The task is too easy or too hard for this policy.
    GiveUp,
}

impl Default for DynamicSampling {
    fn default() -> Self {
        Self { train_prompts: 512, max_batches: 10 }
    }
}

impl DynamicSampling {
    /// After `batches` generated batches that left `kept` prompts with differing answers.
    pub fn next(&self, kept: usize, batches: usize) -> Next {
        if kept >= self.train_prompts {
            Next::Train(self.train_prompts)
        } else if self.max_batches > 0 && batches >= self.max_batches {
            Next::GiveUp
        } else {
            Next::Generate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_stops_at_enough_prompts_or_at_the_limit() {
        let loop_ = DynamicSampling { train_prompts: 4, max_batches: 3 };
        assert_eq!(loop_.next(3, 2), Next::Generate);
        assert_eq!(loop_.next(6, 3), Next::Train(4));
        assert_eq!(loop_.next(3, 3), Next::GiveUp);
        assert_eq!(DynamicSampling { max_batches: 0, ..loop_ }.next(0, 1000), Next::Generate);
    }
}
