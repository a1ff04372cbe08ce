//! InfiGUI-G1: Adaptive Exploration Policy Optimization (AEPO) for clicking on user interfaces (arXiv 2508.05731).
//!
//! Base: RLOO with a clipped ratio and no reference policy. New: one response may propose several points, and the
//! reward is utility over cost: success is worth less the more points there are and the later the right one stands,
//! failure is punished less the more was tried. Three collinear points forfeit everything, so that scanning along a
//! line pays not.
//!
//! ```text
//! N = number of points, k = rank of the first point inside the target box (edges included)
//! accuracy = 1 / sqrt(N k) when there is one;   -1 / N when there is none;   -1 for an empty list
//! reward   = format_weight * 1 + accuracy_weight * accuracy
//! -1       when the response is not <think>..</think> and a JSON list of {"point_2d": [x, y]},
//!          or three points are collinear
//! A_i      = n / (n - 1) (R_i - mean)         clipped ratio [0.8, 1.4], dual clip 3, token mean, no KL
//! ```
//!
//! Rewards [B] are in [-1, 2]. Coordinates are absolute pixels of the RESIZED image ([`smart_resize`]); the box
//! too. The paper gives 0 on a failed format and on collinear points, the code -1 (whatever the weights): the code
//! is followed, `failure_reward` sets it. Training takes the list from the first `[` to ITS closing bracket,
//! evaluation to the LAST one ([`metrics`]): a text with two lists scores in training only. Collinearity has no
//! absolute tolerance, and equal points count as collinear with any third. Source: InfiXAI/InfiGUI-G1, verl recipe
//! infigui-g1.
//!
//! [`smart_resize`]: crate::grounding::smart_resize

pub mod benchmarks;
pub mod metrics;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Paper;
use crate::advantage::{GroupBaseline, LeaveOneOut};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, REWARDS};
use crate::block::{Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::grounding::Rect;
use crate::state::State;
use crate::surrogate::ClippedRatio;

/// What the policy wrote.
pub const RESPONSES: Input = Input::new("responses", "[B]", "text of every response");
/// The element to be clicked.
pub const TARGET_BOXES: Input = Input::new(
    "target_boxes",
    "[B][4]",
    "left, top, right, bottom of the target in pixels of the resized image",
);

/// The paper.
pub const PAPER: Paper = Paper {
    id: "aepo_gui",
    title: "InfiGUI-G1: Advancing GUI Grounding with Adaptive Exploration Policy Optimization",
    arxiv: "2508.05731",
    summary: "Several guesses per answer, paid by utility over cost.",
    blocks: &[BlockKind::reward::<ExplorationReward>()],
    recipe,
    vectors: Some(("aepo_gui.json", 13)),
    end_to_end: None,
};

/// Exploration reward, leave-one-out baseline, wide upper clip.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.4, dual_clip: Some(3.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&ExplorationReward::default())
        .advantage(&LeaveOneOut { alone: GroupBaseline::KeepsReward })
}

/// Utility over cost of a list of candidate points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplorationReward {
    /// Worth of a valid format.
    pub format_weight: f64,
    /// Factor on the accuracy.
    pub accuracy_weight: f64,
    /// Reward of a failed format and of collinear points: -1 in the code, 0 in the paper.
    pub failure_reward: f64,
    /// Whether responses have no think block.
    pub no_think: bool,
    /// Relative tolerance of the collinearity check, 0 or more.
    pub collinear_tolerance: f64,
}

impl Default for ExplorationReward {
    fn default() -> Self {
        Self {
            format_weight: 1.0,
            accuracy_weight: 1.0,
            failure_reward: -1.0,
            no_think: false,
            collinear_tolerance: 1e-9,
        }
    }
}

/// What a response is worth, and numbers to log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnswerScore {
    /// The reward.
    pub score: f64,
    /// 1 for a valid format, else 0.
    pub format: f64,
    /// In [-1, 1].
    pub accuracy: f64,
    /// Number of points, 0 when the format failed.
    pub num_pred: usize,
    /// Whether some point hits.
    pub has_correct: bool,
    /// Whether the first point hits.
    pub first_correct: bool,
    /// Whether there is one point, and it hits.
    pub only_correct: bool,
    /// Whether three points were collinear.
    pub is_collinear: bool,
}

impl ExplorationReward {
    /// Reward of one response. `target` in pixels of the image that the model saw.
    pub fn score(&self, response: &str, target: &Rect) -> AnswerScore {
        let failed = |is_collinear| AnswerScore {
            score: self.failure_reward,
            format: 0.0,
            accuracy: -1.0,
            num_pred: 0,
            has_correct: false,
            first_correct: false,
            only_correct: false,
            is_collinear,
        };
        let answer = if self.no_think { Some(response) } else { after_thought(response) };
        let Some(points) = answer.and_then(balanced_list).and_then(candidate_points) else {
            return failed(false);
        };
        match collinear(&points, self.collinear_tolerance, 0.0) {
            Some(false) => {}
            Some(true) => return failed(true),
            None => return failed(false),
        }
        let Some(rank) = first_hit(&points, target) else { return failed(false) };
        let n = points.len();
        let accuracy = match rank {
            _ if n == 0 => -1.0,
            Some(k) => 1.0 / ((n * k) as f64).sqrt(),
            None => -1.0 / n as f64,
        };
        AnswerScore {
            score: self.format_weight + self.accuracy_weight * accuracy,
            format: 1.0,
            accuracy,
            num_pred: n,
            has_correct: rank.is_some(),
            first_correct: rank == Some(1),
            only_correct: n == 1 && rank.is_some(),
            is_collinear: false,
        }
    }
}

/// A coordinate pair as it was written; what is no number is `None`.
pub type Candidate = [Option<f64>; 2];

/// The answer behind the thought: the response must begin with `<think>`, hold each tag once, and neither part may be
/// blank.
pub fn after_thought(response: &str) -> Option<&str> {
    let (open, close) = ("<think>", "</think>");
    if response.matches(open).count() != 1 || response.matches(close).count() != 1 {
        return None;
    }
    let (thought, answer) = response.strip_prefix(open)?.split_once(close)?;
    let answer = answer.trim();
    (!thought.trim().is_empty() && !answer.is_empty()).then_some(answer)
}

/// The text from the first `[` to the bracket that closes it, quotes ignored.
pub fn balanced_list(text: &str) -> Option<&str> {
    let start = text.find('[')?;
    let mut depth = 0usize;
    for (i, c) in text[start..].char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[start..=start + i]);
        }
    }
    None
}

/// The points of a JSON list of `{"point_2d": [x, y]}`; `None` when an element is anything else.
pub fn candidate_points(json: &str) -> Option<Vec<Candidate>> {
    let list: Vec<Value> = serde_json::from_str(json).ok()?;
    list.iter()
        .map(|item| match item.get("point_2d")?.as_array()?.as_slice() {
            [x, y] => Some([coordinate(x), coordinate(y)]),
            _ => None,
        })
        .collect()
}

/// A number; flags count as 1 and 0, as in the authors' language.
pub(crate) fn coordinate(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|b| f64::from(u8::from(b))))
}

/// Whether any three of the points are collinear: cross products equal up to the relative or the absolute tolerance.
/// `None` when there are three points and one is no number.
pub fn collinear(points: &[Candidate], relative: f64, absolute: f64) -> Option<bool> {
    if points.len() < 3 {
        return Some(false);
    }
    let points: Vec<[f64; 2]> = points.iter().map(|&[x, y]| Some([x?, y?])).collect::<Option<_>>()?;
    let close = |a: f64, b: f64| a == b || (a - b).abs() <= (relative * a.abs().max(b.abs())).max(absolute);
    for (i, [x1, y1]) in points.iter().enumerate() {
        for (j, [x2, y2]) in points.iter().enumerate().skip(i + 1) {
            for [x3, y3] in points.iter().skip(j + 1) {
                if close((y2 - y1) * (x3 - x1), (y3 - y1) * (x2 - x1)) {
                    return Some(true);
                }
            }
        }
    }
    Some(false)
}

/// Rank of the first point inside, counted from 1. The outer `None`: a coordinate that had to be looked at is no
/// number.
fn first_hit(points: &[Candidate], target: &Rect) -> Option<Option<usize>> {
    for (i, &[x, y]) in points.iter().enumerate() {
        let x = x?;
        if target.x1 <= x && x <= target.x2 && target.contains([x, y?]) {
            return Some(Some(i + 1));
        }
    }
    Some(None)
}

impl Block for ExplorationReward {
    fn needs(&self) -> Vec<Input> {
        vec![RESPONSES, TARGET_BOXES]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        let finite = |name, got: f64| {
            if got.is_finite() {
                Ok(())
            } else {
                Err(Error::Setting { name, got, expected: "a finite number" })
            }
        };
        finite("format_weight", self.format_weight)?;
        finite("accuracy_weight", self.accuracy_weight)?;
        finite("failure_reward", self.failure_reward)?;
        if self.collinear_tolerance >= 0.0 {
            return finite("collinear_tolerance", self.collinear_tolerance);
        }
        Err(Error::Setting {
            name: "collinear_tolerance",
            got: self.collinear_tolerance,
            expected: "0 or more",
        })
    }

    fn describe(&self) -> String {
        let (format, accuracy) = (self.format_weight, self.accuracy_weight);
        format!(
            "{format} for the format + {accuracy} utility / cost of the points, {} on failure",
            self.failure_reward
        )
    }
}

impl Kind for ExplorationReward {
    const KIND: &'static str = "exploration";
}

impl Reward for ExplorationReward {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let mut rewards = Vec::with_capacity(batch.rows());
        for (response, target) in batch.texts(RESPONSES)?.iter().zip(batch.vectors(TARGET_BOXES)?) {
            let [x1, y1, x2, y2] = target[..] else {
                let expected = "[4]: left, top, right, bottom".into();
                return Err(Error::Shape { name: TARGET_BOXES.name, got: vec![target.len()], expected });
            };
            rewards.push(self.score(response, &Rect { x1, y1, x2, y2 }).score);
        }
        batch.set(REWARDS, rewards)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::batch::GROUP_IDS;
    use crate::table::Table;

    const TARGET: Rect = Rect { x1: 10.0, y1: 10.0, x2: 20.0, y2: 20.0 };

    fn answer(points: &[[i32; 2]]) -> String {
        let list: Vec<String> = points.iter().map(|p| format!("{{\"point_2d\": {p:?}}}")).collect();
        format!("<think>t</think>[{}]", list.join(", "))
    }

    #[test]
    fn the_reward_feeds_the_advantage() {
        let texts = vec![answer(&[[15, 15]]), answer(&[[0, 0]]), "?".to_string()];
        let batch = Batch::new(Table { rows: 3, cols: 1, values: vec![1.0; 3] })
            .with(RESPONSES, texts)
            .and_then(|b| b.with(TARGET_BOXES, vec![vec![10.0, 10.0, 20.0, 20.0]; 3]))
            .and_then(|b| b.with(GROUP_IDS, vec![7, 7, 7]))
            .unwrap();
        let ready = recipe().build().unwrap().prepare(batch.clone(), &mut State::default()).unwrap();
        assert_eq!(ready.batch.outcomes().unwrap(), [2.0, 0.0, -1.0]);
        assert_eq!(ready.signals.advantages.values, [2.5, -0.5, -2.0]);
        let odd = batch.with(TARGET_BOXES, vec![vec![1.0]; 3]).unwrap();
        let error = recipe().build().unwrap().prepare(odd, &mut State::default()).unwrap_err();
        assert!(error.to_string().contains("target_boxes"));
    }

    #[test]
    fn text_is_only_looked_at_where_it_must_be() {
        let reward = ExplorationReward { no_think: true, ..ExplorationReward::default() };
        let score = |text: &str| reward.score(text, &TARGET).score;
        assert_eq!(score(r#"[{"point_2d": [15, 15]}, {"point_2d": ["a", 1]}]"#), 1.0 + 0.5f64.sqrt());
        assert_eq!(score(r#"[{"point_2d": [1, "a"]}]"#), 0.0);
        assert_eq!(score(r#"[{"point_2d": [15, "a"]}]"#), -1.0);
        assert_eq!(score("]["), -1.0);
    }

    proptest! {
        #[test]
        fn rewards_are_bounded_and_a_later_hit_pays_less(
            points in proptest::collection::vec([0i32..40, 0i32..40], 1..6), turn in 0usize..6,
        ) {
            let reward = ExplorationReward::default();
            let a = reward.score(&answer(&points), &TARGET);
            prop_assert!((-1.0..=2.0).contains(&a.score));
            let mut turned = points.clone();
            turned.rotate_left(turn % points.len());
            let b = reward.score(&answer(&turned), &TARGET);
            prop_assert_eq!((a.is_collinear, a.has_correct, a.num_pred), (b.is_collinear, b.has_correct, b.num_pred));
            let rank = |p: &[[i32; 2]]| p.iter().position(|p| TARGET.contains([p[0].into(), p[1].into()]));
            if !a.is_collinear && rank(&points) < rank(&turned) {
                prop_assert!(a.score > b.score);
            }
        }
    }
}
