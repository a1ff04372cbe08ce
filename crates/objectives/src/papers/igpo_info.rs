//! IGPO: Information Gain-based Policy Optimization (arXiv 2510.14967).
//!
//! Base: GRPO on multi-turn search agents. New: every turn but the last is paid by how much the policy's own
//! belief in the true answer rose over it. Gains and outcomes are standardised in the group and added up backwards
//! over turns.
//!
//! ```text
//! belief     v_s = mean log-probability of the true answer's tokens, teacher-forced after s finished turns
//! gain       v_s - v_{s-1}  or  exp(v_s) - exp(v_{s-1}), on the last token of turn s;
//!            the outcome on the last token of all
//! x          (r - mean) / (std + 1e-6),  std = sqrt(population variance + 1e-8), 1 for a single entry;
//!            outcomes and gains of the group each with their own statistics (separate) or together (joint)
//! A_k        x_k + gamma A_{k+1} over the turns of a row, the same for all tokens of turn k
//! loss       dual-clip PPO over the policy's own tokens, + 0.001 KL (k3) - 0.001 entropy
//! ```
//!
//! Shapes: `answer_beliefs` B lists of K numbers, one more than the turns that get a gain; `turn_ids` [B, T];
//! `sequence_mask` [B, T] 1 on all real tokens, tool results included; the batch's own mask has the policy's
//! tokens only and is what the loss counts. `rewards` [B] the outcome ([`outcome`]); `group_ids` [B]. No gradient
//! through gains. They use the true answer: never at evaluation.
//!
//! Code against paper: `separate` and differences of log-probabilities are the released scripts', `joint` and
//! differences of probabilities the paper's. In the code a standardised reward of exactly 0 ends no turn, so that
//! its turn takes over the next one's advantage without discount; here every turn ends where it ends
//! (`zero_ends_no_turn` has the code's form). The first release had another estimator, uploaded by mistake:
//! [`position_wise`], for comparison. Source: GuoqingWang1/IGPO, release of 2026-02.

use serde::{Deserialize, Serialize};

use super::Paper;
use super::arpo_agentic::between;
use crate::advantage::members;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, REWARDS, TOKEN_REWARDS, TURN_IDS};
use crate::block::{Advantage, Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::regularizer::{EntropyBonus, Kl};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Mean log-probability of the true answer after 0, 1, ... finished turns.
pub const ANSWER_BELIEFS: Input =
    Input::new("answer_beliefs", "B lists", "mean log-probability of the true answer after every turn");
/// 1 on every real response token.
pub const SEQUENCE_MASK: Input = Input::new(
    "sequence_mask",
    "[B, T], beyond the mask too",
    "1 on every real response token, tool results included",
);

/// The paper.
pub const PAPER: Paper = Paper {
    id: "igpo_info",
    title: "Information Gain-based Policy Optimization: A Simple and Effective Approach for Multi-Turn LLM Agents",
    arxiv: "2510.14967",
    summary: "Turns are paid by how much they raise the policy's belief in the true answer.",
    blocks: &[BlockKind::reward::<InformationGain>(), BlockKind::advantage::<TurnReturns>()],
    recipe,
    vectors: Some(("igpo_info.json", 9)),
    end_to_end: None,
};

/// Gains, turn returns with separate statistics, clipped ratio with KL and entropy bonus, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .reward(&InformationGain::default())
        .advantage(&TurnReturns::default())
        .regularizer(&Kl::default())
        .regularizer(&EntropyBonus::default())
}

/// How two beliefs are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GainOf {
    /// Difference of mean log-probabilities: the released scripts. Does not vanish for long answers.
    #[default]
    LogProbDiff,
    /// Difference of their exponentials: the paper.
    ProbDiff,
}

/// Puts gains and the outcome on tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InformationGain {
    /// How beliefs are compared.
    pub of: GainOf,
    /// Gains are cut to -clip..clip; 0 leaves them. Not in the paper.
    pub clip: f64,
}

impl Default for InformationGain {
    fn default() -> Self {
        Self { of: GainOf::default(), clip: 0.0 }
    }
}

/// A gain of exactly 0 still marks the end of a turn.
const NO_GAIN: f64 = 1e-10;

/// Mean of `log_probs` where `mask` is not 0; 0 without a token. One answer's tokens, [La] each.
///
/// # Errors
/// Lengths differ.
pub fn belief(log_probs: &[f64], mask: &[f64]) -> Result<f64> {
    if log_probs.len() != mask.len() {
        let expected = format!("[{}], like the mask", mask.len());
        return Err(Error::Shape { name: "answer log_probs", got: vec![log_probs.len()], expected });
    }
    let valid: Vec<f64> = log_probs.iter().zip(mask).filter(|(_, m)| **m != 0.0).map(|(l, _)| *l).collect();
    Ok(valid.iter().sum::<f64>() / valid.len().max(1) as f64)
}

impl InformationGain {
    /// Gains between consecutive beliefs, one fewer than there are beliefs.
    pub fn gains(&self, beliefs: &[f64]) -> Vec<f64> {
        let gain = |pair: &[f64]| {
            let gain = match self.of {
                GainOf::LogProbDiff => pair[1] - pair[0],
                GainOf::ProbDiff => pair[1].exp() - pair[0].exp(),
            };
            if self.clip > 0.0 { gain.clamp(-self.clip, self.clip) } else { gain }
        };
        beliefs.windows(2).map(gain).collect()
    }
}

impl Block for InformationGain {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS, ANSWER_BELIEFS, TURN_IDS, SEQUENCE_MASK]
    }

    fn gives(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS]
    }

    fn validate(&self) -> Result<()> {
        if self.clip >= 0.0 && self.clip.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "clip", got: self.clip, expected: "0 (off) or more" })
    }

    fn describe(&self) -> String {
        match self.of {
            GainOf::LogProbDiff => "turns earn the rise of the answer's log-probability".into(),
            GainOf::ProbDiff => "turns earn the rise of the answer's probability".into(),
        }
    }
}

impl Kind for InformationGain {
    const KIND: &'static str = "information_gain";
}

impl Reward for InformationGain {
    /// Rows whose number of gains does not fit their turns get the outcome alone.
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (outcomes, turns) = (batch.numbers(REWARDS)?, batch.table(TURN_IDS)?);
        let real = batch.table(SEQUENCE_MASK)?;
        let mut rewards = batch.mask().filled(0.0);
        for (i, beliefs) in batch.vectors(ANSWER_BELIEFS)?.iter().enumerate() {
            if let Some(index) = beliefs.iter().position(|b| !b.is_finite()) {
                return Err(Error::NotFinite { name: ANSWER_BELIEFS.name, index, got: beliefs[index] });
            }
            let row = i * rewards.cols;
            // Last token of every turn, in the order of the tokens.
            let mut ends: Vec<usize> = Vec::new();
            let valid = |t: &usize| real.row(i)[*t] != 0.0;
            for t in (0..rewards.cols).filter(valid).filter(|&t| turns.row(i)[t] >= 0.0) {
                match ends.last_mut() {
                    Some(end) if turns.row(i)[*end] == turns.row(i)[t] => *end = t,
                    _ => ends.push(t),
                }
            }
            let gains = self.gains(beliefs);
            if gains.len() + 1 == ends.len() {
                for (&end, gain) in ends.iter().zip(gains) {
                    rewards.values[row + end] = if gain == 0.0 { NO_GAIN } else { gain };
                }
            }
            if let Some(last) = (0..rewards.cols).rfind(valid) {
                rewards.values[row + last] = outcomes[i];
            }
        }
        batch.set(TOKEN_REWARDS, rewards)
    }
}

/// What shares a mean and a deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormMode {
    /// Outcomes among themselves, gains among themselves: the released scripts.
    #[default]
    Separate,
    /// All rewards of the group: the paper.
    Joint,
}

/// Standardised turn rewards, added up backwards over turns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TurnReturns {
    /// What shares statistics.
    pub norm: NormMode,
    /// Discount per turn, 0 to 1.
    pub gamma: f64,
    /// Added to the deviation.
    pub epsilon: f64,
    /// Added to the variance.
    pub variance_floor: f64,
    /// Whether the deviation divides.
    pub by_std: bool,
    /// Factor on outcomes before statistics (see [`curriculum`]).
    pub outcome_weight: f64,
    /// Factor on gains before statistics.
    pub gain_weight: f64,
    /// A standardised reward of exactly 0 ends no turn, as in the authors' code.
    pub zero_ends_no_turn: bool,
}

impl Default for TurnReturns {
    fn default() -> Self {
        Self {
            norm: NormMode::default(),
            gamma: 1.0,
            epsilon: 1e-6,
            variance_floor: 1e-8,
            by_std: true,
            outcome_weight: 1.0,
            gain_weight: 1.0,
            zero_ends_no_turn: false,
        }
    }
}

/// Weights of outcome and gains over training: the outcome's rises from 0.5 to 1, the gains' falls from 1 to 0.5.
/// `progress` 0 to 1. Off in the authors' scripts.
pub fn curriculum(progress: f64) -> (f64, f64) {
    let p = progress.clamp(0.0, 1.0);
    (0.5 + 0.5 * p, 1.0 - 0.5 * p)
}

/// A reward that ends a turn.
struct Entry {
    row: usize,
    at: usize,
    outcome: bool,
    value: f64,
}

impl TurnReturns {
    /// Advantages [B, T] on every token where `real` is not 0. `token_rewards` [B, T]: the last real position of a
    /// row holds the outcome, every other reward that is not 0 ends a turn.
    ///
    /// # Errors
    /// Shapes differ or a reward is not finite.
    pub fn advantages_of(&self, token_rewards: &Table, real: &Table, group_ids: &[u64]) -> Result<Table> {
        token_rewards.same_shape(TOKEN_REWARDS.name, real)?;
        if group_ids.len() != real.rows {
            let expected = format!("[{}]", real.rows);
            return Err(Error::Shape { name: GROUP_IDS.name, got: vec![group_ids.len()], expected });
        }
        let mut out = real.filled(0.0);
        for rows in members(group_ids).values() {
            let mut entries = Vec::new();
            for &row in rows {
                self.entries(token_rewards, real, row, &mut entries)?;
            }
            match self.norm {
                NormMode::Joint => self.standardise(&mut entries, |_| true),
                NormMode::Separate => {
                    self.standardise(&mut entries, |e| e.outcome);
                    self.standardise(&mut entries, |e| !e.outcome);
                }
            }
            for &row in rows {
                let ends = entries.iter().filter(|e| e.row == row);
                let ends: Vec<&Entry> = ends.filter(|e| !self.zero_ends_no_turn || e.value != 0.0).collect();
                let mut later = 0.0;
                for (k, end) in ends.iter().enumerate().rev() {
                    later = end.value + self.gamma * later;
                    let start = k.checked_sub(1).and_then(|k| ends.get(k)).map_or(0, |before| before.at + 1);
                    for t in (start..=end.at).filter(|t| real.row(row)[*t] != 0.0) {
                        out.values[row * real.cols + t] = later;
                    }
                }
            }
        }
        Ok(out)
    }

    /// Entries of a row, in the order of its tokens.
    fn entries(&self, rewards: &Table, real: &Table, row: usize, entries: &mut Vec<Entry>) -> Result<()> {
        let valid: Vec<usize> = (0..real.cols).filter(|&t| real.row(row)[t] != 0.0).collect();
        let last = valid.last().copied();
        for at in valid {
            let (reward, outcome) = (rewards.row(row)[at], last == Some(at));
            if !reward.is_finite() {
                return Err(Error::NotFinite {
                    name: TOKEN_REWARDS.name,
                    index: row * real.cols + at,
                    got: reward,
                });
            }
            if outcome || reward != 0.0 {
                let weight = if outcome { self.outcome_weight } else { self.gain_weight };
                entries.push(Entry { row, at, outcome, value: reward * weight });
            }
        }
        Ok(())
    }

    fn standardise(&self, entries: &mut [Entry], of: impl Fn(&Entry) -> bool) {
        let values: Vec<f64> = entries.iter().filter(|e| of(e)).map(|e| e.value).collect();
        let Some(&first) = values.first() else { return };
        let n = values.len() as f64;
        let constant = values.iter().all(|v| *v == first);
        let mean = if constant { first } else { values.iter().sum::<f64>() / n };
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        let std = if values.len() == 1 { 1.0 } else { (variance + self.variance_floor).sqrt() };
        let by = if self.by_std { std + self.epsilon } else { 1.0 };
        entries.iter_mut().filter(|e| of(e)).for_each(|e| e.value = (e.value - mean) / by);
    }
}

impl Block for TurnReturns {
    fn needs(&self) -> Vec<Input> {
        vec![TOKEN_REWARDS, GROUP_IDS, SEQUENCE_MASK]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        let positive = |x: f64| x >= 0.0 && x.is_finite();
        match self {
            s if !(0.0..=1.0).contains(&s.gamma) => wrong("gamma", s.gamma, "0 to 1"),
            s if !positive(s.epsilon) => wrong("epsilon", s.epsilon, "0 or more"),
            s if !positive(s.variance_floor) => wrong("variance_floor", s.variance_floor, "0 or more"),
            s if s.by_std && s.epsilon == 0.0 && s.variance_floor == 0.0 => {
                wrong("epsilon", 0.0, "greater than 0 where there is no `variance_floor`")
            }
            s if !s.outcome_weight.is_finite() => {
                wrong("outcome_weight", s.outcome_weight, "a finite number")
            }
            s if !s.gain_weight.is_finite() => wrong("gain_weight", s.gain_weight, "a finite number"),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let together = match self.norm {
            NormMode::Separate => "outcomes and gains apart",
            NormMode::Joint => "outcomes and gains together",
        };
        format!(
            "turn rewards standardised in the group ({together}), returns over turns, gamma {}",
            self.gamma
        )
    }
}

impl Kind for TurnReturns {
    const KIND: &'static str = "turn_returns";
}

impl Advantage for TurnReturns {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let (rewards, real) = (batch.table(TOKEN_REWARDS)?, batch.table(SEQUENCE_MASK)?);
        let mut advantages = self.advantages_of(&rewards, &real, batch.ids(GROUP_IDS)?)?;
        let kept = advantages.values.iter_mut().zip(&batch.mask().values);
        kept.filter(|(_, m)| **m == 0.0).for_each(|(a, _)| *a = 0.0);
        Ok(advantages)
    }
}

/// Estimator of the first release: the discounted sum of later token rewards less its mean over the group AT THE SAME
/// COLUMN, times the mask. For comparison only. All [B, T], `group_ids` [B].
///
/// # Errors
/// Shapes differ.
pub fn position_wise(token_rewards: &Table, mask: &Table, group_ids: &[u64], gamma: f64) -> Result<Table> {
    token_rewards.same_shape(TOKEN_REWARDS.name, mask)?;
    if group_ids.len() != mask.rows {
        let expected = format!("[{}]", mask.rows);
        return Err(Error::Shape { name: GROUP_IDS.name, got: vec![group_ids.len()], expected });
    }
    let mut returns = token_rewards.clone();
    for row in 0..mask.rows {
        for t in (0..mask.cols.saturating_sub(1)).rev() {
            let at = row * mask.cols + t;
            returns.values[at] += gamma * returns.values[at + 1];
        }
    }
    let mut out = mask.filled(0.0);
    for rows in members(group_ids).values() {
        for t in 0..mask.cols {
            let mean = rows.iter().map(|&i| returns.row(i)[t]).sum::<f64>() / rows.len() as f64;
            for &i in rows {
                out.values[i * mask.cols + t] = (returns.row(i)[t] - mean) * mask.row(i)[t];
            }
        }
    }
    Ok(out)
}

/// How an answer is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// F1 over sets of words, -2 for a broken format.
    F1,
    /// 1 for equal texts, -2 for a broken format.
    ExactMatch,
    /// F1, 0 for a broken format.
    F1WithoutFormat,
}

/// Outcome of a response against the best of `references`. Tags code, tool_call, think and answer must be balanced
/// and an answer must be there. Texts are compared in lower case, punctuation read as spaces; an empty answer
/// scores 0.
pub fn outcome(solution: &str, references: &[&str], metric: Metric) -> f64 {
    let solution = solution.to_lowercase();
    let answer = between(&solution, "<answer>", "</answer>").filter(|_| balanced(&solution));
    let Some(answer) = answer else {
        return if metric == Metric::F1WithoutFormat { 0.0 } else { -2.0 };
    };
    let answer = words(answer);
    let best = |reference: &&str| {
        let reference = words(&reference.to_lowercase());
        match metric {
            Metric::ExactMatch => f64::from(u8::from(answer == reference)),
            _ => set_f1(&answer, &reference),
        }
    };
    references.iter().map(best).fold(0.0, f64::max)
}

fn set_f1(answer: &[String], reference: &[String]) -> f64 {
    let set = |words: &[String]| words.iter().cloned().collect::<std::collections::BTreeSet<String>>();
    let (answer, reference) = (set(answer), set(reference));
    let common = answer.intersection(&reference).count() as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / answer.len() as f64, common / reference.len() as f64);
    2.0 * (precision * recall) / (precision + recall)
}

fn words(text: &str) -> Vec<String> {
    let plain = text.replace(|c: char| c.is_ascii_punctuation(), " ");
    plain.split_whitespace().map(str::to_string).collect()
}

/// As many closing tags as opening ones, and one after every opening tag.
fn balanced(text: &str) -> bool {
    ["code", "tool_call", "think", "answer"].iter().all(|tag| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        if text.matches(&open).count() != text.matches(&close).count() {
            return false;
        }
        let mut rest = text;
        while let Some(start) = rest.find(&open) {
            let Some(end) = rest[start..].find(&close) else { return false };
            rest = &rest[start + end + close.len()..];
        }
        true
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table(rows: &[&[f64]]) -> Table {
        Table::from_rows(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>()).unwrap()
    }

    fn batch() -> Batch {
        let turns =
            table(&[&[0.0, 0.0, 1.0, 1.0, -1.0], &[0.0, 1.0, 1.0, 2.0, 2.0], &[0.0, 0.0, 0.0, 1.0, 1.0]]);
        Batch::new(table(&[
            &[1.0, 0.0, 1.0, 1.0, 0.0],
            &[1.0, 1.0, 0.0, 1.0, 1.0],
            &[1.0, 1.0, 1.0, 1.0, 0.0],
        ]))
        .with(SEQUENCE_MASK, table(&[&[1.0, 1.0, 1.0, 1.0, 0.0], &[1.0; 5], &[1.0; 5]]))
        .unwrap()
        .with(TURN_IDS, turns)
        .unwrap()
        .with(REWARDS, vec![0.5, 0.0, 1.0])
        .unwrap()
        .with(GROUP_IDS, vec![4, 4, 4])
        .unwrap()
        .with(ANSWER_BELIEFS, vec![vec![-3.0, -1.0], vec![-2.0, -2.0, -2.5], vec![-1.0]])
        .unwrap()
    }

    #[test]
    fn gains_stand_on_the_last_token_of_their_turn() {
        let mut batch = batch();
        InformationGain::default().shape(&mut batch, &mut State::default()).unwrap();
        let rewards = batch.table(TOKEN_REWARDS).unwrap();
        assert_eq!(rewards.row(0), [0.0, 2.0, 0.0, 0.5, 0.0]);
        assert_eq!(rewards.row(1), [1e-10, 0.0, -0.5, 0.0, 0.0]);
        assert_eq!(rewards.row(2), [0.0, 0.0, 0.0, 0.0, 1.0], "a missing belief: the outcome alone");
        assert_eq!(InformationGain { clip: 0.3, ..InformationGain::default() }.gains(&[0.0, 2.0]), [0.3]);
    }

    #[test]
    fn tokens_of_a_turn_share_an_advantage_and_tool_tokens_have_none() {
        let objective = recipe().build().unwrap();
        let a = objective.prepare(batch(), &mut State::default()).unwrap().signals.advantages;
        assert_eq!(a.row(0)[1], 0.0);
        assert_eq!(a.row(0)[2], a.row(0)[3]);
        assert_eq!(a.row(1)[3], a.row(1)[4]);
        assert!(a.row(0)[0] > a.row(0)[2], "the gain was above the group's mean");
        // A zero that ends no turn hands its turn to the next.
        let lone = table(&[&[0.5, 0.0, 1.0], &[0.0, 0.0, 0.0]]);
        let real = lone.filled(1.0);
        let half = TurnReturns { gamma: 0.5, ..TurnReturns::default() };
        let ours = half.advantages_of(&lone, &real, &[0, 0]).unwrap();
        let code =
            TurnReturns { zero_ends_no_turn: true, ..half }.advantages_of(&lone, &real, &[0, 0]).unwrap();
        assert_eq!(ours.row(0)[0], 0.5 * ours.row(0)[2]);
        assert_eq!(code.row(0)[0], code.row(0)[2]);
    }

    #[test]
    fn equal_groups_are_silent_and_a_shift_of_all_gains_changes_nothing() {
        let row: &[f64] = &[0.0, 0.3, 0.0, 0.3];
        let (mask, flat) = (table(&[row; 3]).filled(1.0), table(&[row; 3]));
        for norm in [NormMode::Separate, NormMode::Joint] {
            let settings = TurnReturns { norm, ..TurnReturns::default() };
            assert_eq!(settings.advantages_of(&flat, &mask, &[0; 3]).unwrap(), mask.filled(0.0));
        }
        let gains = |shift: f64| table(&[&[0.0, 0.3 + shift, 0.0, 1.0], &[0.9 + shift, 0.0, 0.0, 0.0]]);
        let of = |x: &Table| TurnReturns::default().advantages_of(x, &x.filled(1.0), &[0; 2]).unwrap();
        for (x, y) in of(&gains(0.0)).values.iter().zip(of(&gains(2.0)).values) {
            assert!((x - y).abs() < 1e-9);
        }
        let empty = TurnReturns::default().advantages_of(&flat, &mask.filled(0.0), &[0; 3]).unwrap();
        assert_eq!(empty, mask.filled(0.0));
    }

    #[test]
    fn schedule_and_outcome() {
        assert_eq!((curriculum(0.0), curriculum(1.0), curriculum(7.0)), ((0.5, 1.0), (1.0, 0.5), (1.0, 0.5)));
        let f1 = |text: &str| outcome(text, &["to be"], Metric::F1);
        assert_eq!(f1("</think><think><answer>to be</answer>"), -2.0);
        assert_eq!(f1("<ANSWER>To, be!</ANSWER>"), 1.0);
        assert_eq!(outcome("<answer>To be.</answer>", &["x", "to  be"], Metric::ExactMatch), 1.0);
        assert_eq!(belief(&[f64::NEG_INFINITY, -2.0], &[0.0, 1.0]).unwrap(), -2.0);
        assert_eq!(belief(&[-1.0], &[0.0]).unwrap(), 0.0);
    }
}
