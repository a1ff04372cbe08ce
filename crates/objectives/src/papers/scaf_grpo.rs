//! Scaf-GRPO: Scaffolded Group Relative Policy Optimization (arXiv 2510.19807).
//!
//! Base: GRPO, loss and advantage unchanged. New: help for prompts whose whole group fails. After a hint-free warm-up
//! a group without any success ("stalled") is tried again with hints in its prompt, from weak to strong; the answer
//! that the weakest working hint brought replaces one failed answer.
//!
//! ```text
//! level    tier by tier, k = 1..parts:  "Question: {q}\n{tier}: {first k parts}"   (cumulative inside a tier only)
//! rescue   smallest level with reward 1; its answer, WITH its hinted prompt, replaces the first row of the group
//! then     recompute masks, rewards and old log-probabilities of all rows (hinted rows under the hinted prompt)
//! A = (r - mean_g) / (std_g + 1e-6);  clip 0.2, dual clip 3, token mean; no KL, no entropy
//! ```
//!
//! Numerator and denominator of the ratio are both conditioned on prompt and hint, so the update stays on-policy.
//! With n = 8 and one rescued row its advantage is +2.47 and the others' -0.35. Rows of one group may have different
//! prompts: store the prompt per row.
//!
//! Source: dvlab-research/Scaf-GRPO. Where code and paper differ: the release has two tiers (knowledge, solution),
//! the paper three (planning between them); tiers are a list, the release's is the default. The code samples all
//! levels at once, one answer each; trying them in order until one works has the same outcome but for sampling noise.
//! The code's rewards are exactly 0 or 1; here a group is stalled while its best reward is below `success_threshold`.
//! Switch off format bonuses, or raise the threshold above them.
//!
//! `replace_num = 2` fills two rows: the first gets the answer under the ORIGINAL prompt, the second the full hinted
//! pair. `keep_prompt` (the authors' `replace_hint_prompt`) copies the answer only; the off-policy gap is then
//! hidden, not corrected, because old log-probabilities are recomputed under the plain prompt.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, members};
use crate::aggregation::Aggregation;
use crate::checks::same_len;
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::surrogate::ClippedRatio;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "scaf_grpo",
    title: "Scaf-GRPO: Scaffolded Group Relative Policy Optimization for Enhancing LLM Reasoning",
    arxiv: "2510.19807",
    summary: "A group that fails as a whole gets one answer that the weakest working hint brought.",
    blocks: &[],
    recipe,
    vectors: Some(("scaf_grpo.json", 4)),
    end_to_end: None,
};

/// GRPO: what is new happens while sampling.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: Some(3.0) };
    Composition::new(&surrogate, Aggregation::TokenMean).advantage(&GroupNorm::default())
}

/// How stalled groups are helped. Plain data for whoever samples; the objective does not read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaffold {
    /// Iterations without hints, so that only truly hard questions get any. The first hinted one is `warmup_steps` +
    /// 1.
    pub warmup_steps: u64,
    /// Rows that are replaced in a rescued group, 1 or 2.
    pub replace_num: usize,
    /// Copy the answer only and keep the plain prompt (for `replace_num` = 1).
    pub keep_prompt: bool,
    /// Names of the tiers as they stand in the prompt, from weak to strong.
    pub tiers: Vec<String>,
    /// Levels per tier. A tier of fewer parts repeats its last text.
    pub parts_per_tier: usize,
    /// Between the parts.
    pub separator: String,
    /// Lowest reward that is a success.
    pub success_threshold: f64,
}

impl Default for Scaffold {
    fn default() -> Self {
        Self {
            warmup_steps: 50,
            replace_num: 1,
            keep_prompt: false,
            tiers: vec!["Knowledge Hints".into(), "Solution Hints".into()],
            parts_per_tier: 4,
            separator: " ".into(),
            success_threshold: 1.0,
        }
    }
}

/// A row that is replaced, and what by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Row of the batch.
    pub row: usize,
    /// Row of the hinted batch whose answer (and reward) it gets.
    pub source: usize,
    /// Whether it gets that row's prompt as well.
    pub with_prompt: bool,
}

/// What a step of help found and does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rescue {
    /// Groups without a success.
    pub stalled: BTreeSet<u64>,
    /// Hinted row of the weakest hint that works, by group.
    pub selected: BTreeMap<u64, usize>,
    /// Stalled groups that no hint helps: all their advantages stay 0.
    pub unsolved: BTreeSet<u64>,
    /// In order of row.
    pub replacements: Vec<Replacement>,
}

impl Scaffold {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(1..=2).contains(&self.replace_num) {
            return wrong("replace_num", self.replace_num as f64, "1 or 2");
        }
        if self.parts_per_tier == 0 {
            return wrong("parts_per_tier", 0.0, "1 or more");
        }
        if !self.success_threshold.is_finite() {
            return wrong("success_threshold", self.success_threshold, "a finite number");
        }
        Ok(())
    }

    /// Whether stalled groups get hints in iteration `step` (counted from 1).
    pub fn hints_at(&self, step: u64) -> bool {
        step > self.warmup_steps
    }

    /// Number of levels, counted from 1.
    pub fn levels(&self) -> usize {
        self.tiers.len() * self.parts_per_tier
    }

    /// User messages of a question, one per level from weak to strong. `hints` holds the parts of every tier, each
    /// from less to more revealing.
    ///
    /// # Errors
    /// [`Error::Shape`]: not one list of parts per tier.
    pub fn messages(&self, question: &str, hints: &[Vec<String>]) -> Result<Vec<String>> {
        if hints.len() != self.tiers.len() {
            let expected = format!("[{}], one list per tier", self.tiers.len());
            return Err(Error::Shape { name: "hints", got: vec![hints.len()], expected });
        }
        let level = |tier: &str, parts: &[String], k: usize| {
            let shown = &parts[..k.min(parts.len())];
            format!("Question: {question}\n{tier}: {}", shown.join(&self.separator))
        };
        let tiers = self.tiers.iter().zip(hints);
        Ok(tiers.flat_map(|(t, parts)| (1..=self.parts_per_tier).map(move |k| level(t, parts, k))).collect())
    }

    /// Groups without a success, which are sampled again with hints. `rewards` and `group_ids` [B].
    ///
    /// # Errors
    /// Lengths differ.
    pub fn stalled(&self, rewards: &[f64], group_ids: &[u64]) -> Result<BTreeSet<u64>> {
        same_len("rewards", rewards.len(), group_ids.len())?;
        let fails = |index: &[usize]| index.iter().all(|&i| self.fails(rewards[i]));
        Ok(members(group_ids).into_iter().filter(|(_, index)| fails(index)).map(|(id, _)| id).collect())
    }

    fn fails(&self, reward: f64) -> bool {
        reward.is_nan() || reward < self.success_threshold
    }

    /// Chooses the weakest hint that works for every stalled group and the rows that its answer replaces. `rewards`
    /// and `group_ids` [B] of the batch; `hinted_rewards`, `hinted_groups`, `levels` of the hinted rows.
    ///
    /// # Errors
    /// Lengths differ, settings out of range.
    pub fn rescue(
        &self,
        rewards: &[f64],
        group_ids: &[u64],
        hinted_rewards: &[f64],
        hinted_groups: &[u64],
        levels: &[u64],
    ) -> Result<Rescue> {
        self.validate()?;
        same_len("hinted_rewards", hinted_rewards.len(), hinted_groups.len())?;
        same_len("levels", levels.len(), hinted_groups.len())?;
        let stalled = self.stalled(rewards, group_ids)?;
        let hinted = members(hinted_groups);
        let weakest = |id: &u64| {
            let works = hinted.get(id)?.iter().copied().filter(|&i| !self.fails(hinted_rewards[i]));
            works.min_by_key(|&i| levels[i]) // the first of equals
        };
        let selected: BTreeMap<u64, usize> =
            stalled.iter().filter_map(|id| Some((*id, weakest(id)?))).collect();
        let unsolved = stalled.iter().copied().filter(|id| !selected.contains_key(id)).collect();
        let rows = members(group_ids);
        let mut replacements = Vec::new();
        for (id, &source) in &selected {
            let rows = rows.get(id).map_or(&[][..], Vec::as_slice);
            for (nth, &row) in rows.iter().take(self.replace_num).enumerate() {
                let with_prompt = if self.replace_num == 1 { !self.keep_prompt } else { nth == 1 };
                replacements.push(Replacement { row, source, with_prompt });
            }
        }
        replacements.sort_by_key(|r| r.row);
        Ok(Rescue { stalled, selected, unsolved, replacements })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::advantage::group_norm;
    use proptest::prelude::*;

    #[test]
    fn one_rescued_row_of_eight() {
        let rewards = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let a = group_norm(&rewards, &[0; 8], &GroupNorm::default()).unwrap();
        assert!((a[0] - 2.4748).abs() < 1e-4 && (a[1] + 0.35355).abs() < 1e-5);
    }

    #[test]
    fn the_warm_up_is_free_of_hints_and_settings_are_checked() {
        let s = Scaffold::default();
        assert!(!s.hints_at(50) && s.hints_at(51));
        assert_eq!(s.levels(), 8);
        assert!(s.messages("q", &[]).unwrap_err().to_string().contains("hints"));
        let three = Scaffold { replace_num: 3, ..s.clone() };
        assert!(three.validate().unwrap_err().to_string().contains("replace_num"));
        let none = s.messages("q", &[vec![], vec!["a".into()]]).unwrap();
        assert_eq!(
            (none[0].as_str(), none[7].as_str()),
            ("Question: q\nKnowledge Hints: ", "Question: q\nSolution Hints: a")
        );
    }

    proptest! {
        /// Groups with a success are left alone, whatever the hints bring; a rescued group gets its weakest hint.
        #[test]
        fn only_stalled_groups_change(
            rewards in proptest::collection::vec(0u8..2, 12),
            hinted in proptest::collection::vec(0u8..2, 12),
        ) {
            let s = Scaffold::default();
            let rewards: Vec<f64> = rewards.into_iter().map(|r| f64::from(r) * f64::from(r)).collect();
            let ids: Vec<u64> = (0..12).map(|i| i % 4).collect();
            let hinted: Vec<f64> = hinted.into_iter().map(f64::from).collect();
            let groups: Vec<u64> = (0..12).map(|i| i / 3).collect();
            let levels: Vec<u64> = (0..12).map(|i| 3 - i % 3).collect(); // strong hints first
            let rescue = s.rescue(&rewards, &ids, &hinted, &groups, &levels).unwrap();
            for r in &rescue.replacements {
                let id = ids[r.row];
                prop_assert!(members(&ids)[&id].iter().all(|&i| rewards[i] == 0.0));
                prop_assert_eq!(groups[r.source], id);
                let weaker = members(&groups)[&id].iter().any(|&i| levels[i] < levels[r.source] && hinted[i] == 1.0);
                prop_assert!(!weaker && hinted[r.source] == 1.0);
            }
            prop_assert_eq!(rescue.stalled.len(), rescue.selected.len() + rescue.unsolved.len());
        }
    }
}
