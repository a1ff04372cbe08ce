//! REINFORCE++ (2501.03262) and ReMax: rewards-to-go instead of groups. Formulas: verl `core_algos.py`.

use super::whiten::{Whiten, masked_whiten};
use crate::error::{Error, Result};
use crate::table::Table;

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
