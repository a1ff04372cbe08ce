//! Generalised advantage estimation (1506.02438) in verl's form, which carries value and advantage through holes in the
//! mask (tool output, observations).

use serde::{Deserialize, Serialize};

use super::whiten::{Whiten, masked_whiten};
use crate::batch::{Batch, Input, OUTCOMES, TOKEN_REWARDS, TURN_IDS, VALUES};
use crate::block::{Advantage, Block, Kind};
use crate::checks::unit;
use crate::error::Result;
use crate::state::State;
use crate::table::Table;

/// Settings of GAE.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gae {
    /// Discount per token.
    pub gamma: f64,
    /// Trace decay.
    pub lambda: f64,
    /// Whether advantages are whitened over the batch.
    pub whiten: bool,
}

impl Default for Gae {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 1.0, whiten: true }
    }
}

/// Advantages and returns, both [B, T]. Right to left, only through valid tokens:
/// delta = r_t + gamma V_next - V_t, A_t = delta + gamma lambda A_next; returns = A + V, taken before whitening.
/// At a masked position A repeats the value from its right, and whitening does not multiply by the mask again.
///
/// # Errors
/// Shapes differ, or fewer than two valid tokens to whiten.
pub fn gae(rewards: &Table, values: &Table, mask: &Table, settings: &Gae) -> Result<(Table, Table)> {
    rewards.same_shape("token_rewards", mask)?;
    values.same_shape("values", mask)?;
    let mut advantages = Table { values: vec![0.0; mask.values.len()], ..*mask };
    let cols = mask.cols;
    for row in 0..mask.rows {
        let (mut v_next, mut a_next) = (0.0, 0.0);
        for t in (row * cols..(row + 1) * cols).rev() {
            let delta = rewards.values[t] + settings.gamma * v_next - values.values[t];
            if mask.values[t] != 0.0 {
                a_next = delta + settings.gamma * settings.lambda * a_next;
                v_next = values.values[t];
            }
            advantages.values[t] = a_next;
        }
    }
    let sum = advantages.values.iter().zip(&values.values).map(|(a, v)| a + v).collect();
    let returns = Table { values: sum, ..*mask };
    let advantages =
        if settings.whiten { masked_whiten(&advantages, mask, &Whiten::default())? } else { advantages };
    Ok((advantages, returns))
}

impl Block for Gae {
    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)
    }

    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, VALUES]
    }

    fn describe(&self) -> String {
        let whiten = if self.whiten { ", whitened" } else { "" };
        format!("GAE (gamma {}, lambda {}{whiten})", self.gamma, self.lambda)
    }
}

impl Kind for Gae {
    const KIND: &'static str = "gae";
}

impl Advantage for Gae {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (mut advantages, _) =
            gae(&batch.table(TOKEN_REWARDS)?, &batch.table(VALUES)?, batch.mask(), self)?;
        advantages.values.iter_mut().zip(&batch.mask().values).for_each(|(a, m)| *a *= m);
        Ok(advantages)
    }
}

/// GAE over turns (decisions, chunks, answers) instead of tokens: a turn's value is that of its first token, its reward
/// the sum of its token rewards (or the outcome, on the last turn), and all its tokens share its advantage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TurnGae {
    /// Discount per turn, 0 to 1.
    pub gamma: f64,
    /// 0 trusts the critic, 1 the outcome.
    pub lambda: f64,
    /// Whiten over the valid tokens of the batch.
    pub whiten: bool,
}

impl Default for TurnGae {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 0.95, whiten: true }
    }
}

impl Block for TurnGae {
    fn needs(&self) -> Vec<Input> {
        vec![VALUES, TURN_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn validate(&self) -> Result<()> {
        unit("gamma", self.gamma)?;
        unit("lambda", self.lambda)
    }

    fn describe(&self) -> String {
        let whiten = if self.whiten { ", whitened" } else { "" };
        format!("GAE over turns (gamma {}, lambda {}{whiten})", self.gamma, self.lambda)
    }
}

impl Kind for TurnGae {
    const KIND: &'static str = "turn_gae";
}

impl Advantage for TurnGae {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (mask, turns, values) = (batch.mask(), batch.table(TURN_IDS)?, batch.table(VALUES)?);
        let rewards = if batch.has(TOKEN_REWARDS) { Some(batch.table(TOKEN_REWARDS)?) } else { None };
        let outcomes = batch.outcomes()?;
        let mut out = mask.filled(0.0);
        for (row, outcome) in outcomes.iter().enumerate().take(mask.rows) {
            // Turns as (first token, reward, tokens), in order.
            let mut all: Vec<(usize, f64, Vec<usize>)> = Vec::new();
            let mut current = f64::NAN;
            for t in (row * mask.cols..(row + 1) * mask.cols).filter(|&t| mask.values[t] != 0.0) {
                if turns.values[t] < 0.0 {
                    continue;
                }
                if turns.values[t] != current {
                    current = turns.values[t];
                    all.push((t, 0.0, Vec::new()));
                }
                if let Some((_, reward, tokens)) = all.last_mut() {
                    *reward += rewards.as_ref().map_or(0.0, |r| r.values[t]);
                    tokens.push(t);
                }
            }
            if let (None, Some((_, reward, _))) = (&rewards, all.last_mut()) {
                *reward = *outcome;
            }
            let (mut next_value, mut next_advantage) = (0.0, 0.0);
            for (first, reward, tokens) in all.iter().rev() {
                let value = values.values[*first];
                let advantage =
                    reward + self.gamma * next_value - value + self.gamma * self.lambda * next_advantage;
                tokens.iter().for_each(|&t| out.values[t] = advantage);
                (next_value, next_advantage) = (value, advantage);
            }
        }
        if !self.whiten || mask.values.iter().sum::<f64>() <= 1.0 {
            return Ok(out);
        }
        let mut white = masked_whiten(&out, mask, &Whiten::default())?;
        white.values.iter_mut().zip(&mask.values).for_each(|(a, m)| *a *= m);
        Ok(white)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn by_hand_with_a_hole() {
        let table = |row: &[f64]| Table::from_rows(&[row.to_vec()]).unwrap();
        let settings = Gae { gamma: 0.5, lambda: 0.5, whiten: false };
        let (rewards, values) = (table(&[1.0, 9.0, 2.0]), table(&[4.0, 8.0, 6.0]));
        let (a, returns) = gae(&rewards, &values, &table(&[1.0, 0.0, 1.0]), &settings).unwrap();
        // t=2: 2 - 6 = -4; t=1 masked: repeats -4; t=0: (1 + 0.5*6 - 4) + 0.25*(-4) = -1
        assert_eq!(a.values, [-1.0, -4.0, -4.0]);
        assert_eq!(returns.values, [3.0, 4.0, 2.0]);
    }

    #[test]
    fn turns_share_an_advantage_and_the_outcome_stands_on_the_last() {
        let table = |row: &[f64]| Table::from_rows(&[row.to_vec()]).unwrap();
        let mask = table(&[1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        let batch = Batch::new(mask)
            .with(TURN_IDS, table(&[0.0, 0.0, 0.0, 1.0, 1.0, 2.0]))
            .and_then(|b| b.with(VALUES, table(&[0.5, 9.0, 9.0, 0.25, 9.0, 9.0])))
            .and_then(|b| b.with(crate::batch::REWARDS, vec![1.0]))
            .unwrap();
        let settings = TurnGae { gamma: 1.0, lambda: 0.5, whiten: false };
        let a = settings.advantages(&batch, &mut State::default()).unwrap();
        // Turn 1: 1 - 0.25 = 0.75; turn 0: 0.25 - 0.5 + 0.5 * 0.75 = 0.125.
        assert_eq!(a.values, [0.125, 0.125, 0.0, 0.75, 0.75, 0.0]);
        // With lambda 1 and no discount the critic is a baseline only.
        let settings = TurnGae { lambda: 1.0, ..settings };
        let a = settings.advantages(&batch, &mut State::default()).unwrap();
        assert_eq!(a.values, [0.5, 0.5, 0.0, 0.75, 0.75, 0.0]);
    }
}
