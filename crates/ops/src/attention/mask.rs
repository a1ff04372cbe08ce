//! Who sees whom.

use std::ops::Range;

use crate::float::Float;
use crate::{Result, check};

/// Which keys a query may see, besides the padding that `key_valid` hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// Every key.
    Full,
    /// Keys up to the query's own position; with Tk > Tq the queries are the last Tq positions, as behind a cache of
    /// Tk - Tq keys.
    Causal,
    /// The first keys, this many, and those up to the query's own position: a prompt read in both directions before an
    /// answer read forward. With Tk > Tq the queries are the last Tq positions.
    Prefix(usize),
    /// Key j where block\[j\] <= block\[i\]: one block id per position, Tq = Tk.
    Blocks(Vec<u32>),
    /// Key j where segment\[j\] = segment\[i\] and j <= i: sequences of different lengths laid end to end, each causal.
    /// One id per position, Tq = Tk.
    CausalSegments(Vec<u32>),
}

impl AttentionMask {
    pub(super) fn check(&self, op: &'static str, tq: usize, tk: usize) -> Result<()> {
        match self {
            Self::Full => Ok(()),
            Self::Causal | Self::Prefix(_) => {
                check::value(op, "Tq", tq, tq <= tk, "at most Tk for a mask that goes by position")
            }
            Self::Blocks(ids) | Self::CausalSegments(ids) => {
                let fits = ids.len() == tk && tq == tk;
                check::value(
                    op,
                    "mask",
                    format!("{} ids for Tq {tq}, Tk {tk}", ids.len()),
                    fits,
                    "Tq = Tk ids",
                )
            }
        }
    }
}

/// What hides keys from the queries of one sample.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    mask: &'a AttentionMask,
    /// [Tk], or empty.
    valid: &'a [bool],
    /// Position of the first query.
    offset: usize,
    tk: usize,
}

impl<'a> Sight<'a> {
    pub fn new(mask: &'a AttentionMask, key_valid: &'a [bool], sample: usize, tq: usize, tk: usize) -> Self {
        let valid = if key_valid.is_empty() { key_valid } else { &key_valid[sample * tk..][..tk] };
        // Full and the masks by id never read the offset with tq > tk.
        Self { mask, valid, offset: tk.saturating_sub(tq), tk }
    }

    /// Keys beyond this one are hidden from all of `queries`.
    pub fn end(&self, queries: &Range<usize>) -> usize {
        match self.mask {
            AttentionMask::Full | AttentionMask::Blocks(_) => self.tk,
            AttentionMask::Causal | AttentionMask::CausalSegments(_) => {
                (queries.end + self.offset).min(self.tk)
            }
            AttentionMask::Prefix(prefix) => (queries.end + self.offset).max(*prefix).min(self.tk),
        }
    }

    /// Writes -infinity over the hidden scores of query `i` with the keys from `first` on.
    #[inline(always)]
    pub fn hide<T: Float>(&self, i: usize, first: usize, scores: &mut [T]) {
        let forward = |scores: &mut [T], end: usize| {
            let seen = end.saturating_sub(first).min(scores.len());
            scores[seen..].fill(T::NEG_INFINITY);
        };
        match self.mask {
            AttentionMask::Full => {}
            AttentionMask::Causal => forward(scores, i + self.offset + 1),
            AttentionMask::Prefix(prefix) => forward(scores, (i + self.offset + 1).max(*prefix)),
            AttentionMask::Blocks(ids) => {
                let mine = ids[i];
                for (score, &id) in scores.iter_mut().zip(&ids[first..]) {
                    *score = if id <= mine { *score } else { T::NEG_INFINITY };
                }
            }
            AttentionMask::CausalSegments(ids) => {
                let mine = ids[i];
                forward(scores, i + 1);
                for (score, &id) in scores.iter_mut().zip(&ids[first..]) {
                    *score = if id == mine { *score } else { T::NEG_INFINITY };
                }
            }
        }
        if !self.valid.is_empty() {
            for (score, &valid) in scores.iter_mut().zip(&self.valid[first..]) {
                *score = if valid { *score } else { T::NEG_INFINITY };
            }
        }
    }
}
