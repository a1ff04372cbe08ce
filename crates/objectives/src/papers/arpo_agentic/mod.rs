//! ARPO: Agentic Reinforced Policy Optimization (arXiv 2507.19849). Not the ARPO for GUI agents with replay.
//!
//! Base: GRPO on multi-turn tool rollouts. Advantage and loss stay GRPO's; new are the sampling tree ([`Tree`]) and a
//! reward for format and tools ([`score`]).
//!
//! ```text
//! segment entropy   H = -(1/ln V) sum over the first 20 tokens, over their top-10 entries, of p ln p
//! branching         after a tool call copy a rollout when clamp(u - w (H_now - H_first), 0, 1) <= p,  u ~ U(0, 1)
//! reward            -1 for a broken format, else token F1 of the boxed answer,
//!                   + 0.1 when both tools were used and F1 > 0
//! soft advantage    (R - mean) / (std + 1e-6) of the prompt's rollouts, the same for all tokens      (GRPO as it is)
//! hard advantage    on a token that several rollouts share: the mean of their advantages   (`shared_prefix`)
//! ```
//!
//! Shapes: log-probabilities [B, T] in nats; `response_mask` 1 on what the policy wrote, 0 on tool results and
//! after the first eos; `rewards` [B]; `group_ids` [B], one per prompt, whether root or branch.
//!
//! Code against paper: the released code has the soft form only, which is the recipe here; the paper's hard form
//! is the block `shared_prefix`, added by name. Without clipping and with a token mean both give the same gradient
//! on shared tokens. The entropy is a sum over tokens in the code ([`EntropyOver`] offers the mean), of the
//! segment that ENDED in the call; the paper takes the tokens after the tool's result. The authors keep H_first
//! from earlier batches; here it belongs to its rollout. The KL is computed by the authors with weight 0: left
//! out. Source: RUC-NLPIR/ARPO (core algorithms, reward, rollout).

mod tree;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use tree::{BranchRule, EntropyOver, Rollout, Segment, Stop, Tree, TreeSettings, segment_entropy};

use super::Paper;
use crate::advantage::{GroupNorm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, Signals};
use crate::block::{Block, BlockKind, Kind, TokenRule};
use crate::composition::Composition;
use crate::error::Result;
use crate::state::State;
use crate::surrogate::ClippedRatio;

/// Token ids of the responses, tool results included; given as a [`Table`](crate::table::Table), so that masked
/// ids stay.
pub const RESPONSE_IDS: Input =
    Input::new("response_ids", "[B, T]", "token ids of the responses, tool results included");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "arpo_agentic",
    title: "Agentic Reinforced Policy Optimization",
    arxiv: "2507.19849",
    summary: "Rollouts branch after tool calls that leave the policy unsure.",
    blocks: &[BlockKind::weight::<SharedPrefix>()],
    recipe,
    vectors: Some(("arpo_agentic.json", 8)),
    end_to_end: None,
};

/// GRPO over the branched rollouts (soft attribution).
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean).advantage(&GroupNorm::default())
}

/// Hard attribution: a token that several rollouts of a group physically share, the whole prefix up to it included,
/// gets the mean of their advantages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SharedPrefix {}

impl Block for SharedPrefix {
    fn needs(&self) -> Vec<Input> {
        vec![RESPONSE_IDS, GROUP_IDS]
    }

    fn describe(&self) -> String {
        "shared tokens get the mean advantage of the rollouts that share them".into()
    }
}

impl Kind for SharedPrefix {
    const KIND: &'static str = "shared_prefix";
}

impl TokenRule for SharedPrefix {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let (ids, mask) = (batch.table(RESPONSE_IDS)?, batch.mask());
        let given = signals.advantages.clone();
        let width = mask.cols;
        for group in members(batch.ids(GROUP_IDS)?).values() {
            for &i in group {
                let common = |j: usize| ids.row(i).iter().zip(ids.row(j)).take_while(|(a, b)| a == b).count();
                let shared: Vec<(usize, usize)> = group.iter().map(|&j| (j, common(j))).collect();
                for t in (0..width).filter(|t| mask.row(i)[*t] != 0.0) {
                    let sharers = shared.iter().filter(|(j, length)| *length > t && mask.row(*j)[t] != 0.0);
                    let advantages: Vec<f64> = sharers.map(|(j, _)| given.row(*j)[t]).collect();
                    let n = advantages.len().max(1) as f64;
                    signals.advantages.values[i * width + t] = advantages.iter().sum::<f64>() / n;
                }
            }
        }
        Ok(())
    }
}

/// Reward of a response: -1 when the format is broken ([`format_holds`]) or nothing is boxed, else the best token F1
/// over `references`, with 0.1 more when it is above 0 and both tools were called.
pub fn score(solution: &str, references: &[&str]) -> f64 {
    let answer =
        between(solution, "<answer>", "</answer>").filter(|_| format_holds(solution)).and_then(boxed);
    let Some(answer) = answer else { return -1.0 };
    let f1 = references.iter().map(|r| token_f1(answer, r)).fold(0.0, f64::max);
    let both = solution.contains("</search>") && solution.contains("</python>");
    if f1 > 0.0 && both { f1 + 0.1 } else { f1 }
}

/// Whether thoughts are paired and there is one, exactly one answer exists and boxes something, and every tool
/// call is followed by a complete result.
pub fn format_holds(text: &str) -> bool {
    let count = |tag: &str| text.matches(tag).count();
    let thoughts = count("<think>");
    let paired = thoughts > 0 && thoughts == count("</think>");
    let one_answer = count("<answer>") == 1 && count("</answer>") == 1;
    let boxes =
        || between(text, "<answer>", "</answer>").is_some_and(|a| a.contains("\\boxed{") && a.contains('}'));
    let answered = |open, close| results_follow(text, open, close);
    paired && one_answer && boxes() && answered("<search>", "</search>") && answered("<python>", "</python>")
}

/// Every `open` is followed by `close`, then a result that is complete; the scan goes on after that result.
fn results_follow(text: &str, open: &str, close: &str) -> bool {
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        rest = &rest[start..];
        let (Some(end), Some(result)) = (rest.find(close), rest.find("<result>")) else { return false };
        let Some(length) = rest[result..].find("</result>") else { return false };
        if end > result {
            return false;
        }
        rest = &rest[result + length..];
    }
    true
}

pub(crate) fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let inner = text.find(open)? + open.len();
    let length = text[inner..].find(close)?;
    Some(&text[inner..inner + length])
}

/// Content of the last box, braces matched. `\boxed x$` without braces reaches to the dollar sign and goes first.
fn boxed(answer: &str) -> Option<&str> {
    if let Some(at) = answer.rfind("\\boxed ") {
        return answer[at + "\\boxed ".len()..].split('$').next();
    }
    let inner = answer[answer.rfind("\\boxed")?..].strip_prefix("\\boxed{")?;
    let mut open = 1usize;
    let close = inner.char_indices().find(|(_, c)| {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        open == 0
    });
    Some(&inner[..close?.0])
}

/// F1 over the multisets of words, after lower-casing and without punctuation and articles. yes, no and noanswer
/// must match exactly.
pub fn token_f1(prediction: &str, reference: &str) -> f64 {
    let (p, r) = (words(prediction), words(reference));
    let closed = |x: &[String]| matches!(x, [word] if ["yes", "no", "noanswer"].contains(&word.as_str()));
    if (closed(&p) || closed(&r)) && p != r {
        return 0.0;
    }
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    r.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let take = |word: &&String| match left.get_mut(word.as_str()) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    };
    let same = p.iter().filter(take).count() as f64;
    if same == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (same / p.len() as f64, same / r.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

fn words(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // An article stands between what is neither letter nor digit.
    let mut kept = String::with_capacity(plain.len());
    let mut rest = plain.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        kept.push_str(if ["a", "an", "the"].contains(&word) { " " } else { word });
        let gap = after.find(char::is_alphanumeric).unwrap_or(after.len());
        kept.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    kept.split_whitespace().map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::REWARDS;
    use crate::table::Table;

    #[test]
    fn rewards() {
        let with = |answer: &str| format!("<think>x</think><answer>{answer}</answer>");
        assert_eq!(score(&with("\\boxed{\\frac{1}{2}}"), &["\\frac{1}{2}"]), 1.0);
        assert_eq!(score(&with("$\\boxed 42$"), &["42"]), -1.0, "the format wants braces");
        assert_eq!(score(&with("\\boxed{1} \\boxed{the 2}"), &["7", "2"]), 1.0);
        assert_eq!(score(&with("\\boxed{a{b}"), &["a"]), -1.0);
        assert_eq!(score(&with("\\boxed{}"), &[""]), 0.0);
        assert_eq!(score("</answer><think></think><answer>", &["x"]), -1.0);
        assert_eq!(token_f1("Éa an apple's", "éa apples"), 1.0);
        assert_eq!(token_f1("no", "no"), 1.0);
        assert_eq!(token_f1("no way", "no"), 0.0);
    }

    /// Sharers' advantages add up to the same number under both attributions, so the gradient of a shared token
    /// does too.
    #[test]
    fn hard_attribution_keeps_the_sum_over_sharers() {
        let ids = [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [1.0, 5.0, 3.0], [1.0, 2.0, 3.0]].map(|r| r.to_vec());
        let mut mask = Table::from_rows(&vec![vec![1.0; 3]; 4]).unwrap();
        mask.values[2 * 3 + 2] = 0.0;
        let batch = Batch::new(mask)
            .with(RESPONSE_IDS, Table::from_rows(&ids).unwrap())
            .unwrap()
            .with(GROUP_IDS, vec![7, 7, 7, 8])
            .unwrap()
            .with(REWARDS, vec![1.0, 0.0, 0.5, 2.0])
            .unwrap();
        let objective = recipe().weight(&SharedPrefix {}).build().unwrap();
        let hard = objective.prepare(batch.clone(), &mut State::default()).unwrap().signals.advantages;
        let soft =
            recipe().build().unwrap().prepare(batch, &mut State::default()).unwrap().signals.advantages;
        let at = |x: &Table, i: usize, t: usize| x.row(i)[t];
        let sum = |x: &Table, rows: &[usize], t| rows.iter().map(|&i| at(x, i, t)).sum::<f64>();
        assert!((sum(&hard, &[0, 1, 2], 0) - sum(&soft, &[0, 1, 2], 0)).abs() < 1e-12);
        assert!((sum(&hard, &[0, 1], 1) - sum(&soft, &[0, 1], 1)).abs() < 1e-12);
        assert_eq!(at(&hard, 0, 1), at(&hard, 1, 1));
        assert_eq!(at(&hard, 0, 2), at(&soft, 0, 2));
        assert_eq!(at(&hard, 2, 2), 0.0);
        assert_eq!(hard.row(3), soft.row(3), "another prompt shares nothing");
    }
}
