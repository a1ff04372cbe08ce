//! Which groups of rollouts are worth training on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::advantage::members;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES, SUCCESS, TRUNCATED};
use crate::block::{Block, Filter, Kind};
use crate::error::{Error, Result};
use crate::state::State;

/// Keeps a group by its mean success, and optionally only if nobody in it ran into the step limit (SRPO, siiRL).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccuracyFilter {
    /// Lowest mean success that is kept. 0 keeps groups without a success: only then can a graded reward help them.
    pub lower: f64,
    /// Highest mean success that is kept.
    pub upper: f64,
    /// Also drop groups in which an episode reached `max_steps`.
    pub drop_truncated: bool,
}

impl Default for AccuracyFilter {
    fn default() -> Self {
        Self { lower: 0.1, upper: 0.9, drop_truncated: false }
    }
}

impl AccuracyFilter {
    /// Ids of the groups to keep. `success` [B], `finish_steps` [B] control steps executed, `max_steps` the limit.
    ///
    /// # Errors
    /// Lengths differ, or the bounds are not in order.
    pub fn keep(
        &self,
        success: &[bool],
        finish_steps: &[usize],
        max_steps: usize,
        group_ids: &[u64],
    ) -> Result<BTreeSet<u64>> {
        for (name, got) in [("success", success.len()), ("finish_steps", finish_steps.len())] {
            if got != group_ids.len() {
                let expected = format!("[{}], like `group_ids`", group_ids.len());
                return Err(Error::Shape { name, got: vec![got], expected });
            }
        }
        self.check()?;
        let keeps = |index: &[usize]| {
            let mean = index.iter().filter(|&&i| success[i]).count() as f64 / index.len() as f64;
            let truncated = index.iter().any(|&i| finish_steps[i] >= max_steps);
            self.lower <= mean && mean <= self.upper && !(self.drop_truncated && truncated)
        };
        Ok(members(group_ids).into_iter().filter(|(_, index)| keeps(index)).map(|(id, _)| id).collect())
    }

    fn check(&self) -> Result<()> {
        if 0.0 <= self.lower && self.lower <= self.upper && self.upper <= 1.0 {
            return Ok(());
        }
        let expected = "between 0 and `upper`, and `upper` at most 1";
        Err(Error::Setting { name: "filter.lower", got: self.lower, expected })
    }
}

impl Block for AccuracyFilter {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![SUCCESS, GROUP_IDS];
        needs.extend(self.drop_truncated.then_some(TRUNCATED));
        needs
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn describe(&self) -> String {
        let truncated = if self.drop_truncated { ", none truncated" } else { "" };
        format!("groups with mean success in [{}, {}]{truncated}", self.lower, self.upper)
    }
}

impl Kind for AccuracyFilter {
    const KIND: &'static str = "accuracy";
}

impl Filter for AccuracyFilter {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        let success: Vec<bool> = batch.numbers(SUCCESS)?.iter().map(|&x| x != 0.0).collect();
        let groups = batch.ids(GROUP_IDS)?;
        let steps: Vec<usize> = if self.drop_truncated {
            batch.numbers(TRUNCATED)?.iter().map(|&x| usize::from(x != 0.0)).collect()
        } else {
            vec![0; groups.len()]
        };
        let kept = Self::keep(self, &success, &steps, 1, groups)?;
        Ok(groups.iter().map(|id| kept.contains(id)).collect())
    }
}

/// Drops groups whose rewards are all equal (DAPO's dynamic sampling): they have no advantage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaryingGroups {}

impl Block for VaryingGroups {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn describe(&self) -> String {
        "groups whose rewards differ".into()
    }
}

impl Kind for VaryingGroups {
    const KIND: &'static str = "varying_groups";
}

impl Filter for VaryingGroups {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        let groups = batch.ids(GROUP_IDS)?;
        let kept = varying_groups(&batch.outcomes()?, groups)?;
        Ok(groups.iter().map(|id| kept.contains(id)).collect())
    }
}

/// Drops groups in which all succeed or all fail: DAPO's dynamic sampling as its authors run it, on the accuracy, which
/// penalties for length do not touch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaryingSuccess {}

impl Block for VaryingSuccess {
    fn needs(&self) -> Vec<Input> {
        vec![SUCCESS, GROUP_IDS]
    }

    fn describe(&self) -> String {
        "groups with successes and failures".into()
    }
}

impl Kind for VaryingSuccess {
    const KIND: &'static str = "varying_success";
}

impl Filter for VaryingSuccess {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        let groups = batch.ids(GROUP_IDS)?;
        let kept = varying_groups(&batch.numbers(SUCCESS)?, groups)?;
        Ok(groups.iter().map(|id| kept.contains(id)).collect())
    }
}

/// DAPO's dynamic sampling: keeps groups whose metric varies (population deviation above 0) or that have one member.
///
/// # Errors
/// Lengths differ.
pub fn varying_groups(metric: &[f64], group_ids: &[u64]) -> Result<BTreeSet<u64>> {
    if metric.len() != group_ids.len() {
        let expected = format!("[{}], like `group_ids`", group_ids.len());
        return Err(Error::Shape { name: "metric", got: vec![metric.len()], expected });
    }
    let varies = |index: &[usize]| index.len() == 1 || index.iter().any(|&i| metric[i] != metric[index[0]]);
    Ok(members(group_ids).into_iter().filter(|(_, index)| varies(index)).map(|(id, _)| id).collect())
}
