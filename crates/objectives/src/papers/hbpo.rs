//! HBPO: Hierarchical Budget Policy Optimization (arXiv 2507.15844).
//!
//! Base: GRPO. For adaptive reasoning length: the n answers to a prompt are split into k equal sub-groups, and
//! sub-group i starts with a sentence that announces a budget of b_i tokens. The reward of a right answer depends on
//! its length and its announced budget, and the advantage has a term for the sub-group beside the term for the
//! group:
//!
//! ```text
//! reward of a right answer of n <= L tokens, budget b:
//!   f1 = beta cos(pi n/(2L)) - alpha |n - b|,  f2 = beta cos(pi b/(2L))
//!   piecewise: f1 where n > b, else f2          minimum: min(f1, f2)
//! a wrong answer, and one longer than L: 0
//!
//! inter_ij = (R_ij - mean of the group)/(std of the group + 1e-6)
//! intra_i  = mean reward of the sub-group - beta cos(pi b_i/(2L))
//! A_ij     = inter_ij + intra_weight intra_i
//! ```
//!
//! Lengths are tokens of the response including the announcing sentence. Rewards [B], `budgets` [B] tokens,
//! `group_ids` [B] (one per prompt, over all budgets). A lone answer has mean 0, spread 1 and intra 0. Loss: clip
//! 0.2 / 0.28, dual clip 3, token mean.
//!
//! Source: the paper, which is the default, and the authors' code (ZJU-REAL/HBPO). The code takes the minimum, which
//! differs for a budget of 512 below 322 tokens, writes pi as 3.1416, gives format errors -1, rounds the reward of an
//! answer without budget sentence to two decimals, and adds intra twice (`intra_weight` 2).
//!
//! intra is never positive and -1 to -4 where most answers are wrong, while inter is of order 1, so most advantages
//! are negative, also those of right answers: `centre` subtracts the batch mean, or lower `intra_weight` to 0.1 to
//! 0.5.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread, group_norm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES, REWARDS, SUCCESS};
use crate::block::{Advantage, Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Announced budgets.
pub const BUDGETS: Input =
    Input::new("budgets", "[B]", "announced length in tokens, 0 where none was announced");
/// Whether an answer can be read.
pub const WELL_FORMED: Input =
    Input::new("well_formed", "[B]", "1 where the reasoning is closed and an answer can be read, else 0");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "hbpo",
    title: "Hierarchical Budget Policy Optimization for Adaptive Reasoning",
    arxiv: "2507.15844",
    summary: "Answers announce a length budget; reward and advantage depend on it.",
    blocks: &[BlockKind::reward::<BudgetReward>(), BlockKind::advantage::<BudgetAdvantage>()],
    recipe,
    vectors: Some(("hbpo.json", 5)),
    end_to_end: None,
};

/// Budget rewards, group and sub-group advantages, clip-higher with dual clip 3, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(3.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&BudgetReward::default())
        .advantage(&BudgetAdvantage::default())
}

/// The paper's budgets, in tokens.
pub const BUDGET_TOKENS: [u64; 4] = [512, 1024, 2048, 2560];

/// Budgets of a prompt's n answers: k equal runs. Answers of a run start with [`budget_sentence`].
///
/// # Errors
/// n is no multiple of the number of budgets.
pub fn rollout_budgets(budgets: &[u64], n: usize) -> Result<Vec<u64>> {
    if budgets.is_empty() || !n.is_multiple_of(budgets.len()) {
        let reason = format!("{n} answers cannot be split equally over {} budgets", budgets.len());
        return Err(Error::Invalid { what: "budgets", reason });
    }
    Ok(budgets.iter().flat_map(|&b| std::iter::repeat_n(b, n / budgets.len())).collect())
}

/// What an answer starts with, behind the opening of its reasoning (the code's words; the paper says "within").
pub fn budget_sentence(budget: u64) -> String {
    format!(" I will answer the question with {budget} tokens")
}

/// The budget that a response announces, in the code's words or the paper's.
pub fn announced_budget(response: &str) -> Option<u64> {
    let (_, after) = response.split_once("I will answer the question with")?;
    let digits = after.strip_prefix("in").unwrap_or(after).trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (number, rest) = digits.split_at(end);
    if rest.trim_start().starts_with("tokens") { number.parse().ok() } else { None }
}

/// What is known about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Right.
    Right,
    /// Wrong.
    Wrong,
    /// No answer can be read, or the reasoning is not closed.
    Malformed,
}

/// Which form the reward has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardForm {
    /// The paper's.
    #[default]
    Piecewise,
    /// The authors' code.
    Minimum,
}

/// Rewards by length and budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetReward {
    /// Height of the cosine.
    pub beta: f64,
    /// Price of a token away from the budget.
    pub alpha: f64,
    /// L, in tokens.
    pub l_max: f64,
    /// 3.1416 in the code.
    pub pi: f64,
    /// Which form.
    pub form: RewardForm,
    /// Reward of a wrong answer.
    pub incorrect: f64,
    /// Reward of a malformed answer: paper 0, code -1. Where it differs from `incorrect` the batch must tell.
    pub malformed: f64,
    /// Lift negative rewards of right answers to 0: else a long right answer is worth less than a wrong one.
    pub floor_at_zero: bool,
}

impl Default for BudgetReward {
    fn default() -> Self {
        Self {
            beta: 4.0,
            alpha: 1.0 / 4096.0,
            l_max: 4096.0,
            pi: PI,
            form: RewardForm::Piecewise,
            incorrect: 0.0,
            malformed: 0.0,
            floor_at_zero: false,
        }
    }
}

/// beta cos(pi b/(2L)): the reward of a right answer that keeps its budget.
pub fn budget_bound(budget: f64, beta: f64, l_max: f64, pi: f64) -> f64 {
    beta * (pi * budget / (2.0 * l_max)).cos()
}

impl BudgetReward {
    /// Reward of an answer of `length` tokens; `budget` is `None` where none was announced.
    pub fn reward(&self, verdict: Verdict, length: f64, budget: Option<f64>) -> f64 {
        match verdict {
            Verdict::Wrong => return self.incorrect,
            Verdict::Malformed => return self.malformed,
            Verdict::Right if length > self.l_max => return 0.0,
            Verdict::Right => {}
        }
        let cosine = |x: f64| budget_bound(x, self.beta, self.l_max, self.pi);
        let reward = match (budget, self.form) {
            (None, RewardForm::Minimum) => two_decimals(cosine(length)),
            (None, RewardForm::Piecewise) => cosine(length),
            (Some(b), form) => {
                let (f1, f2) = (cosine(length) - self.alpha * (length - b).abs(), cosine(b));
                match form {
                    RewardForm::Minimum => f1.min(f2),
                    RewardForm::Piecewise if length > b => f1,
                    RewardForm::Piecewise => f2,
                }
            }
        };
        if self.floor_at_zero { reward.max(0.0) } else { reward }
    }

    fn tells_malformed(&self) -> bool {
        self.malformed != self.incorrect
    }
}

/// Rounds the exact decimal expansion, half to even, as Python does.
fn two_decimals(x: f64) -> f64 {
    format!("{x:.2}").parse().unwrap_or(x)
}

impl Block for BudgetReward {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![SUCCESS, BUDGETS];
        needs.extend(self.tells_malformed().then_some(WELL_FORMED));
        needs
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        check_cosine(self.beta, self.l_max, self.pi)?;
        let rest = [("alpha", self.alpha), ("incorrect", self.incorrect), ("malformed", self.malformed)];
        match rest.into_iter().find(|(_, x)| !x.is_finite()) {
            Some((name, got)) => Err(Error::Setting { name, got, expected: "a finite number" }),
            None => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let form = match self.form {
            RewardForm::Piecewise => "piecewise",
            RewardForm::Minimum => "minimum",
        };
        format!("right answers by length and budget ({form}, {} cos to {} tokens)", self.beta, self.l_max)
    }
}

fn check_cosine(beta: f64, l_max: f64, pi: f64) -> Result<()> {
    for (name, got) in [("beta", beta), ("pi", pi)] {
        if !got.is_finite() {
            return Err(Error::Setting { name, got, expected: "a finite number" });
        }
    }
    if l_max > 0.0 && l_max.is_finite() {
        return Ok(());
    }
    Err(Error::Setting { name: "l_max", got: l_max, expected: "greater than 0" })
}

impl Kind for BudgetReward {
    const KIND: &'static str = "budget";
}

impl Reward for BudgetReward {
    /// Lengths are the valid tokens of every row.
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (right, budgets) = (batch.numbers(SUCCESS)?, batch.numbers(BUDGETS)?);
        let formed =
            if self.tells_malformed() { batch.numbers(WELL_FORMED)? } else { vec![1.0; right.len()] };
        let lengths = batch.mask().row_sums();
        let rewards: Vec<f64> = (0..right.len())
            .map(|i| {
                let verdict = match (formed[i] != 0.0, right[i] != 0.0) {
                    (false, _) => Verdict::Malformed,
                    (true, true) => Verdict::Right,
                    (true, false) => Verdict::Wrong,
                };
                self.reward(verdict, lengths[i], Some(budgets[i]).filter(|&b| b > 0.0))
            })
            .collect();
        batch.set(REWARDS, rewards)
    }
}

/// Group-normalised reward plus what the sub-group falls short of its budget's reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetAdvantage {
    /// Added to the group's deviation.
    pub epsilon: f64,
    /// Height of the cosine, as in the reward.
    pub beta: f64,
    /// L, as in the reward.
    pub l_max: f64,
    /// 3.1416 in the code.
    pub pi: f64,
    /// Factor on the sub-group's term: paper 1, code in effect 2.
    pub intra_weight: f64,
    /// Subtract the mean over the batch's sequences (ours).
    pub centre: bool,
}

impl Default for BudgetAdvantage {
    fn default() -> Self {
        Self { epsilon: 1e-6, beta: 4.0, l_max: 4096.0, pi: PI, intra_weight: 1.0, centre: false }
    }
}

/// The two terms, [B] each, and their weighted sum.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetTerms {
    /// Against the group.
    pub inter: Vec<f64>,
    /// Of the sub-group against its bound.
    pub intra: Vec<f64>,
    /// inter + intra_weight intra, centred if asked for.
    pub advantages: Vec<f64>,
}

impl BudgetAdvantage {
    /// The terms of `rewards` [B] with `budgets` [B] in `group_ids` [B].
    ///
    /// # Errors
    /// Lengths that differ, a number that is not finite.
    pub fn terms(&self, rewards: &[f64], budgets: &[f64], group_ids: &[u64]) -> Result<BudgetTerms> {
        if budgets.len() != group_ids.len() {
            let expected = format!("[{}], like `group_ids`", group_ids.len());
            return Err(Error::Shape { name: "budgets", got: vec![budgets.len()], expected });
        }
        if let Some(index) = budgets.iter().position(|b| !b.is_finite()) {
            return Err(Error::NotFinite { name: "budgets", index, got: budgets[index] });
        }
        let norm = GroupNorm { epsilon: self.epsilon, spread: Spread::Unbiased, lone_spread_f32: false };
        let inter = group_norm(rewards, group_ids, &norm)?;
        let mut intra = vec![0.0; rewards.len()];
        for index in members(group_ids).values().filter(|index| index.len() > 1) {
            let mut subgroups: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
            for &i in index {
                subgroups.entry(budgets[i].to_bits()).or_default().push(i);
            }
            for index in subgroups.values() {
                let mean = index.iter().map(|&i| rewards[i]).sum::<f64>() / index.len() as f64;
                // 0: none was announced; the authors' code then reports the longest.
                let budget = Some(budgets[index[0]]).filter(|&b| b > 0.0).unwrap_or(self.l_max);
                let bound = budget_bound(budget, self.beta, self.l_max, self.pi);
                index.iter().for_each(|&i| intra[i] = mean - bound);
            }
        }
        let mut advantages: Vec<f64> =
            inter.iter().zip(&intra).map(|(inter, intra)| inter + self.intra_weight * intra).collect();
        if self.centre && !advantages.is_empty() {
            let mean = advantages.iter().sum::<f64>() / advantages.len() as f64;
            advantages.iter_mut().for_each(|a| *a -= mean);
        }
        Ok(BudgetTerms { inter, intra, advantages })
    }
}

impl Block for BudgetAdvantage {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS, BUDGETS]
    }

    fn validate(&self) -> Result<()> {
        check_cosine(self.beta, self.l_max, self.pi)?;
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" });
        }
        if !self.intra_weight.is_finite() {
            let got = self.intra_weight;
            return Err(Error::Setting { name: "intra_weight", got, expected: "a finite number" });
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let centre = if self.centre { ", centred" } else { "" };
        format!("group: (R - mean) / (std + eps) + {} (budget mean - bound){centre}", self.intra_weight)
    }
}

impl Kind for BudgetAdvantage {
    const KIND: &'static str = "budget_subgroups";
}

impl Advantage for BudgetAdvantage {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let terms = self.terms(&batch.outcomes()?, &batch.numbers(BUDGETS)?, batch.ids(GROUP_IDS)?)?;
        Table::broadcast(&terms.advantages, batch.mask())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sentences_and_budgets() {
        assert_eq!(rollout_budgets(&[5, 9], 4).unwrap(), [5, 5, 9, 9]);
        assert!(rollout_budgets(&BUDGET_TOKENS, 6).is_err() && rollout_budgets(&[], 0).is_err());
        assert_eq!(announced_budget(&format!("<think>{}. So", budget_sentence(512))), Some(512));
        assert_eq!(announced_budget("I will answer the question within 77 tokens"), Some(77));
        assert_eq!(announced_budget("I will answer the question with care"), None);
        assert_eq!(announced_budget("I will answer the question with 99999999999999999999999 tokens"), None);
    }

    #[test]
    fn the_recipe_makes_its_own_rewards() {
        let mask = Table::from_rows(&vec![vec![1.0; 3]; 4]).unwrap();
        let batch = Batch::new(mask)
            .with(SUCCESS, vec![1.0, 0.0, 1.0, 1.0])
            .unwrap()
            .with(BUDGETS, vec![512.0, 512.0, 1024.0, 1024.0])
            .unwrap()
            .with(GROUP_IDS, vec![0u64, 0, 0, 0])
            .unwrap();
        let objective = recipe().build().unwrap();
        assert!(objective.needs().contains(&BUDGETS) && !objective.needs().contains(&REWARDS));
        let prepared = objective.prepare(batch, &mut State::default()).unwrap();
        let rewards = prepared.batch.numbers(REWARDS).unwrap();
        assert_eq!(rewards[1], 0.0);
        assert_eq!(rewards[2], budget_bound(1024.0, 4.0, 4096.0, PI));
        let told = BudgetReward { malformed: -1.0, ..BudgetReward::default() };
        assert!(told.needs().contains(&WELL_FORMED));
    }

    #[test]
    fn a_lone_answer_and_a_dead_group() {
        let settings = BudgetAdvantage::default();
        let out =
            settings.terms(&[2.0, 0.9, 0.9, 0.9], &[512.0, 512.0, 512.0, 1024.0], &[0, 1, 1, 1]).unwrap();
        assert_eq!(out.intra[0], 0.0);
        assert_eq!(out.inter[1..], [0.0; 3]);
        assert!(out.intra[1] < 0.0 && out.intra[1] < out.intra[3]);
        assert!(settings.terms(&[1.0], &[], &[0]).is_err());
    }

    proptest! {
        /// For budgets from 1024 on the two forms are one; intra is never positive for the reward's own answers.
        #[test]
        fn forms_agree_and_intra_is_a_shortfall(
            lengths in proptest::collection::vec(1u32..4097, 6),
            budget in 0usize..3,
        ) {
            let b = BUDGET_TOKENS[budget + 1] as f64;
            let paper = BudgetReward::default();
            let code = BudgetReward { form: RewardForm::Minimum, ..paper };
            let reward = |s: &BudgetReward, n: u32| s.reward(Verdict::Right, f64::from(n), Some(b));
            let rewards: Vec<f64> = lengths.iter().map(|&n| reward(&paper, n)).collect();
            for (r, &n) in rewards.iter().zip(&lengths) {
                prop_assert!((r - reward(&code, n)).abs() < 1e-12);
            }
            let out = BudgetAdvantage::default().terms(&rewards, &[b; 6], &[0; 6]).unwrap();
            prop_assert!(out.intra.iter().all(|&x| x <= 1e-12));
            let centred = BudgetAdvantage { centre: true, ..BudgetAdvantage::default() };
            let sum: f64 = centred.terms(&rewards, &[b; 6], &[0; 6]).unwrap().advantages.iter().sum();
            prop_assert!(sum.abs() < 1e-9);
        }
    }
}
