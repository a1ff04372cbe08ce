//! Decisions around the rollouts: when to rescue a group, where hints stand, what replaces what, what is paid.

use serde::{Deserialize, Serialize};

use crate::advantage::members;
use crate::error::{Error, Result};

/// Ids of the groups in which no sample is correct (`correct` [B] is 0 for wrong ones): the elastic trigger. Each group
/// is tested by itself, where the authors test whatever is on a device.
///
/// # Errors
/// Lengths that differ.
pub fn groups_to_rescue(correct: &[f64], group_ids: &[u64]) -> Result<Vec<u64>> {
    if correct.len() != group_ids.len() {
        let expected = format!("[{}], like `group_ids`", group_ids.len());
        return Err(Error::Shape { name: "correct", got: vec![correct.len()], expected });
    }
    let all_wrong = |index: &Vec<usize>| index.iter().all(|&i| correct[i] == 0.0);
    Ok(members(group_ids).into_iter().filter(|(_, index)| all_wrong(index)).map(|(id, _)| id).collect())
}

/// Where pieces of the reference are pinned in a response.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HintLayout {
    /// Shortest chunk, in tokens; a shorter rest is dropped.
    pub min_chunk: usize,
    /// Longest chunk.
    pub max_chunk: usize,
    /// Largest gap between two chunks after stretching.
    pub max_spacing: usize,
    /// Positions at the end of the response that are always left free.
    pub free_tail: usize,
    /// Least stretch of the gaps.
    pub min_scale: f64,
    /// Largest stretch of the gaps; 1 leaves tokens at their own index (the paper).
    pub max_scale: f64,
    /// Always pin the last chunk, which holds the answer (the authors' code). The paper excludes it: strip the answer
    /// from the reference and leave this off.
    pub reveal_last: bool,
}

impl Default for HintLayout {
    fn default() -> Self {
        Self {
            min_chunk: 5,
            max_chunk: 10,
            max_spacing: 100,
            free_tail: 30,
            min_scale: 1.0,
            max_scale: 1.5,
            reveal_last: false,
        }
    }
}

impl HintLayout {
    /// Chunks [start, end) of a reference of `tokens` tokens, its part beyond the usable length left out. `draws` are
    /// integers from `min_chunk..=max_chunk`, as many as are needed.
    ///
    /// # Errors
    /// Too few draws, or one that is 0.
    pub fn chunks(&self, tokens: usize, gen_length: usize, draws: &[usize]) -> Result<Vec<(usize, usize)>> {
        let n = tokens.min(self.usable(gen_length));
        let (mut chunks, mut start, mut draws) = (Vec::new(), 0, draws.iter());
        while start < n {
            let Some(&draw) = draws.next().filter(|draw| **draw > 0) else {
                let reason = format!("{} chunks drawn for {n} tokens, none of 0 tokens", chunks.len());
                return Err(Error::Invalid { what: "chunk sizes", reason });
            };
            let size = draw.min(n - start);
            if size < self.min_chunk {
                break;
            }
            chunks.push((start, start + size));
            start += size;
        }
        Ok(chunks)
    }

    /// Positions that hints may take.
    fn usable(&self, gen_length: usize) -> usize {
        gen_length.saturating_sub(self.free_tail)
    }

    /// How many of `chunks` chunks stay hidden at a hint share `eta`: all at 0 or less, none at 1 or more (where the
    /// authors' code fails).
    pub fn hidden(chunks: usize, eta: f64) -> usize {
        let share = (1.0 - eta).clamp(0.0, 1.0);
        (chunks as f64 * share).floor() as usize
    }

    /// A response of `gen_length` tokens with the chunks that are not in `hidden` pinned: what stands at every position,
    /// and whether it has to be generated. `draws` as in [`HintLayout::chunks`], `hidden` are indices of chunks.
    ///
    /// # Errors
    /// As [`HintLayout::chunks`].
    pub fn lay_out(
        &self,
        reference: &[u64],
        gen_length: usize,
        draws: &[usize],
        hidden: &[usize],
        mask_id: u64,
    ) -> Result<(Vec<u64>, Vec<bool>)> {
        let usable = self.usable(gen_length);
        let chunks = self.chunks(reference.len(), gen_length, draws)?;
        let revealed: Vec<(usize, usize)> = chunks
            .iter()
            .enumerate()
            .filter(|(i, _)| !hidden.contains(i) || (self.reveal_last && i + 1 == chunks.len()))
            .map(|(_, &chunk)| chunk)
            .collect();
        let scale = (usable as f64 / reference.len().max(1) as f64).min(self.max_scale).max(self.min_scale);
        let (mut response, mut generate) = (vec![mask_id; gen_length], vec![true; gen_length]);
        for (&(start, _), (to, end)) in
            revealed.iter().zip(place_chunks(&revealed, usable, scale, self.max_spacing))
        {
            for (offset, at) in (to..end).enumerate() {
                if let (Some(&id), Some(slot)) = (reference.get(start + offset), response.get_mut(at)) {
                    (*slot, generate[at]) = (id, false);
                }
            }
        }
        Ok((response, generate))
    }
}

/// Where revealed chunks [start, end) go when the gaps between them are stretched by `scale`, each to at most
/// `max_spacing`, within `length` positions: the last is cut off there, and what has no room is left out.
pub fn place_chunks(
    chunks: &[(usize, usize)],
    length: usize,
    scale: f64,
    max_spacing: usize,
) -> Vec<(usize, usize)> {
    let stretch = |gap: usize| (gap as f64 * scale).floor() as usize;
    let mut placed = Vec::new();
    let mut before: Option<(usize, usize)> = None;
    for &(start, end) in chunks {
        let to = match before {
            None => stretch(start),
            Some((source_end, placed_end)) => {
                stretch(start.saturating_sub(source_end)).min(max_spacing).saturating_add(placed_end)
            }
        };
        let stop = to.saturating_add(end.saturating_sub(start)).min(length);
        if to >= stop {
            break;
        }
        placed.push((to, stop));
        before = Some((end, stop));
    }
    placed
}

/// Which inpainted sample takes each slot of an all-wrong group of `scores.len()`: the first `max_replacements` slots go
/// to samples with at least `correct_score`, in order while they suffice, else in the order of `permutation` (of
/// 0..number of correct ones). `None` leaves the original.
///
/// # Errors
/// A permutation that is needed and too short or out of range.
pub fn replacements(
    scores: &[f64],
    permutation: &[usize],
    max_replacements: usize,
    correct_score: f64,
) -> Result<Vec<Option<usize>>> {
    let correct: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] >= correct_score).collect();
    let chosen: Vec<usize> = if correct.len() > max_replacements {
        let picked: Option<Vec<usize>> =
            permutation.iter().take(max_replacements).map(|&p| correct.get(p).copied()).collect();
        picked.filter(|picked| picked.len() == max_replacements).ok_or_else(|| Error::Invalid {
            what: "permutation",
            reason: format!("{permutation:?} of {} correct samples", correct.len()),
        })?
    } else {
        correct
    };
    Ok((0..scores.len()).map(|slot| chosen.get(slot).copied()).collect())
}

/// Rewards of a text's form.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatReward {
    /// For each of four tags that occurs exactly once (opening tags with a newline after them).
    pub tag: f64,
    /// For a box.
    pub boxed: f64,
}

impl Default for FormatReward {
    fn default() -> Self {
        Self { tag: 0.125, boxed: 0.25 }
    }
}

impl FormatReward {
    /// Reward of a completion.
    pub fn score(&self, text: &str) -> f64 {
        let tags = ["<reasoning>\n", "</reasoning>", "<answer>\n", "</answer>"];
        let once = tags.iter().filter(|tag| text.matches(**tag).count() == 1).count();
        self.tag * once as f64 + if text.contains(BOX) { self.boxed } else { 0.0 }
    }
}

const BOX: &str = "\\boxed{";

/// What stands in the first `\boxed{..}` up to its matching brace; `None` without a box or when it is not closed.
pub fn first_boxed(text: &str) -> Option<&str> {
    let rest = text.get(text.find(BOX)? + BOX.len()..)?;
    let mut depth = 1usize;
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return rest.get(..at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Hints keep their order, never reach the free tail, and copy the reference.
        #[test]
        fn hints_are_pieces_of_the_reference_in_order(
            tokens in 0usize..150,
            gen_length in 10usize..140,
            draws in proptest::collection::vec(4usize..9, 40),
            hidden in proptest::collection::vec(0usize..20, 0..12),
        ) {
            let layout = HintLayout { min_chunk: 4, max_chunk: 8, ..HintLayout::default() };
            let reference: Vec<u64> = (1..=tokens as u64).collect();
            let (response, generate) = layout.lay_out(&reference, gen_length, &draws, &hidden, 0).unwrap();
            let pinned: Vec<u64> = response.iter().copied().filter(|&id| id != 0).collect();
            prop_assert!(pinned.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(response.iter().zip(&generate).all(|(&id, &free)| free == (id == 0)));
            prop_assert!(generate.iter().rev().take(30).all(|&free| free));
        }
    }

    #[test]
    fn no_hints_and_all_hints() {
        assert_eq!(HintLayout::hidden(7, 0.0), 7);
        assert_eq!(HintLayout::hidden(7, 0.45), 3);
        assert_eq!(HintLayout::hidden(7, 1.0), 0);
        let layout = HintLayout { max_scale: 1.0, ..HintLayout::default() };
        let reference: Vec<u64> = (1..=20).collect();
        let (all, _) = layout.lay_out(&reference, 60, &[5; 4], &[], 0).unwrap();
        assert_eq!(all[..20], reference[..]);
        let (none, generate) = layout.lay_out(&reference, 60, &[5; 4], &[0, 1, 2, 3], 0).unwrap();
        assert!(none.iter().all(|&id| id == 0) && generate.iter().all(|&g| g));
        assert!(layout.lay_out(&reference, 60, &[5; 3], &[], 0).is_err());
        assert!(layout.lay_out(&[], 60, &[], &[], 0).unwrap().1.iter().all(|&g| g));
    }

    #[test]
    fn only_all_wrong_groups_are_rescued() {
        assert_eq!(groups_to_rescue(&[0.0, 0.0, 3.0, 0.0], &[7, 7, 2, 2]).unwrap(), [7]);
        assert!(groups_to_rescue(&[0.0], &[]).is_err());
        assert!(replacements(&[3.0, 3.0], &[], 1, 3.0).is_err());
        assert_eq!(replacements(&[0.0, 3.0], &[], 1, 3.0).unwrap(), [Some(1), None]);
    }
}
