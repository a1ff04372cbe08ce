//! TSPO: Temporal Sampling Policy Optimization for long videos (arXiv 2508.04369).
//!
//! Base: GRPO. New: the policy is a small agent ([`agent`]) that chooses which k frames of a video a FROZEN
//! language model sees. An action is a set of frames drawn without replacement ([`frames`]); the frozen model's
//! answer, and whether the frames lie in the true event, are the reward.
//!
//! ```text
//! S        = scores of T frames, [T];  l_im = log softmax(S)[frame m of rollout i]                      [G, k]
//! R_i      = answer right + share of chosen frames in the event        (needle samples)
//!          = answer right + 1                                          (general samples)              [G]
//! A_i      = (R_i - mean) / (std + 1e-4) over the G rollouts of a question, std unbiased
//! loss     = mean_i -A_i mean_m exp(l_im - stopgrad(l_im))             value -mean A, gradient -A_i / (G k)
//! tau(s)   = tau0 - (tau0 - floor) s / max_steps                       S is divided by it; 0.025 to 0.01
//! ```
//!
//! There is no clipping and no KL: one gradient step per sampling. The code scores a drawn set by its k MARGINAL
//! first-draw log-probabilities, which is the default; [`frames::SetLogProb::PlackettLuce`] is the exact
//! probability of the draw, one "token" per rollout. Where we differ from the code: log softmax does not underflow;
//! questions are told apart by `group_ids` instead of one per device; letters of free text are read by
//! [`LetterRule::LastStated`] (the authors take the first letter that stands alone, so that the article "a" is
//! option A: [`LetterRule::FirstStanding`]). Source: Hui-design/TSPO.

pub mod agent;
pub mod frames;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, REWARDS, SUCCESS, Signals};
use crate::block::{Block, BlockKind, Kind, Reward, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;

/// Share of the chosen frames that lie in the true event.
pub const LOCATED: Input =
    Input::new("located", "[B]", "share of the chosen frames that lie in the true event");
/// Whether the event is known.
pub const SPECIFIC: Input = Input::new("specific", "[B]", "1 where the true event is known (needle samples)");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "tspo",
    title: "TSPO: Temporal Sampling Policy Optimization for Long-form Video Language Understanding",
    arxiv: "2508.04369",
    summary: "Learns which frames a frozen model should see.",
    blocks: &[BlockKind::reward::<AnswerAndLocation>(), BlockKind::surrogate::<OnPolicyRatio>()],
    recipe,
    vectors: Some(("tspo.json", 13)),
    end_to_end: None,
};

/// Answer and location, group-standardised with epsilon 1e-4, ratio to itself, frames averaged inside a rollout.
pub fn recipe() -> Composition {
    Composition::new(&OnPolicyRatio::default(), Aggregation::SeqMeanTokenMean)
        .reward(&AnswerAndLocation::default())
        .advantage(&GroupNorm { epsilon: 1e-4, ..GroupNorm::default() })
}

/// -A exp(l - stopgrad(l)): the ratio to itself, 1 in value, with the gradient of the log-probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnPolicyRatio {}

impl Block for OnPolicyRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS]
    }

    fn describe(&self) -> String {
        "ratio to the policy itself".into()
    }
}

impl Kind for OnPolicyRatio {
    const KIND: &'static str = "on_policy_ratio";
}

impl Surrogate for OnPolicyRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        signals.advantages.same_shape("advantages", batch.mask())?;
        let ratio = (&log_probs - log_probs.detach())?.exp()?;
        let advantages = signals.advantages.to_tensor(&log_probs)?;
        Ok(Terms::Tokens((ratio * advantages)?.neg()?).into())
    }
}

/// Answer right, plus the share of frames in the event where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerAndLocation {
    /// Weight of the location.
    pub location_weight: f64,
    /// Added where the event is not known; the group's mean takes it away again.
    pub general_bonus: f64,
}

impl Default for AnswerAndLocation {
    fn default() -> Self {
        Self { location_weight: 1.0, general_bonus: 1.0 }
    }
}

impl AnswerAndLocation {
    /// Reward of one rollout.
    pub fn reward(&self, right: f64, located: f64, specific: bool) -> f64 {
        right + if specific { self.location_weight * located } else { self.general_bonus }
    }
}

impl Block for AnswerAndLocation {
    fn needs(&self) -> Vec<Input> {
        vec![SUCCESS, LOCATED, SPECIFIC]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("location_weight", self.location_weight), ("general_bonus", self.general_bonus)]
        {
            if !got.is_finite() {
                return Err(Error::Setting { name, got, expected: "a finite number" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("answer right + {} share of frames in the event", self.location_weight)
    }
}

impl Kind for AnswerAndLocation {
    const KIND: &'static str = "answer_and_location";
}

impl Reward for AnswerAndLocation {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let (right, located) = (batch.numbers(SUCCESS)?, batch.numbers(LOCATED)?);
        let specific = batch.numbers(SPECIFIC)?;
        let rewards: Vec<f64> = right
            .iter()
            .zip(located)
            .zip(specific)
            .map(|((&right, located), specific)| self.reward(right, located, specific != 0.0))
            .collect();
        batch.set(REWARDS, rewards)
    }
}

/// Which letter of a response is its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterRule {
    /// The last capital that stands alone, else the last letter that does.
    #[default]
    LastStated,
    /// The first letter that stands alone, whatever its case: the authors' rule.
    FirstStanding,
}

/// The option, `a` to `e`, that a response names: a letter without a letter a to z on either side.
pub fn stated_letter(response: &str, rule: LetterRule) -> Option<char> {
    let chars: Vec<char> = response.chars().collect();
    let letter = |i: Option<usize>| i.and_then(|i| chars.get(i)).is_some_and(char::is_ascii_alphabetic);
    let stands = |&i: &usize| {
        ('a'..='e').contains(&chars[i].to_ascii_lowercase())
            && !letter(i.checked_sub(1))
            && !letter(Some(i + 1))
    };
    let mut standing = (0..chars.len()).filter(stands);
    let found = match rule {
        LetterRule::FirstStanding => standing.next(),
        LetterRule::LastStated => {
            let all: Vec<usize> = standing.collect();
            let capital = all.iter().rfind(|&&i| chars[i].is_ascii_uppercase());
            capital.or(all.last()).copied()
        }
    };
    found.map(|i| chars[i].to_ascii_lowercase())
}

/// 1 when the response names the option inside the solution's `<answer>` tags, else 0.
pub fn answer_reward(response: &str, solution: &str, rule: LetterRule) -> f64 {
    let inside = solution.split_once("<answer>").and_then(|(_, rest)| rest.split_once("</answer>"));
    let truth = inside.map(|(text, _)| text.trim().to_lowercase());
    let stated = stated_letter(response, rule).map(String::from);
    f64::from(u8::from(stated.is_some() && stated == truth))
}

/// Share of the chosen frames that lie in the event; 0 of none.
///
/// # Errors
/// [`Error::Invalid`]: a frame that the video has not.
pub fn located_share(selected: &[usize], needle: &[bool]) -> Result<f64> {
    let mut inside = 0usize;
    for &frame in selected {
        let reason = || format!("{frame} of a video of {} frames", needle.len());
        let known =
            needle.get(frame).ok_or_else(|| Error::Invalid { what: "chosen frame", reason: reason() })?;
        inside += usize::from(*known);
    }
    Ok(inside as f64 / selected.len().max(1) as f64)
}

/// The temperature of the scores at an update: linear from `start` to `floor`.
pub fn score_temperature(step: f64, max_steps: f64, start: f64, floor: f64) -> f64 {
    if max_steps > 0.0 { start - (start - floor) * step.min(max_steps) / max_steps } else { floor }
}

/// Frames per rollout: `k` where the event is known, half of it otherwise.
pub fn frames_per_rollout(k: usize, specific: bool) -> usize {
    if specific { k } else { k / 2 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Tensor, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::GROUP_IDS;
    use crate::table::Table;

    /// Gradient of the recipe at log-probabilities of G rollouts of 3 frames, two questions.
    fn gradient(success: &[f64], part: Option<&[usize]>) -> Vec<f64> {
        let g = success.len();
        let start =
            Tensor::from_vec((0..g * 3).map(|i| -0.1 * i as f64).collect(), (g, 3), &Device::Cpu).unwrap();
        let l = Var::from_tensor(&start).unwrap();
        let batch = Batch::new(Table { rows: g, cols: 3, values: vec![1.0; g * 3] })
            .with(LOG_PROBS, l.as_tensor().clone())
            .and_then(|b| b.with(SUCCESS, success.to_vec()))
            .and_then(|b| b.with(LOCATED, vec![0.5; g]))
            .and_then(|b| b.with(SPECIFIC, vec![1.0; g]))
            .and_then(|b| b.with(GROUP_IDS, (0..g as u64).map(|i| i / 4).collect::<Vec<_>>()))
            .unwrap();
        let objective = recipe().build().unwrap();
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state).unwrap();
        let rows: Vec<usize> = part.map_or((0..g).collect(), <[usize]>::to_vec);
        let (batch, signals) = (ready.batch.select(&rows).unwrap(), ready.signals.select(&rows));
        let loss = objective.loss(&batch, &signals, &ready.batch.normaliser(), &state).unwrap().loss;
        Table::from_tensor(loss.backward().unwrap().get(l.as_tensor()).unwrap()).unwrap().values
    }

    #[test]
    fn equal_rewards_have_no_gradient_and_parts_add_up() {
        assert!(gradient(&[1.0; 8], None).iter().all(|&g| g == 0.0));
        let success = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0];
        let all = gradient(&success, None);
        let (a, b) = (gradient(&success, Some(&[0, 5, 7])), gradient(&success, Some(&[1, 2, 3, 4, 6])));
        for ((all, a), b) in all.iter().zip(a).zip(b) {
            assert!((all - a - b).abs() < 1e-14);
        }
    }

    #[test]
    fn the_article_is_no_answer_by_default() {
        let text = "I think a dog is B";
        assert_eq!(stated_letter(text, LetterRule::FirstStanding), Some('a'));
        assert_eq!(stated_letter(text, LetterRule::LastStated), Some('b'));
        assert_eq!(stated_letter("(c)", LetterRule::LastStated), Some('c'));
        assert_eq!(stated_letter("bad", LetterRule::LastStated), None);
        assert!(located_share(&[3], &[true]).is_err());
    }

    proptest! {
        #[test]
        fn a_lone_letter_is_read_by_both_rules(letter in "[a-eA-E]", left in "[ (.]{0,3}", right in "[ ).]{0,3}") {
            let text = format!("{left}{letter}{right}");
            let expected = letter.to_lowercase().chars().next();
            prop_assert_eq!(stated_letter(&text, LetterRule::LastStated), expected);
            prop_assert_eq!(stated_letter(&text, LetterRule::FirstStanding), expected);
        }
    }
}
