//! AEPO: Arbitrary Entropy Policy Optimization (arXiv 2510.08141).
//!
//! Base: GRPO, no KL, no entropy bonus. New: a few rows of the batch are replaced by CORRECT answers that were
//! sampled at another temperature, with advantage 1 (REINFORCE). A two-point controller takes a high temperature
//! when the policy's entropy is at or below a target H and a low one above it, so that entropy stays around H.
//!
//! ```text
//! T = T_high if entropy <= H else T_low;   rollouts at T for the first quarter of the prompts
//! S = rows of those, in order, with GRPO advantage > 0.05
//! n = min(N, |S|) if entropy <= H, else floor(min(N, |S|)/2)
//! batch = S[:n] with advantage 1  +  ordinary rows without the first n;   old log-probs at temperature 1
//! loss = token mean of the clipped ratio with dual clip
//! entropy <- -sum(log p m) / (sum(m) + 1e-8) of that batch, used in the next step; 0 before the first
//! ```
//!
//! A batch holds both kinds of rows, told apart by `tempered` [B]. `temperature_mix` (reward) chooses and
//! computes the advantages of the whole, `mixed_rows` (filter) drops, `mixed_advantages` (advantage) hands them
//! on and measures the entropy, from `old_log_probs` of the mixed rows; the code measures while it updates,
//! which is the same at the first minibatch. Rollout decisions: [`TemperatureMix::temperature`],
//! [`TemperatureMix::prompts`].
//!
//! Without a right answer at the other temperature the step is plain GRPO (the code crashes). Rows of a dropped
//! group keep advantages that were computed with it, as in the code. Shuffle the rows before splitting into
//! minibatches.
//!
//! `distribution_centric` (weight) is the repository's other option, without a second rollout:
//!
//! ```text
//! w = p_T / p_1 at the sampled tokens (old weights);   c = [reward > 0.05];   f = mean c
//! a0 = min(|H - entropy|, 0.1)/f;   a = a0/(1 + a0);   A' = (1 - a) A + a c w        f = 0: A' = A
//! ```
//!
//! Source: 597358816/AEPO `ray_trainer.py`, `core_algos.py`. Not the agentic-search AEPO.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, group_norm};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OLD_LOG_PROBS, OUTCOMES, Signals};
use crate::block::{Advantage, Block, BlockKind, Filter, Kind, Reward, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// 1 for rows that were sampled at the controller's temperature, 0 for ordinary ones.
pub const TEMPERED: Input =
    Input::new("tempered", "[B]", "1 on rows that were sampled at the other temperature");
/// Advantage of every row of the mixture.
pub const MIXED_ADVANTAGES: Input =
    Input::new("mixed_advantages", "[B]", "advantage of every row of the mixture");
/// 1 for rows of the mixture.
pub const MIXED_ROWS: Input = Input::new("mixed_rows", "[B]", "1 on rows that the mixture keeps");
/// Log-probabilities of the sampled tokens at the controller's temperature, under the policy that sampled.
pub const TEMPERED_LOG_PROBS: Input = Input::new(
    "tempered_log_probs",
    "[B, T]",
    "log-probability under the old policy at the other temperature",
);

/// The paper.
pub const PAPER: Paper = Paper {
    id: "aepo_arbitrary",
    title: "AEPO: Arbitrary Entropy Policy Optimization",
    arxiv: "2510.08141",
    summary: "Right answers sampled at another temperature hold the entropy at any target.",
    blocks: &[
        BlockKind::reward::<TemperatureMix>(),
        BlockKind::filter::<MixedRows>(),
        BlockKind::advantage::<MixedAdvantages>(),
        BlockKind::weight::<DistributionCentric>(),
    ],
    recipe,
    vectors: Some(("aepo_arbitrary.json", 6)),
    end_to_end: None,
};

/// The mixture with GRPO's advantages, clipped ratio with dual clip, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&TemperatureMix::default())
        .filter(&MixedRows::default())
        .advantage(&MixedAdvantages::default())
}

/// What the blocks remember.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredEntropy {
    /// Estimate of the last batch, in nats; 0 before the first.
    pub entropy: f64,
}

/// Estimate of the policy's entropy: -sum(log p m) / (sum(m) + 1e-8), in nats.
///
/// # Errors
/// Shapes that differ, a log-probability of a valid token that is not finite.
pub fn entropy_estimate(log_probs: &Table, mask: &Table) -> Result<f64> {
    log_probs.same_shape("log_probs", mask)?;
    let (mut sum, mut tokens) = (0.0, 0.0);
    for (index, (&p, &m)) in
        log_probs.values.iter().zip(&mask.values).enumerate().filter(|(_, (_, m))| **m != 0.0)
    {
        if !p.is_finite() {
            return Err(Error::NotFinite { name: "log_probs", index, got: p });
        }
        sum += p * m;
        tokens += m;
    }
    Ok(if tokens > 0.0 { -sum / (tokens + 1e-8) } else { 0.0 })
}

/// Chooses the rows of the mixture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemperatureMix {
    /// Entropy H to hold, in nats. 0.25 to 1.
    pub entropy_target: f64,
    /// Temperature at or below the target.
    pub temperature_high: f64,
    /// Temperature above the target.
    pub temperature_low: f64,
    /// Most rows N that are replaced.
    pub reinforce_samples: usize,
    /// An answer at the other temperature is used if its GRPO advantage is above this.
    pub select_threshold: f64,
    /// Added to the spread of a group's rewards.
    pub epsilon: f64,
    /// Share of the prompts that are sampled at the other temperature too.
    pub prompt_share: f64,
}

impl Default for TemperatureMix {
    fn default() -> Self {
        Self {
            entropy_target: 0.5,
            temperature_high: 1.2,
            temperature_low: 0.8,
            reinforce_samples: 60,
            select_threshold: 0.05,
            epsilon: 1e-6,
            prompt_share: 0.25,
        }
    }
}

/// A mixture of ordinary and tempered rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// GRPO advantage of every row among its own kind, [B].
    pub advantages: Vec<f64>,
    /// Tempered rows that may be used, in order.
    pub selected: Vec<usize>,
    /// How many of them are.
    pub taken: usize,
    /// Rows of the mixture, [B].
    pub keep: Vec<bool>,
    /// Advantages with 1 on the tempered rows that are used, [B].
    pub mixed: Vec<f64>,
}

fn temperature(entropy: f64, target: f64, high: f64, low: f64) -> f64 {
    if entropy <= target { high } else { low }
}

impl TemperatureMix {
    /// Temperature of the next second rollout.
    pub fn temperature(&self, entropy: f64) -> f64 {
        temperature(entropy, self.entropy_target, self.temperature_high, self.temperature_low)
    }

    /// How many of `prompts` (the first ones) are sampled again at the other temperature.
    pub fn prompts(&self, prompts: usize) -> usize {
        ((prompts as f64 * self.prompt_share) as usize).min(prompts)
    }

    /// Rows that are replaced when `selected` are there.
    pub fn sample_count(&self, entropy: f64, selected: usize) -> usize {
        let n = self.reinforce_samples.min(selected);
        if entropy <= self.entropy_target { n } else { n / 2 }
    }

    /// The entropy that the next step's decisions rest on.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn entropy(state: &State) -> Result<f64> {
        Ok(state.get::<MeasuredEntropy>(Self::KIND)?.entropy)
    }

    /// Puts a measurement of one's own in place of the last batch's.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn observe(state: &mut State, entropy: f64) -> Result<()> {
        state.set(Self::KIND, &MeasuredEntropy { entropy })
    }

    /// The mixture. `rewards`, `group_ids` and `tempered` [B]; groups are those of the same id and kind.
    ///
    /// # Errors
    /// Lengths that differ, a reward that is not finite.
    pub fn mix(
        &self,
        rewards: &[f64],
        group_ids: &[u64],
        tempered: &[bool],
        entropy: f64,
    ) -> Result<Mixture> {
        let b = rewards.len();
        for (name, got) in [("group_ids", group_ids.len()), ("tempered", tempered.len())] {
            if got != b {
                return Err(Error::Shape {
                    name,
                    got: vec![got],
                    expected: format!("[{b}], like `rewards`"),
                });
            }
        }
        let settings = GroupNorm { epsilon: self.epsilon, ..GroupNorm::default() };
        let mut advantages = vec![0.0; b];
        for kind in [false, true] {
            let rows: Vec<usize> = (0..b).filter(|&i| tempered[i] == kind).collect();
            let of = |x: &[f64]| rows.iter().map(|&i| x[i]).collect::<Vec<f64>>();
            let ids: Vec<u64> = rows.iter().map(|&i| group_ids[i]).collect();
            let a = group_norm(&of(rewards), &ids, &settings)?;
            rows.iter().zip(a).for_each(|(&i, a)| advantages[i] = a);
        }
        let selected: Vec<usize> =
            (0..b).filter(|&i| tempered[i] && advantages[i] > self.select_threshold).collect();
        let ordinary: Vec<usize> = (0..b).filter(|&i| !tempered[i]).collect();
        let taken = self.sample_count(entropy, selected.len()).min(ordinary.len());
        let (mut keep, mut mixed) = (vec![false; b], advantages.clone());
        for &i in &selected[..taken] {
            (keep[i], mixed[i]) = (true, 1.0);
        }
        ordinary[taken..].iter().for_each(|&i| keep[i] = true);
        Ok(Mixture { advantages, selected, taken, keep, mixed })
    }
}

fn check_controller(target: f64, high: f64, low: f64) -> Result<()> {
    let positive = |name, got: f64| {
        let expected = "greater than 0";
        if got > 0.0 && got.is_finite() { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
    };
    positive("entropy_target", target)?;
    positive("temperature_high", high)?;
    positive("temperature_low", low)
}

impl Block for TemperatureMix {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS, TEMPERED]
    }

    fn gives(&self) -> Vec<Input> {
        vec![MIXED_ADVANTAGES, MIXED_ROWS]
    }

    fn validate(&self) -> Result<()> {
        check_controller(self.entropy_target, self.temperature_high, self.temperature_low)?;
        if !self.select_threshold.is_finite() {
            let got = self.select_threshold;
            return Err(Error::Setting { name: "select_threshold", got, expected: "a finite number" });
        }
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" });
        }
        if (0.0..=1.0).contains(&self.prompt_share) {
            return Ok(());
        }
        Err(Error::Setting { name: "prompt_share", got: self.prompt_share, expected: "0 to 1" })
    }

    fn describe(&self) -> String {
        let most = self.reinforce_samples;
        format!(
            "up to {most} right answers of temperature {} or {}, holding {} nats",
            self.temperature_high, self.temperature_low, self.entropy_target
        )
    }
}

impl Kind for TemperatureMix {
    const KIND: &'static str = "temperature_mix";
}

impl Reward for TemperatureMix {
    fn shape(&self, batch: &mut Batch, state: &mut State) -> Result<()> {
        let tempered: Vec<bool> = batch.numbers(TEMPERED)?.iter().map(|&x| x != 0.0).collect();
        let mixture =
            self.mix(&batch.outcomes()?, batch.ids(GROUP_IDS)?, &tempered, Self::entropy(state)?)?;
        batch.set(MIXED_ADVANTAGES, mixture.mixed)?;
        let flags: Vec<f64> = mixture.keep.iter().map(|&keep| f64::from(u8::from(keep))).collect();
        batch.set(MIXED_ROWS, flags)
    }
}

/// Keeps the rows of the mixture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixedRows {}

impl Block for MixedRows {
    fn needs(&self) -> Vec<Input> {
        vec![MIXED_ROWS]
    }

    fn describe(&self) -> String {
        "rows of the mixture".into()
    }
}

impl Kind for MixedRows {
    const KIND: &'static str = "mixed_rows";
}

impl Filter for MixedRows {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        Ok(batch.numbers(MIXED_ROWS)?.iter().map(|&x| x != 0.0).collect())
    }
}

/// Hands on the mixture's advantages, and measures its entropy for the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixedAdvantages {}

impl Block for MixedAdvantages {
    fn needs(&self) -> Vec<Input> {
        vec![MIXED_ADVANTAGES, OLD_LOG_PROBS]
    }

    fn describe(&self) -> String {
        "group: (R - mean) / (std + eps); 1 on rows of the other temperature".into()
    }
}

impl Kind for MixedAdvantages {
    const KIND: &'static str = "mixed_advantages";
}

impl Advantage for MixedAdvantages {
    fn advantages(&self, batch: &Batch, state: &mut State) -> Result<Table> {
        let entropy = entropy_estimate(&batch.table(OLD_LOG_PROBS)?, batch.mask())?;
        TemperatureMix::observe(state, entropy)?;
        Table::broadcast(&batch.numbers(MIXED_ADVANTAGES)?, batch.mask())
    }
}

/// Moves advantages towards the policy at another temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributionCentric {
    /// Entropy H to hold, in nats.
    pub entropy_target: f64,
    /// Temperature at or below the target.
    pub temperature_high: f64,
    /// Temperature above the target.
    pub temperature_low: f64,
    /// Largest distance to the target that counts, in nats.
    pub alpha_cap: f64,
    /// A reward above this is a right answer.
    pub success_threshold: f64,
}

impl Default for DistributionCentric {
    fn default() -> Self {
        Self {
            entropy_target: 0.5,
            temperature_high: 1.2,
            temperature_low: 0.8,
            alpha_cap: 0.1,
            success_threshold: 0.05,
        }
    }
}

impl DistributionCentric {
    /// Temperature of [`TEMPERED_LOG_PROBS`].
    pub fn temperature(&self, entropy: f64) -> f64 {
        temperature(entropy, self.entropy_target, self.temperature_high, self.temperature_low)
    }

    /// Weight a of the correction; 0 when nobody is right.
    pub fn alpha(&self, entropy: f64, rewards: &[f64]) -> f64 {
        let right = rewards.iter().filter(|&&r| r > self.success_threshold).count();
        if right == 0 {
            return 0.0;
        }
        let share = right as f64 / rewards.len() as f64;
        let a = (self.entropy_target - entropy).abs().min(self.alpha_cap) / share;
        a / (1.0 + a)
    }

    /// The entropy that this step's decisions rest on.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn entropy(state: &State) -> Result<f64> {
        Ok(state.get::<MeasuredEntropy>(Self::KIND)?.entropy)
    }

    /// Puts a measurement of one's own in place of the last batch's.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn observe(state: &mut State, entropy: f64) -> Result<()> {
        state.set(Self::KIND, &MeasuredEntropy { entropy })
    }
}

impl Block for DistributionCentric {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS, TEMPERED_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        check_controller(self.entropy_target, self.temperature_high, self.temperature_low)?;
        if !(self.alpha_cap >= 0.0 && self.alpha_cap.is_finite()) {
            return Err(Error::Setting { name: "alpha_cap", got: self.alpha_cap, expected: "0 or more" });
        }
        if self.success_threshold.is_finite() {
            return Ok(());
        }
        let got = self.success_threshold;
        Err(Error::Setting { name: "success_threshold", got, expected: "a finite number" })
    }

    fn describe(&self) -> String {
        let (high, low) = (self.temperature_high, self.temperature_low);
        format!("right answers towards temperature {high} or {low}, holding {} nats", self.entropy_target)
    }
}

impl Kind for DistributionCentric {
    const KIND: &'static str = "distribution_centric";
}

impl TokenRule for DistributionCentric {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, state: &mut State) -> Result<()> {
        let (rewards, mask) = (batch.outcomes()?, batch.mask());
        let (old, tempered) = (batch.table(OLD_LOG_PROBS)?, batch.table(TEMPERED_LOG_PROBS)?);
        let alpha = self.alpha(Self::entropy(state)?, &rewards);
        for at in (0..mask.values.len()).filter(|&at| mask.values[at] != 0.0) {
            let right = rewards[at / mask.cols] > self.success_threshold;
            let w = if right { (tempered.values[at] - old.values[at]).exp() } else { 0.0 };
            let a = &mut signals.advantages.values[at];
            *a = (1.0 - alpha) * *a + alpha * w;
        }
        Self::observe(state, entropy_estimate(&old, mask)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{LOG_PROBS, REWARDS};
    use crate::registry::Algorithm;

    #[test]
    fn the_controller_switches_at_the_target() {
        let mix = TemperatureMix::default();
        assert_eq!((mix.temperature(0.5), mix.temperature(0.51)), (1.2, 0.8));
        assert_eq!(
            (mix.sample_count(0.5, 7), mix.sample_count(0.6, 7), mix.sample_count(0.0, 99)),
            (7, 3, 60)
        );
        assert_eq!((mix.prompts(3), mix.prompts(9)), (0, 2));
    }

    proptest! {
        #[test]
        fn the_mixture_is_as_large_as_the_ordinary_batch(
            rewards in proptest::collection::vec((0u8..2).prop_map(f64::from), 12),
            entropy in 0.0f64..1.0,
        ) {
            let tempered: Vec<bool> = (0..12).map(|i| i >= 8).collect();
            let groups = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0];
            let mix = TemperatureMix::default().mix(&rewards, &groups, &tempered, entropy).unwrap();
            prop_assert_eq!(mix.keep.iter().filter(|k| **k).count(), 8);
            prop_assert!(mix.selected.iter().all(|&i| tempered[i] && rewards[i] == 1.0));
            if rewards[8..].iter().all(|r| *r == rewards[8]) {
                prop_assert!(mix.taken == 0 && mix.keep[..8] == [true; 8]);
            }
        }
    }

    fn batch() -> Batch {
        let lp = Tensor::new(
            &[[-0.3f64, f64::NEG_INFINITY], [-0.7, -0.2], [-1.0, -2.0], [-0.1, -0.4]],
            &Device::Cpu,
        );
        let lp = lp.unwrap();
        Batch::new(
            Table::from_rows(&[vec![1.0, 0.0], vec![1.0, 1.0], vec![1.0, 1.0], vec![1.0, 1.0]]).unwrap(),
        )
        .with(LOG_PROBS, lp.clone())
        .unwrap()
        .with(OLD_LOG_PROBS, lp)
        .unwrap()
        .with(REWARDS, vec![1.0, 0.0, 0.0, 1.0])
        .unwrap()
        .with(GROUP_IDS, vec![0u64, 0, 0, 0])
        .unwrap()
        .with(TEMPERED, vec![0.0, 0.0, 1.0, 1.0])
        .unwrap()
    }

    #[test]
    fn entropy_is_measured_on_the_mixture_and_goes_through_json_bit_for_bit() {
        let objective = Algorithm::from_table("aepo_arbitrary", &toml::Table::new()).unwrap().objective;
        let mut state = State::default();
        let ready = objective.prepare(batch(), &mut state).unwrap();
        assert_eq!(
            ready.kept,
            [1, 3],
            "the right answer at the other temperature takes the first row's place"
        );
        assert_eq!(ready.signals.advantages.row(1), [1.0, 1.0]);
        let expected = (0.7 + 0.2 + 0.1 + 0.4) / (4.0 + 1e-8);
        assert!((TemperatureMix::entropy(&state).unwrap() - expected).abs() < 1e-15);
        let mut read: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        let again = objective.prepare(batch(), &mut read).unwrap();
        let there = objective.prepare(batch(), &mut state).unwrap();
        assert_eq!((again.signals, read), (there.signals, state));
    }

    #[test]
    fn the_correction_vanishes_at_the_target_and_without_right_answers() {
        let rule = DistributionCentric::default();
        assert_eq!(rule.alpha(0.5, &[1.0, 0.0]), 0.0);
        assert_eq!(rule.alpha(0.0, &[0.0, 0.0]), 0.0);
        assert!((rule.alpha(0.0, &[1.0, 0.0]) - 0.2 / 1.2).abs() < 1e-15);
        let mut batch = batch();
        batch.set(TEMPERED_LOG_PROBS, batch.tensor(OLD_LOG_PROBS).unwrap()).unwrap();
        let mut signals = Signals::new(batch.mask().filled(0.0));
        rule.prepare(&batch, &mut signals, &mut State::default()).unwrap();
        assert_eq!(signals.advantages.values[1..4], [0.0; 3], "padding and wrong answers");
        assert!(signals.advantages.values[0] > 0.0);
    }
}
