//! FAPO: Flawed-Aware Policy Optimization (arXiv 2510.22543).
//!
//! Base: GRPO with DAPO's clip-higher, token mean and overlong penalty. New: an answer that is right although a step
//! of its reasoning is wrong (a flawed positive, found by a generative reward model) loses a fixed penalty:
//!
//! ```text
//! score = 1 if correct else -1;    flawed and correct: score -= penalty            (1: clean 1, flawed 0, wrong -1)
//! reward = score + min(-(len - (max_len - buffer)) / buffer * factor, 0)
//! A = (reward - mean_g) / (std_g + 1e-6);  clip 0.2 / 0.28, dual clip 10, token mean; no KL, no entropy
//! ```
//!
//! The group's mean sets the sign without a schedule. With shares p clean, f flawed, w wrong the flawed answers' sign
//! is that of (1 - penalty) - (p + f (1 - penalty) - w): at penalty 1 they are reinforced while w > p and suppressed
//! once p > w. A group of nothing but flawed answers teaches nothing.
//!
//! The detector itself is trained with GRPO on a step-distance reward, [`detector_reward`]:
//!
//! ```text
//! index neither -1 nor in 0..steps, or none: -1;   truth "no error": 1 if it says so, else -1
//! truth t: -1 if it says "no error", else 1 - |p - t| / steps
//! ```
//!
//! Source: verl-recipe `fapo/`. Only training rows that are correct are shown to the detector; an answer of the
//! detector that cannot be read counts as clean (count and log those). Where the code differs from itself: the
//! authors' first repository sets the score of a flawed answer to 0 and asks for test rows as well, the later recipe
//! subtracts the penalty and asks for training rows only; the recipe is followed (equal at penalty 1). Indices are
//! parsed as integers, never evaluated as expressions.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, REWARDS, SUCCESS};
use crate::block::{Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::shaping::DapoOverlong;
use crate::state::State;
use crate::surrogate::ClippedRatio;

/// Whether the detector found a wrong step, 0 or 1; 0 where it was not asked.
pub const FLAWED: Input = Input::new("flawed", "[B]", "whether the detector found a wrong step, 0 or 1");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "fapo",
    title: "FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable Reasoning",
    arxiv: "2510.22543",
    summary: "Right answers with a wrong step are paid less than clean ones and more than wrong ones.",
    blocks: &[BlockKind::reward::<FlawedAware>()],
    recipe,
    vectors: Some(("fapo.json", 6)),
    end_to_end: None,
};

/// Three-level outcomes, overlong penalty, group-standardised rewards, clip-higher, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(10.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&FlawedAware::default())
        .reward(&DapoOverlong { max: 8192.0, ..DapoOverlong::default() })
        .advantage(&GroupNorm::default())
}

/// Outcomes of three levels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlawedAware {
    /// What a correct answer loses for a wrong step, 0 or more; 2 makes it as bad as a wrong answer.
    pub penalty: f64,
    /// Outcome of a correct answer.
    pub correct: f64,
    /// Outcome of a wrong answer.
    pub incorrect: f64,
}

impl Default for FlawedAware {
    fn default() -> Self {
        Self { penalty: 1.0, correct: 1.0, incorrect: -1.0 }
    }
}

impl FlawedAware {
    /// Outcome of one answer.
    pub fn score(&self, correct: bool, flawed: bool) -> f64 {
        match (correct, flawed) {
            (false, _) => self.incorrect,
            (true, false) => self.correct,
            (true, true) => self.correct - self.penalty,
        }
    }
}

impl Block for FlawedAware {
    fn needs(&self) -> Vec<Input> {
        vec![SUCCESS, FLAWED]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.penalty >= 0.0 && self.penalty.is_finite()) {
            return Err(Error::Setting { name: "penalty", got: self.penalty, expected: "0 or more" });
        }
        for (name, got) in [("correct", self.correct), ("incorrect", self.incorrect)] {
            if !got.is_finite() {
                return Err(Error::Setting { name, got, expected: "a finite number" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let flawed = self.correct - self.penalty;
        format!("correct {}, correct with a wrong step {flawed}, wrong {}", self.correct, self.incorrect)
    }
}

impl Kind for FlawedAware {
    const KIND: &'static str = "flawed_aware";
}

impl Reward for FlawedAware {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (correct, flawed) = (batch.numbers(SUCCESS)?, batch.numbers(FLAWED)?);
        let pairs = correct.iter().zip(&flawed);
        let rewards: Vec<f64> = pairs.map(|(c, f)| self.score(*c != 0.0, *f != 0.0)).collect();
        batch.set(REWARDS, rewards)
    }
}

/// What the detector said of a solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No step is wrong (index -1).
    Clean,
    /// The first wrong step. Any other index than -1: the policy's reward does not check its range.
    Step(i64),
    /// Nothing that can be read.
    Unreadable,
}

impl Verdict {
    /// Whether the solution counts as flawed: an index was given and it is not -1.
    pub fn flawed(self) -> bool {
        matches!(self, Self::Step(_))
    }
}

/// Characters of an answer in which the box is searched.
pub const BOX_WINDOW: usize = 300;

/// Reads the detector's answer: the integer in the last box `\boxed{...}` of its last [`BOX_WINDOW`] characters.
pub fn read_verdict(answer: &str) -> Verdict {
    let index = last_boxed(answer).and_then(|inside| inside.trim().parse::<i64>().ok());
    match index {
        Some(-1) => Verdict::Clean,
        Some(step) => Verdict::Step(step),
        None => Verdict::Unreadable,
    }
}

/// What stands in the last `\boxed{...}` of the last [`BOX_WINDOW`] characters, nested braces included.
pub fn last_boxed(answer: &str) -> Option<&str> {
    let start = answer.char_indices().rev().nth(BOX_WINDOW - 1).map_or(0, |(i, _)| i);
    let tail = &answer[start..];
    let inside = &tail[tail.rfind("\\boxed{")? + "\\boxed{".len()..];
    let mut depth = 1usize;
    for (i, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inside[..i]);
        }
    }
    None
}

/// Whether the detector is asked: training rows with a correct answer only.
pub fn ask_detector(training: bool, correct: bool) -> bool {
    training && correct
}

/// Reward of the detector for the index `predicted` it gave (`None`: nothing readable) on a solution of `steps` steps
/// whose first wrong step is `truth`, -1 for none; and whether it was right that there is, or is not, an error.
pub fn detector_reward(predicted: Option<i64>, truth: i64, steps: u64) -> (f64, bool) {
    let in_range = |p: &i64| *p == -1 || u64::try_from(*p).is_ok_and(|p| p < steps);
    let Some(p) = predicted.filter(in_range) else { return (-1.0, false) };
    let reward = match (truth == -1, p == -1) {
        (true, true) => 1.0,
        (true, false) | (false, true) => -1.0,
        (false, false) => 1.0 - p.abs_diff(truth) as f64 / steps as f64,
    };
    (reward, (truth == -1) == (p == -1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::advantage::group_norm;
    use crate::table::Table;
    use proptest::prelude::*;

    proptest! {
        /// The stepping stone: flawed answers gain exactly while wrong ones outnumber clean ones.
        #[test]
        fn the_majority_decides_the_sign_of_flawed_answers(p in 0usize..6, f in 1usize..6, w in 0usize..6) {
            let s = FlawedAware::default();
            let mut rewards = vec![s.score(true, true); f];
            rewards.extend(vec![s.score(true, false); p]);
            rewards.extend(vec![s.score(false, false); w]);
            let ids = vec![7; rewards.len()];
            let a = group_norm(&rewards, &ids, &GroupNorm::default()).unwrap()[0];
            let sign = if a.abs() < 1e-12 { 0 } else { a.signum() as i64 };
            prop_assert_eq!(sign, (w as i64 - p as i64).signum());
        }

        /// "Some index" is never worse than nothing readable, and the right index is best.
        #[test]
        fn the_detector_is_paid_by_distance(
            (steps, truth) in (1u64..20).prop_flat_map(|steps| (Just(steps), 0..steps as i64)),
            p in -3i64..25,
        ) {
            let (r, _) = detector_reward(Some(p), truth, steps);
            prop_assert!((-1.0..=1.0).contains(&r));
            prop_assert_eq!(r == 1.0, p == truth);
            prop_assert_eq!(detector_reward(None, truth, steps), (-1.0, false));
        }
    }

    #[test]
    fn answers_are_read_not_evaluated() {
        assert_eq!(read_verdict("so \\boxed{2} or rather \\boxed{ -1 }"), Verdict::Clean);
        assert_eq!(read_verdict("\\boxed{3}."), Verdict::Step(3));
        for unreadable in ["", "3", "\\boxed{1+1}", "\\boxed{3", "\\boxed{\\text{3}}"] {
            assert_eq!(read_verdict(unreadable), Verdict::Unreadable, "{unreadable}");
        }
        let far = format!("\\boxed{{3}}{}", "é".repeat(BOX_WINDOW));
        assert_eq!(read_verdict(&far), Verdict::Unreadable);
    }

    #[test]
    fn the_recipe_pays_length_as_well() {
        let objective = recipe().build().unwrap();
        let mask = Table { rows: 2, cols: 8192, values: [vec![1.0; 8192], vec![0.0; 8192]].concat() };
        let batch = Batch::new(mask).with(SUCCESS, vec![1.0, 1.0]).unwrap();
        let mut batch = batch.with(FLAWED, vec![1.0, 0.0]).unwrap();
        for reward in &objective.rewards {
            reward.shape(&mut batch, &mut State::default()).unwrap();
        }
        assert_eq!(batch.numbers(REWARDS).unwrap(), [-1.0, 1.0]);
    }
}
