//! SEED-GRPO: Semantic Entropy Enhanced GRPO (arXiv 2505.12346).
//!
//! Base: Dr.GRPO. New: the advantages of a prompt are multiplied by a decreasing function of the semantic entropy of
//! its G answers, the same factor for all of them: uncertain prompts get smaller updates.
//!
//! ```text
//! l_i = mean of old_log_probs over valid tokens (or their sum),  p_i = softmax of l in the group
//! clusters: equal answer keys; an answer without a key is a cluster of its own
//! P_c = sum of p_i in c
//! SE  = - sum_c P_c ln P_c                    shannon (default)
//!     = -(1/K) sum_c ln P_c                   monte_carlo, the paper's text; may exceed ln G
//!     = - sum_c (n_c/G) ln(n_c/G)             count, where there are no likelihoods
//! u   = alpha SE / ln G (normalise) or alpha SE
//! factor = 1/(1 + u)                          reciprocal (default)
//!        = 1 - u, exp(-u), (1 - u)^gamma      linear, exponential, focal: the paper's text, within [0, 1]
//! A_i = factor (R_i - mean of the group)
//! ```
//!
//! A single cluster, a single answer and alpha = 0 have factor exactly 1. Rows without a valid token are left out of
//! the softmax and get their prompt's factor. `old_log_probs` [B, T], `group_ids` [B], `answer_keys` [B] texts,
//! normalised first: "1/2" and "0.5" are two clusters.
//!
//! Source: the authors published no code; entropy, normalisation and the reciprocal factor follow a
//! re-implementation that states parity with their release, with its alpha 0.0417 (0.02 after division by ln 8),
//! which changes an update by 4% at most. The other factors follow the paper's text; gamma = 2 of the focal one is
//! an assumption. The loss divides the sum over a sequence by a constant (`constant_length`) and averages over
//! sequences.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OLD_LOG_PROBS, Signals};
use crate::block::{Block, BlockKind, Kind, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Canonical final answers.
pub const ANSWER_KEYS: Input =
    Input::new("answer_keys", "[B]", "canonical final answer of every sequence, empty where there is none");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "seed_grpo",
    title: "SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization",
    arxiv: "2505.12346",
    summary: "Prompts whose answers disagree get smaller updates.",
    blocks: &[BlockKind::weight::<SemanticEntropy>(), BlockKind::weight::<ConstantLength>()],
    recipe,
    vectors: Some(("seed_grpo.json", 7)),
    end_to_end: None,
};

/// Centred rewards times the entropy factor, plain clip 0.2, token sums over a constant length.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: None };
    let centred = GroupNorm { epsilon: 1e-4, spread: Spread::None, lone_spread_f32: false };
    Composition::new(&surrogate, Aggregation::SeqMeanTokenSum)
        .advantage(&centred)
        .weight(&SemanticEntropy::default())
        .weight(&ConstantLength::default())
}

/// How the entropy of a group's answers is estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyEstimator {
    /// Shannon entropy of the clusters' likelihoods.
    #[default]
    Shannon,
    /// Mean of -ln P over clusters (paper text).
    MonteCarlo,
    /// Shannon entropy of the clusters' sizes.
    Count,
}

/// How entropy becomes a factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modulation {
    /// 1 / (1 + u)
    #[default]
    Reciprocal,
    /// 1 - u
    Linear,
    /// exp(-u)
    Exponential,
    /// (1 - u)^gamma
    Focal,
}

/// Where the factor acts. The clipped loss is proportional to |A|, so both give the same gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// On advantages.
    #[default]
    Advantage,
    /// On the loss of every token.
    Loss,
}

/// Multiplies a prompt's advantages by a function of its semantic entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SemanticEntropy {
    /// Sensitivity, 0 or more.
    pub alpha: f64,
    /// Divide alpha by ln G.
    pub normalise: bool,
    /// Likelihoods per token; without, one short answer takes all the mass.
    pub length_normalise: bool,
    /// Which entropy.
    pub estimator: EntropyEstimator,
    /// Which factor.
    pub modulation: Modulation,
    /// Exponent of the focal factor.
    pub focal_gamma: f64,
    /// Where it acts.
    pub placement: Placement,
}

impl Default for SemanticEntropy {
    fn default() -> Self {
        Self {
            alpha: 0.0417,
            normalise: true,
            length_normalise: true,
            estimator: EntropyEstimator::Shannon,
            modulation: Modulation::Reciprocal,
            focal_gamma: 2.0,
            placement: Placement::Advantage,
        }
    }
}

impl SemanticEntropy {
    /// alpha, over ln G if it is normalised; 0 for fewer than two answers.
    pub fn effective_alpha(&self, answers: usize) -> f64 {
        match (answers, self.normalise) {
            (0 | 1, _) => 0.0,
            (g, true) => self.alpha / (g as f64).ln(),
            (_, false) => self.alpha,
        }
    }

    /// Entropy of one group's answers: `scores` [G] log-likelihoods, `keys` [G], empty where there is none, `counts`
    /// [G] which answers count. 0 for a single cluster.
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn entropy(&self, scores: &[f64], keys: &[&str], counts: &[bool]) -> Result<f64> {
        for (name, got) in [("answer_keys", keys.len()), ("counts", counts.len())] {
            if got != scores.len() {
                let expected = format!("[{}], like `scores`", scores.len());
                return Err(Error::Shape { name, got: vec![got], expected });
            }
        }
        let valid: Vec<usize> = (0..scores.len()).filter(|&i| counts[i]).collect();
        let top = valid.iter().map(|&i| scores[i]).fold(f64::NEG_INFINITY, f64::max);
        let mass = |i: usize| match self.estimator {
            EntropyEstimator::Count => 1.0,
            // Where no answer is possible at all they are equally likely.
            _ if top == f64::NEG_INFINITY => 1.0,
            _ => (scores[i] - top).exp(),
        };
        let mut clusters: BTreeMap<(&str, usize), f64> = BTreeMap::new();
        for &i in &valid {
            let alone = if keys[i].is_empty() { i + 1 } else { 0 };
            *clusters.entry((keys[i], alone)).or_default() += mass(i);
        }
        if clusters.len() < 2 {
            return Ok(0.0);
        }
        let total: f64 = clusters.values().sum();
        // A likelihood that underflows would have an infinite logarithm.
        let log_share = |m: &f64| (m / total).max(f64::MIN_POSITIVE).ln();
        Ok(match self.estimator {
            EntropyEstimator::MonteCarlo => {
                -clusters.values().map(log_share).sum::<f64>() / clusters.len() as f64
            }
            _ => -clusters.values().map(|m| m / total * log_share(m)).sum::<f64>(),
        })
    }

    /// The factor of a group of `answers` with this entropy.
    pub fn factor(&self, entropy: f64, answers: usize) -> f64 {
        let u = self.effective_alpha(answers) * entropy;
        match self.modulation {
            Modulation::Reciprocal => 1.0 / (1.0 + u),
            Modulation::Linear => (1.0 - u).clamp(0.0, 1.0),
            Modulation::Exponential => (-u).exp(),
            Modulation::Focal => (1.0 - u).clamp(0.0, 1.0).powf(self.focal_gamma),
        }
    }

    /// Log-likelihood of every sequence [B], per token if lengths are normalised; 0 for rows without a valid token.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn scores(&self, old_log_probs: &Table, mask: &Table) -> Result<Vec<f64>> {
        old_log_probs.same_shape("old_log_probs", mask)?;
        let score = |row: usize| {
            let valid = old_log_probs.row(row).iter().zip(mask.row(row)).filter(|(_, m)| **m != 0.0);
            let sum: f64 = valid.map(|(x, m)| x * m).sum();
            let length: f64 = mask.row(row).iter().sum();
            if self.length_normalise && length > 0.0 { sum / length } else { sum }
        };
        Ok((0..mask.rows).map(score).collect())
    }

    /// Entropy and factor of every group, in order of group id. All inputs [B].
    ///
    /// # Errors
    /// Lengths that differ; a score that is NaN or +inf.
    pub fn groups(
        &self,
        scores: &[f64],
        keys: &[String],
        counts: &[bool],
        group_ids: &[u64],
    ) -> Result<BTreeMap<u64, (f64, f64)>> {
        for (name, got) in [("answer_keys", keys.len()), ("counts", counts.len()), ("scores", scores.len())] {
            if got != group_ids.len() {
                let expected = format!("[{}], like `group_ids`", group_ids.len());
                return Err(Error::Shape { name, got: vec![got], expected });
            }
        }
        if let Some(index) = scores.iter().position(|s| s.is_nan() || *s == f64::INFINITY) {
            return Err(Error::NotFinite { name: "old_log_probs", index, got: scores[index] });
        }
        let one = |index: &[usize]| -> Result<(f64, f64)> {
            let scores: Vec<f64> = index.iter().map(|&i| scores[i]).collect();
            let keys: Vec<&str> = index.iter().map(|&i| keys[i].as_str()).collect();
            let counts: Vec<bool> = index.iter().map(|&i| counts[i]).collect();
            let entropy = self.entropy(&scores, &keys, &counts)?;
            Ok((entropy, self.factor(entropy, index.len())))
        };
        members(group_ids).into_iter().map(|(id, index)| Ok((id, one(&index)?))).collect()
    }
}

impl Block for SemanticEntropy {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS, GROUP_IDS, ANSWER_KEYS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("alpha", self.alpha), ("focal_gamma", self.focal_gamma)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let alpha = if self.normalise { format!("{}/ln G", self.alpha) } else { self.alpha.to_string() };
        let form = match self.modulation {
            Modulation::Reciprocal => "1 / (1 + u)".to_string(),
            Modulation::Linear => "1 - u".into(),
            Modulation::Exponential => "exp(-u)".into(),
            Modulation::Focal => format!("(1 - u)^{}", self.focal_gamma),
        };
        format!("times {form} with u = {alpha} times the semantic entropy")
    }
}

impl Kind for SemanticEntropy {
    const KIND: &'static str = "semantic_entropy";
}

impl TokenRule for SemanticEntropy {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let mask = batch.mask();
        let scores = self.scores(&batch.table(OLD_LOG_PROBS)?, mask)?;
        let counts: Vec<bool> = mask.row_sums().iter().map(|&l| l > 0.0).collect();
        let ids = batch.ids(GROUP_IDS)?;
        let groups = self.groups(&scores, batch.texts(ANSWER_KEYS)?, &counts, ids)?;
        let target = match self.placement {
            Placement::Advantage => &mut signals.advantages,
            Placement::Loss => &mut signals.weights,
        };
        for (row, id) in target.values.chunks_mut(mask.cols.max(1)).zip(ids) {
            let factor = groups.get(id).map_or(1.0, |(_, factor)| *factor);
            row.iter_mut().for_each(|x| *x *= factor);
        }
        Ok(())
    }
}

/// Divides every token's loss by a constant length: Dr.GRPO's normalisation, for `seq-mean-token-sum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantLength {
    /// The longest answer, in tokens; 0 takes the padded length T of each batch.
    pub length: f64,
}

impl Block for ConstantLength {
    fn validate(&self) -> Result<()> {
        if self.length >= 0.0 && self.length.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "length", got: self.length, expected: "0 (the padded length) or more" })
    }

    fn describe(&self) -> String {
        match self.length {
            0.0 => "over the padded length".into(),
            length => format!("over {length} tokens"),
        }
    }
}

impl Kind for ConstantLength {
    const KIND: &'static str = "constant_length";
}

impl TokenRule for ConstantLength {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let length = if self.length > 0.0 { self.length } else { batch.cols().max(1) as f64 };
        signals.weights.values.iter_mut().for_each(|w| *w /= length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::{LOG_PROBS, REWARDS};
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    fn batch(log_probs: &Var) -> Batch {
        let mask =
            Table::from_rows(&[vec![1.0, 1.0], vec![1.0, 0.0], vec![1.0, 1.0], vec![0.0, 0.0]]).unwrap();
        let old = log_probs.as_tensor().detach();
        let keys = ["1", "2", "1", ""].map(String::from).to_vec();
        Batch::new(mask)
            .with(LOG_PROBS, log_probs.as_tensor().clone())
            .unwrap()
            .with(OLD_LOG_PROBS, old)
            .unwrap()
            .with(GROUP_IDS, vec![7u64; 4])
            .unwrap()
            .with(REWARDS, vec![1.0, 0.0, 1.0, 0.0])
            .unwrap()
            .with(ANSWER_KEYS, keys)
            .unwrap()
    }

    fn gradient(rule: SemanticEntropy) -> Vec<f64> {
        let none = f64::NEG_INFINITY;
        let values = vec![-1.0, -2.0, -0.5, none, -0.1, -0.1, none, -1.0];
        let log_probs = Var::from_vec(values, (4, 2), &Device::Cpu).unwrap();
        let mut objective = recipe().build().unwrap();
        objective.weights[0] = Box::new(rule);
        let prepared = objective.prepare(batch(&log_probs), &mut State::default()).unwrap();
        let whole = prepared.batch.normaliser();
        let parts = objective.loss(&prepared.batch, &prepared.signals, &whole, &State::default()).unwrap();
        let grads = parts.loss.backward().unwrap();
        grads.get(log_probs.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn both_places_give_the_same_gradient_and_padding_gives_none() {
        let rule = SemanticEntropy { alpha: 1.0, ..SemanticEntropy::default() };
        let (a, b) = (gradient(rule), gradient(SemanticEntropy { placement: Placement::Loss, ..rule }));
        let off = gradient(SemanticEntropy { alpha: 0.0, ..rule });
        for i in 0..8 {
            assert!((a[i] - b[i]).abs() < 1e-14, "{a:?} {b:?}");
            assert!(a[i].abs() <= off[i].abs());
        }
        assert!(a[0].abs() < off[0].abs() && a[0] != 0.0);
        assert_eq!([a[3], a[6], a[7]], [0.0; 3]);
    }

    #[test]
    fn one_cluster_has_no_entropy_and_factors_stay_positive() {
        let rule = SemanticEntropy { alpha: 50.0, ..SemanticEntropy::default() };
        assert_eq!(rule.entropy(&[-1.0, -2.0, -0.3], &["a"; 3], &[true; 3]).unwrap(), 0.0);
        assert_eq!(rule.entropy(&[], &[], &[]).unwrap(), 0.0);
        assert_eq!(rule.factor(0.0, 8), 1.0);
        assert_eq!(rule.factor(1.0, 1), 1.0);
        let nobody = rule.entropy(&[f64::NEG_INFINITY; 2], &["", ""], &[true; 2]).unwrap();
        assert!((nobody - 2f64.ln()).abs() < 1e-12);
        for modulation in [Modulation::Linear, Modulation::Focal, Modulation::Exponential] {
            let far = SemanticEntropy { modulation, ..rule }.factor(3.0, 8);
            assert!((0.0..1e-6).contains(&far), "{modulation:?} {far}");
        }
    }

    proptest! {
        /// Likelihoods count relative to each other, answers in any order; entropy is at most ln G.
        #[test]
        fn entropy_invariances(
            scores in proptest::collection::vec(-4.0f64..0.0, 6),
            keys in proptest::collection::vec(0usize..4, 6),
            shift in -9.0f64..9.0,
            turn in 0usize..6,
        ) {
            let names = ["", "a", "b", "c"];
            let mut keys: Vec<&str> = keys.into_iter().map(|k| names[k]).collect();
            for estimator in [EntropyEstimator::Shannon, EntropyEstimator::MonteCarlo, EntropyEstimator::Count] {
                let rule = SemanticEntropy { estimator, ..SemanticEntropy::default() };
                let entropy = rule.entropy(&scores, &keys, &[true; 6]).unwrap();
                prop_assert!(entropy >= 0.0);
                prop_assert!(estimator == EntropyEstimator::MonteCarlo || entropy <= 6f64.ln() + 1e-12);
                let mut moved: Vec<f64> = scores.iter().map(|s| s + shift).collect();
                moved.rotate_left(turn);
                keys.rotate_left(turn);
                let again = rule.entropy(&moved, &keys, &[true; 6]).unwrap();
                keys.rotate_right(turn);
                prop_assert!((entropy - again).abs() < 1e-9);
            }
        }
    }
}
