//! GRPO: Group Relative Policy Optimization (arXiv 2402.03300), in verl's form, with the switches that make Dr.GRPO
//! (2503.20783) and DAPO's loss (2503.14476).
//!
//! n answers to one prompt are each other's baseline: a_i = (R_i - mean) / (std + eps), the same for all tokens of an
//! answer; clipped ratio as in PPO; no critic.
//!
//! | setting | GRPO (verl) | Dr.GRPO | DAPO |
//! |---|---|---|---|
//! | `advantage.spread` | unbiased | none | unbiased |
//! | `clip_high` | 0.2 | 0.2 | 0.28 |
//! | `dual_clip` | 3 | 3 | 10 |
//! | `aggregation` | token-mean | seq-mean-token-sum-norm | token-mean |
//!
//! For action tokens SimpleVLA-RL and SRPO average inside a trajectory first (`seq-mean-token-mean`).

use serde::{Deserialize, Serialize};

use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::filter::AccuracyFilter;
use crate::kl::KlEstimator;
use crate::objective::Objective;
use crate::surrogate::ClippedRatio;

/// Settings of GRPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpo {
    /// Ratios below 1 - this do not profit further.
    pub clip_low: f64,
    /// Ratios above 1 + this do not profit further.
    pub clip_high: f64,
    /// Cap on the loss of negative advantages; 0 turns it off.
    pub dual_clip: f64,
    /// Group statistics.
    pub advantage: GroupNorm,
    /// From tokens to one number.
    pub aggregation: Aggregation,
    /// Weight of the KL against the reference policy; 0 needs no reference.
    pub kl_coef: f64,
    /// KL estimate.
    pub kl: KlEstimator,
    /// Entropy bonus.
    pub entropy_coef: f64,
    /// Groups that are trained on.
    pub filter: AccuracyFilter,
}

impl Default for Grpo {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 3.0,
            advantage: GroupNorm::default(),
            aggregation: Aggregation::TokenMean,
            kl_coef: 0.0,
            kl: KlEstimator::K3,
            entropy_coef: 0.0,
            filter: AccuracyFilter { lower: 0.0, upper: 1.0, drop_truncated: false },
        }
    }
}

impl Grpo {
    /// The composition.
    pub fn recipe(&self) -> Objective {
        Objective {
            kl: (self.kl_coef > 0.0).then_some((self.kl, self.kl_coef)),
            entropy_coef: self.entropy_coef,
            ..Objective::new(self.ratio(), self.aggregation)
        }
    }

    pub(crate) fn ratio(&self) -> ClippedRatio {
        let dual_clip = (self.dual_clip > 0.0).then_some(self.dual_clip);
        ClippedRatio { clip_low: self.clip_low, clip_high: self.clip_high, dual_clip }
    }
}
