//! The judge's side of MPO: scores, rubric items, merging of refinements, and which answers the meta judge reads.
//! Pure functions on texts; who talks to the judges calls them.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Between the judge's answers on a rubric's items.
pub const SEPARATOR: char = '\u{1e}';

/// Shortest rationale that counts, in words.
pub const SHORTEST_RATIONALE: usize = 30;

/// When and how rubrics change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evolution {
    /// Updates between two rubrics, 1 or more. 10 (essays), 20 (mathematics).
    pub interval: u64,
}

impl Default for Evolution {
    fn default() -> Self {
        Self { interval: 10 }
    }
}

impl Evolution {
    /// Whether the rubric changes after update `update` (counted from 1). The buffer of answers is emptied then.
    pub fn due(&self, update: u64) -> bool {
        update > 0 && update.is_multiple_of(self.interval.max(1))
    }
}

/// Total of the judge's answers, one per rubric item. An item without a readable score counts 0, no answers at all 0.
pub fn total<S: AsRef<str>>(evaluations: &[S], arithmetic: bool) -> f64 {
    evaluations.iter().filter_map(|text| score(text.as_ref(), arithmetic)).sum()
}

/// The number in the first `<score>` tag. `arithmetic` also reads sums, differences, products, quotients and brackets
/// of numbers; nothing else is ever evaluated.
pub fn score(evaluation: &str, arithmetic: bool) -> Option<f64> {
    let inside = between(evaluation, "<score>", "</score>")?.0.trim();
    let value = if arithmetic { Arithmetic::read(inside) } else { plain(inside) };
    value.filter(|x| x.is_finite())
}

/// An integer or decimal number with an optional sign.
fn plain(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let allowed = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    if allowed { text.parse().ok() } else { None }
}

/// First text between two tags, and what follows it.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    let (_, rest) = text.split_once(open)?;
    rest.split_once(close)
}

/// Sums and products of numbers, by recursive descent.
struct Arithmetic<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Arithmetic<'a> {
    /// Brackets deeper than this are no score.
    const DEEPEST: usize = 32;

    fn read(text: &'a str) -> Option<f64> {
        let mut reader = Self { rest: text, depth: 0 };
        let value = reader.sum()?;
        reader.rest.trim().is_empty().then_some(value)
    }

    fn take(&mut self, symbols: &[char]) -> Option<char> {
        let text = self.rest.trim_start();
        let c = text.chars().next().filter(|c| symbols.contains(c))?;
        self.rest = &text[c.len_utf8()..];
        Some(c)
    }

    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        while let Some(c) = self.take(&['+', '-']) {
            let next = self.product()?;
            value = if c == '+' { value + next } else { value - next };
        }
        Some(value)
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        while let Some(c) = self.take(&['*', '/']) {
            let next = self.factor()?;
            value = if c == '*' { value * next } else { value / next };
        }
        Some(value)
    }

    fn factor(&mut self) -> Option<f64> {
        self.depth += 1;
        if self.depth > Self::DEEPEST {
            return None;
        }
        let value = match self.take(&['+', '-', '(']) {
            Some('(') => {
                let value = self.sum()?;
                self.take(&[')'])?;
                value
            }
            Some('-') => -self.factor()?,
            Some(_) => self.factor()?,
            None => {
                let text = self.rest.trim_start();
                let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
                let (number, rest) = text.split_at(end);
                self.rest = rest;
                number.parse().ok()?
            }
        };
        self.depth -= 1;
        Some(value)
    }
}

/// Ethics: -10 for an answer without a verdict or with too short a rationale, else the score.
pub fn ethics_guard(score: f64, has_verdict: bool, rationale: &str) -> f64 {
    if has_verdict && words(rationale) >= SHORTEST_RATIONALE { score } else { -10.0 }
}

/// Mathematics, when the coin says "answer only": 5 for an equivalent answer, else 0.
pub fn answer_only_score(equivalent: bool) -> f64 {
    if equivalent { 5.0 } else { 0.0 }
}

/// Mathematics, when the coin says "rubric": the judge's integer within 0 to 5; 0 for too short a rationale.
pub fn guided_score(score: f64, rationale: &str) -> f64 {
    if words(rationale) >= SHORTEST_RATIONALE { score.clamp(0.0, 5.0) } else { 0.0 }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// The items of a rubric: what stands between `<item>` and `</item>`, without surrounding space.
pub fn items(rubric: &str) -> Vec<String> {
    let mut rest = rubric;
    std::iter::from_fn(|| {
        let (item, after) = between(rest, "<item>", "</item>")?;
        rest = after;
        Some(item.trim().to_string())
    })
    .collect()
}

/// Distinct items in order of their text. (The authors keep a set, whose order is by chance.)
pub fn distinct(items: &[String]) -> Vec<String> {
    items.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Refinements joined by `separator` until their words would exceed `max_words`; the first that does ends the list.
pub fn join_within(parts: &[String], separator: &str, max_words: f64) -> String {
    let mut count = 0;
    let fits = |part: &&String| {
        count += words(part);
        count as f64 <= max_words
    };
    let kept: Vec<&str> = parts.iter().take_while(fits).map(String::as_str).collect();
    kept.join(separator)
}

/// `n` answers, sorted by score, in three parts of equal size; the first parts take the remainder.
pub fn thirds(n: usize) -> [Range<usize>; 3] {
    let size = |part: usize| n / 3 + usize::from(part < n % 3);
    let (first, second) = (size(0), size(0) + size(1));
    [0..first, first..second, second..n]
}

/// Which of `n` answers, sorted by score, the meta judge reads: up to `k` of every third, chosen by `pick(third,
/// count)`. Once a third has fewer than k, k is as small for the thirds after it; fewer than three answers are all
/// read.
pub fn stratified(
    n: usize,
    mut k: usize,
    mut pick: impl FnMut(Range<usize>, usize) -> Vec<usize>,
) -> Vec<usize> {
    if n < 3 {
        return (0..n).collect();
    }
    let mut out = Vec::new();
    for part in thirds(n) {
        k = k.min(part.len());
        out.extend(pick(part, k));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scores_are_read_not_run() {
        let tag = |inside: &str| format!("<reason>r</reason> <score>{inside}</score> <score>9</score>");
        for (inside, plain, arithmetic) in [
            (" 4 ", Some(4.0), Some(4.0)),
            ("-2.5", Some(-2.5), Some(-2.5)),
            ("3+1", None, Some(4.0)),
            ("2 * (3 - 1) / 4", None, Some(1.0)),
            ("1/0", None, None),
            ("", None, None),
            ("exit()", None, None),
            ("inf", None, None),
            ("1e5", None, None),
            ("2 3", None, None),
        ] {
            assert_eq!(score(&tag(inside), false), plain, "{inside}");
            assert_eq!(score(&tag(inside), true), arithmetic, "{inside}");
        }
        assert_eq!(score(&tag(&"(".repeat(100_000)), true), None);
        assert_eq!(score("<score>4", true), None);
    }

    #[test]
    fn guards() {
        let long = "word ".repeat(SHORTEST_RATIONALE);
        assert_eq!((ethics_guard(3.0, true, &long), ethics_guard(3.0, false, &long)), (3.0, -10.0));
        assert_eq!((ethics_guard(3.0, true, "short"), guided_score(3.0, "short")), (-10.0, 0.0));
        assert_eq!(
            (guided_score(7.0, &long), answer_only_score(true), answer_only_score(false)),
            (5.0, 5.0, 0.0)
        );
        let e = Evolution::default();
        assert!(e.due(10) && e.due(20) && !e.due(9) && !e.due(0));
    }

    proptest! {
        /// Thirds tile the list; at most k of each are read, all different.
        #[test]
        fn reading_is_stratified(n in 0usize..30, k in 0usize..5) {
            let parts = thirds(n);
            prop_assert_eq!(parts.iter().map(|p| p.len()).sum::<usize>(), n);
            prop_assert!(parts.windows(2).all(|w| w[0].end == w[1].start && w[0].len() >= w[1].len()));
            let read = stratified(n, k, |part, count| part.take(count).collect());
            let distinct: BTreeSet<usize> = read.iter().copied().collect();
            prop_assert_eq!(distinct.len(), read.len());
            prop_assert!(n < 3 || read.len() <= 3 * k);
        }
    }
}
