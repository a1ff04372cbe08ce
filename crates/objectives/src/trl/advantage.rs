//! TRL's group advantages: other epsilon, other spreads, several reward functions at once.

use serde::{Deserialize, Serialize};

use crate::advantage::members;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES};
use crate::block::{Advantage, Block, Kind};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// What each reward function said of each sequence; NaN where it said nothing.
pub const REWARD_TERMS: Input =
    Input::new("reward_terms", "[B][F]", "what each of F reward functions says, NaN for nothing");

/// What centred rewards are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRewards {
    /// The group's unbiased deviation.
    Group,
    /// The batch's unbiased deviation.
    Batch,
    /// Nothing.
    None,
}

/// How several reward functions become one advantage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiReward {
    /// Weighted sum first.
    SumThenNormalize,
    /// Each reward normalised inside its group, weighted sum, then normalised over the batch.
    NormalizeThenSum,
}

/// Advantages [B] from `rewards` [B][functions]; `None` means the function returned nothing. A row without any reward
/// is left out of every statistic and gets 0.
///
/// # Errors
/// Lengths differ.
pub fn advantages(
    rewards: &[Vec<Option<f64>>],
    weights: &[f64],
    group_ids: &[u64],
    scale: ScaleRewards,
    multi: MultiReward,
    epsilon: f64,
) -> Result<Vec<f64>> {
    if rewards.len() != group_ids.len() || rewards.iter().any(|r| r.len() != weights.len()) {
        let got = vec![rewards.len(), rewards.first().map_or(0, Vec::len)];
        let expected = format!("[{}, {}]", group_ids.len(), weights.len());
        return Err(Error::Shape { name: "rewards", got, expected });
    }
    let weighted_sum = |row: &[Option<f64>]| {
        let terms: Vec<f64> = row.iter().zip(weights).filter_map(|(r, w)| Some((*r)? * w)).collect();
        (!terms.is_empty()).then(|| terms.iter().sum::<f64>())
    };
    let everything = vec![0; rewards.len()];
    let centred = match multi {
        MultiReward::SumThenNormalize => {
            let total: Vec<Option<f64>> = rewards.iter().map(|r| weighted_sum(r)).collect();
            match scale {
                ScaleRewards::Group => standardise(&total, group_ids, group_ids, Some(epsilon)),
                ScaleRewards::Batch => standardise(&total, group_ids, &everything, Some(epsilon)),
                ScaleRewards::None => standardise(&total, group_ids, group_ids, None),
            }
        }
        MultiReward::NormalizeThenSum => {
            let mut normal: Vec<Vec<Option<f64>>> = vec![Vec::new(); rewards.len()];
            for f in 0..weights.len() {
                let column: Vec<Option<f64>> = rewards.iter().map(|r| r[f]).collect();
                let column = standardise(&column, group_ids, group_ids, Some(epsilon));
                normal.iter_mut().zip(column).for_each(|(row, x)| row.push(x));
            }
            let total: Vec<Option<f64>> = normal.iter().map(|r| weighted_sum(r)).collect();
            standardise(&total, &everything, &everything, Some(epsilon))
        }
    };
    Ok(centred.into_iter().map(|a| a.unwrap_or(0.0)).collect())
}

/// (x - mean inside `centre`) / (unbiased deviation inside `spread` + epsilon), over the values that are there.
fn standardise(x: &[Option<f64>], centre: &[u64], spread: &[u64], epsilon: Option<f64>) -> Vec<Option<f64>> {
    let statistics = |index: &[usize]| {
        let there: Vec<f64> = index.iter().filter_map(|&i| x[i]).collect();
        let n = there.len() as f64;
        // In exact arithmetic equal values have no spread and no distance from their mean.
        if there.len() < 2 || there.windows(2).all(|w| w[0] == w[1]) {
            return (there.first().copied().unwrap_or(0.0), 0.0);
        }
        let mean = there.iter().sum::<f64>() / n;
        let biased = there.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        // n / (n - 1) is a quotient of integer tensors in TRL, hence f32.
        (mean, (biased * f64::from((n / (n - 1.0)) as f32)).sqrt())
    };
    let mut out = vec![None; x.len()];
    let mut deviations = vec![0.0; x.len()];
    for index in members(spread).values() {
        let (_, std) = statistics(index);
        index.iter().for_each(|&i| deviations[i] = std);
    }
    for index in members(centre).values() {
        let (mean, _) = statistics(index);
        let scaled = |i: usize, x: f64| epsilon.map_or(x - mean, |eps| (x - mean) / (deviations[i] + eps));
        index.iter().for_each(|&i| out[i] = x[i].map(|x| scaled(i, x)));
    }
    out
}

/// Settings of TRL's advantages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrlNorm {
    /// Added to the deviation, 0 or more.
    pub epsilon: f64,
    /// What divides.
    pub scale: ScaleRewards,
    /// Weight of each reward function; empty: there is one outcome and no functions.
    pub weights: Vec<f64>,
    /// How several reward functions become one advantage.
    pub combine: MultiReward,
}

impl Default for TrlNorm {
    fn default() -> Self {
        let (scale, combine) = (ScaleRewards::Group, MultiReward::SumThenNormalize);
        Self { epsilon: 1e-4, scale, weights: Vec::new(), combine }
    }
}

impl Block for TrlNorm {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![GROUP_IDS];
        needs.extend((!self.weights.is_empty()).then_some(REWARD_TERMS));
        needs
    }

    fn needs_one_of(&self) -> &'static [Input] {
        if self.weights.is_empty() { OUTCOMES } else { &[] }
    }

    fn validate(&self) -> Result<()> {
        let finite = |name, got: f64, right: bool, expected| {
            if right && got.is_finite() { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
        };
        finite("epsilon", self.epsilon, self.epsilon >= 0.0, "0 or more")?;
        self.weights.iter().try_for_each(|&w| finite("weights", w, true, "finite numbers"))
    }

    fn describe(&self) -> String {
        let by = match (self.combine, self.scale) {
            (MultiReward::NormalizeThenSum, _) if !self.weights.is_empty() => {
                return format!(
                    "TRL: {} rewards, each normalised in its group, summed, normalised over the batch",
                    self.weights.len()
                );
            }
            (_, ScaleRewards::Group) => " / (std + eps)",
            (_, ScaleRewards::Batch) => " / (std of the batch + eps)",
            (_, ScaleRewards::None) => "",
        };
        format!("TRL group: (R - mean){by}")
    }
}

impl Kind for TrlNorm {
    const KIND: &'static str = "trl_norm";
}

impl Advantage for TrlNorm {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (terms, weights): (Vec<Vec<Option<f64>>>, &[f64]) = if self.weights.is_empty() {
            (batch.outcomes()?.into_iter().map(|r| vec![Some(r)]).collect(), &[1.0])
        } else {
            let there = |&x: &f64| (!x.is_nan()).then_some(x);
            let terms = batch.vectors(REWARD_TERMS)?;
            (terms.iter().map(|row| row.iter().map(there).collect()).collect(), &self.weights)
        };
        let infinite = |row: &Vec<Option<f64>>| row.iter().flatten().copied().find(|x| x.is_infinite());
        if let Some((index, got)) = terms.iter().enumerate().find_map(|(i, row)| Some((i, infinite(row)?))) {
            return Err(Error::NotFinite { name: REWARD_TERMS.name, index, got });
        }
        let groups = batch.ids(GROUP_IDS)?;
        let per_row = advantages(&terms, weights, groups, self.scale, self.combine, self.epsilon)?;
        Table::broadcast(&per_row, batch.mask())
    }
}
