//! The reward of the augmented problem, and what the policy sees.

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, SUCCESS, TOKEN_REWARDS};
use crate::block::{Block, Kind, Reward};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// How far outside of the current subgoal's region a step ends, 0 inside and when no subgoal is left.
pub const SUBGOAL_DISTANCE: Input =
    Input::new("subgoal_distance", "[B, T]", "distance to the current subgoal's region after the step");
/// How many subgoals were due at the end of a step and reached.
pub const SUBGOALS_REACHED: Input =
    Input::new("subgoals_reached", "[B, T]", "subgoals that were due after the step and reached");
/// Sum over active invariances of min(0, robustness) at the end of a step.
pub const INVARIANCE: Input =
    Input::new("invariance", "[B, T]", "sum over active invariances of min(0, robustness) after the step");

/// Weights of the four terms. Reconstructed, see the paper's page.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StagedReward {
    /// On the distance, which is subtracted.
    pub distance: f64,
    /// For every subgoal that is reached when it is due.
    pub progress: f64,
    /// On violated invariances.
    pub invariance: f64,
    /// At the end of an episode in which all was reached and nothing violated.
    pub success: f64,
}

impl Default for StagedReward {
    fn default() -> Self {
        Self { distance: 1.0, progress: 10.0, invariance: 5.0, success: 50.0 }
    }
}

impl Block for StagedReward {
    fn needs(&self) -> Vec<Input> {
        vec![SUBGOAL_DISTANCE, SUBGOALS_REACHED, INVARIANCE, SUCCESS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS]
    }

    fn validate(&self) -> Result<()> {
        let all = [
            ("distance", self.distance),
            ("progress", self.progress),
            ("invariance", self.invariance),
            ("success", self.success),
        ];
        match all.into_iter().find(|(_, got)| !(*got >= 0.0 && got.is_finite())) {
            Some((name, got)) => Err(Error::Setting { name, got, expected: "0 or more" }),
            None => Ok(()),
        }
    }

    fn describe(&self) -> String {
        format!(
            "staged: -{} distance + {} subgoals reached + {} violations + {} success",
            self.distance, self.progress, self.invariance, self.success
        )
    }
}

impl Kind for StagedReward {
    const KIND: &'static str = "staged";
}

impl Reward for StagedReward {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (distance, reached) = (batch.table(SUBGOAL_DISTANCE)?, batch.table(SUBGOALS_REACHED)?);
        let (invariance, success) = (batch.table(INVARIANCE)?, batch.numbers(SUCCESS)?);
        let mask = batch.mask();
        let mut rewards = mask.filled(0.0);
        for (row, success) in success.iter().enumerate() {
            let last = mask.row(row).iter().rposition(|&m| m != 0.0);
            for t in (0..mask.cols).filter(|&t| mask.row(row)[t] != 0.0) {
                let at = row * mask.cols + t;
                let done = f64::from(u8::from(last == Some(t) && *success != 0.0));
                let parts = [distance.values[at], reached.values[at], invariance.values[at], done];
                rewards.values[at] = self.weigh(parts).iter().sum();
            }
        }
        if let Some(index) = rewards.values.iter().position(|r| !r.is_finite()) {
            return Err(Error::NotFinite { name: "token_rewards", index, got: rewards.values[index] });
        }
        batch.set(TOKEN_REWARDS, rewards)
    }
}

/// A region to reach at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// Centre of the disc (or ball).
    pub center: Vec<f64>,
    /// Its radius.
    pub radius: f64,
    /// The step at which it counts.
    pub time: usize,
}

/// A region to stay out of during steps start..=end.
#[derive(Clone, Debug, PartialEq)]
pub struct Obstacle {
    /// Centre of the disc (or ball).
    pub center: Vec<f64>,
    /// Its radius.
    pub radius: f64,
    /// From.
    pub start: usize,
    /// To, included.
    pub end: usize,
}

/// What a path earned, an entry per transition.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    /// Weighted distance, progress, invariance and success terms.
    pub components: Vec<[f64; 4]>,
    /// Index of the subgoal that is pursued; the number of subgoals when none is left.
    pub current: Vec<usize>,
    /// Whether each subgoal was reached when it was due.
    pub flags: Vec<bool>,
    /// Whether an obstacle was entered while it was active.
    pub violated: bool,
}

impl Staged {
    /// Sum of the terms of every transition.
    pub fn rewards(&self) -> Vec<f64> {
        self.components.iter().map(|c| c.iter().sum()).collect()
    }
}

/// The subgoal to pursue at step `t`: the first in time that is still to come, `times.len()` when there is none. A
/// missed subgoal is left behind.
pub fn current_subgoal(times: &[usize], t: usize) -> usize {
    let later = (0..times.len()).filter(|&k| times[k] > t);
    later.min_by_key(|&k| times[k]).unwrap_or(times.len())
}

/// What the policy sees at step `t` of `horizon`: the state, t / T, (tau_k - t) / T in the order of the formula, the
/// flags, and a one-hot of the current subgoal (all 0 when none is left).
pub fn observation(state: &[f64], t: usize, horizon: usize, times: &[usize], flags: &[bool]) -> Vec<f64> {
    let over = 1.0 / horizon.max(1) as f64;
    let current = current_subgoal(times, t);
    let mut seen = state.to_vec();
    seen.push(t as f64 * over);
    seen.extend(times.iter().map(|&tau| (tau as f64 - t as f64) * over));
    seen.extend(flags.iter().map(|&flag| f64::from(u8::from(flag))));
    seen.extend((0..times.len()).map(|k| f64::from(u8::from(k == current))));
    seen
}

impl StagedReward {
    /// Distance, subgoals reached, violation (0 or less) and success, weighted.
    fn weigh(&self, [distance, reached, invariance, success]: [f64; 4]) -> [f64; 4] {
        [
            -self.distance * distance,
            self.progress * reached,
            self.invariance * invariance,
            self.success * success,
        ]
    }

    /// Terms of a `path` [T + 1][coordinates]; success is paid on the transition that ends at step `end`.
    ///
    /// # Errors
    /// Points of other dimensions than the regions.
    pub fn along(
        &self,
        path: &[Vec<f64>],
        goals: &[Goal],
        obstacles: &[Obstacle],
        end: usize,
    ) -> Result<Staged> {
        let times: Vec<usize> = goals.iter().map(|goal| goal.time).collect();
        let steps = path.len().saturating_sub(1);
        let mut out = Staged {
            components: Vec::with_capacity(steps),
            current: Vec::with_capacity(steps),
            flags: vec![false; goals.len()],
            violated: false,
        };
        for (t, point) in path.iter().skip(1).enumerate() {
            let current = current_subgoal(&times, t);
            let outside = match goals.get(current) {
                Some(goal) => (distance(point, &goal.center)? - goal.radius).max(0.0),
                None => 0.0,
            };
            let mut reached = 0.0;
            for (goal, flag) in goals.iter().zip(&mut out.flags).filter(|(goal, _)| goal.time == t + 1) {
                *flag = distance(point, &goal.center)? <= goal.radius;
                reached += f64::from(u8::from(*flag));
            }
            let mut invariance = 0.0;
            for obstacle in obstacles.iter().filter(|o| (o.start..=o.end).contains(&(t + 1))) {
                invariance += (distance(point, &obstacle.center)? - obstacle.radius).min(0.0);
            }
            out.violated |= invariance < 0.0;
            let done = t + 1 == end && !out.violated && out.flags.iter().all(|&flag| flag);
            out.components.push(self.weigh([outside, reached, invariance, f64::from(u8::from(done))]));
            out.current.push(current);
        }
        Ok(out)
    }
}

fn distance(point: &[f64], center: &[f64]) -> Result<f64> {
    if point.len() != center.len() {
        let expected = format!("[{}], like the region's centre", center.len());
        return Err(Error::Shape { name: "path", got: vec![point.len()], expected });
    }
    Ok(point.iter().zip(center).map(|(x, c)| (x - c) * (x - c)).sum::<f64>().sqrt())
}

/// Components of a batch of paths of one length, computed with all weights 1, as inputs of [`StagedReward`], which
/// weighs them: distance, subgoals reached, invariance [B, T] and success [B].
///
/// # Errors
/// Paths of different lengths.
pub fn as_inputs(paths: &[Staged]) -> Result<([Table; 3], Vec<f64>)> {
    let column = |k: usize| -> Result<Table> {
        let rows: Vec<Vec<f64>> = paths.iter().map(|p| p.components.iter().map(|c| c[k]).collect()).collect();
        Table::from_rows(&rows)
    };
    let success =
        paths.iter().map(|p| f64::from(u8::from(p.components.iter().any(|c| c[3] > 0.0)))).collect();
    let mut distance = column(0)?;
    distance.values.iter_mut().for_each(|d| *d = -*d);
    Ok(([distance, column(1)?, column(2)?], success))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn goals() -> Vec<Goal> {
        let goal = |x: f64, time| Goal { center: vec![x], radius: 0.25, time };
        vec![goal(2.0, 2), goal(1.0, 1)]
    }

    fn path(x: &[f64]) -> Vec<Vec<f64>> {
        x.iter().map(|&x| vec![x]).collect()
    }

    #[test]
    fn a_missed_subgoal_is_left_behind_and_costs_the_success() {
        let weights = StagedReward::default();
        let good = weights.along(&path(&[0.0, 1.0, 2.0]), &goals(), &[], 2).unwrap();
        assert_eq!(good.rewards(), [10.0, 60.0]);
        assert_eq!((good.current, good.flags), (vec![1, 0], vec![true, true]));
        let missed = weights.along(&path(&[0.0, 0.5, 2.0]), &goals(), &[], 2).unwrap();
        assert_eq!(missed.rewards(), [-0.25, 10.0]);
        let wall = Obstacle { center: vec![1.0], radius: 0.5, start: 0, end: 1 };
        let hit = weights.along(&path(&[0.0, 1.0, 2.0]), &goals(), &[wall], 2).unwrap();
        assert_eq!((hit.rewards(), hit.violated), (vec![7.5, 10.0], true));
        assert!(weights.along(&[vec![0.0], vec![0.0; 2]], &goals(), &[], 2).is_err());
    }

    /// The block on what paths earned with unit weights gives the path's own rewards.
    #[test]
    fn the_block_weighs_what_paths_report() {
        let unit = StagedReward { distance: 1.0, progress: 1.0, invariance: 1.0, success: 1.0 };
        let paths = [path(&[0.0, 1.0, 2.0]), path(&[0.0, 0.5, 2.0])];
        let raw: Vec<Staged> = paths.iter().map(|p| unit.along(p, &goals(), &[], 2).unwrap()).collect();
        let ([distance, reached, invariance], success) = as_inputs(&raw).unwrap();
        let mut batch = Batch::new(distance.filled(1.0))
            .with(SUBGOAL_DISTANCE, distance)
            .and_then(|b| b.with(SUBGOALS_REACHED, reached))
            .and_then(|b| b.with(INVARIANCE, invariance))
            .and_then(|b| b.with(SUCCESS, success))
            .unwrap();
        StagedReward::default().shape(&mut batch, &mut State::default()).unwrap();
        let rewards = batch.table(TOKEN_REWARDS).unwrap();
        for (row, p) in paths.iter().enumerate() {
            let direct = StagedReward::default().along(p, &goals(), &[], 2).unwrap().rewards();
            assert_eq!(rewards.row(row), direct);
        }
    }

    #[test]
    fn the_policy_sees_the_times_that_are_left() {
        let seen = observation(&[7.0], 1, 4, &[2, 1], &[false, true]);
        assert_eq!(seen, [7.0, 0.25, 0.25, 0.0, 0.0, 1.0, 1.0, 0.0]);
    }
}
