//! Terms beside the surrogate: KL against another policy, entropy.

use serde::{Deserialize, Serialize};

use crate::aggregation::Aggregation;
use crate::batch::{Batch, ENTROPY, Input, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Regularizer, Terms};
use crate::error::{Error, Result};
use crate::kl::KlEstimator;
use crate::state::State;

/// Which policy a KL pulls towards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// A frozen reference.
    #[default]
    Reference,
    /// The policy that sampled.
    Old,
}

/// coef * KL(policy || anchor), estimated per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kl {
    /// Weight, 0 or more.
    pub coef: f64,
    /// Which estimate.
    pub estimator: KlEstimator,
    /// Towards whom.
    pub anchor: Anchor,
    /// Aggregation, where it is not the surrogate's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
}

impl Default for Kl {
    fn default() -> Self {
        Self { coef: 0.001, estimator: KlEstimator::K3, anchor: Anchor::Reference, aggregation: None }
    }
}

impl Kl {
    fn input(&self) -> Input {
        match self.anchor {
            Anchor::Reference => REF_LOG_PROBS,
            Anchor::Old => OLD_LOG_PROBS,
        }
    }
}

impl Block for Kl {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, self.input()]
    }

    fn validate(&self) -> Result<()> {
        if self.coef >= 0.0 && self.coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "coef", got: self.coef, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let anchor = match self.anchor {
            Anchor::Reference => "reference",
            Anchor::Old => "old policy",
        };
        let estimator = toml::Value::try_from(self.estimator).ok();
        let estimator = estimator.as_ref().and_then(toml::Value::as_str).unwrap_or("?");
        format!("{} KL to the {anchor} ({estimator})", self.coef)
    }
}

impl Kind for Kl {
    const KIND: &'static str = "kl";
}

impl Regularizer for Kl {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        let (log_probs, anchor) = (batch.tensor(LOG_PROBS)?, batch.table(self.input())?);
        Ok(Terms::Tokens(self.estimator.penalty(self.coef, &log_probs, &anchor, batch.mask())?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        self.aggregation
    }
}

/// -coef * entropy: keeps the policy from becoming certain too early.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyBonus {
    /// Weight.
    pub coef: f64,
    /// Aggregation, where it is not the surrogate's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
}

impl Default for EntropyBonus {
    fn default() -> Self {
        Self { coef: 0.001, aggregation: None }
    }
}

impl Block for EntropyBonus {
    fn needs(&self) -> Vec<Input> {
        vec![ENTROPY]
    }

    fn validate(&self) -> Result<()> {
        crate::checks::setting("coef", self.coef, true, "a finite number")
    }

    fn describe(&self) -> String {
        format!("-{} entropy", self.coef)
    }
}

impl Kind for EntropyBonus {
    const KIND: &'static str = "entropy_bonus";
}

impl Regularizer for EntropyBonus {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        Ok(Terms::Tokens((batch.tensor(ENTROPY)? * -self.coef)?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        self.aggregation
    }
}
