//! REINFORCE++ (2501.03262) and ReMax: rewards-to-go instead of groups. Formulas: verl `core_algos.py`.

use serde::{Deserialize, Serialize};

use super::group::{GroupNorm, Spread, group_norm};
use super::whiten::{Whiten, masked_whiten};
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES, TOKEN_REWARDS};
use crate::block::{Advantage, Block, Kind};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// What the greedy answer to the same prompt earned: ReMax' baseline.
pub const GREEDY_REWARDS: Input =
    Input::new("greedy_rewards", "[B]", "reward of the greedy answer to the same prompt");

/// Advantages and returns of REINFORCE++, both [B, T]: G_t = r_t + gamma G_{t+1}, where the running value is set to 0
/// behind every masked token; A = whiten(G) times the mask.
///
/// # Errors
/// Shapes differ, or fewer than two valid tokens.
pub fn reinforce_plus_plus(rewards: &Table, mask: &Table, gamma: f64) -> Result<(Table, Table)> {
    rewards.same_shape("token_rewards", mask)?;
    let mut returns = Table { values: vec![0.0; mask.values.len()], ..*mask };
    for row in 0..mask.rows {
        let mut running = 0.0;
        for t in (row * mask.cols..(row + 1) * mask.cols).rev() {
            running = rewards.values[t] + gamma * running;
            returns.values[t] = running;
            running *= mask.values[t];
        }
    }
    let mut advantages = masked_whiten(&returns, mask, &Whiten::default())?;
    advantages.values.iter_mut().zip(&mask.values).for_each(|(a, m)| *a *= m);
    Ok((advantages, returns))
}

/// ReMax: the undiscounted reward-to-go over valid tokens, less the greedy answer's reward `baselines` [B]. Returns
/// advantages and returns, both [B, T].
///
/// # Errors
/// Shapes differ.
pub fn remax(rewards: &Table, baselines: &[f64], mask: &Table) -> Result<(Table, Table)> {
    rewards.same_shape("token_rewards", mask)?;
    if baselines.len() != mask.rows {
        let expected = format!("[{}], one per row", mask.rows);
        return Err(Error::Shape { name: "reward_baselines", got: vec![baselines.len()], expected });
    }
    let mut returns = Table { values: vec![0.0; mask.values.len()], ..*mask };
    let mut advantages = returns.clone();
    for (row, baseline) in baselines.iter().enumerate() {
        let mut running = 0.0;
        for t in (row * mask.cols..(row + 1) * mask.cols).rev() {
            running += rewards.values[t] * mask.values[t];
            returns.values[t] = running;
            advantages.values[t] = running - baseline * mask.values[t];
        }
    }
    Ok((advantages, returns))
}

/// REINFORCE++-baseline: the reward less its group's mean (a lone member keeps its own), whitened over the valid tokens
/// of the batch, times the mask. `rewards` [B], `group_ids` [B]; returns [B, T].
///
/// # Errors
/// Lengths differ, a reward is not finite, fewer than two valid tokens.
pub fn reinforce_plus_plus_baseline(rewards: &[f64], group_ids: &[u64], mask: &Table) -> Result<Table> {
    let settings = GroupNorm { epsilon: 0.0, spread: Spread::None, ..GroupNorm::default() };
    let centred = Table::broadcast(&group_norm(rewards, group_ids, &settings)?, mask)?;
    let mut advantages = masked_whiten(&centred, mask, &Whiten::default())?;
    advantages.values.iter_mut().zip(&mask.values).for_each(|(a, m)| *a *= m);
    Ok(advantages)
}

fn check_discount(gamma: f64) -> Result<()> {
    if (0.0..=1.0).contains(&gamma) {
        return Ok(());
    }
    Err(Error::Setting { name: "gamma", got: gamma, expected: "0 to 1" })
}

/// REINFORCE++: rewards-to-go, whitened over the batch; no critic and no group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReinforcePlusPlus {
    /// Discount per token, 0 to 1.
    pub gamma: f64,
}

impl Default for ReinforcePlusPlus {
    fn default() -> Self {
        Self { gamma: 1.0 }
    }
}

impl Block for ReinforcePlusPlus {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS]
    }

    fn validate(&self) -> Result<()> {
        check_discount(self.gamma)
    }

    fn describe(&self) -> String {
        format!("rewards-to-go (gamma {}), whitened over the batch", self.gamma)
    }
}

impl Kind for ReinforcePlusPlus {
    const KIND: &'static str = "reinforce_plus_plus";
}

impl Advantage for ReinforcePlusPlus {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        Ok(reinforce_plus_plus(&batch.table(TOKEN_REWARDS)?, batch.mask(), self.gamma)?.0)
    }
}

/// REINFORCE++ with the group's mean as the baseline, for several answers to one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReinforcePlusPlusBaseline {}

impl Block for ReinforcePlusPlusBaseline {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn describe(&self) -> String {
        "group: R - mean, whitened over the batch".into()
    }
}

impl Kind for ReinforcePlusPlusBaseline {
    const KIND: &'static str = "reinforce_plus_plus_baseline";
}

impl Advantage for ReinforcePlusPlusBaseline {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        reinforce_plus_plus_baseline(&batch.outcomes()?, batch.ids(GROUP_IDS)?, batch.mask())
    }
}

/// ReMax: the reward less that of the greedy answer to the same prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Remax {}

impl Block for Remax {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, GREEDY_REWARDS]
    }

    fn describe(&self) -> String {
        "rewards-to-go - reward of the greedy answer".into()
    }
}

impl Kind for Remax {
    const KIND: &'static str = "remax";
}

impl Advantage for Remax {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (mut advantages, _) =
            remax(&batch.table(TOKEN_REWARDS)?, &batch.numbers(GREEDY_REWARDS)?, batch.mask())?;
        // verl carries the reward-to-go into holes of the mask.
        advantages.values.iter_mut().zip(&batch.mask().values).for_each(|(a, m)| *a *= m);
        Ok(advantages)
    }
}
