//! APO: Asymmetric Policy Optimization for multimodal reasoning, View-R1 (arXiv 2506.21655).
//!
//! Base: GRPO with a k3 KL towards the reference in the loss. New: the samples of a group are treated
//! asymmetrically. Difficulty-adaptive divergence shaping (DADS) weakens the KL of POSITIVE samples of hard
//! prompts; suboptimal trajectory complexity regularisation (STCR) scales the advantage of wrong answers that are
//! longer than the right ones.
//!
//! ```text
//! per group of n:  c_i = 1 if R_i >= 1 else 0         (R = accuracy 0/1 + format 0/0.5);      d = 1 - sum(c) / n
//!                  a_i = clamp((R_i - mean) / (std + 1e-9), -10, 10)                          std unbiased
//! STCR:            L+ = sum(len c) / (sum(c) + 1e-9);   delta_i = (len_i - L+)(1 - c_i)       lengths in tokens
//!                  w_i = 1 + (1 - 1.00001^-delta_i) where delta_i > 0 and the group has a right answer, else 1
//!                  a_i *= w_i
//! DADS:            f(d) = 1 - exp(-e (1 - d)), but exactly 1 at d = 0 and d = 1;   v_i = f(d) if a_i > 0 else 1
//! loss             = tokmean(-min(r A, clamp(r, 0.8, 1.2) A)) + 0.001 mean_i(v_i mean_t k3)
//! ```
//!
//! Rewards, lengths, difficulty and weights are [B]. The two parts of the loss are reduced differently: token mean
//! and mean of per-answer means. k3 = exp(x) - 1 - x with x = ref - logp is NOT clamped, and there is no dual clip.
//!
//! The code is followed. It scales the advantage, where the paper speaks of a penalty in the reward, and "positive"
//! means a positive advantage, not a right answer: a wrong answer with the format bonus among siblings without it
//! is positive, and STCR then REWARDS its length; `only_negative` applies w to negative advantages alone.
//! Advantages here are 0 on masked tokens in front of the last valid one, which no term reads. Equal rewards give
//! exactly 0, where an epsilon of 1e-9 would blow rounding up. Source: Indolent-Kawhi/View-R1 (OpenRLHF).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, LOG_PROBS, OUTCOMES, REF_LOG_PROBS, Signals};
use crate::block::{Block, BlockKind, Kind, Regularizer, Terms, TokenRule};
use crate::checks::same_len;
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::KlEstimator;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Number of generated tokens where it is not the mask's sum.
pub const RESPONSE_LENGTHS: Input =
    Input::new("response_lengths", "[B]", "generated tokens of every sequence");
/// Share of a group that failed; made by [`Difficulty`], read from the signals.
pub const DIFFICULTY: Input =
    Input::new("difficulty", "[B, T]", "share of the group's answers that are wrong");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "apo",
    title: "APO: Enhancing Reasoning Ability of MLLMs via Asymmetric Policy Optimization",
    arxiv: "2506.21655",
    summary: "Less KL on hard prompts' positive samples, more blame for long wrong answers.",
    blocks: &[
        BlockKind::weight::<AdvantageClip>(),
        BlockKind::weight::<Difficulty>(),
        BlockKind::weight::<ComplexityScale>(),
        BlockKind::regularizer::<ShapedKl>(),
    ],
    recipe,
    vectors: Some(("apo.json", 11)),
    end_to_end: None,
};

/// GRPO with epsilon 1e-9, both asymmetries on, no dual clip.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: None };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .advantage(&GroupNorm { epsilon: 1e-9, ..GroupNorm::default() })
        .weight(&AdvantageClip::default())
        .weight(&Difficulty::default())
        .weight(&ComplexityScale::default())
        .regularizer(&ShapedKl::default())
}

/// Cuts advantages to [-limit, limit].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageClip {
    /// Largest absolute advantage, above 0.
    pub limit: f64,
}

impl Default for AdvantageClip {
    fn default() -> Self {
        Self { limit: 10.0 }
    }
}

impl Block for AdvantageClip {
    fn validate(&self) -> Result<()> {
        if self.limit > 0.0 && self.limit.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "limit", got: self.limit, expected: "above 0" })
    }

    fn describe(&self) -> String {
        format!("advantages within +-{}", self.limit)
    }
}

impl Kind for AdvantageClip {
    const KIND: &'static str = "advantage_clip";
}

impl TokenRule for AdvantageClip {
    fn prepare(&self, _batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        signals.advantages.values.iter_mut().for_each(|a| *a = a.clamp(-self.limit, self.limit));
        Ok(())
    }
}

/// Notes every prompt's difficulty for [`ShapedKl`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Difficulty {}

impl Block for Difficulty {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![DIFFICULTY]
    }

    fn describe(&self) -> String {
        "difficulty: share of the group with a reward below 1".into()
    }
}

impl Kind for Difficulty {
    const KIND: &'static str = "difficulty";
}

impl TokenRule for Difficulty {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let d = difficulty(&batch.outcomes()?, batch.ids(GROUP_IDS)?)?;
        signals.extra.insert(DIFFICULTY.name.into(), Table::broadcast(&d, batch.mask())?);
        Ok(())
    }
}

/// Scales the advantage of wrong answers that are longer than the group's right ones (STCR).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComplexityScale {
    /// Base of the decay with the excess length, at least 1. 1.00001 keeps the weight below 1.04 for 4096 tokens.
    pub base: f64,
    /// Scale negative advantages only; the authors scale positive ones too.
    pub only_negative: bool,
}

impl Default for ComplexityScale {
    fn default() -> Self {
        Self { base: 1.00001, only_negative: false }
    }
}

impl Block for ComplexityScale {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn validate(&self) -> Result<()> {
        if self.base >= 1.0 && self.base.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "base", got: self.base, expected: "1 or more" })
    }

    fn describe(&self) -> String {
        let which = if self.only_negative { "negative " } else { "" };
        format!("{which}advantages of long wrong answers times 2 - {}^-excess", self.base)
    }
}

impl Kind for ComplexityScale {
    const KIND: &'static str = "complexity_scale";
}

impl TokenRule for ComplexityScale {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let lengths = match batch.has(RESPONSE_LENGTHS) {
            true => batch.numbers(RESPONSE_LENGTHS)?,
            false => batch.mask().row_sums(),
        };
        let weights = complexity_weights(&batch.outcomes()?, &lengths, batch.ids(GROUP_IDS)?, self.base)?;
        let cols = signals.advantages.cols.max(1);
        for (row, w) in signals.advantages.values.chunks_mut(cols).zip(weights) {
            row.iter_mut().filter(|a| !self.only_negative || **a < 0.0).for_each(|a| *a *= w);
        }
        Ok(())
    }
}

/// How the KL of a positive sample falls with its prompt's difficulty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shaping {
    /// 1 - exp(-e (1 - d)): the released code.
    #[default]
    Saturating,
    /// exp(-e d): an alternative in the authors' code.
    Exponential,
    /// 1: no shaping.
    None,
}

impl Shaping {
    /// The weight at difficulty `d` in [0, 1]; 1 at both ends.
    pub fn weight(self, d: f64) -> f64 {
        if d == 0.0 || d == 1.0 {
            return 1.0;
        }
        match self {
            Self::Saturating => 1.0 - (-std::f64::consts::E * (1.0 - d)).exp(),
            Self::Exponential => (-std::f64::consts::E * d).exp(),
            Self::None => 1.0,
        }
    }
}

/// coef times the mean over sequences of weight times token-mean KL to the reference (DADS).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShapedKl {
    /// Weight, 0 or more.
    pub coef: f64,
    /// Which estimate; k3 is not clamped here.
    pub estimator: KlEstimator,
    /// Weight of positive samples by difficulty.
    pub shaping: Shaping,
}

impl Default for ShapedKl {
    fn default() -> Self {
        Self { coef: 0.001, estimator: KlEstimator::K3, shaping: Shaping::default() }
    }
}

impl ShapedKl {
    /// The weight of every sequence, [B]: that of its difficulty where its advantage is positive, else 1.
    ///
    /// # Errors
    /// [`Error::Missing`] without [`Difficulty`].
    pub fn weights(&self, signals: &Signals, mask: &Table) -> Result<Vec<f64>> {
        let missing = Error::Missing { name: DIFFICULTY.name };
        let difficulty = signals.extra.get(DIFFICULTY.name).ok_or(missing)?;
        difficulty.same_shape(DIFFICULTY.name, mask)?;
        signals.advantages.same_shape("advantages", mask)?;
        let first = |row: usize| mask.row(row).iter().position(|&m| m != 0.0);
        let weight = |row: usize| match first(row) {
            Some(t) if signals.advantages.row(row)[t] > 0.0 => self.shaping.weight(difficulty.row(row)[t]),
            _ => 1.0,
        };
        Ok((0..mask.rows).map(weight).collect())
    }
}

impl Block for ShapedKl {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![LOG_PROBS, REF_LOG_PROBS];
        needs.extend((self.shaping != Shaping::None).then_some(DIFFICULTY));
        needs
    }

    fn validate(&self) -> Result<()> {
        if self.coef >= 0.0 && self.coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "coef", got: self.coef, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let shape = match self.shaping {
            Shaping::Saturating => ", less on hard prompts' positive samples",
            Shaping::Exponential => ", exponentially less on hard prompts' positive samples",
            Shaping::None => "",
        };
        format!("{} KL to the reference{shape}", self.coef)
    }
}

impl Kind for ShapedKl {
    const KIND: &'static str = "shaped_kl";
}

impl Regularizer for ShapedKl {
    fn terms(&self, batch: &Batch, signals: &Signals, _state: &State) -> Result<Terms> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let kl = unclamped(self.estimator, &log_probs, &batch.tensor(REF_LOG_PROBS)?.detach())?;
        let kl = match self.shaping {
            Shaping::None => kl,
            _ => {
                let weights = Table::broadcast(&self.weights(signals, batch.mask())?, batch.mask())?;
                (kl * weights.to_tensor(&log_probs)?)?
            }
        };
        Ok(Terms::Tokens((kl * self.coef)?))
    }

    fn aggregation(&self) -> Option<Aggregation> {
        Some(Aggregation::SeqMeanTokenMean)
    }
}

/// The estimate without the clamps of k3: exp(x) - 1 - x.
///
/// # Errors
/// Shapes differ.
pub fn unclamped(estimator: KlEstimator, log_probs: &Tensor, ref_log_probs: &Tensor) -> Result<Tensor> {
    match estimator {
        KlEstimator::K3 => {
            let x = (ref_log_probs - log_probs)?;
            Ok(((x.exp()? - 1.0)? - x)?)
        }
        other => other.estimate(log_probs, ref_log_probs),
    }
}

/// Whether an answer is right: its reward, accuracy plus at most 0.5 for the format, is at least 1.
fn is_right(reward: f64) -> bool {
    reward >= 1.0
}

/// Share of each group's answers with a reward below 1, for every member, [B].
///
/// # Errors
/// Lengths differ.
pub fn difficulty(rewards: &[f64], group_ids: &[u64]) -> Result<Vec<f64>> {
    same_len("group_ids", group_ids.len(), rewards.len())?;
    let mut out = vec![0.0; rewards.len()];
    for index in members(group_ids).values() {
        let right = index.iter().filter(|&&i| is_right(rewards[i])).count() as f64;
        index.iter().for_each(|&i| out[i] = 1.0 - right / index.len() as f64);
    }
    Ok(out)
}

/// STCR's weight of every sequence, [B], at least 1. `lengths` [B] in tokens.
///
/// # Errors
/// Lengths differ.
pub fn complexity_weights(
    rewards: &[f64],
    lengths: &[f64],
    group_ids: &[u64],
    base: f64,
) -> Result<Vec<f64>> {
    same_len("group_ids", group_ids.len(), rewards.len())?;
    same_len("response_lengths", lengths.len(), rewards.len())?;
    let mut out = vec![1.0; rewards.len()];
    for index in members(group_ids).values() {
        let right: Vec<f64> = index.iter().filter(|&&i| is_right(rewards[i])).map(|&i| lengths[i]).collect();
        if right.is_empty() {
            continue;
        }
        let typical = right.iter().sum::<f64>() / (right.len() as f64 + 1e-9);
        for &i in index.iter().filter(|&&i| !is_right(rewards[i]) && lengths[i] > typical) {
            out[i] = 2.0 - base.powf(typical - lengths[i]);
        }
    }
    Ok(out)
}

/// `value` (the authors': 0.5) when the text holds exactly one of each tag, and a think block that is not empty, then
/// white space at most, then an answer block that is not empty; else 0.
pub fn format_reward(response: &str, value: f64) -> f64 {
    let tags = ["<think>", "</think>", "<answer>", "</answer>"];
    if tags.iter().any(|tag| response.matches(tag).count() != 1) {
        return 0.0;
    }
    let parts = || {
        let (_, rest) = response.split_once(tags[0])?;
        let (thought, rest) = rest.split_once(tags[1])?;
        let (gap, rest) = rest.split_once(tags[2])?;
        let (answer, _) = rest.split_once(tags[3])?;
        Some((thought, gap, answer))
    };
    match parts() {
        Some((thought, gap, answer))
            if !thought.is_empty() && gap.trim().is_empty() && !answer.is_empty() =>
        {
            value
        }
        _ => 0.0,
    }
}

/// The fallback for multiple choice: the right letter occurs in the answer, and none of the other letters a to f
/// does. Case does not matter.
pub fn choice_matches(answer: &str, gold: char) -> bool {
    let (answer, gold) = (answer.to_ascii_lowercase(), gold.to_ascii_lowercase());
    ('a'..='f').chain([gold]).all(|letter| answer.contains(letter) == (letter == gold))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{OLD_LOG_PROBS, REWARDS};

    fn batch(rewards: &[f64]) -> Batch {
        let mask = Table { rows: 4, cols: 3, values: vec![1., 1., 1., 1., 0., 0., 1., 1., 0., 0., 0., 0.] };
        let log_probs = mask
            .filled(-1.0)
            .to_tensor(&Tensor::zeros(1, candle_core::DType::F64, &candle_core::Device::Cpu).unwrap())
            .unwrap();
        Batch::new(mask)
            .with(LOG_PROBS, log_probs.clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, log_probs.clone()))
            .and_then(|b| b.with(REF_LOG_PROBS, (log_probs * 1.5).unwrap()))
            .and_then(|b| b.with(REWARDS, rewards.to_vec()))
            .and_then(|b| b.with(GROUP_IDS, vec![0, 0, 0, 0]))
            .unwrap()
    }

    #[test]
    fn equal_rewards_leave_the_whole_kl_and_nothing_else() {
        let objective = recipe().build().unwrap();
        let mut state = State::default();
        let ready = objective.prepare(batch(&[0.5; 4]), &mut state).unwrap();
        assert!(ready.signals.advantages.values.iter().all(|&a| a == 0.0));
        let parts = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state).unwrap();
        let k3 = (-0.5f64).exp() - 1.0 + 0.5;
        assert!((parts.regularizers[0].1 - 0.001 * k3).abs() < 1e-10, "{:?}", parts.regularizers);
    }

    #[test]
    fn a_shaped_kl_without_difficulty_is_refused() {
        let mut lacking = recipe();
        lacking.weight.retain(|block| block["kind"].as_str() != Some("difficulty"));
        let known = [LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, GROUP_IDS];
        let message = lacking.build().unwrap().check(&known).unwrap_err().to_string();
        assert!(message.contains("difficulty"), "{message}");
        recipe().build().unwrap().check(&known).unwrap();
    }

    #[test]
    fn only_negative_leaves_positive_advantages_alone() {
        let rule = ComplexityScale { base: 1.5, only_negative: true };
        let b = batch(&[0.5, 1.0, 0.0, 0.0]);
        let mut signals = Signals::new(b.mask().clone());
        rule.prepare(&b, &mut signals, &mut State::default()).unwrap();
        assert_eq!(&signals.advantages, b.mask());
        ComplexityScale { only_negative: false, ..rule }
            .prepare(&b, &mut signals, &mut State::default())
            .unwrap();
        assert!(signals.advantages.values[0] > 1.0);
    }

    #[test]
    fn choices() {
        assert!(choice_matches("It is (B).", 'b'));
        assert!(!choice_matches("b or d", 'b'));
        assert!(!choice_matches("none", 'b'));
    }

    proptest! {
        #[test]
        fn weights_are_moderate_and_follow_a_permutation(
            rows in proptest::collection::vec((0usize..4, 1.0f64..5000.0), 1..16), turn in 0usize..16,
        ) {
            let rewards: Vec<f64> = rows.iter().map(|r| r.0 as f64 / 2.0).collect();
            let lengths: Vec<f64> = rows.iter().map(|r| r.1).collect();
            let ids: Vec<u64> = (0..rows.len() as u64).map(|i| i % 3).collect();
            let w = complexity_weights(&rewards, &lengths, &ids, 1.00001).unwrap();
            for (w, r) in w.iter().zip(&rewards) {
                prop_assert!(*w >= 1.0 && *w < 1.06 && (*r < 1.0 || *w == 1.0));
            }
            let turned = |x: &[f64]| { let mut x = x.to_vec(); x.rotate_left(turn % rows.len()); x };
            let mut turned_ids = ids.clone();
            turned_ids.rotate_left(turn % rows.len());
            let v = complexity_weights(&turned(&rewards), &turned(&lengths), &turned_ids, 1.00001).unwrap();
            for (a, b) in v.iter().zip(turned(&w)) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }
    }
}
