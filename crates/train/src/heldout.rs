//! How well a policy predicts demonstrations it has not seen, against two predictors that see nothing.

use std::collections::BTreeMap;

use efference_nets::ACTION_BINS;
use efference_rollout::VlaPolicy;
use serde::{Deserialize, Serialize};

use crate::decisions::{DecisionSet, Example};
use crate::error::Result;
use crate::supervised::token_nll;

/// Steps between measurements during a stage.
pub const EVERY: u64 = 50;

/// Negative log-likelihood of held-out action tokens, nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The policy's.
    pub nll: f64,
    /// ln 256: every bin equally likely.
    pub uniform: f64,
    /// Each action number's histogram over the training demonstrations, whatever is seen.
    pub marginal: f64,
    /// Tokens scored.
    pub tokens: u64,
}

/// Scores `held_out`; the histograms come from `train`.
///
/// # Errors
/// Examples of another shape than the network's.
pub fn score(policy: &VlaPolicy, train: &DecisionSet, held_out: &DecisionSet) -> Result<HeldOut> {
    let rows = token_nll(policy, held_out.examples())?;
    let tokens: usize = rows.iter().map(Vec::len).sum();
    let nll = rows.iter().flatten().map(|&x| f64::from(x)).sum::<f64>() / tokens as f64;
    let marginal = marginal_nll(train.examples(), held_out.examples(), policy.action_dim());
    Ok(HeldOut { nll, uniform: (ACTION_BINS as f64).ln(), marginal, tokens: tokens as u64 })
}

/// The histograms get whichever additive smoothing suits them best on the held-out tokens: a rival is given every chance.
fn marginal_nll(train: &[Example], held_out: &[Example], action_dim: usize) -> f64 {
    let mut counts = vec![[0.0f64; ACTION_BINS]; action_dim];
    for example in train {
        for (t, &bin) in example.targets.iter().enumerate() {
            counts[t % action_dim][bin as usize] += 1.0;
        }
    }
    let nll = |alpha: f64| {
        let (mut sum, mut n) = (0.0, 0.0);
        for example in held_out {
            for (t, &bin) in example.targets.iter().enumerate() {
                let row = &counts[t % action_dim];
                let total = row.iter().sum::<f64>() + alpha * ACTION_BINS as f64;
                sum -= ((row[bin as usize] + alpha) / total).ln();
                n += 1.0;
            }
        }
        sum / n
    };
    [1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0].map(nll).into_iter().fold(f64::INFINITY, f64::min)
}

const NAMES: [&str; 4] = ["heldout/nll", "heldout/uniform", "heldout/marginal", "heldout/tokens"];

impl HeldOut {
    /// For a checkpoint.
    pub fn to_numbers(self) -> [(String, f64); 4] {
        let numbers = [self.nll, self.uniform, self.marginal, self.tokens as f64];
        std::array::from_fn(|i| (NAMES[i].to_string(), numbers[i]))
    }

    /// From a checkpoint, if it was measured.
    pub fn from_numbers(numbers: &BTreeMap<String, f64>) -> Option<Self> {
        let get = |i: usize| numbers.get(NAMES[i]).copied();
        Some(Self { nll: get(0)?, uniform: get(1)?, marginal: get(2)?, tokens: get(3)? as u64 })
    }
}
