//! SPO-chain: cuts before unsure tokens and the advantages of the segments between them.

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, OLD_LOG_PROBS, REWARDS};
use crate::block::{Advantage, Block, Kind};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// Index of the last token of every valued prefix, rising; -1 is the bare prompt. Whole numbers.
pub const CUTPOINTS: Input =
    Input::new("cutpoints", "[B] lists", "last token of every valued prefix, -1 the prompt");
/// Monte-Carlo value of every cutpoint.
pub const SEGMENT_VALUES: Input =
    Input::new("segment_values", "[B] lists", "Monte-Carlo value of every cutpoint");

/// Cuts of a response from its tokens' log-probabilities: the token before every one of probability below
/// `threshold`, then every `interval`-th of those, starting with the first. Rising, each in -1..=n - 2.
pub fn cutpoints(old_log_probs: &[f64], threshold: f64, interval: usize) -> Vec<i64> {
    let unsure = (-1..).zip(old_log_probs).filter(|(_, p)| p.exp() < threshold);
    unsure.map(|(before, _)| before).step_by(interval.max(1)).collect()
}

/// Value of a prefix: mean reward of its continuations (those cut off count with their penalty); 0 without any.
pub fn segment_value(rewards: &[f64]) -> f64 {
    if rewards.is_empty() { 0.0 } else { rewards.iter().sum::<f64>() / rewards.len() as f64 }
}

/// Advantage of every token of a response. `cutpoints` and their `values`, `reward` the outcome at the last token. A
/// segment reaches from behind one boundary up to and including the next; without a value of the bare prompt the
/// first segment gets 0. Tokens of probability above `threshold` get 0.
///
/// # Errors
/// [`Error::Invalid`]: cuts that do not rise inside of -1..=n - 2, not one value per cut.
pub fn segment_advantages(
    old_log_probs: &[f64],
    cutpoints: &[i64],
    values: &[f64],
    reward: f64,
    threshold: f64,
) -> Result<Vec<f64>> {
    let invalid = |what, reason| Err(Error::Invalid { what, reason });
    let n = old_log_probs.len();
    if values.len() != cutpoints.len() {
        return invalid("segment_values", format!("{} for {} cutpoints", values.len(), cutpoints.len()));
    }
    let rising = cutpoints.windows(2).all(|w| w[0] < w[1]);
    let inside = cutpoints.iter().all(|&c| c >= -1 && c <= n as i64 - 2);
    if !(rising && inside) {
        return invalid("cutpoints", format!("{cutpoints:?} must rise inside of -1..={}", n as i64 - 2));
    }
    let mut base = None;
    let mut start = 0;
    let mut out = vec![0.0; n];
    let last = (n > 0).then_some((n as i64 - 1, reward));
    for (boundary, value) in cutpoints.iter().copied().zip(values.iter().copied()).chain(last) {
        // The bare prompt ends before the first token: its segment is empty.
        let end = usize::try_from(boundary + 1).unwrap_or(0);
        if let Some(base) = base {
            out[start..end].fill(value - base);
        }
        (base, start) = (Some(value), end);
    }
    for (a, p) in out.iter_mut().zip(old_log_probs) {
        if p.exp() > threshold {
            *a = 0.0;
        }
    }
    Ok(out)
}

/// How a chain is valued. Plain data for whoever samples; the objective does not read it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainSampling {
    /// Cuts are before tokens of a lower probability.
    pub threshold: f64,
    /// Every how many cuts one is valued, 1 or more.
    pub interval: usize,
    /// Continuations per cut, 1 or more.
    pub rollouts: usize,
}

impl Default for ChainSampling {
    fn default() -> Self {
        Self { threshold: 0.9, interval: 5, rollouts: 9 }
    }
}

impl ChainSampling {
    /// The cuts of a response that are valued; see [`cutpoints`].
    pub fn cutpoints(&self, old_log_probs: &[f64]) -> Vec<i64> {
        cutpoints(old_log_probs, self.threshold, self.interval)
    }
}

/// Segment advantages of a chain, whose cuts and values come with the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainSegments {
    /// Tokens of a higher probability get no advantage. More than 0.
    pub threshold: f64,
}

impl Default for ChainSegments {
    fn default() -> Self {
        Self { threshold: 0.9 }
    }
}

impl Block for ChainSegments {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS, REWARDS, CUTPOINTS, SEGMENT_VALUES]
    }

    fn validate(&self) -> Result<()> {
        if self.threshold > 0.0 && self.threshold.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "threshold", got: self.threshold, expected: "more than 0" })
    }

    fn describe(&self) -> String {
        format!("segments between cuts: value gained, 0 for tokens above {}", self.threshold)
    }
}

impl Kind for ChainSegments {
    const KIND: &'static str = "chain_segments";
}

impl Advantage for ChainSegments {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (mask, old) = (batch.mask(), batch.table(OLD_LOG_PROBS)?);
        let (cuts, values) = (batch.vectors(CUTPOINTS)?, batch.vectors(SEGMENT_VALUES)?);
        let rewards = batch.outcomes()?;
        let mut out = mask.filled(0.0);
        for (row, ((cuts, values), reward)) in cuts.iter().zip(values).zip(&rewards).enumerate() {
            // Cuts count the response's own tokens.
            let places: Vec<usize> = (0..mask.cols).filter(|&t| mask.row(row)[t] != 0.0).collect();
            let own: Vec<f64> = places.iter().map(|&t| old.row(row)[t]).collect();
            if let Some(odd) = cuts.iter().find(|c| c.fract() != 0.0) {
                return Err(Error::Invalid {
                    what: "cutpoints",
                    reason: format!("{odd} is no whole number"),
                });
            }
            let cuts: Vec<i64> = cuts.iter().map(|&c| c as i64).collect();
            let advantages = segment_advantages(&own, &cuts, values, *reward, self.threshold)?;
            places.iter().zip(advantages).for_each(|(t, a)| out.values[row * mask.cols + t] = a);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// With a value of the bare prompt and no confident token, the advantages of the segments' last tokens
        /// telescope to outcome less that value.
        #[test]
        fn credit_adds_up(
            old in proptest::collection::vec(-3.0f64..-0.2, 2..20),
            interval in 1usize..4,
            reward in 0.0f64..1.0,
        ) {
            let cuts = cutpoints(&old, 0.9, interval);
            prop_assert_eq!(cuts[0], -1);
            let values: Vec<f64> = (0..cuts.len()).map(|i| (i * 7 % 10) as f64 / 10.0).collect();
            let a = segment_advantages(&old, &cuts, &values, reward, 0.9).unwrap();
            let ends = cuts[1..].iter().map(|&c| c as usize).chain([old.len() - 1]);
            let sum: f64 = ends.map(|t| a[t]).sum();
            prop_assert!((sum - (reward - values[0])).abs() < 1e-12);
        }
    }

    #[test]
    fn edges() {
        assert!(cutpoints(&[], 0.9, 2).is_empty());
        assert_eq!(segment_value(&[]), 0.0);
        assert_eq!(segment_advantages(&[-1.0], &[-1], &[0.25], 1.0, 0.9).unwrap(), [0.75]);
        assert_eq!(segment_advantages(&[-1.0, -1.0], &[], &[], 1.0, 0.9).unwrap(), [0.0, 0.0]);
        assert!(segment_advantages(&[], &[], &[], 1.0, 0.9).unwrap().is_empty());
        for (cuts, values) in [(vec![0], vec![0.5]), (vec![-2], vec![0.5]), (vec![-1], vec![])] {
            assert!(segment_advantages(&[-1.0], &cuts, &values, 1.0, 0.9).is_err());
        }
        let odd = segment_advantages(&[-1.0; 4], &[1, 1], &[0.5, 0.5], 1.0, 0.9).unwrap_err().to_string();
        assert!(odd.contains("cutpoints"), "{odd}");
    }
}
