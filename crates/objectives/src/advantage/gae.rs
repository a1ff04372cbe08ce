//! Generalised advantage estimation (1506.02438) in verl's form, which carries value and advantage through holes in the
//! mask (tool output, observations).

use serde::{Deserialize, Serialize};

use super::whiten::{Whiten, masked_whiten};
use crate::batch::{Batch, Input, TOKEN_REWARDS, VALUES};
use crate::block::{Advantage, Block, Kind};
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
}
