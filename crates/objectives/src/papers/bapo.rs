//! BAPO: Balanced Policy Optimization with Adaptive Clipping (arXiv 2510.18927).
//!
//! Base: GRPO. New: the clip bounds are searched anew before every loss, on the sequences of that loss, until tokens
//! with a positive advantage contribute a target share. It is meant for stale data: several updates per rollout.
//!
//! ```text
//! r = exp(clamp(log_probs - old_log_probs, -20, 20))                       [B, T]
//! e(lo, hi)   = (min(r, hi) if A >= 0 else max(r, lo)) A m
//! rho(lo, hi) = sum max(e, 0) / (sum max(-e, 0) + eps)                     +inf without a negative part
//! lo, hi = lower_start, upper_start
//! while rho < target and lo < lower_max: lo = min(lo + lower_step, lower_max)
//! while rho < target and hi < upper_max: hi = min(hi + upper_step, upper_max)
//! loss = max(-A r, -A clamp(r, lo, hi)), dual clip 3, token mean
//! ```
//!
//! Bounds are ratios, not distances from 1. The search uses no gradient. A batch without a negative advantage, and
//! one that is all masked, is not searched.
//!
//! Source: the authors' code (WooooDyy/BAPO), whose criterion is the default. The paper instead weights every
//! contribution by the token's old probability and asks for a share of the whole, `criterion = "weighted_share"`: a
//! share rho0 is a ratio rho0 / (1 - rho0) (0.4 is 0.667, 0.5 is 1).
//!
//! Since max(r, lo) grows with lo, raising lo can only lower rho: when the target is unmet at the start, lo always
//! runs to its maximum before hi moves. This holds for the paper's formula too. `contribution = "unclipped"` counts
//! only tokens that the bounds leave a gradient; it is OUR variant, neither the paper's nor the code's.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, BlockKind, Kind, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Correction of the loss for a rollout engine whose probabilities differ from the trainer's.
pub const ROLLOUT_IS_WEIGHTS: Input =
    Input::new("rollout_is_weights", "[B, T]", "importance weights between rollout engine and trainer");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "bapo",
    title: "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with \
            Adaptive Clipping",
    arxiv: "2510.18927",
    summary: "Clip bounds are searched until positive tokens contribute their share.",
    blocks: &[BlockKind::bounds::<BalancedBounds>(), BlockKind::weight::<RolloutWeights>()],
    recipe,
    vectors: Some(("bapo.json", 10)),
    end_to_end: None,
};

/// GRPO's advantages, balanced bounds, dual clip 3, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .advantage(&GroupNorm::default())
        .bounds(&BalancedBounds::default())
}

/// What is compared with the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Positive over negative contributions: the authors' code.
    #[default]
    Ratio,
    /// Positive over all contributions, each times the token's old probability: the paper.
    WeightedShare,
}

/// Which tokens contribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contribution {
    /// All, clipped ones with their clipped value: code and paper.
    #[default]
    All,
    /// Only those that the bounds do not clip: ours.
    Unclipped,
}

/// Searches the bounds of the ratio. For fixed bounds set a maximum to its start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalancedBounds {
    /// What the search aims at; 0 or less turns it off. Code 1 (its script 0.5), paper 0.4 of the share.
    pub target: f64,
    /// Lower bound of the ratio before the search.
    pub lower_start: f64,
    /// Its largest value.
    pub lower_max: f64,
    /// Its step; 0 or less keeps it where it is.
    pub lower_step: f64,
    /// Upper bound of the ratio before the search.
    pub upper_start: f64,
    /// Its largest value.
    pub upper_max: f64,
    /// Its step; 0 or less keeps it where it is.
    pub upper_step: f64,
    /// Added to the negative part.
    pub eps: f64,
    /// What is compared.
    pub criterion: Criterion,
    /// Who is counted.
    pub contribution: Contribution,
}

impl Default for BalancedBounds {
    fn default() -> Self {
        Self {
            target: 1.0,
            lower_start: 0.6,
            lower_max: 0.8,
            lower_step: 0.05,
            upper_start: 1.2,
            upper_max: 2.0,
            upper_step: 0.05,
            eps: 1e-8,
            criterion: Criterion::Ratio,
            contribution: Contribution::All,
        }
    }
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Lower bound of the ratio.
    pub low: f64,
    /// Upper bound of the ratio.
    pub high: f64,
    /// The criterion under these bounds, +inf where nothing stands against the positive part.
    pub balance: f64,
}

impl BalancedBounds {
    /// Bounds for the tokens of `batch` that count. All tables [B, T]; with data parallelism or micro-batches, give
    /// it the whole minibatch: the balance of few tokens jumps.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn search(
        &self,
        log_probs: &Table,
        old_log_probs: &Table,
        advantages: &Table,
        mask: &Table,
    ) -> Result<Found> {
        log_probs.same_shape("log_probs", mask)?;
        old_log_probs.same_shape("old_log_probs", mask)?;
        advantages.same_shape("advantages", mask)?;
        let tokens: Vec<Token> = (0..mask.values.len())
            .filter(|&i| mask.values[i] != 0.0)
            .map(|i| Token {
                ratio: (log_probs.values[i] - old_log_probs.values[i]).clamp(-20.0, 20.0).exp(),
                advantage: advantages.values[i] * mask.values[i],
                weight: match self.criterion {
                    Criterion::Ratio => 1.0,
                    Criterion::WeightedShare => old_log_probs.values[i].exp(),
                },
            })
            .collect();
        let (mut low, mut high) = (self.lower_start, self.upper_start);
        let mut balance = self.balance(&tokens, low, high);
        while balance < self.target && step(&mut low, self.lower_step, self.lower_max) {
            balance = self.balance(&tokens, low, high);
        }
        while balance < self.target && step(&mut high, self.upper_step, self.upper_max) {
            balance = self.balance(&tokens, low, high);
        }
        Ok(Found { low, high, balance })
    }

    fn balance(&self, tokens: &[Token], low: f64, high: f64) -> f64 {
        let (mut pos, mut neg) = (0.0, 0.0);
        for token in tokens {
            let (bounded, clipped) = if token.advantage >= 0.0 {
                (token.ratio.min(high), token.ratio > high)
            } else {
                (token.ratio.max(low), token.ratio < low)
            };
            if clipped && self.contribution == Contribution::Unclipped {
                continue;
            }
            let e = bounded * token.advantage * token.weight;
            pos += e.max(0.0);
            neg += (-e).max(0.0);
        }
        match self.criterion {
            Criterion::Ratio if neg > 0.0 => pos / (neg + self.eps),
            Criterion::WeightedShare if pos + neg > 0.0 => pos / (pos + neg),
            _ => f64::INFINITY,
        }
    }
}

struct Token {
    ratio: f64,
    advantage: f64,
    weight: f64,
}

/// Moves a bound; whether it moved.
fn step(bound: &mut f64, by: f64, max: f64) -> bool {
    let next = (*bound + by.max(0.0)).min(max);
    let moved = next > *bound;
    if moved {
        *bound = next;
    }
    moved
}

impl Block for BalancedBounds {
    fn batch_wide(&self) -> Option<&'static str> {
        Some("the bounds are searched on the tokens of the update")
    }

    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        for (name, got) in [
            ("lower_start", self.lower_start),
            ("lower_max", self.lower_max),
            ("upper_start", self.upper_start),
            ("upper_max", self.upper_max),
            ("eps", self.eps),
        ] {
            if !(got >= 0.0 && got.is_finite()) {
                return wrong(name, got, "0 or more");
            }
        }
        for (name, got, range) in [
            ("lower_step", self.lower_step, self.lower_max - self.lower_start),
            ("upper_step", self.upper_step, self.upper_max - self.upper_start),
        ] {
            if !got.is_finite() || got > 0.0 && range / got > 1e5 {
                return wrong(name, got, "0 (off) or large enough for at most 100000 steps");
            }
        }
        if !self.target.is_finite() {
            return wrong("target", self.target, "a finite number");
        }
        if self.lower_start.max(self.lower_max) > self.upper_start {
            return wrong("lower_max", self.lower_max, "at most `upper_start`, like `lower_start`");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let what = match self.criterion {
            Criterion::Ratio => "positive / negative",
            Criterion::WeightedShare => "weighted positive share",
        };
        format!(
            "bounds from [{}, {}] to [{}, {}] until {what} reaches {}",
            self.lower_start, self.upper_start, self.lower_max, self.upper_max, self.target
        )
    }
}

impl Kind for BalancedBounds {
    const KIND: &'static str = "balanced_bounds";
}

impl TokenRule for BalancedBounds {
    /// Bounds that are already there are kept: whoever splits a minibatch may search over all of it and set them.
    fn update(&self, batch: &Batch, signals: &mut Signals, _state: &State) -> Result<()> {
        if signals.bounds.is_some() {
            return Ok(());
        }
        let (log_probs, old) = (batch.table(LOG_PROBS)?, batch.table(OLD_LOG_PROBS)?);
        let found = self.search(&log_probs, &old, &signals.advantages, batch.mask())?;
        signals.bounds = Some((batch.mask().filled(found.low), batch.mask().filled(found.high)));
        Ok(())
    }
}

/// Multiplies every token's loss, after clipping, by the batch's `rollout_is_weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutWeights {}

impl Block for RolloutWeights {
    fn needs(&self) -> Vec<Input> {
        vec![ROLLOUT_IS_WEIGHTS]
    }

    fn describe(&self) -> String {
        "times the rollout's importance weights".into()
    }
}

impl Kind for RolloutWeights {
    const KIND: &'static str = "rollout_weights";
}

impl TokenRule for RolloutWeights {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let given = batch.table(ROLLOUT_IS_WEIGHTS)?;
        let pairs = signals.weights.values.iter_mut().zip(&given.values).zip(&batch.mask().values);
        for (index, ((weight, &w), &m)) in pairs.enumerate() {
            if m != 0.0 && !w.is_finite() {
                return Err(Error::NotFinite { name: ROLLOUT_IS_WEIGHTS.name, index, got: w });
            }
            *weight *= if m != 0.0 { w } else { 1.0 };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::{GROUP_IDS, REWARDS};
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    fn row(x: &[f64]) -> Table {
        Table::from_rows(&[x.to_vec()]).unwrap()
    }

    #[test]
    fn by_hand() {
        // r = 2 with A = 1, r = 1 with A = -2: rho = min(2, hi) / 2.
        let rule = BalancedBounds { target: 0.7, upper_step: 0.1, eps: 0.0, ..BalancedBounds::default() };
        let d = row(&[2f64.ln(), 0.0, f64::NAN]);
        let found =
            rule.search(&d, &row(&[0.0; 3]), &row(&[1.0, -2.0, 9.0]), &row(&[1.0, 1.0, 0.0])).unwrap();
        assert!((found.low - 0.8).abs() < 1e-12 && (found.high - 1.4).abs() < 1e-12, "{found:?}");
        let none = rule.search(&d, &d, &row(&[0.0; 3]), &row(&[0.0; 3])).unwrap();
        assert_eq!((none.low, none.high, none.balance), (0.6, 1.2, f64::INFINITY));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let refused = |rule: BalancedBounds| rule.validate().is_err();
        assert!(refused(BalancedBounds { lower_max: 1.5, ..BalancedBounds::default() }));
        assert!(refused(BalancedBounds { upper_step: 1e-12, ..BalancedBounds::default() }));
        assert!(!refused(BalancedBounds { upper_step: -1.0, ..BalancedBounds::default() }));
    }

    #[test]
    fn bounds_of_the_whole_minibatch_make_its_parts_add_up() {
        let log_probs = Var::from_vec(vec![0.9f64, -0.4, 0.1, 0.6, -0.9, 0.3], (3, 2), &Device::Cpu).unwrap();
        let mask = Table::from_rows(&[vec![1.0, 1.0], vec![1.0, 0.0], vec![1.0, 1.0]]).unwrap();
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, log_probs.as_tensor().clone())
            .unwrap()
            .with(OLD_LOG_PROBS, log_probs.zeros_like().unwrap())
            .unwrap()
            .with(ROLLOUT_IS_WEIGHTS, Table { values: vec![1.0, 2.0, 0.5, f64::NAN, 1.0, 1.0], ..mask })
            .unwrap()
            .with(REWARDS, vec![1.0, 0.0, 0.0])
            .unwrap()
            .with(GROUP_IDS, vec![0u64, 0, 0])
            .unwrap();
        let objective = recipe().weight(&RolloutWeights {}).build().unwrap();
        let mut prepared = objective.prepare(batch, &mut State::default()).unwrap();
        let signals = &mut prepared.signals;
        BalancedBounds::default().update(&prepared.batch, signals, &State::default()).unwrap();
        let whole = prepared.batch.normaliser();
        let grad = |rows: &[usize]| -> Vec<f64> {
            let part = prepared.batch.select(rows).unwrap();
            let loss = objective
                .loss(&part, &prepared.signals.select(rows), &whole, &State::default())
                .unwrap()
                .loss;
            let grads = loss.backward().unwrap();
            grads.get(log_probs.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (all, a, b) = (grad(&[0, 1, 2]), grad(&[0, 2]), grad(&[1]));
        for i in 0..6 {
            assert!((all[i] - a[i] - b[i]).abs() < 1e-12);
        }
        assert!(all.iter().any(|g| *g != 0.0));
    }

    proptest! {
        /// The search ends inside its limits, and raising the lower bound never helped.
        #[test]
        fn search_stays_inside(
            d in proptest::collection::vec(-2.0f64..2.0, 8),
            a in proptest::collection::vec(-2.0f64..2.0, 8),
            target in 0.0f64..3.0,
        ) {
            let rule = BalancedBounds { target, ..BalancedBounds::default() };
            let (d, zero, a, ones) = (row(&d), row(&[0.0; 8]), row(&a), row(&[1.0; 8]));
            let found = rule.search(&d, &zero, &a, &ones).unwrap();
            prop_assert!((0.6..=0.8).contains(&found.low) && (1.2..=2.0).contains(&found.high));
            let met = found.balance >= target;
            prop_assert!(met || (found.low, found.high) == (0.8, 2.0));
            prop_assert!(found.low == 0.6 || found.low == 0.8);
            // Scaling all advantages changes nothing but eps.
            let scaled = Table { values: a.values.iter().map(|x| 8.0 * x).collect(), ..a };
            let exact = BalancedBounds { eps: 0.0, ..rule };
            prop_assert_eq!(
                exact.search(&d, &zero, &scaled, &ones).unwrap(),
                exact.search(&d, &zero, &a, &ones).unwrap()
            );
        }
    }
}
