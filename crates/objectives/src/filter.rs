//! Which groups of rollouts are worth training on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::advantage::members;
use crate::error::{Error, Result};

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
        self.validate()?;
        let keeps = |index: &[usize]| {
            let mean = index.iter().filter(|&&i| success[i]).count() as f64 / index.len() as f64;
            let truncated = index.iter().any(|&i| finish_steps[i] >= max_steps);
            self.lower <= mean && mean <= self.upper && !(self.drop_truncated && truncated)
        };
        Ok(members(group_ids).into_iter().filter(|(_, index)| keeps(index)).map(|(id, _)| id).collect())
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if 0.0 <= self.lower && self.lower <= self.upper && self.upper <= 1.0 {
            return Ok(());
        }
        let expected = "between 0 and `upper`, and `upper` at most 1";
        Err(Error::Setting { name: "filter.lower", got: self.lower, expected })
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
