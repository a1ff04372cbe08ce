//! Sampling as a tree: roots per prompt, copies of running rollouts after tool calls where the policy became unsure.
//!
//! A state machine without an engine: whoever owns the engine asks for [`Tree::active`] and [`Tree::max_tokens`],
//! generates one segment for every active rollout, and hands them to [`Tree::advance`] until nothing is active.
//!
//! ```text
//! advance:  append every segment; a tool call below the limit appends its result (mask 0),
//!           one at the limit ends with eos
//!           drop rollouts that reached the response length
//!           branch: for every rollout that still runs, in order, up to beam - 1 copies, each on its own uniform draw
//!           refill: a prompt with nothing running and too few rollouts starts ONE fresh root
//! ```

use crate::error::{Error, Result};

/// Over which tokens of a segment the entropy is reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntropyOver {
    /// Sum over tokens: the authors' code, for which their weight 0.2 was tuned.
    #[default]
    Sum,
    /// Mean over tokens: does not grow with the segment.
    Mean,
}

/// Entropy of a segment, in units of ln V: -(1 / ln V) sum over its first `tokens` tokens and over the returned top-k
/// entries of p ln p. `top_log_probs`: natural logs, one list per token. The authors take 20 tokens and k = 10. An
/// entry of -inf adds nothing; a vocabulary of one token has entropy 0.
pub fn segment_entropy(
    top_log_probs: &[Vec<f64>],
    vocabulary: usize,
    tokens: usize,
    over: EntropyOver,
) -> f64 {
    let first = &top_log_probs[..tokens.min(top_log_probs.len())];
    if vocabulary < 2 || first.is_empty() {
        return 0.0;
    }
    let finite = first.iter().flatten().filter(|l| l.is_finite());
    let sum = -finite.map(|l| l.exp() * l).sum::<f64>() / (vocabulary as f64).ln();
    match over {
        EntropyOver::Sum => sum,
        EntropyOver::Mean => sum / first.len() as f64,
    }
}

/// How a uniform draw and the rise of entropy decide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BranchRule {
    /// Branch when clamp(u - w rise, 0, 1) <= p: with probability p + w rise (ARPO).
    Rise,
    /// Branch when clamp((u + w rise) max(0, 1 - penalty c), 0, 1) >= p, where c counts the iterations in a row in
    /// which the prompt gained a rollout: with probability 1 - p + w rise at c = 0 (AEPO).
    Damped {
        /// What every iteration in a row takes off. The authors have 0.05.
        penalty: f64,
    },
}

impl BranchRule {
    /// Whether one draw copies a rollout. `uniform` in [0, 1), `rise` = entropy now - entropy of the first segment.
    pub fn branches(self, uniform: f64, rise: f64, consecutive: usize, settings: &TreeSettings) -> bool {
        let (p, w) = (settings.branch_probability, settings.entropy_weight);
        match self {
            Self::Rise => (uniform - w * rise).clamp(0.0, 1.0) <= p,
            Self::Damped { penalty } => {
                let damping = (1.0 - penalty * consecutive as f64).max(0.0);
                ((uniform + w * rise) * damping).clamp(0.0, 1.0) >= p
            }
        }
    }
}

/// Settings of the sampling; the defaults are the authors'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TreeSettings {
    /// Rollouts per prompt at the end, at least 1.
    pub num_samples: usize,
    /// A branching makes at most this minus one copies of a rollout, at least 1.
    pub beam_size: usize,
    /// Tool calls per rollout.
    pub call_limit: usize,
    /// Tokens per rollout, tool results included.
    pub response_length: usize,
    /// p of the rule, 0 to 1.
    pub branch_probability: f64,
    /// w of the rule, 0 or more.
    pub entropy_weight: f64,
    /// Which rule.
    pub rule: BranchRule,
    /// Token that ends a response.
    pub eos: u32,
}

impl Default for TreeSettings {
    fn default() -> Self {
        Self {
            num_samples: 16,
            beam_size: 2,
            call_limit: 3,
            response_length: 4096,
            branch_probability: 0.5,
            entropy_weight: 0.2,
            rule: BranchRule::Rise,
            eos: 2,
        }
    }
}

impl TreeSettings {
    fn check(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        match self {
            Self { num_samples: 0, .. } => wrong("num_samples", 0.0, "at least 1"),
            Self { beam_size: 0, .. } => wrong("beam_size", 0.0, "at least 1"),
            Self { response_length: 0, .. } => wrong("response_length", 0.0, "at least 1"),
            s if !(0.0..=1.0).contains(&s.branch_probability) => {
                wrong("branch_probability", s.branch_probability, "0 to 1")
            }
            s if !s.entropy_weight.is_finite() => {
                wrong("entropy_weight", s.entropy_weight, "a finite number")
            }
            _ => Ok(()),
        }
    }
}

/// Why the engine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A closing tool tag.
    Tool,
    /// The token limit of this segment.
    Length,
    /// The end token, which is part of the segment.
    Eos,
}

/// What the engine wrote between two stops.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// See [`segment_entropy`].
    pub entropy: f64,
    /// Why it ends.
    pub stop: Stop,
}

/// One trajectory, finished or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Which prompt it answers.
    pub prompt: usize,
    /// Response tokens with tool results.
    pub tokens: Vec<u32>,
    /// 1 on what the policy wrote, 0 on tool results; one per token.
    pub mask: Vec<u8>,
    /// Tool calls made.
    pub calls: usize,
    /// The rollout it was copied from.
    pub parent: Option<usize>,
    /// Entropy of the first segment that it wrote itself: a copy has its own.
    pub first_entropy: Option<f64>,
    /// Entropy of its last segment.
    pub entropy: f64,
}

/// All rollouts of a batch of prompts.
#[derive(Clone, Debug)]
pub struct Tree {
    settings: TreeSettings,
    rollouts: Vec<Rollout>,
    active: Vec<usize>,
    counts: Vec<usize>,
    consecutive: Vec<usize>,
}

impl Tree {
    /// Starts with `roots[i]` fresh rollouts of prompt i, at most `num_samples`, at least one. The authors start 8
    /// of 16.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: TreeSettings, roots: &[usize]) -> Result<Self> {
        settings.check()?;
        let prompts = roots.len();
        let (rollouts, active) = (Vec::new(), Vec::new());
        let mut tree =
            Self { settings, rollouts, active, counts: vec![0; prompts], consecutive: vec![0; prompts] };
        for (prompt, &roots) in roots.iter().enumerate() {
            (0..roots.clamp(1, settings.num_samples)).for_each(|_| tree.add(prompt, None));
        }
        Ok(tree)
    }

    /// The rollouts that want another segment, in the order in which [`Tree::advance`] expects theirs.
    pub fn active(&self) -> &[usize] {
        &self.active
    }

    /// Most tokens that any active rollout may still write.
    pub fn max_tokens(&self) -> usize {
        self.active.iter().map(|&i| self.left(i)).max().unwrap_or(0)
    }

    /// All rollouts in order of creation.
    pub fn rollouts(&self) -> &[Rollout] {
        &self.rollouts
    }

    /// Rollouts of every prompt so far.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// Iterations in a row in which every prompt gained a rollout. Iterations in which no prompt did leave it alone.
    pub fn consecutive(&self) -> &[usize] {
        &self.consecutive
    }

    /// One iteration. `segments`: one per active rollout. `tool` gets a rollout whose last segment calls a tool and
    /// returns the result's tokens, or nothing when the call is empty, which ends the rollout. `uniform` draws from
    /// [0, 1).
    ///
    /// # Errors
    /// Another number of segments.
    pub fn advance(
        &mut self,
        segments: &[Segment],
        tool: &mut dyn FnMut(&Rollout) -> Option<Vec<u32>>,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<()> {
        if segments.len() != self.active.len() {
            let expected = format!("[{}], one per active rollout", self.active.len());
            return Err(Error::Shape { name: "segments", got: vec![segments.len()], expected });
        }
        let mut running = Vec::new();
        for (i, segment) in std::mem::take(&mut self.active).into_iter().zip(segments) {
            if self.append(i, segment, tool) && self.left(i) > 0 {
                running.push(i);
            }
        }
        self.active.clone_from(&running);
        let mut gained = vec![false; self.counts.len()];
        // Prompt after prompt: the order of the draws is part of the algorithm's record.
        let mut sources = running.clone();
        sources.sort_by_key(|&i| self.rollouts[i].prompt);
        for source in sources {
            let prompt = self.rollouts[source].prompt;
            let wanted = self.settings.num_samples.saturating_sub(self.counts[prompt]);
            for _ in 0..wanted.min(self.settings.beam_size - 1) {
                let rollout = &self.rollouts[source];
                let rise = rollout.entropy - rollout.first_entropy.unwrap_or(rollout.entropy);
                let rule = self.settings.rule;
                if rule.branches(uniform(), rise, self.consecutive[prompt], &self.settings) {
                    self.add(prompt, Some(source));
                    gained[prompt] = true;
                }
            }
        }
        for (prompt, gained) in gained.iter_mut().enumerate() {
            let idle = running.iter().all(|&i| self.rollouts[i].prompt != prompt);
            if idle && self.counts[prompt] < self.settings.num_samples {
                self.add(prompt, None);
                *gained = true;
            }
        }
        if gained.contains(&true) {
            for (count, gained) in self.consecutive.iter_mut().zip(gained) {
                *count = if gained { *count + 1 } else { 0 };
            }
        }
        Ok(())
    }

    /// `num_samples` rollouts of every prompt, prompt after prompt, in order of creation, the last repeated where
    /// there are too few. Tokens cut to the response length; the mask is 0 after the first eos.
    pub fn finish(&self) -> Vec<Rollout> {
        let n = self.settings.num_samples;
        let of = |prompt| self.rollouts.iter().filter(move |r| r.prompt == prompt).take(n);
        let mut out = Vec::with_capacity(n * self.counts.len());
        for prompt in 0..self.counts.len() {
            let mut rows: Vec<Rollout> = of(prompt).map(|r| self.cut(r)).collect();
            if let Some(last) = rows.last().cloned() {
                rows.resize(n, last);
            }
            out.extend(rows);
        }
        out
    }

    fn cut(&self, rollout: &Rollout) -> Rollout {
        let mut rollout = rollout.clone();
        rollout.tokens.truncate(self.settings.response_length);
        rollout.mask.truncate(self.settings.response_length);
        if let Some(end) = rollout.tokens.iter().position(|&t| t == self.settings.eos) {
            rollout.mask.iter_mut().skip(end + 1).for_each(|m| *m = 0);
        }
        rollout
    }

    fn left(&self, i: usize) -> usize {
        self.settings.response_length.saturating_sub(self.rollouts[i].tokens.len())
    }

    fn add(&mut self, prompt: usize, parent: Option<usize>) {
        let (tokens, mask, calls) = parent.map_or((Vec::new(), Vec::new(), 0), |i| {
            let source = &self.rollouts[i];
            (source.tokens.clone(), source.mask.clone(), source.calls)
        });
        self.active.push(self.rollouts.len());
        self.counts[prompt] += 1;
        self.rollouts.push(Rollout {
            prompt,
            tokens,
            mask,
            calls,
            parent,
            first_entropy: None,
            entropy: 0.0,
        });
    }

    /// Whether the rollout goes on.
    fn append(
        &mut self,
        i: usize,
        segment: &Segment,
        tool: &mut dyn FnMut(&Rollout) -> Option<Vec<u32>>,
    ) -> bool {
        let (eos, limit) = (self.settings.eos, self.settings.call_limit);
        let rollout = &mut self.rollouts[i];
        rollout.entropy = segment.entropy;
        rollout.first_entropy.get_or_insert(segment.entropy);
        rollout.tokens.extend(&segment.tokens);
        rollout.mask.resize(rollout.tokens.len(), 1);
        match segment.stop {
            Stop::Eos => false,
            Stop::Length => true,
            Stop::Tool if rollout.calls < limit => {
                rollout.calls += 1;
                let result = tool(rollout);
                let goes_on = result.is_some();
                rollout.tokens.extend(result.unwrap_or_default());
                rollout.mask.resize(rollout.tokens.len(), 0);
                goes_on
            }
            Stop::Tool => {
                rollout.tokens.push(eos);
                rollout.mask.push(1);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entropy_skips_impossible_tokens_and_is_one_for_a_uniform_token() {
        let uniform = vec![vec![0.25f64.ln(); 4]];
        assert!((segment_entropy(&uniform, 4, 20, EntropyOver::Sum) - 1.0).abs() < 1e-12);
        let odd = vec![vec![0.0, f64::NEG_INFINITY]; 3];
        assert_eq!(segment_entropy(&odd, 2, 20, EntropyOver::Sum), 0.0);
        assert_eq!(segment_entropy(&[], 1, 20, EntropyOver::Mean), 0.0);
        let twice = [uniform.clone(), uniform].concat();
        assert!((segment_entropy(&twice, 4, 20, EntropyOver::Sum) - 2.0).abs() < 1e-12);
        assert!((segment_entropy(&twice, 4, 20, EntropyOver::Mean) - 1.0).abs() < 1e-12);
    }

    /// The rules agree at p = 1/2 in probability: one's draw is the other's mirrored.
    #[test]
    fn rules_are_mirror_images_at_one_half() {
        let settings = TreeSettings::default();
        for step in 1..100 {
            let u = f64::from(step) / 100.0 + 1e-9;
            for rise in [-1.0, 0.0, 0.7] {
                let damped = BranchRule::Damped { penalty: 0.05 }.branches(1.0 - u, rise, 0, &settings);
                assert_eq!(BranchRule::Rise.branches(u, rise, 0, &settings), damped, "{u} {rise}");
            }
        }
        assert!(!BranchRule::Damped { penalty: 0.05 }.branches(0.99, 0.0, 20, &settings), "damped to 0");
    }

    #[test]
    fn every_prompt_ends_with_its_samples() {
        let settings = TreeSettings { num_samples: 4, response_length: 12, ..TreeSettings::default() };
        let mut tree = Tree::new(settings, &[2, 1]).unwrap();
        let mut rounds = 0;
        while !tree.active().is_empty() {
            let stop = if rounds % 2 == 0 { Stop::Tool } else { Stop::Length };
            let segment = Segment { tokens: vec![5, 6], entropy: f64::from(rounds), stop };
            let segments = vec![segment; tree.active().len()];
            tree.advance(&segments, &mut |_| Some(vec![9]), &mut || 0.3).unwrap();
            rounds += 1;
            assert!(rounds < 100);
        }
        let rows = tree.finish();
        assert_eq!(rows.iter().map(|r| r.prompt).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 1, 1]);
        for row in rows {
            assert!(row.tokens.len() <= 12 && row.tokens.len() == row.mask.len());
            assert!(row.tokens.iter().zip(&row.mask).all(|(&t, &m)| (t == 9) == (m == 0)));
        }
        assert!(tree.rollouts().iter().any(|r| r.parent.is_some()));
        assert!(
            tree.advance(
                &[Segment { tokens: vec![], entropy: 0.0, stop: Stop::Eos }],
                &mut |_| None,
                &mut || 0.0
            )
            .is_err()
        );
    }
}
