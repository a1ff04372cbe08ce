//! Outcome advantages from the group of rollouts that share a prompt: GRPO (2402.03300), Dr.GRPO (2503.20783), RLOO
//! (2402.14740), OPO (2505.23585), GPG, pass@k. Formulas: verl `core_algos.py`.
//!
//! All functions take `rewards` [B] (one outcome per sequence) and `group_ids` [B] and return [B]. Members of a group
//! need not stand together. A group whose rewards are all equal gets exactly 0 where the spread divides: in f32 a group
//! of eight 0.9s would get -0.056, because their mean is not 0.9.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES};
use crate::block::{Advantage, Block, Kind};
use crate::checks::same_len;
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// What the centred reward is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Unbiased standard deviation (n - 1) plus epsilon: GRPO.
    Unbiased,
    /// sqrt(max(unbiased variance, epsilon)) plus epsilon: verl's vectorised GRPO.
    FlooredVariance,
    /// Nothing: Dr.GRPO.
    None,
}

/// GRPO's advantage and its relatives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupNorm {
    /// Added to the spread. verl 1e-6, TRL 1e-4.
    pub epsilon: f64,
    /// What divides.
    pub spread: Spread,
    /// Add epsilon to a lone member's spread of 1 in f32, as verl does (siiRL does it in f64). Only for parity.
    pub lone_spread_f32: bool,
}

impl Default for GroupNorm {
    fn default() -> Self {
        Self { epsilon: 1e-6, spread: Spread::Unbiased, lone_spread_f32: false }
    }
}

/// What the group does to a lone member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupBaseline {
    /// It keeps its reward (verl's loop forms).
    KeepsReward,
    /// It gets 0 (verl's vectorised forms).
    Zero,
}

/// Indices of the members of every group, groups in order of id.
pub fn members(group_ids: &[u64]) -> BTreeMap<u64, Vec<usize>> {
    let mut groups: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, &id) in group_ids.iter().enumerate() {
        groups.entry(id).or_default().push(i);
    }
    groups
}

/// a_i = (R_i - mean_g) / (std_g + eps). A lone member has mean 0 and spread 1.
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn group_norm(rewards: &[f64], group_ids: &[u64], settings: &GroupNorm) -> Result<Vec<f64>> {
    per_group(rewards, group_ids, |r| {
        let eps = settings.epsilon;
        let (mean, variance) = if r.len() == 1 { (0.0, 1.0) } else { mean_variance(r) };
        let constant = r.len() > 1 && r.iter().all(|&x| x == r[0]);
        let by = match settings.spread {
            Spread::Unbiased if r.len() == 1 && settings.lone_spread_f32 => f64::from(1.0 + eps as f32),
            Spread::Unbiased => variance.sqrt() + eps,
            Spread::FlooredVariance => variance.max(eps).sqrt() + eps,
            Spread::None => 1.0,
        };
        r.iter().map(|&x| if constant { 0.0 } else { (x - mean) / by }).collect()
    })
}

/// RLOO: a_i = n/(n-1) (R_i - mean_g), the reward minus the mean of the others.
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn leave_one_out(rewards: &[f64], group_ids: &[u64], alone: GroupBaseline) -> Result<Vec<f64>> {
    per_group(rewards, group_ids, |r| {
        let n = r.len() as f64;
        let (mean, _) = mean_variance(r);
        match (r.len(), alone) {
            (1, GroupBaseline::KeepsReward) => r.to_vec(),
            (1, GroupBaseline::Zero) => vec![0.0],
            _ => r.iter().map(|x| n / (n - 1.0) * (x - mean)).collect(),
        }
    })
}

/// OPO: the baseline is the group's length-weighted mean, sum(L R) / sum(L). `lengths` [B] in tokens; a lone member
/// keeps its reward.
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn opo(rewards: &[f64], lengths: &[f64], group_ids: &[u64]) -> Result<Vec<f64>> {
    same_len("lengths", lengths.len(), rewards.len())?;
    check(rewards, group_ids)?;
    let mut out = vec![0.0; rewards.len()];
    for index in members(group_ids).values() {
        let total: f64 = index.iter().map(|&i| lengths[i]).sum();
        let weighted: f64 = index.iter().map(|&i| lengths[i] * rewards[i]).sum();
        let baseline = if index.len() == 1 || total == 0.0 { 0.0 } else { weighted / total };
        index.iter().for_each(|&i| out[i] = rewards[i] - baseline);
    }
    Ok(out)
}

/// GPG: a_i = (B / number of nonzero rewards) (R_i - mean_g) / f_norm. A lone member keeps its (scaled) reward.
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn gpg(rewards: &[f64], group_ids: &[u64], f_norm: f64) -> Result<Vec<f64>> {
    let nonzero = rewards.iter().filter(|&&r| r != 0.0).count().max(1);
    // A quotient of integer tensors is f32 in the authors' code.
    let alpha = f64::from((rewards.len() as f64 / nonzero as f64) as f32);
    per_group(rewards, group_ids, |r| {
        let mean = if r.len() == 1 { 0.0 } else { mean_variance(r).0 };
        r.iter().map(|x| alpha * (x - mean) / f_norm).collect()
    })
}

/// Pass@k: only the best of a group gets (best - second) / (std + eps), all others 0; without `by_spread` nothing
/// divides. A lone member is an error in verl; here it gets 0, having nothing to be compared with.
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn pass_at_k(rewards: &[f64], group_ids: &[u64], by_spread: bool, epsilon: f64) -> Result<Vec<f64>> {
    per_group(rewards, group_ids, |r| {
        let mut out = vec![0.0; r.len()];
        let mut order: Vec<usize> = (0..r.len()).collect();
        order.sort_by(|&a, &b| r[b].total_cmp(&r[a]));
        if let [best, second, ..] = order[..] {
            let by = if by_spread { mean_variance(r).1.sqrt() + epsilon } else { 1.0 };
            out[best] = (r[best] - r[second]) / by;
        }
        out
    })
}

/// Mean and unbiased variance (0 for a single value).
fn mean_variance(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let squares: f64 = x.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, if x.len() > 1 { squares / (n - 1.0) } else { 0.0 })
}

fn per_group(rewards: &[f64], group_ids: &[u64], f: impl Fn(&[f64]) -> Vec<f64>) -> Result<Vec<f64>> {
    check(rewards, group_ids)?;
    let mut out = vec![0.0; rewards.len()];
    for index in members(group_ids).values() {
        let group: Vec<f64> = index.iter().map(|&i| rewards[i]).collect();
        index.iter().zip(f(&group)).for_each(|(&i, a)| out[i] = a);
    }
    Ok(out)
}

fn check(rewards: &[f64], group_ids: &[u64]) -> Result<()> {
    same_len("group_ids", group_ids.len(), rewards.len())?;
    match rewards.iter().position(|r| !r.is_finite()) {
        Some(index) => Err(Error::NotFinite { name: "rewards", index, got: rewards[index] }),
        None => Ok(()),
    }
}

impl Block for GroupNorm {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn validate(&self) -> Result<()> {
        if self.epsilon >= 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        match self.spread {
            Spread::Unbiased => "group: (R - mean) / (std + eps)".into(),
            Spread::FlooredVariance => "group: (R - mean) / (sqrt(max(var, eps)) + eps)".into(),
            Spread::None => "group: R - mean".into(),
        }
    }
}

impl Kind for GroupNorm {
    const KIND: &'static str = "group_norm";
}

impl Advantage for GroupNorm {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        Table::broadcast(&group_norm(&batch.outcomes()?, batch.ids(GROUP_IDS)?, self)?, batch.mask())
    }
}

/// RLOO: the mean of the others is the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaveOneOut {
    /// What a lone member gets.
    pub alone: GroupBaseline,
}

impl Default for LeaveOneOut {
    fn default() -> Self {
        Self { alone: GroupBaseline::Zero }
    }
}

impl Block for LeaveOneOut {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn describe(&self) -> String {
        "leave one out: R - mean of the others".into()
    }
}

impl Kind for LeaveOneOut {
    const KIND: &'static str = "leave_one_out";
}

impl Advantage for LeaveOneOut {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let per_row = leave_one_out(&batch.outcomes()?, batch.ids(GROUP_IDS)?, self.alone)?;
        Table::broadcast(&per_row, batch.mask())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_rewards_teach_nothing_whatever_their_rounding() {
        for r in [0.9, 0.7, 1e-30, 1e30] {
            assert_eq!(group_norm(&[r; 8], &[3; 8], &GroupNorm::default()).unwrap(), [0.0; 8]);
        }
    }

    #[test]
    fn a_lone_member() {
        let a = group_norm(&[2.0], &[1], &GroupNorm::default()).unwrap();
        assert!((a[0] - 2.0 / (1.0 + 1e-6)).abs() < 1e-12);
        assert_eq!(leave_one_out(&[2.0], &[1], GroupBaseline::KeepsReward).unwrap(), [2.0]);
        assert_eq!(leave_one_out(&[2.0], &[1], GroupBaseline::Zero).unwrap(), [0.0]);
        assert_eq!(pass_at_k(&[2.0], &[1], true, 1e-6).unwrap(), [0.0]);
    }

    #[test]
    fn bad_input_is_named() {
        let message = |e: Error| e.to_string();
        let settings = GroupNorm::default();
        assert!(message(group_norm(&[1.0], &[1, 2], &settings).unwrap_err()).contains("group_ids"));
        assert!(message(group_norm(&[1.0, f64::NAN], &[1, 1], &settings).unwrap_err()).contains("index 1"));
        assert!(message(opo(&[1.0], &[], &[0]).unwrap_err()).contains("lengths"));
    }

    proptest! {
        #[test]
        fn group_advantages_sum_to_zero_and_follow_a_permutation(
            rewards in proptest::collection::vec(-5.0f64..5.0, 2..24),
            groups in 1u64..4,
            turn in 0usize..24,
        ) {
            let ids: Vec<u64> = (0..rewards.len() as u64).map(|i| i % groups).collect();
            let a = group_norm(&rewards, &ids, &GroupNorm::default()).unwrap();
            for index in members(&ids).values().filter(|m| m.len() > 1) {
                let sum: f64 = index.iter().map(|&i| a[i]).sum();
                prop_assert!(sum.abs() < 1e-6 * index.len() as f64);
            }
            let turn = turn % rewards.len();
            let (mut moved, mut moved_ids, mut expected) = (rewards.clone(), ids.clone(), a);
            moved.rotate_left(turn);
            moved_ids.rotate_left(turn);
            expected.rotate_left(turn);
            let b = group_norm(&moved, &moved_ids, &GroupNorm::default()).unwrap();
            for (x, y) in b.iter().zip(&expected) {
                prop_assert!((x - y).abs() < 1e-6);
            }
        }
    }
}
