//! Rewards made of other rewards.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, TOKEN_REWARDS};
use crate::block::{Block, Kind, Reward};
use crate::checks::setting;
use crate::error::{Error, Result};
use crate::kl::{AdaptiveKl, KlEstimator};
use crate::state::State;
use crate::table::Table;

/// DAPO's overlong penalty: min(-(len - (max - buffer)) / buffer * factor, 0), to be added to the score.
pub fn dapo_overlong(length: f64, max: f64, buffer: f64, factor: f64) -> f64 {
    (-(length - (max - buffer)) / buffer * factor).min(0.0)
}

/// TRL's soft overlong punishment: 0 up to max - cache, then linear down to -1 at max and beyond.
pub fn soft_overlong(length: f64, max: f64, cache: f64) -> f64 {
    if length <= max - cache {
        0.0
    } else if length <= max {
        (max - cache - length) / cache
    } else {
        -1.0
    }
}

/// An outcome per sequence placed on its last executed action token (SRPO, siiRL `engine/reward_manager`): index
/// `finish_steps * tokens_per_step - 1`, times `coefficient`. A sequence without steps gets nothing.
pub fn place_terminal(
    scores: &[f64],
    finish_steps: &[usize],
    tokens_per_step: usize,
    coefficient: f64,
    len: usize,
) -> Table {
    let mut out = Table { rows: scores.len(), cols: len, values: vec![0.0; scores.len() * len] };
    for (row, (score, steps)) in scores.iter().zip(finish_steps).enumerate() {
        let tokens = (steps * tokens_per_step).min(len);
        if tokens > 0 {
            out.values[row * len + tokens - 1] = score * coefficient;
        }
    }
    out
}

/// Token rewards less `coefficient` times the KL estimate between the rollout policy and the reference.
///
/// # Errors
/// Shapes differ.
pub fn kl_in_reward(
    scores: &Tensor,
    old_log_probs: &Tensor,
    ref_log_probs: &Tensor,
    estimator: KlEstimator,
    coefficient: f64,
) -> Result<Tensor> {
    let kl = estimator.estimate(&old_log_probs.detach(), &ref_log_probs.detach())?;
    Ok((scores - (kl * coefficient)?)?)
}

/// Adds to every sequence's outcome, and to its last valid token where rewards are placed on tokens.
fn add_to_outcomes(batch: &mut Batch, amounts: &[f64]) -> Result<()> {
    let rewards: Vec<f64> = batch.numbers(REWARDS)?.iter().zip(amounts).map(|(r, a)| r + a).collect();
    batch.set(REWARDS, rewards)?;
    if batch.has(TOKEN_REWARDS) {
        let mut tokens = batch.table(TOKEN_REWARDS)?;
        add_to_last(&mut tokens, batch.mask(), amounts);
        batch.set(TOKEN_REWARDS, tokens)?;
    }
    Ok(())
}

fn add_to_last(tokens: &mut Table, mask: &Table, amounts: &[f64]) {
    for (row, amount) in amounts.iter().enumerate() {
        if let Some(last) = mask.row(row).iter().rposition(|&m| m != 0.0) {
            tokens.values[row * mask.cols + last] += amount;
        }
    }
}

/// Places every sequence's outcome on its last valid token; a sequence without one gets nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Terminal {}

impl Block for Terminal {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS]
    }

    fn describe(&self) -> String {
        "the outcome on the last token".into()
    }
}

impl Kind for Terminal {
    const KIND: &'static str = "terminal";
}

impl Reward for Terminal {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let mut tokens = batch.mask().filled(0.0);
        add_to_last(&mut tokens, batch.mask(), &batch.numbers(REWARDS)?);
        batch.set(TOKEN_REWARDS, tokens)
    }
}

/// DAPO's overlong penalty on the outcome; without floor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DapoOverlong {
    /// Longest answer, tokens.
    pub max: f64,
    /// The penalty grows over the last so many tokens, > 0.
    pub buffer: f64,
    /// Penalty at `max`, 0 or more.
    pub factor: f64,
}

impl Default for DapoOverlong {
    fn default() -> Self {
        Self { max: 20_480.0, buffer: 4096.0, factor: 1.0 }
    }
}

impl Block for DapoOverlong {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        setting("buffer", self.buffer, self.buffer > 0.0, "greater than 0")?;
        setting("max", self.max, self.max >= self.buffer, "`buffer` or more")?;
        setting("factor", self.factor, self.factor >= 0.0, "0 or more")
    }

    fn describe(&self) -> String {
        let Self { max, buffer, factor } = self;
        format!("less up to {factor} over the last {buffer} of {max} tokens, more beyond")
    }
}

impl Kind for DapoOverlong {
    const KIND: &'static str = "dapo_overlong";
}

impl Reward for DapoOverlong {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let penalty = |length| dapo_overlong(length, self.max, self.buffer, self.factor);
        let penalties: Vec<f64> = batch.mask().row_sums().into_iter().map(penalty).collect();
        add_to_outcomes(batch, &penalties)
    }
}

/// TRL's soft overlong punishment on the outcome; never below -1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SoftOverlong {
    /// Longest answer, tokens.
    pub max: f64,
    /// The punishment grows over the last so many tokens, > 0.
    pub cache: f64,
}

impl Default for SoftOverlong {
    fn default() -> Self {
        Self { max: 20_480.0, cache: 4096.0 }
    }
}

impl Block for SoftOverlong {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        setting("cache", self.cache, self.cache > 0.0, "greater than 0")?;
        setting("max", self.max, self.max >= self.cache, "`cache` or more")
    }

    fn describe(&self) -> String {
        format!("less up to 1 over the last {} of {} tokens", self.cache, self.max)
    }
}

impl Kind for SoftOverlong {
    const KIND: &'static str = "soft_overlong";
}

impl Reward for SoftOverlong {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let penalty = |length| soft_overlong(length, self.max, self.cache);
        let penalties: Vec<f64> = batch.mask().row_sums().into_iter().map(penalty).collect();
        add_to_outcomes(batch, &penalties)
    }
}

/// Takes coef * KL(rollout policy || reference) from every token's reward, and its sum from the outcome. With a target
/// the coefficient follows it from iteration to iteration (verl `AdaptiveKLController`); it is kept in the state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlInReward {
    /// Weight, 0 or more; the first one if there is a target.
    pub coef: f64,
    /// Which estimate.
    pub estimator: KlEstimator,
    /// Where the KL should be, in nats per token; 0 keeps `coef`.
    pub target: f64,
    /// Sequences over which the coefficient may change by its own size, > 0.
    pub horizon: f64,
}

impl Default for KlInReward {
    fn default() -> Self {
        Self { coef: 0.001, estimator: KlEstimator::K1, target: 0.0, horizon: 10_000.0 }
    }
}

/// The coefficient now; absent before the first batch.
#[derive(Default, Serialize, Deserialize)]
struct Coefficient(Option<f64>);

impl Block for KlInReward {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS, REF_LOG_PROBS, TOKEN_REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, REWARDS]
    }

    fn validate(&self) -> Result<()> {
        setting("coef", self.coef, self.coef >= 0.0, "0 or more")?;
        setting("target", self.target, self.target >= 0.0, "0 (fixed) or more")?;
        setting("horizon", self.horizon, self.horizon > 0.0, "greater than 0")
    }

    fn describe(&self) -> String {
        let target = if self.target > 0.0 { format!(", kept near {}", self.target) } else { String::new() };
        format!("less {} KL to the reference per token{target}", self.coef)
    }
}

impl Kind for KlInReward {
    const KIND: &'static str = "kl_in_reward";
}

impl Reward for KlInReward {
    fn shape(&self, batch: &mut Batch, state: &mut State) -> Result<()> {
        let Coefficient(now) = state.get(Self::KIND)?;
        let coefficient = now.unwrap_or(self.coef);
        let like = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
        let old = batch.table(OLD_LOG_PROBS)?.to_tensor(&like)?;
        let reference = batch.table(REF_LOG_PROBS)?.to_tensor(&like)?;
        let scores = batch.table(TOKEN_REWARDS)?;
        let shaped = kl_in_reward(&scores.to_tensor(&like)?, &old, &reference, self.estimator, coefficient)?;
        let shaped = crate::batch::keep_where(&shaped, batch.mask())?;
        let shaped = Table::from_tensor(&shaped)?;
        if self.target > 0.0 {
            let kl = Table::from_tensor(&self.estimator.estimate(&old, &reference)?)?;
            let mut controller = AdaptiveKl { coefficient, target: self.target, horizon: self.horizon };
            controller.update(mean_over_sequences(&kl, batch.mask()), batch.rows() as f64);
            if !controller.coefficient.is_finite() {
                let got = controller.coefficient;
                return Err(Error::NotFinite { name: "coefficient of kl_in_reward", index: 0, got });
            }
            state.set(Self::KIND, &Coefficient(Some(controller.coefficient)))?;
        }
        batch.set(REWARDS, shaped.row_sums())?;
        batch.set(TOKEN_REWARDS, shaped)
    }
}

/// Mean over sequences of the mean over their valid tokens.
fn mean_over_sequences(x: &Table, mask: &Table) -> f64 {
    let row = |(x, m): (&[f64], &[f64])| {
        let valid = x.iter().zip(m).filter(|(_, m)| **m != 0.0);
        valid.map(|(x, m)| x * m).sum::<f64>() / (m.iter().sum::<f64>() + 1e-8)
    };
    x.iter().zip(mask.iter()).map(row).sum::<f64>() / (x.rows.max(1) as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::advantage::GroupNorm;
    use crate::batch::GROUP_IDS;
    use crate::block::Advantage;

    fn batch() -> Batch {
        let table = |rows: &[&[f64]]| Table::from_rows(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>());
        let mask = table(&[&[1.0, 1.0, 0.0], &[1.0, 0.0, 0.0], &[0.0, 0.0, 0.0]]).unwrap();
        Batch::new(mask)
            .with(REWARDS, vec![1.0, 2.0, 3.0])
            .unwrap()
            .with(OLD_LOG_PROBS, table(&[&[-1.0, -2.0, 5.0], &[-3.0, 7.0, 7.0], &[9.0; 3]]).unwrap())
            .unwrap()
            .with(REF_LOG_PROBS, table(&[&[-1.5, -1.0, 4.0], &[-2.0, 1.0, 1.0], &[0.0; 3]]).unwrap())
            .unwrap()
            .with(GROUP_IDS, vec![0u64; 3])
            .unwrap()
    }

    #[test]
    fn kl_in_the_reward_reaches_tokens_and_outcomes() {
        let (mut batch, mut state) = (batch(), State::default());
        Terminal {}.shape(&mut batch, &mut state).unwrap();
        assert_eq!(batch.table(TOKEN_REWARDS).unwrap().values, [0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        KlInReward { coef: 0.5, ..KlInReward::default() }.shape(&mut batch, &mut state).unwrap();
        // k1 = old - ref: 0.5, -1 | -1
        let shaped = batch.table(TOKEN_REWARDS).unwrap();
        assert_eq!(shaped.values, [-0.25, 1.5, 0.0, 2.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(batch.outcomes().unwrap(), [1.25, 2.5, 0.0]);
        assert!(state.is_empty(), "a fixed coefficient needs no memory");
        let a = GroupNorm::default().advantages(&batch, &mut state).unwrap();
        assert!(a.values[0] == 0.0 && a.values[3] > 0.5, "the group sees the KL: {a:?}");
    }

    #[test]
    fn the_adaptive_coefficient_lives_in_the_state() {
        let block = KlInReward { coef: 0.1, target: 0.1, horizon: 100.0, ..KlInReward::default() };
        let step = |state: &mut State| {
            let mut batch = batch();
            Terminal {}.shape(&mut batch, state).unwrap();
            block.shape(&mut batch, state).unwrap();
            batch.table(TOKEN_REWARDS).unwrap()
        };
        let mut state = State::default();
        let first = step(&mut state);
        // mean of -0.25, -1, 0 is far below the target: the error is cut to -0.2, times 3 sequences of 100
        let Coefficient(after) = state.get(KlInReward::KIND).unwrap();
        assert!((after.unwrap() - 0.1 * (1.0 - 0.2 * 3.0 / 100.0)).abs() < 1e-15);
        let mut again: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(again, state);
        let (a, b) = (step(&mut state), step(&mut again));
        assert_eq!(a, b);
        assert_ne!(a, first);
    }

    #[test]
    fn penalties_for_length_reach_the_outcome_and_the_last_token() {
        let mut batch = batch();
        Terminal {}.shape(&mut batch, &mut State::default()).unwrap();
        let long = DapoOverlong { max: 2.0, buffer: 1.0, factor: 0.5 };
        long.shape(&mut batch, &mut State::default()).unwrap();
        assert_eq!(batch.numbers(REWARDS).unwrap(), [0.5, 2.0, 3.0]);
        assert_eq!(batch.table(TOKEN_REWARDS).unwrap().row(0), [0.0, 0.5, 0.0]);
        SoftOverlong { max: 1.0, cache: 1.0 }.shape(&mut batch, &mut State::default()).unwrap();
        assert_eq!(batch.numbers(REWARDS).unwrap(), [-0.5, 1.0, 3.0]);
        assert!(DapoOverlong { buffer: 0.0, ..long }.validate().is_err());
        assert!(SoftOverlong { max: 1.0, cache: 2.0 }.validate().is_err());
    }
}
