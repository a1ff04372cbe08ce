//! GAE over every position of a row, without a mask: for streams of steps in which episodes end and begin (MDPO,
//! OpenAI Baselines), and for responses that are always generated to full length (DR-PO). The shared [`Gae`](super::Gae)
//! carries values through holes of the mask instead.

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, RETURNS, TOKEN_REWARDS, VALUES};
use crate::block::{Advantage, Block, Kind, Reward};
use crate::checks::unit;
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// Where episodes begin in a stream of steps.
pub const EPISODE_STARTS: Input = Input::new("episode_starts", "[B, T]", "1 where a step begins an episode");
/// A critic's value of the state after the last step.
pub const NEXT_VALUES: Input =
    Input::new("next_values", "[B]", "critic's value after the last step, 0 where an episode just ended");

/// GAE over every position, from the critic's rollout-time values. [`StreamReturns`] gives the critic's targets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamGae {
    /// Discount per step.
    pub gamma: f64,
    /// Trace decay.
    pub lambda: f64,
    /// Episodes end inside rows: read `episode_starts` and `next_values`. Otherwise a row ends with value 0.
    pub streams: bool,
    /// Whether advantages are whitened over all positions, with the population variance.
    pub whiten: bool,
    /// Added to that variance.
    pub epsilon: f64,
}

impl Default for StreamGae {
    fn default() -> Self {
        Self { gamma: 0.99, lambda: 0.95, streams: true, whiten: true, epsilon: 0.0 }
    }
}

/// Advantages and returns, both [B, T]. delta_t = r_t + gamma V_{t+1} n_t - V_t and A_t = delta_t + gamma lambda n_t
/// A_{t+1}, where n_t is 0 when step t + 1 begins an episode; returns = A + V. `next_values` [B] is V after the last step.
///
/// # Errors
/// Shapes differ.
pub fn stream_gae(
    rewards: &Table,
    values: &Table,
    starts: Option<&Table>,
    next_values: &[f64],
    (gamma, lambda): (f64, f64),
) -> Result<(Table, Table)> {
    values.same_shape("values", rewards)?;
    if let Some(starts) = starts {
        starts.same_shape("episode_starts", rewards)?;
    }
    if next_values.len() != rewards.rows {
        let expected = format!("[{}], one per row", rewards.rows);
        return Err(Error::Shape { name: "next_values", got: vec![next_values.len()], expected });
    }
    let mut advantages = rewards.filled(0.0);
    let cols = rewards.cols;
    for (row, &after) in next_values.iter().enumerate() {
        let (mut v_next, mut a_next) = (after, 0.0);
        for t in (row * cols..(row + 1) * cols).rev() {
            let last = t + 1 == (row + 1) * cols;
            let ends = !last && starts.is_some_and(|s| s.values[t + 1] != 0.0);
            let goes_on = if ends { 0.0 } else { 1.0 };
            let delta = rewards.values[t] + gamma * v_next * goes_on - values.values[t];
            a_next = delta + gamma * lambda * goes_on * a_next;
            v_next = values.values[t];
            advantages.values[t] = a_next;
        }
    }
    let returns = advantages.values.iter().zip(&values.values).map(|(a, v)| a + v).collect();
    let returns = Table { values: returns, ..advantages };
    Ok((advantages, returns))
}

/// (x - mean) / sqrt(population variance + epsilon) over all numbers; exactly 0 where all are equal.
pub fn standardise(x: &[f64], epsilon: f64) -> Vec<f64> {
    if x.iter().all(|v| *v == x[0]) {
        return vec![0.0; x.len()];
    }
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let scale = (variance + epsilon).sqrt();
    x.iter().map(|v| if scale > 0.0 { (v - mean) / scale } else { 0.0 }).collect()
}

/// Reads a batch and runs GAE over it.
fn run(batch: &Batch, streams: bool, gamma: f64, lambda: f64) -> Result<(Table, Table)> {
    let (rewards, values) = (batch.table(TOKEN_REWARDS)?, batch.table(VALUES)?);
    let starts = if streams { Some(batch.table(EPISODE_STARTS)?) } else { None };
    let next = if streams { batch.numbers(NEXT_VALUES)? } else { vec![0.0; batch.rows()] };
    stream_gae(&rewards, &values, starts.as_ref(), &next, (gamma, lambda))
}

fn needs(streams: bool) -> Vec<Input> {
    let mut needs = vec![TOKEN_REWARDS, VALUES];
    if streams {
        needs.extend([EPISODE_STARTS, NEXT_VALUES]);
    }
    needs
}

impl Block for StreamGae {
    fn needs(&self) -> Vec<Input> {
        needs(self.streams)
    }

    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)?;
        if self.epsilon >= 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let whiten = if self.whiten { ", whitened" } else { "" };
        format!("GAE over all positions (gamma {}, lambda {}{whiten})", self.gamma, self.lambda)
    }
}

impl Kind for StreamGae {
    const KIND: &'static str = "stream_gae";
}

impl Advantage for StreamGae {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (mut advantages, _) = run(batch, self.streams, self.gamma, self.lambda)?;
        if self.whiten {
            advantages.values = standardise(&advantages.values, self.epsilon);
        }
        advantages.values.iter_mut().zip(&batch.mask().values).for_each(|(a, m)| *a *= m);
        Ok(advantages)
    }
}

/// Gives [`RETURNS`], the A + V of [`StreamGae`] before whitening.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamReturns {
    /// Discount per step.
    pub gamma: f64,
    /// Trace decay.
    pub lambda: f64,
    /// Episodes end inside rows: read `episode_starts` and `next_values`. Otherwise a row ends with value 0.
    pub streams: bool,
}

impl Default for StreamReturns {
    fn default() -> Self {
        Self { gamma: 0.99, lambda: 0.95, streams: true }
    }
}

impl Block for StreamReturns {
    fn needs(&self) -> Vec<Input> {
        needs(self.streams)
    }

    fn gives(&self) -> Vec<Input> {
        vec![RETURNS]
    }

    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)
    }

    fn describe(&self) -> String {
        format!("critic's targets by GAE (gamma {}, lambda {})", self.gamma, self.lambda)
    }
}

impl Kind for StreamReturns {
    const KIND: &'static str = "stream_returns";
}

impl Reward for StreamReturns {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (_, returns) = run(batch, self.streams, self.gamma, self.lambda)?;
        batch.set(RETURNS, returns)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_episode_end_cuts_the_trace_and_only_the_last_one_is_bootstrapped() {
        let row = |x: &[f64]| Table::from_rows(&[x.to_vec()]).unwrap();
        let (rewards, values) = (row(&[1.0, 2.0, 3.0]), row(&[0.5, 0.25, 4.0]));
        let starts = row(&[1.0, 0.0, 1.0]);
        let (a, returns) = stream_gae(&rewards, &values, Some(&starts), &[8.0], (0.5, 0.5)).unwrap();
        // t=2: 3 + 4 - 4; t=1 ends its episode: 2 - 0.25; t=0: (1 + 0.125 - 0.5) + 0.25 * 1.75
        assert_eq!(a.values, [1.0625, 1.75, 3.0]);
        assert_eq!(returns.values, [1.5625, 2.0, 7.0]);
        assert!(stream_gae(&rewards, &values, None, &[], (0.5, 0.5)).is_err());
    }

    #[test]
    fn equal_numbers_are_zero_and_nothing_is_nothing() {
        assert_eq!(standardise(&[0.1; 7], 0.0), [0.0; 7]);
        assert!(standardise(&[], 0.0).is_empty());
        assert_eq!(standardise(&[1.0, 3.0], 0.0), [-1.0, 1.0]);
    }
}
