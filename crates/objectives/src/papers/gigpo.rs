//! GiGPO: Group-in-Group Policy Optimization (arXiv 2505.10978).
//!
//! Base: GRPO for agents where every environment step is a row of its own (prompt, response). New: beside the
//! episode's advantage, steps that were taken from the SAME environment state (the anchor) compare their
//! discounted returns.
//!
//! ```text
//! returns   R_t = r_t + gamma R_{t+1} along a trajectory; afterwards an invalid action costs its own row 0.1,
//!           in R_t and in the episode's reward
//! A_E       s - mean, or (s - mean) / (std + 1e-6), over the rows of the task; a lone row keeps s
//! A_S       the same over the rows of the task with equal anchors, of R_t; a lone row has 0
//! A         A_E + omega A_S, the same for all tokens of the row
//! loss      dual-clip PPO + 0.01 KL (k3), token mean
//! ```
//!
//! Shapes: one row per environment step. `rewards` [B] the episode's reward on every row; `group_ids` [B] the task
//! (all its environments start alike); `traj_ids` [B]; `step_rewards` [B]; `anchors` [B] the raw observation
//! before the action, without history, counters or timestamps (otherwise every group is a single row: watch
//! [`mean_group_size`]); `invalid_actions` [B] 0 or 1. Rows of a trajectory stand in order of time.
//!
//! Code against paper: the code takes A_E's statistics over all rows, so longer trajectories weigh more; the paper
//! takes one value per trajectory, its first row's (`per_trajectory`; there a penalised row of a group whose
//! values are all equal is divided by epsilon alone, as the code has it). The code's is the default. Returns are
//! f64 here, f32 there. Source: langfengQ/verl-agent (gigpo, trainer).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread, group_norm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES, REWARDS};
use crate::block::{Advantage, Block, BlockKind, Kind, Reward};
use crate::checks::same_len;
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::regularizer::Kl;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Trajectory of every row.
pub const TRAJ_IDS: Input = Input::new("traj_ids", "[B]", "trajectory of every environment step");
/// Environment's state before the action, as text; arrays go in as the text of their bytes.
pub const ANCHORS: Input = Input::new("anchors", "[B]", "raw environment state before the action, as text");
/// What the environment paid for the step.
pub const STEP_REWARDS: Input = Input::new("step_rewards", "[B]", "reward of the environment for this step");
/// 1 where the response could not be read as an action.
pub const INVALID_ACTIONS: Input = Input::new("invalid_actions", "[B]", "1 where the response is no action");
/// Discounted return from the step on, made by [`StepReturns`].
pub const STEP_RETURNS: Input = Input::new("step_returns", "[B]", "discounted return from this step on");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "gigpo",
    title: "Group-in-Group Policy Optimization for LLM Agent Training",
    arxiv: "2505.10978",
    summary: "Steps from the same environment state are each other's baseline, inside the group of episodes.",
    blocks: &[BlockKind::reward::<StepReturns>(), BlockKind::advantage::<GroupInGroup>()],
    recipe,
    vectors: Some(("gigpo.json", 8)),
    end_to_end: None,
};

/// Step returns, both advantages, clipped ratio with a KL to the reference, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&StepReturns::default())
        .advantage(&GroupInGroup::default())
        .regularizer(&Kl { coef: 0.01, ..Kl::default() })
}

/// Discounted returns of every step, and what an invalid action costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepReturns {
    /// Discount per step, 0 to 1.
    pub gamma: f64,
    /// Taken off the row's return and episode reward, 0 or more. Not carried back to earlier steps.
    pub invalid_penalty: f64,
}

impl Default for StepReturns {
    fn default() -> Self {
        Self { gamma: 0.95, invalid_penalty: 0.1 }
    }
}

impl Block for StepReturns {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![TRAJ_IDS, STEP_REWARDS];
        needs.extend((self.invalid_penalty != 0.0).then_some(INVALID_ACTIONS));
        needs
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS, STEP_RETURNS]
    }

    fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.gamma) {
            return Err(Error::Setting { name: "gamma", got: self.gamma, expected: "0 to 1" });
        }
        if !(self.invalid_penalty >= 0.0 && self.invalid_penalty.is_finite()) {
            let (name, got) = ("invalid_penalty", self.invalid_penalty);
            return Err(Error::Setting { name, got, expected: "0 or more" });
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("step returns discounted by {}, invalid actions -{}", self.gamma, self.invalid_penalty)
    }
}

impl Kind for StepReturns {
    const KIND: &'static str = "step_returns";
}

impl Reward for StepReturns {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let mut episodes = batch.outcomes()?;
        let steps = batch.numbers(STEP_REWARDS)?;
        let mut returns = discounted_returns(&steps, batch.ids(TRAJ_IDS)?, self.gamma)?;
        if self.invalid_penalty != 0.0 {
            for (i, invalid) in batch.numbers(INVALID_ACTIONS)?.into_iter().enumerate() {
                if invalid != 0.0 {
                    episodes[i] -= self.invalid_penalty;
                    returns[i] -= self.invalid_penalty;
                }
            }
        }
        batch.set(REWARDS, episodes)?;
        batch.set(STEP_RETURNS, returns)
    }
}

/// R_t = r_t + gamma R_{t+1} along every trajectory, whose rows stand in order of time, [B].
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn discounted_returns(rewards: &[f64], traj_ids: &[u64], gamma: f64) -> Result<Vec<f64>> {
    same_len("traj_ids", traj_ids.len(), rewards.len())?;
    if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
        return Err(Error::NotFinite { name: STEP_REWARDS.name, index, got: rewards[index] });
    }
    let mut out = vec![0.0; rewards.len()];
    for rows in members(traj_ids).values() {
        let mut next = 0.0;
        for &i in rows.iter().rev() {
            next = rewards[i] + gamma * next;
            out[i] = next;
        }
    }
    Ok(out)
}

/// What the differences from the mean are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing. The authors' choice on WebShop and Sokoban.
    MeanNorm,
    /// The unbiased standard deviation. The authors' choice on ALFWorld and search.
    #[default]
    MeanStdNorm,
}

/// Advantage of the episode plus that of the step among steps from the same state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupInGroup {
    /// Whether deviations divide.
    pub mode: Mode,
    /// omega, weight of the step's advantage; 0 is GRPO over rows.
    pub step_weight: f64,
    /// Added to deviations.
    pub epsilon: f64,
    /// Episode statistics over one value per trajectory (paper) instead of over all rows (code).
    pub per_trajectory: bool,
    /// Anchors this similar count as equal (see [`similarity`]), between 0 and 1; 0 wants them identical. The authors
    /// take 0.9 for search.
    pub similarity: f64,
}

impl Default for GroupInGroup {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            step_weight: 1.0,
            epsilon: 1e-6,
            per_trajectory: false,
            similarity: 0.0,
        }
    }
}

impl GroupInGroup {
    fn norm(&self) -> GroupNorm {
        let spread = match self.mode {
            Mode::MeanNorm => Spread::None,
            Mode::MeanStdNorm => Spread::Unbiased,
        };
        GroupNorm { epsilon: self.epsilon, spread, ..GroupNorm::default() }
    }

    /// A_E of every row, [B].
    ///
    /// # Errors
    /// Lengths differ or a score is not finite.
    pub fn episode(&self, scores: &[f64], group_ids: &[u64], traj_ids: &[u64]) -> Result<Vec<f64>> {
        if !self.per_trajectory {
            return group_norm(scores, group_ids, &self.norm());
        }
        same_len("group_ids", group_ids.len(), scores.len())?;
        same_len("traj_ids", traj_ids.len(), scores.len())?;
        let mut out = vec![0.0; scores.len()];
        for rows in members(group_ids).values() {
            let mut firsts: BTreeMap<u64, f64> = BTreeMap::new();
            rows.iter().for_each(|&i| {
                firsts.entry(traj_ids[i]).or_insert(scores[i]);
            });
            let values: Vec<f64> = firsts.into_values().collect();
            // Rows of a trajectory differ by penalties, so that a row need not be among the values.
            let n = values.len() as f64;
            let constant = values.iter().all(|v| *v == values[0]);
            let mean = if constant { values[0] } else { values.iter().sum::<f64>() / n };
            let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
            let (mean, std) = if n == 1.0 { (0.0, 1.0) } else { (mean, (squares / (n - 1.0)).sqrt()) };
            let by = match self.mode {
                Mode::MeanNorm => 1.0,
                Mode::MeanStdNorm => std + self.epsilon,
            };
            rows.iter().for_each(|&i| out[i] = if scores[i] == mean { 0.0 } else { (scores[i] - mean) / by });
        }
        Ok(out)
    }

    /// A_S of every row, [B]: `returns` compared inside `step_groups`, 0 for a row alone.
    ///
    /// # Errors
    /// Lengths differ or a return is not finite.
    pub fn step(&self, returns: &[f64], step_groups: &[u64]) -> Result<Vec<f64>> {
        let mut out = group_norm(returns, step_groups, &self.norm())?;
        for rows in members(step_groups).values() {
            if let [alone] = rows[..] {
                out[alone] = 0.0;
            }
        }
        Ok(out)
    }
}

impl Block for GroupInGroup {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS, TRAJ_IDS, ANCHORS, STEP_RETURNS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        match self {
            s if !s.step_weight.is_finite() => wrong("step_weight", s.step_weight, "a finite number"),
            s if !(0.0..1.0).contains(&s.similarity) => {
                wrong("similarity", s.similarity, "0 (identical anchors) or between 0 and 1")
            }
            s => s.norm().validate(),
        }
    }

    fn describe(&self) -> String {
        let by = match self.mode {
            Mode::MeanNorm => "R - mean",
            Mode::MeanStdNorm => "(R - mean) / (std + eps)",
        };
        format!("{by} over episodes + {} times the same over steps from one state", self.step_weight)
    }
}

impl Kind for GroupInGroup {
    const KIND: &'static str = "group_in_group";
}

impl Advantage for GroupInGroup {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let groups = batch.ids(GROUP_IDS)?;
        let mut advantages = self.episode(&batch.outcomes()?, groups, batch.ids(TRAJ_IDS)?)?;
        let step_groups = step_groups(batch.texts(ANCHORS)?, groups, self.similarity)?;
        let steps = self.step(&batch.numbers(STEP_RETURNS)?, &step_groups)?;
        advantages.iter_mut().zip(steps).for_each(|(a, step)| *a += self.step_weight * step);
        Table::broadcast(&advantages, batch.mask())
    }
}

/// Group of every row, [B]: rows of one task with equal anchors, or with anchors at least `threshold` similar to
/// the first member of the group (the first such group wins). Numbered in order of appearance.
///
/// # Errors
/// Lengths differ.
pub fn step_groups(anchors: &[String], group_ids: &[u64], threshold: f64) -> Result<Vec<u64>> {
    same_len("anchors", anchors.len(), group_ids.len())?;
    // (task, representative's row) of every group.
    let mut groups: Vec<(u64, usize)> = Vec::new();
    let mut exact: BTreeMap<(u64, &str), u64> = BTreeMap::new();
    let mut out = Vec::with_capacity(anchors.len());
    for (i, (anchor, &task)) in anchors.iter().zip(group_ids).enumerate() {
        let found = if threshold > 0.0 {
            let fits =
                |&(of, row): &(u64, usize)| of == task && similarity(anchor, &anchors[row]) >= threshold;
            groups.iter().position(fits).map(|k| k as u64)
        } else {
            exact.get(&(task, anchor.as_str())).copied()
        };
        out.push(found.unwrap_or_else(|| {
            exact.insert((task, anchor), groups.len() as u64);
            groups.push((task, i));
            groups.len() as u64 - 1
        }));
    }
    Ok(out)
}

/// Mean number of rows per step group, for the log: near 1 nothing is compared.
pub fn mean_group_size(step_groups: &[u64]) -> f64 {
    step_groups.len() as f64 / members(step_groups).len().max(1) as f64
}

/// 2 M / (len a + len b) in characters, M the total length of matching blocks: the longest common block, then the
/// same on both sides of it (Ratcliff and Obershelp, as in Python's difflib, with its rule that in a `b` of 200
/// characters or more a character that makes up over 1 % starts no block). Not symmetric. 1 for two empty texts.
pub fn similarity(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.is_empty() && b.is_empty() {
        return 1.0;
    }
    let mut places: BTreeMap<char, Vec<usize>> = BTreeMap::new();
    b.iter().enumerate().for_each(|(j, &c)| places.entry(c).or_default().push(j));
    if b.len() >= 200 {
        let most = b.len() / 100 + 1;
        places.retain(|_, at| at.len() <= most);
    }
    let (mut todo, mut matched) = (vec![(0, a.len(), 0, b.len())], 0);
    while let Some((a0, a1, b0, b1)) = todo.pop() {
        let (i, j, length) = longest_block(&a, &b, &places, (a0, a1, b0, b1));
        if length > 0 {
            matched += length;
            todo.push((a0, i, b0, j));
            todo.push((i + length, a1, j + length, b1));
        }
    }
    2.0 * matched as f64 / (a.len() + b.len()) as f64
}

/// The longest block common to a[a0..a1] and b[b0..b1], the earliest in `a`, then in `b`: (start in a, in b, length).
fn longest_block(
    a: &[char],
    b: &[char],
    places: &BTreeMap<char, Vec<usize>>,
    (a0, a1, b0, b1): (usize, usize, usize, usize),
) -> (usize, usize, usize) {
    let (mut i, mut j, mut length) = (a0, b0, 0);
    // Length of the block that ends at (row, column), by column.
    let mut above: BTreeMap<usize, usize> = BTreeMap::new();
    for (row, c) in a.iter().enumerate().take(a1).skip(a0) {
        let mut here = BTreeMap::new();
        for &column in places.get(c).into_iter().flatten().filter(|j| (b0..b1).contains(*j)) {
            let before = column.checked_sub(1).and_then(|j| above.get(&j)).copied().unwrap_or(0);
            here.insert(column, before + 1);
            if before + 1 > length {
                (i, j, length) = (row - before, column - before, before + 1);
            }
        }
        above = here;
    }
    // Frequent characters start no block but may lengthen one.
    while i > a0 && j > b0 && a[i - 1] == b[j - 1] {
        (i, j, length) = (i - 1, j - 1, length + 1);
    }
    while i + length < a1 && j + length < b1 && a[i + length] == b[j + length] {
        length += 1;
    }
    (i, j, length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::advantage::group_norm;

    fn batch(anchors: &[&str], rewards: &[f64]) -> Batch {
        let b = rewards.len();
        let mask = Table { rows: b, cols: 2, values: vec![1.0; 2 * b] };
        let steps: Vec<f64> =
            rewards.iter().enumerate().map(|(i, r)| if i % 2 == 1 { *r } else { 0.0 }).collect();
        Batch::new(mask)
            .with(REWARDS, rewards.to_vec())
            .unwrap()
            .with(STEP_REWARDS, steps)
            .unwrap()
            .with(GROUP_IDS, vec![3; b])
            .unwrap()
            .with(TRAJ_IDS, (0..b as u64).map(|i| i / 2).collect::<Vec<u64>>())
            .unwrap()
            .with(INVALID_ACTIONS, vec![0.0; b])
            .unwrap()
            .with(ANCHORS, anchors.iter().map(|s| s.to_string()).collect::<Vec<_>>())
            .unwrap()
    }

    fn advantages(batch: &Batch) -> Vec<f64> {
        let prepared = recipe().build().unwrap().prepare(batch.clone(), &mut State::default()).unwrap();
        prepared.signals.advantages.values
    }

    /// Control of the paper: without a repeated state GiGPO is GRPO.
    #[test]
    fn without_repeated_states_it_is_grpo() {
        let rewards = [0.0, 0.0, 10.0, 10.0, 10.0, 10.0];
        let got = advantages(&batch(&["a", "b", "c", "d", "e", "f"], &rewards));
        let grpo = group_norm(&rewards, &[0; 6], &GroupNorm::default()).unwrap();
        for (i, a) in grpo.iter().enumerate() {
            assert_eq!((got[2 * i], got[2 * i + 1]), (*a, *a));
        }
        let repeated = advantages(&batch(&["a", "b", "a", "d", "a", "f"], &rewards));
        assert!(repeated[0] < got[0] && repeated[4] > got[4]);
        assert_eq!(repeated[2], got[2]);
    }

    #[test]
    fn equal_episodes_still_teach_shorter_ways() {
        let mut batch = batch(&["s", "x", "s", "y"], &[10.0; 4]);
        batch.set(STEP_REWARDS, vec![0.0, 10.0, 10.0, 0.0]).unwrap();
        let a = advantages(&batch);
        assert!(a[0] < 0.0 && a[4] > 0.0);
        assert_eq!((a[2], a[6]), (0.0, 0.0));
        assert!(GroupInGroup::default().step(&[0.7; 5], &[1; 5]).unwrap().iter().all(|&a| a == 0.0));
    }

    #[test]
    fn a_penalty_stays_on_its_row() {
        let mut batch = batch(&["a", "b"], &[1.0, 1.0]);
        batch.set(INVALID_ACTIONS, vec![0.0, 1.0]).unwrap();
        StepReturns { gamma: 1.0, invalid_penalty: 0.25 }.shape(&mut batch, &mut State::default()).unwrap();
        assert_eq!(batch.numbers(STEP_RETURNS).unwrap(), [1.0, 0.75]);
        assert_eq!(batch.numbers(REWARDS).unwrap(), [1.0, 0.75]);
    }

    #[test]
    fn groups_and_similarity() {
        let texts = ["a", "b", "a", "a"].map(String::from);
        assert_eq!(step_groups(&texts, &[0, 0, 0, 1], 0.0).unwrap(), [0, 1, 0, 2]);
        assert_eq!(mean_group_size(&[0, 1, 0, 2]), 4.0 / 3.0);
        assert_eq!(similarity("", ""), 1.0);
        assert_eq!(similarity("abcd", "bcde"), 0.75);
        assert_eq!(similarity("x", "y"), 0.0);
        // Frequent characters start no block, but lengthen one; the numbers are difflib's.
        let long = |n| "ab".repeat(n);
        assert_eq!(similarity(&long(150), &long(150)), 1.0);
        assert_eq!(similarity(&format!("Z{}", long(150)), &long(150)), 0.0);
        let (a, b) = (format!("xy{}Q", long(100)), format!("{}Q{}", long(120), long(10)));
        assert!((similarity(&a, &b) - 0.8663793103448276).abs() < 1e-15);
        assert!(step_groups(&texts, &[0], 0.0).is_err());
    }

    #[test]
    fn per_trajectory_statistics_weigh_trajectories_alike() {
        let settings = GroupInGroup { mode: Mode::MeanNorm, per_trajectory: true, ..GroupInGroup::default() };
        let a = settings.episode(&[1.0, 1.0, 1.0, 0.0], &[0; 4], &[0, 0, 0, 1]).unwrap();
        assert_eq!(a, [0.5, 0.5, 0.5, -0.5]);
        let rows = GroupInGroup { per_trajectory: false, ..settings };
        assert_eq!(rows.episode(&[1.0, 1.0, 1.0, 0.0], &[0; 4], &[0, 0, 0, 1]).unwrap()[3], -0.75);
        assert_eq!(settings.episode(&[0.3], &[0], &[0]).unwrap(), [0.3]);
    }
}
