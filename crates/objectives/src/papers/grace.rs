//! GRACE: Generative Representation Learning via Contrastive Policy Optimization (arXiv 2510.04506).
//!
//! Base: GRPO without the standard deviation. New: the policy writes a rationale about a text; text and rationale
//! are pooled to an embedding, and similarities to other embeddings are the REWARD. No gradient flows through
//! embeddings.
//!
//! ```text
//! pooling       h = sum(mask * hidden) / max(sum mask, 1), then unit length; the system prompt's tokens are left out
//! supervised    pos_i  =  cos(q_g, m_i)                  cons_i =  mean over siblings j of cos(m_i, m_j)
//!               neg_i  = -cos(q_g, n_g)                  hard_i = -mean over other groups of max_j cos(q_g, m_j)
//!               R = (pos + neg + w_c cons + w_x hard) / tau
//! unsupervised  other_i = mean over other groups g' of cos(m_i, q_g'),  q_g' of the first row of g'
//!               R = (pos + w_c cons - w_x other) / tau,  pos_i = cos(q_i, m_i)
//! length        a response that fills the window without an end gets exactly -1 in place of R
//! advantage     R - mean of the group; a lone row keeps R
//! ```
//!
//! Shapes: `embeddings` B lists, those of the policy's rollouts (m); `query_embeddings` B lists (q);
//! `negative_embeddings` B lists (n), supervised only; `group_ids` [B]; `truncated` [B].
//!
//! Code against paper: in the released supervised form neg and hard are the same for all rows of a group, so the
//! baseline cancels them and only pos and cons shape the policy; the paper speaks of minimising similarity to
//! negatives. Default: the code (`negatives = "per_group"`). `per_row` is this crate's variant: neg_i = -cos(m_i,
//! n_g) and hard_i = -mean over other groups of max_j cos(m_i, q_j), which do differ between rows. The class
//! default of tau is 0.7, the script's 0.1. The length rule's -1 is not on the scale of R, and may be better than
//! a bad R. Source: GasolSun36/GRACE.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, EMBEDDINGS, GROUP_IDS, Input, REWARDS, TRUNCATED};
use crate::block::{Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;

/// Embedding of the query (supervised) or of another rationale of the same text (unsupervised).
pub const QUERY_EMBEDDINGS: Input =
    Input::new("query_embeddings", "[B, E]", "embedding of the query of every row's group");
/// Embedding of the text that must not be similar.
pub const NEGATIVE_EMBEDDINGS: Input =
    Input::new("negative_embeddings", "[B, E]", "embedding of the negative text of every row's group");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "grace",
    title: "GRACE: Generative Representation Learning via Contrastive Policy Optimization",
    arxiv: "2510.04506",
    summary: "Contrastive similarities of pooled rationales are rewards, not a loss.",
    blocks: &[BlockKind::reward::<Contrastive>()],
    recipe,
    vectors: Some(("grace.json", 5)),
    end_to_end: None,
};

/// Contrastive rewards (supervised), group mean as baseline, clipped ratio, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&Contrastive::default())
        .advantage(&GroupNorm { spread: Spread::None, ..GroupNorm::default() })
}

/// What is known about the texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervision {
    /// Query, positive and negative text; the policy writes about the positive one.
    #[default]
    Supervised,
    /// Texts alone; the query is another rationale of the same text.
    Unsupervised,
}

/// Whose similarity to negatives counts (supervised).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Negatives {
    /// The query's: the same for all rows of a group, so that the baseline cancels it. The authors' code.
    #[default]
    PerGroup,
    /// The row's own. Not in the paper.
    PerRow,
}

/// Contrastive reward of rationales.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contrastive {
    /// Which form.
    pub supervision: Supervision,
    /// tau, greater than 0.
    pub temperature: f64,
    /// w_c, weight of the similarity to sibling rationales.
    pub consistency_weight: f64,
    /// w_x, weight of the similarity to other groups.
    pub cross_weight: f64,
    /// Whose similarity to negatives counts.
    pub negatives: Negatives,
    /// Whether responses without an end get `length_penalty`.
    pub length_rule: bool,
    /// Their reward.
    pub length_penalty: f64,
}

impl Default for Contrastive {
    fn default() -> Self {
        Self {
            supervision: Supervision::default(),
            temperature: 0.1,
            consistency_weight: 0.2,
            cross_weight: 0.2,
            negatives: Negatives::default(),
            length_rule: true,
            length_penalty: -1.0,
        }
    }
}

/// Rewards and their parts, [B] each, all divided by the temperature, weights not in the parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContrastiveRewards {
    /// R before the length rule.
    pub reward: Vec<f64>,
    /// pos.
    pub positive: Vec<f64>,
    /// neg with its sign; 0 unsupervised.
    pub negative: Vec<f64>,
    /// cons; 0 for a row without siblings.
    pub consistency: Vec<f64>,
    /// hard with its sign (supervised), other without (unsupervised); 0 for a single group.
    pub cross: Vec<f64>,
}

impl Contrastive {
    /// Rewards of a batch. `main`, `query`, `negative`: B vectors of one length (not necessarily unit vectors;
    /// `negative` is read in the supervised form only); `group_ids` [B]. In the supervised form a group's query
    /// and negative are those of its first row.
    ///
    /// # Errors
    /// Lengths differ or a number is not finite.
    pub fn rewards(
        &self,
        main: &[Vec<f64>],
        query: &[Vec<f64>],
        negative: &[Vec<f64>],
        group_ids: &[u64],
    ) -> Result<ContrastiveRewards> {
        let width = main.first().map_or(0, Vec::len);
        let supervised = self.supervision == Supervision::Supervised;
        check(EMBEDDINGS.name, main, group_ids.len(), width)?;
        check(QUERY_EMBEDDINGS.name, query, group_ids.len(), width)?;
        if supervised {
            check(NEGATIVE_EMBEDDINGS.name, negative, group_ids.len(), width)?;
        }
        let groups = members(group_ids);
        let mut out = ContrastiveRewards::default();
        for (i, own) in group_ids.iter().enumerate() {
            let m = &main[i];
            // A group's first row stands for it.
            let siblings: &[usize] = groups.get(own).map_or(&[], Vec::as_slice);
            let first = siblings.first().copied().unwrap_or(i);
            let q = if supervised { &query[first] } else { &query[i] };
            let cosines = siblings.iter().filter(|&&j| j != i).map(|&j| cosine(m, &main[j]));
            out.positive.push(cosine(q, m));
            out.consistency.push(mean(cosines));
            let others = || groups.iter().filter(|(g, _)| *g != own).map(|(_, rows)| rows);
            let closest = |x: &[f64], of: &[Vec<f64>], rows: &[usize]| {
                rows.iter().map(|&j| cosine(x, &of[j])).fold(f64::NEG_INFINITY, f64::max)
            };
            let (negative, cross) = match (self.supervision, self.negatives) {
                (Supervision::Unsupervised, _) => {
                    let first = |rows: &Vec<usize>| rows.first().map_or(0.0, |&j| cosine(m, &query[j]));
                    (0.0, mean(others().map(first)))
                }
                (Supervision::Supervised, Negatives::PerGroup) => {
                    (-cosine(q, &negative[first]), -mean(others().map(|rows| closest(q, main, rows))))
                }
                (Supervision::Supervised, Negatives::PerRow) => {
                    (-cosine(m, &negative[first]), -mean(others().map(|rows| closest(m, query, rows))))
                }
            };
            out.negative.push(negative);
            out.cross.push(cross);
        }
        let parts = [&mut out.positive, &mut out.negative, &mut out.consistency, &mut out.cross];
        parts.into_iter().flatten().for_each(|x| *x /= self.temperature);
        let cross_weight = if supervised { self.cross_weight } else { -self.cross_weight };
        let reward = |i: usize| {
            out.positive[i]
                + out.negative[i]
                + self.consistency_weight * out.consistency[i]
                + cross_weight * out.cross[i]
        };
        out.reward = (0..group_ids.len()).map(reward).collect();
        Ok(out)
    }
}

fn check(name: &'static str, vectors: &[Vec<f64>], rows: usize, width: usize) -> Result<()> {
    if vectors.len() != rows {
        let expected = format!("[{rows}, {width}]");
        return Err(Error::Shape { name, got: vec![vectors.len()], expected });
    }
    for (index, vector) in vectors.iter().enumerate() {
        if vector.len() != width {
            let expected = format!("{width} numbers, like the first row");
            return Err(Error::Shape { name, got: vec![vector.len()], expected });
        }
        if let Some(&got) = vector.iter().find(|x| !x.is_finite()) {
            return Err(Error::NotFinite { name, index, got });
        }
    }
    Ok(())
}

/// 0 for nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), x| (sum + x, n + 1.0));
    if n > 0.0 { sum / n } else { 0.0 }
}

/// Cosine of the angle; 0 with a zero vector.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

/// Mean of a sequence's hidden states as a unit vector. `hidden` [S][D]; `mask` [S] 1 on real tokens; the first
/// `skip` real tokens (the system prompt) are left out, unless nothing would be left. A sequence without a token
/// gives zeros.
///
/// # Errors
/// Lengths differ.
pub fn pool(hidden: &[Vec<f64>], mask: &[f64], skip: usize) -> Result<Vec<f64>> {
    let width = hidden.first().map_or(0, Vec::len);
    check("hidden_states", hidden, mask.len(), width)?;
    let valid: Vec<usize> = (0..mask.len()).filter(|&t| mask[t] != 0.0).collect();
    let kept = if skip < valid.len() { &valid[skip..] } else { &valid[..] };
    let n = kept.len().max(1) as f64;
    let mut out: Vec<f64> = (0..width).map(|d| kept.iter().map(|&t| hidden[t][d]).sum::<f64>() / n).collect();
    let norm = out.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        out.iter_mut().for_each(|x| *x /= norm);
    }
    Ok(out)
}

impl Block for Contrastive {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![EMBEDDINGS, QUERY_EMBEDDINGS, GROUP_IDS];
        needs.extend((self.supervision == Supervision::Supervised).then_some(NEGATIVE_EMBEDDINGS));
        needs.extend(self.length_rule.then_some(TRUNCATED));
        needs
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        match self {
            s if !(s.temperature > 0.0 && s.temperature.is_finite()) => {
                wrong("temperature", s.temperature, "greater than 0")
            }
            s if !s.consistency_weight.is_finite() => {
                wrong("consistency_weight", s.consistency_weight, "a finite number")
            }
            s if !s.cross_weight.is_finite() => wrong("cross_weight", s.cross_weight, "a finite number"),
            s if !s.length_penalty.is_finite() => {
                wrong("length_penalty", s.length_penalty, "a finite number")
            }
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let form = match self.supervision {
            Supervision::Supervised => "query, positive and negative",
            Supervision::Unsupervised => "texts alone",
        };
        format!("contrastive similarities over {} ({form})", self.temperature)
    }
}

impl Kind for Contrastive {
    const KIND: &'static str = "contrastive";
}

impl Reward for Contrastive {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let negative = match self.supervision {
            Supervision::Supervised => batch.vectors(NEGATIVE_EMBEDDINGS)?,
            Supervision::Unsupervised => &[],
        };
        let (main, query) = (batch.vectors(EMBEDDINGS)?, batch.vectors(QUERY_EMBEDDINGS)?);
        let mut rewards = self.rewards(main, query, negative, batch.ids(GROUP_IDS)?)?.reward;
        if self.length_rule {
            let cut = rewards.iter_mut().zip(batch.numbers(TRUNCATED)?);
            cut.filter(|(_, truncated)| *truncated != 0.0).for_each(|(r, _)| *r = self.length_penalty);
        }
        batch.set(REWARDS, rewards)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::table::Table;
    use proptest::prelude::*;

    fn batch(main: &[Vec<f64>], query: &[Vec<f64>], negative: &[Vec<f64>], groups: &[u64]) -> Batch {
        let b = main.len();
        Batch::new(Table { rows: b, cols: 1, values: vec![1.0; b] })
            .with(EMBEDDINGS, main.to_vec())
            .unwrap()
            .with(QUERY_EMBEDDINGS, query.to_vec())
            .unwrap()
            .with(NEGATIVE_EMBEDDINGS, negative.to_vec())
            .unwrap()
            .with(GROUP_IDS, groups.to_vec())
            .unwrap()
            .with(TRUNCATED, vec![0.0; b])
            .unwrap()
    }

    fn advantages(settings: &Contrastive, batch: &Batch) -> Vec<f64> {
        let mut objective = recipe().build().unwrap();
        objective.rewards = vec![Box::new(*settings)];
        objective.prepare(batch.clone(), &mut State::default()).unwrap().signals.advantages.values
    }

    fn vectors(seed: &[f64]) -> Vec<Vec<f64>> {
        seed.chunks(3).map(<[f64]>::to_vec).collect()
    }

    proptest! {
        /// The released form's negatives cancel in the advantage; the variant's do not.
        #[test]
        fn negatives_per_group_cancel(x in proptest::collection::vec(-1.0f64..1.0, 36)) {
            let (main, rest) = (vectors(&x[..12]), vectors(&x[12..]));
            let query = [&rest[0], &rest[0], &rest[1], &rest[1]].map(Clone::clone);
            let far = [&rest[2], &rest[2], &rest[3], &rest[3]].map(Clone::clone);
            let near = [&rest[4], &rest[4], &rest[5], &rest[5]].map(Clone::clone);
            let groups = [0, 0, 1, 1];
            let settings = Contrastive::default();
            let a = advantages(&settings, &batch(&main, &query, &far, &groups));
            let b = advantages(&settings, &batch(&main, &query, &near, &groups));
            for (a, b) in a.iter().zip(&b) {
                prop_assert!((a - b).abs() < 1e-9);
            }
            // Rows in another order have their own rewards.
            let order = [2, 0, 3, 1];
            let pick = |x: &[Vec<f64>]| order.map(|i| x[i].clone());
            let moved = batch(&pick(&main), &pick(&query), &pick(&far), &order.map(|i| groups[i]));
            for (k, b) in advantages(&settings, &moved).into_iter().enumerate() {
                prop_assert!((a[order[k]] - b).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn negatives_per_row_do_not_cancel() {
        let main = vectors(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let query = vectors(&[0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        let settings = Contrastive { negatives: Negatives::PerRow, ..Contrastive::default() };
        let a =
            advantages(&settings, &batch(&main, &query, &vectors(&[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]), &[0, 0]));
        assert!(a[0] < 0.0 && a[1] > 0.0);
    }

    #[test]
    fn single_rows_groups_and_zero_vectors() {
        let one = vectors(&[1.0, 0.0, 0.0]);
        let zero = vectors(&[0.0; 3]);
        let r = Contrastive::default().rewards(&one, &one, &zero, &[5]).unwrap();
        assert_eq!((r.positive[0], r.negative[0], r.consistency[0], r.cross[0]), (10.0, 0.0, 0.0, 0.0));
        assert!(Contrastive::default().rewards(&one, &one, &[], &[5]).is_err());
        let nan = vec![vec![f64::NAN, 0.0, 0.0]];
        assert!(
            Contrastive::default()
                .rewards(&nan, &one, &one, &[5])
                .unwrap_err()
                .to_string()
                .contains("finite")
        );
        let mut cut = batch(&one, &one, &one, &[5]);
        cut.set(TRUNCATED, vec![1.0]).unwrap();
        Contrastive::default().shape(&mut cut, &mut State::default()).unwrap();
        assert_eq!(cut.numbers(REWARDS).unwrap(), [-1.0]);
    }

    #[test]
    fn pooling() {
        let h = vec![vec![9.0, 0.0], vec![3.0, 4.0], vec![0.0, 7.0], vec![5.0, 5.0]];
        assert_eq!(pool(&h, &[1.0, 1.0, 0.0, 0.0], 1).unwrap(), [0.6, 0.8]);
        assert_eq!(pool(&h, &[0.0, 1.0, 0.0, 0.0], 3).unwrap(), [0.6, 0.8], "a prefix longer than the text");
        assert_eq!(pool(&h, &[0.0; 4], 0).unwrap(), [0.0, 0.0]);
        assert!(pool(&h, &[1.0], 0).is_err());
    }
}
