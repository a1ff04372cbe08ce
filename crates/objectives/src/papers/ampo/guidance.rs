//! When teachers help, which ones, and in whose place. Pure functions; whoever samples calls them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::advantage::members;
use crate::error::{Error, Result};
use crate::table::Table;

/// Which groups get teachers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Groups without any success: the paper.
    #[default]
    Adaptive,
    /// All.
    Always,
    /// Groups without any success and a share of the others.
    Hybrid,
}

/// Settings of teacher guidance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guidance {
    /// Which groups.
    pub strategy: Strategy,
    /// Share of solved groups that get teachers under `hybrid`, 0 to 1.
    pub hybrid_share: f64,
    /// Answers that are replaced in a group.
    pub top_k: usize,
    /// Candidates that are looked at, best quality first.
    pub pool: usize,
    /// c: share of the format in rewards and scores, 0 to 1.
    pub format_coef: f64,
    /// How well an answer is understood.
    pub comprehension: Comprehension,
    /// How that number is rounded.
    pub rounding: Rounding,
}

impl Default for Guidance {
    fn default() -> Self {
        Self {
            strategy: Strategy::Adaptive,
            hybrid_share: 0.3,
            top_k: 2,
            pool: 4,
            format_coef: 0.1,
            comprehension: Comprehension::MeanExpLogSoftmax,
            rounding: Rounding::None,
        }
    }
}

impl Guidance {
    /// Outcome of an answer: (1 - c) correct + c format.
    pub fn reward(&self, correct: bool, format: bool) -> f64 {
        let c = self.format_coef;
        (1.0 - c) * f64::from(u8::from(correct)) + c * f64::from(u8::from(format))
    }

    /// Reward of a teacher's answer: the rule's, raised to 1. Keep wrong answers out of the pool.
    pub fn teacher_reward(&self, by_rule: f64) -> f64 {
        by_rule.max(1.0)
    }

    /// Whether a reward means a right answer. A well-formed wrong answer is none.
    pub fn success(&self, reward: f64) -> bool {
        reward > self.format_coef + 0.5
    }

    /// Groups that get teachers. `rewards` and `group_ids` [B]; `draw` gives a number in 0..1 per solved group
    /// (hybrid).
    ///
    /// # Errors
    /// Lengths differ.
    pub fn groups(
        &self,
        rewards: &[f64],
        group_ids: &[u64],
        mut draw: impl FnMut(u64) -> f64,
    ) -> Result<BTreeSet<u64>> {
        if rewards.len() != group_ids.len() {
            let expected = format!("[{}], like `rewards`", rewards.len());
            return Err(Error::Shape { name: "group_ids", got: vec![group_ids.len()], expected });
        }
        let mut needs = |id: u64, index: &[usize]| {
            let solved = index.iter().any(|&i| self.success(rewards[i]));
            match self.strategy {
                Strategy::Always => true,
                Strategy::Adaptive => !solved,
                Strategy::Hybrid => !solved || draw(id) < self.hybrid_share,
            }
        };
        Ok(members(group_ids).into_iter().filter(|(id, index)| needs(*id, index)).map(|(id, _)| id).collect())
    }
}

/// How well the student understands a teacher: from the log-probabilities of the true answer's tokens behind the
/// teacher's reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comprehension {
    /// Mean probability: the paper.
    #[default]
    MeanExpLogSoftmax,
    /// Geometric mean of the probabilities.
    ExpMeanLogSoftmax,
    /// Probability of the whole answer.
    ExpSumLogSoftmax,
    /// Mean log-probability.
    MeanLogSoftmax,
}

/// How a comprehension score is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Not at all.
    #[default]
    None,
    /// To bfloat16, as the authors' model scores; makes ties.
    Bfloat16,
}

impl Rounding {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Bfloat16 => {
                let bits = (x as f32).to_bits();
                // To the nearest, ties to even, of the upper 16 bits.
                let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
                f64::from(f32::from_bits(rounded))
            }
        }
    }
}

/// S of every candidate, [K]. `answer_log_probs` and `answer_mask` [K, T]: the student's log-probabilities and which
/// tokens are the true answer's. A candidate without such tokens gets 0.
///
/// # Errors
/// Shapes differ.
pub fn comprehension(
    answer_log_probs: &Table,
    answer_mask: &Table,
    kind: Comprehension,
    rounding: Rounding,
) -> Result<Vec<f64>> {
    answer_log_probs.same_shape("answer_token_log_probs", answer_mask)?;
    let score = |row: usize| {
        let pairs = answer_log_probs.row(row).iter().zip(answer_mask.row(row));
        let tokens: Vec<f64> = pairs.filter(|(_, m)| **m != 0.0).map(|(x, _)| *x).collect();
        let n = tokens.len() as f64;
        let sum: f64 = tokens.iter().sum();
        match kind {
            _ if tokens.is_empty() => 0.0,
            Comprehension::MeanExpLogSoftmax => tokens.iter().map(|x| x.exp()).sum::<f64>() / n,
            Comprehension::ExpMeanLogSoftmax => (sum / n).exp(),
            Comprehension::ExpSumLogSoftmax => sum.exp(),
            Comprehension::MeanLogSoftmax => sum / n,
        }
    };
    Ok((0..answer_mask.rows).map(|row| rounding.of(score(row))).collect())
}

/// (1 - c) max(S, 0) + c format: by this number teachers are ranked.
pub fn selection_score(comprehension: f64, format: f64, format_coef: f64) -> f64 {
    (1.0 - format_coef) * comprehension.max(0.0) + format_coef * format
}

/// Candidates from the best score down; equal scores keep their order.
pub fn best_k(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(k);
    order
}

/// A row that a teacher takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Row of the group.
    pub row: usize,
    /// Place of the teacher among the selected, 0 for the best.
    pub teacher: usize,
}

/// Which of `teachers` selected teachers goes where: rows in ascending order, row j takes the one at j mod (number
/// left) of those that are left. `rows` are the chosen rows of a group; more rows than teachers leave the last ones
/// alone.
pub fn injected_rows(rows: &[usize], teachers: usize) -> Vec<Injection> {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    let mut left: Vec<usize> = (0..teachers).collect();
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        if !left.is_empty() {
            let teacher = left.remove(row % left.len());
            out.push(Injection { row, teacher });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_failing_groups_get_teachers() {
        let g = Guidance::default();
        let rewards = [g.reward(false, true), 0.0, g.reward(true, false), 0.0];
        let with = |strategy, draw: f64| {
            let set = Guidance { strategy, ..g }.groups(&rewards, &[4, 4, 5, 5], |_| draw).unwrap();
            set.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(with(Strategy::Adaptive, 0.0), [4]);
        assert_eq!(with(Strategy::Always, 0.9), [4, 5]);
        assert_eq!(with(Strategy::Hybrid, 0.29), [4, 5]);
        assert_eq!(with(Strategy::Hybrid, 0.31), [4]);
        assert_eq!((g.teacher_reward(0.9), g.teacher_reward(1.2)), (1.0, 1.2));
    }

    #[test]
    fn ranks_are_stable_and_every_teacher_is_used_once() {
        assert_eq!(best_k(&[0.2, 0.7, 0.2, 0.7], 3), [1, 3, 0]);
        for rows in [[5, 2, 7], [0, 1, 2], [1, 3, 6]] {
            let mut taken: Vec<usize> = injected_rows(&rows, 3).iter().map(|i| i.teacher).collect();
            taken.sort_unstable();
            assert_eq!(taken, [0, 1, 2]);
        }
        assert_eq!(injected_rows(&[0, 1], 1).len(), 1);
        assert_eq!(Rounding::Bfloat16.of(0.8139), 0.8125);
    }
}
