//! TAPO: Tool-Augmented Policy Optimization (arXiv 2510.07038). Several unrelated methods share these letters.
//!
//! Base: DAPO (decoupled clip, dynamic sampling, token mean, overlong shaping) on rollouts with search and code.
//! New: tool results count neither in the loss nor in the length, a strict format gates the reward, and calls
//! themselves earn nothing.
//!
//! ```text
//! reward     -1 for a broken format, else accuracy by data source ([`score`]); acc = score > 0.9
//! overlong   min(-(len - (Tmax - buffer)) / buffer * factor, 0) added, len = the MODEL's tokens only
//! filter     keep a prompt when acc differs among its rollouts, or when it has one
//! advantage  (R - mean) / (std + 1e-6) of the group, on the model's tokens; a lone row keeps R
//! loss       clipped ratio [1 - 0.2, 1 + 0.28], dual clip 10, token mean; no KL, no entropy bonus
//! ```
//!
//! Shapes: `response_mask` [B, T] 1 on the model's tokens (the authors' info mask), 0 on tool results and padding;
//! `rewards`, `success` (acc), `group_ids` [B].
//!
//! Code against paper: the paper divides the loss by the model's tokens, the released code by all real tokens,
//! where tool tokens count with advantage 0. Default: the paper's. For the code's, let `response_mask` be 1 on all
//! real tokens, name the model's in `info_mask` and add the weight block `tool_tokens`. Source: Goer17/TAPO
//! (trainer, reward).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES, REWARDS, SUCCESS, Signals};
use crate::block::{Block, BlockKind, Filter, Kind, Reward, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::filter::varying_groups;
use crate::shaping::dapo_overlong;
use crate::state::State;
use crate::surrogate::ClippedRatio;

/// 1 on the model's tokens, 0 on tool results, where `response_mask` counts both.
pub const INFO_MASK: Input = Input::new("info_mask", "[B, T]", "1 on the model's tokens, 0 on tool results");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "tapo",
    title: "Tool-Augmented Policy Optimization: Synergizing Reasoning and Adaptive Tool Use with Reinforcement Learning",
    arxiv: "2510.07038",
    summary: "DAPO with tool results left out of loss and length, and a strict format.",
    blocks: &[
        BlockKind::reward::<ModelOverlong>(),
        BlockKind::filter::<VaryingAccuracy>(),
        BlockKind::weight::<ToolTokens>(),
    ],
    recipe,
    vectors: Some(("tapo.json", 6)),
    end_to_end: None,
};

/// Overlong shaping, dynamic sampling on accuracy, GRPO's advantage, clip-higher, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(10.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&ModelOverlong::default())
        .filter(&VaryingAccuracy {})
        .advantage(&GroupNorm::default())
}

/// DAPO's overlong penalty on the model's own tokens: tool results are free.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOverlong {
    /// Longest response, in tokens.
    pub max_length: f64,
    /// Tokens before it in which the penalty grows, greater than 0.
    pub buffer: f64,
    /// Penalty at `max_length`; it goes on growing beyond.
    pub factor: f64,
}

impl Default for ModelOverlong {
    fn default() -> Self {
        Self { max_length: 2048.0, buffer: 1024.0, factor: 1.0 }
    }
}

impl ModelOverlong {
    /// Penalty of a response with `tokens` model tokens, 0 or less.
    pub fn penalty(&self, tokens: f64) -> f64 {
        dapo_overlong(tokens, self.max_length, self.buffer, self.factor)
    }
}

impl Block for ModelOverlong {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        match self {
            s if !s.max_length.is_finite() => wrong("max_length", s.max_length, "a finite number"),
            s if !(s.buffer > 0.0 && s.buffer.is_finite()) => wrong("buffer", s.buffer, "greater than 0"),
            s if !(s.factor >= 0.0 && s.factor.is_finite()) => wrong("factor", s.factor, "0 or more"),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        format!("down to -{} over the last {} of {} model tokens", self.factor, self.buffer, self.max_length)
    }
}

impl Kind for ModelOverlong {
    const KIND: &'static str = "model_overlong";
}

impl Reward for ModelOverlong {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        // Where the batch's mask counts tool results, the info mask says which tokens are the model's.
        let lengths =
            if batch.has(INFO_MASK) { batch.table(INFO_MASK)? } else { batch.mask().clone() }.row_sums();
        let rewards = batch.outcomes()?.into_iter().zip(lengths).map(|(r, length)| r + self.penalty(length));
        let rewards: Vec<f64> = rewards.collect();
        batch.set(REWARDS, rewards)
    }
}

/// Keeps groups whose accuracy varies, or that have one member; graded rewards do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaryingAccuracy {}

impl Block for VaryingAccuracy {
    fn needs(&self) -> Vec<Input> {
        vec![SUCCESS, GROUP_IDS]
    }

    fn describe(&self) -> String {
        "groups whose accuracy varies".into()
    }
}

impl Kind for VaryingAccuracy {
    const KIND: &'static str = "varying_accuracy";
}

impl Filter for VaryingAccuracy {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        let groups = batch.ids(GROUP_IDS)?;
        let kept = varying_groups(&batch.numbers(SUCCESS)?, groups)?;
        Ok(groups.iter().map(|id| kept.contains(id)).collect())
    }
}

/// Advantage 0 on tool results that `response_mask` counts: they stay in the divisor, as in the released code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToolTokens {}

impl Block for ToolTokens {
    fn needs(&self) -> Vec<Input> {
        vec![INFO_MASK]
    }

    fn describe(&self) -> String {
        "tool results have advantage 0 and count as tokens".into()
    }
}

impl Kind for ToolTokens {
    const KIND: &'static str = "tool_tokens";
}

impl TokenRule for ToolTokens {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let model = batch.table(INFO_MASK)?;
        let tokens = signals.advantages.values.iter_mut().zip(&model.values);
        tokens.filter(|(_, m)| **m == 0.0).for_each(|(a, _)| *a = 0.0);
        Ok(())
    }
}

/// What to do after a generation batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Sample another batch of prompts.
    GenerateMore,
    /// Train on the first `prompts` kept ones.
    Train,
    /// The limit is reached: fill up with this many prompts of the last batch, filtered or not. They bring rows
    /// without advantage.
    FillUp(usize),
}

/// Dynamic sampling: `kept` prompts so far of the `wanted` ones, after `batches` generation batches of at most
/// `max_batches` (the authors: 10).
pub fn collected(kept: usize, wanted: usize, batches: usize, max_batches: usize) -> Collected {
    match wanted.saturating_sub(kept) {
        0 => Collected::Train,
        missing if batches >= max_batches => Collected::FillUp(missing),
        _ => Collected::GenerateMore,
    }
}

/// A response up to and including its first closing tool or answer tag; search is looked for first, then code,
/// then answer, so that a text with several is cut at the search tag. Unchanged without any.
pub fn cut_at_action(text: &str) -> &str {
    let end = |tag: &&str| text.find(*tag).map(|at| at + tag.len());
    let first = ["</search>", "</code>", "</answer>"].iter().find_map(end);
    &text[..first.unwrap_or(text.len())]
}

/// Where a question comes from, which decides how answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Mathematics with one right text: equality.
    Exact,
    /// Facts: containment, else similarity.
    Facts,
    /// Arithmetic: within 0.001.
    Calculator,
    /// Search, then arithmetic: within 5 % of the gold number.
    Complex,
}

impl Source {
    /// The source of a data set's name: default, gsm8k, dapo_math, deep_math, aime*, nq, calculator, complex.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "default" | "gsm8k" | "dapo_math" | "deep_math" => Ok(Self::Exact),
            _ if name.starts_with("aime") => Ok(Self::Exact),
            "nq" => Ok(Self::Facts),
            "calculator" => Ok(Self::Calculator),
            "complex" => Ok(Self::Complex),
            _ => Err(Error::Invalid { what: "data source", reason: format!("`{name}` is not known") }),
        }
    }
}

/// What a response is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// -1 for a broken format, else 0 to 1.
    pub score: f64,
    /// score > 0.9.
    pub accurate: bool,
    /// Search calls; 0 for a broken format.
    pub searches: usize,
    /// Code calls.
    pub codes: usize,
}

/// Scores a response against the best of `references`.
///
/// # Errors
/// A reference that is no number, or 0 for relative errors, where the source compares numbers.
pub fn score(solution: &str, references: &[&str], source: Source) -> Result<Score> {
    let Some((answer, counts)) = read_format(solution) else {
        return Ok(Score { score: -1.0, accurate: false, searches: 0, codes: 0 });
    };
    // Only the end of a long answer counts.
    let start = answer.char_indices().rev().nth(99).map_or(0, |(at, _)| at);
    let mut score = 0.0f64;
    for reference in references {
        score = score.max(similarity(&normalise(&answer[start..]), &normalise(reference), source)?);
    }
    let of = |tag: &str| counts.get(tag).copied().unwrap_or(0);
    Ok(Score { score, accurate: score > 0.9, searches: of("search"), codes: of("code") })
}

/// The answer and how often each tag stands. Tag pairs are looked for from left to right; text between them
/// passes, an unknown tag, text after the last pair or another last tag than answer does not.
fn read_format(text: &str) -> Option<(&str, BTreeMap<String, usize>)> {
    let mut rest = text.trim();
    let (mut counts, mut answer, mut last) = (BTreeMap::new(), None, String::new());
    while !rest.is_empty() {
        let (tag, inner, after) = next_pair(rest)?;
        let tag = tag.to_lowercase();
        if !["think", "response", "answer", "search", "code"].contains(&tag.as_str()) {
            return None;
        }
        if tag == "answer" {
            answer = Some(inner.trim());
        }
        *counts.entry(tag.clone()).or_insert(0) += 1;
        (last, rest) = (tag, after.trim_start());
    }
    answer.filter(|_| last == "answer").map(|answer| (answer, counts))
}

/// The first `<tag>inner</tag>` and what follows.
fn next_pair(text: &str) -> Option<(&str, &str, &str)> {
    for (open, _) in text.match_indices('<') {
        let body = &text[open + 1..];
        let Some(end) = body.find(|c: char| !c.is_alphanumeric() && c != '_') else { continue };
        let (tag, body) = body.split_at(end);
        let Some(body) = body.strip_prefix('>').filter(|_| !tag.is_empty()) else { continue };
        let close = format!("</{tag}>");
        if let Some(end) = body.find(&close) {
            return Some((tag, &body[..end], &body[end + close.len()..]));
        }
    }
    None
}

/// Trimmed, lower case; a number word up to twelve in digits; no commas where there is nothing else but digits.
fn normalise(answer: &str) -> String {
    const WORDS: [&str; 12] =
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
    let answer = answer.trim().to_lowercase();
    if let Some(n) = WORDS.iter().position(|word| *word == answer) {
        return (n + 1).to_string();
    }
    let digits = answer.replace(',', "");
    let number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    if number { digits } else { answer }
}

fn similarity(answer: &str, gold: &str, source: Source) -> Result<f64> {
    let yes = |x: bool| f64::from(u8::from(x));
    let golden = |least: f64| match gold.parse::<f64>() {
        Ok(x) if x.is_finite() && x.abs() >= least => Ok(x),
        _ => Err(Error::Invalid {
            what: "reference answer",
            reason: format!("`{gold}` cannot be compared with"),
        }),
    };
    match source {
        Source::Exact => Ok(yes(answer == gold)),
        Source::Facts if answer.contains(gold) => Ok(1.0),
        Source::Facts => {
            let (a, b): (Vec<char>, Vec<char>) = (answer.chars().collect(), gold.chars().collect());
            let ratio = edit_distance(&a, &b) as f64 / a.len().max(b.len()) as f64;
            Ok(if ratio < 0.5 { 1.0 - ratio } else { 0.0 })
        }
        Source::Calculator => {
            let gold = golden(0.0)?;
            Ok(answer.parse::<f64>().map_or(0.0, |x| yes((x - gold).abs() < 1e-3)))
        }
        Source::Complex => {
            let gold = golden(f64::MIN_POSITIVE)?;
            let number: String =
                answer.chars().filter(|c| c.is_ascii_digit() || "+-.".contains(*c)).collect();
            Ok(number.parse::<f64>().map_or(0.0, |x| yes((x - gold).abs() / gold.abs() < 0.05)))
        }
    }
}

/// Levenshtein's: insertions, deletions and substitutions.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::{LOG_PROBS, OLD_LOG_PROBS};
    use crate::table::Table;
    use candle_core::{Device, Var};

    #[test]
    fn formats() {
        let of = |text: &str, gold: &str| score(text, &[gold], Source::Facts).unwrap().score;
        assert_eq!(of("  <answer>x</answer> \n", "x"), 1.0);
        assert_eq!(of("", "x"), -1.0);
        assert_eq!(of("<answer>x</answer> y", "x"), -1.0);
        assert_eq!(of("<think>no end <answer>x</answer>", "x"), 1.0, "an open tag is free text");
        assert_eq!(
            of("<think><tool>z</tool></think><answer>x</answer>", "x"),
            1.0,
            "inner tags are swallowed"
        );
        assert_eq!(of("<answer>y</answer><Answer>x</Answer>", "x"), 1.0);
        let long = format!("<answer>gold{}</answer>", "z".repeat(100));
        assert_eq!(of(&long, "gold"), 0.0);
        assert_eq!(of("<answer></answer>", ""), 1.0);
        assert!(score("<answer>1</answer>", &["0"], Source::Complex).is_err());
        assert!(score("<answer>1</answer>", &["x"], Source::Calculator).is_err());
        assert_eq!(Source::from_name("aime24").unwrap(), Source::Exact);
        assert!(Source::from_name("gsm").is_err());
        assert_eq!(edit_distance(&['a', 'b'], &['b', 'c', 'd']), 3);
        assert_eq!(cut_at_action("a</code>b</search>c"), "a</code>b</search>");
    }

    #[test]
    fn sampling_goes_on_until_enough_or_the_limit() {
        assert_eq!(collected(3, 4, 9, 10), Collected::GenerateMore);
        assert_eq!(collected(3, 4, 10, 10), Collected::FillUp(1));
        assert_eq!(collected(5, 4, 1, 10), Collected::Train);
    }

    /// Both masks give tool tokens no gradient; the code's divides by them too.
    #[test]
    fn tool_tokens() {
        let p = Var::from_vec(vec![-1.0, -2.0, -0.5, -1.5], (2, 2), &Device::Cpu).unwrap();
        let table = |values: &[f64]| Table { rows: 2, cols: 2, values: values.to_vec() };
        let model = table(&[1.0, 0.0, 1.0, 1.0]);
        let grad = |mask: Table, rule: bool| -> Vec<f64> {
            let batch = Batch::new(mask)
                .with(LOG_PROBS, p.as_tensor().clone())
                .unwrap()
                .with(OLD_LOG_PROBS, p.detach())
                .unwrap()
                .with(INFO_MASK, model.clone())
                .unwrap()
                .with(SUCCESS, vec![1.0, 0.0])
                .unwrap()
                .with(REWARDS, vec![1.0, 0.6])
                .unwrap()
                .with(GROUP_IDS, vec![0, 0])
                .unwrap();
            let recipe = if rule { recipe().weight(&ToolTokens {}) } else { recipe() };
            let objective = recipe.build().unwrap();
            let ready = objective.prepare(batch, &mut State::default()).unwrap();
            let whole = ready.batch.normaliser();
            let loss = objective.loss(&ready.batch, &ready.signals, &whole, &State::default()).unwrap().loss;
            loss.backward().unwrap().get(p.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (paper, code) = (grad(model.clone(), false), grad(table(&[1.0; 4]), true));
        assert_eq!((paper[1], code[1]), (0.0, 0.0));
        for i in [0, 2, 3] {
            assert!(paper[i] != 0.0 && (paper[i] * 3.0 - code[i] * 4.0).abs() < 1e-12);
        }
    }
}
