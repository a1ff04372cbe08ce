//! Which two sequences of a batch are compared, and how a batch of pairs is cut.
//!
//! There is ONE layout: a pair is two rows with the same id in [`PAIR_IDS`], and the row that stands first in the batch
//! is the pair's FIRST sequence (the preferred, chosen one where the order matters). Nothing else about the order of
//! the rows matters: all chosen rows before all rejected ones ([`halves`]) and neighbours (0, 0, 1, 1, ...) are both
//! fine, and so is any selection of rows that keeps their order and tears no pair apart. Every row must be in a pair;
//! anything else is an error, never a silent mismatch.
//!
//! Pair losses are `Terms::Pairs`, divided by the pairs of the whole batch (`Normaliser::pairs`), so the losses of
//! micro-batches made of whole pairs ([`Pairs::parts`]) add up to that of the batch.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, PAIR_IDS, keep_where};
use crate::block::{Block, Filter, Kind};
use crate::error::{Error, Result};
use crate::state::State;

/// Rows of the pairs, pairs in the order of their first rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// First (preferred) row of every pair.
    pub first: Vec<usize>,
    /// Second row of every pair.
    pub second: Vec<usize>,
    /// Pair of every row, [B].
    pub of_row: Vec<usize>,
}

/// Ids of the layout in which rows 0..P are the first sequences and rows P..2P the second ones, in the same order.
pub fn halves(pairs: usize) -> Vec<u64> {
    (0..pairs as u64).chain(0..pairs as u64).collect()
}

impl Pairs {
    /// The pairs of `ids` [B].
    ///
    /// # Errors
    /// [`Error::Invalid`]: an id that does not stand exactly twice.
    pub fn from_ids(ids: &[u64]) -> Result<Self> {
        let mut pair_of: BTreeMap<u64, usize> = BTreeMap::new();
        let mut rows: Vec<Vec<usize>> = Vec::new();
        let mut of_row = Vec::with_capacity(ids.len());
        for (row, &id) in ids.iter().enumerate() {
            let pair = *pair_of.entry(id).or_insert(rows.len());
            match rows.get_mut(pair) {
                Some(members) => members.push(row),
                None => rows.push(vec![row]),
            }
            of_row.push(pair);
        }
        let (mut first, mut second) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for members in &rows {
            let [a, b] = members[..] else {
                let id = members.first().map_or(0, |&row| ids[row]);
                let reason =
                    format!("pair {id} has {} sequences in this (micro-)batch, not 2", members.len());
                return Err(Error::Invalid { what: "pair_ids", reason });
            };
            first.push(a);
            second.push(b);
        }
        Ok(Self { first, second, of_row })
    }

    /// The pairs of a batch.
    ///
    /// # Errors
    /// As [`Pairs::from_ids`]; [`Error::Missing`].
    pub fn of(batch: &Batch) -> Result<Self> {
        Self::from_ids(batch.ids(PAIR_IDS)?)
    }

    /// Number of pairs, P.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Values [B, ..] of the first and of the second rows, [P, ..] each, with gradient.
    ///
    /// # Errors
    /// Fewer rows than the pairs have.
    pub fn split(&self, per_row: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((pick(per_row, &self.first)?, pick(per_row, &self.second)?))
    }

    /// Numbers [B] of the first and of the second rows, [P] each.
    ///
    /// # Errors
    /// Another number of rows than the pairs have.
    pub fn split_numbers(&self, name: &'static str, per_row: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
        if per_row.len() != self.of_row.len() {
            let expected = format!("[{}], two for every pair", self.of_row.len());
            return Err(Error::Shape { name, got: vec![per_row.len()], expected });
        }
        let of = |rows: &[usize]| rows.iter().map(|&row| per_row[row]).collect();
        Ok((of(&self.first), of(&self.second)))
    }

    /// Values [P] of the pairs for every row, [B], with gradient.
    ///
    /// # Errors
    /// Fewer values than pairs.
    pub fn spread(&self, per_pair: &Tensor) -> Result<Tensor> {
        pick(per_pair, &self.of_row)
    }

    /// Rows of micro-batches of at most `pairs` whole pairs each, rows in the batch's order.
    pub fn parts(&self, pairs: usize) -> Vec<Vec<usize>> {
        let whole: Vec<usize> = (0..self.len()).collect();
        let rows = |part: &[usize]| {
            let mut rows: Vec<usize> = part.iter().flat_map(|&p| [self.first[p], self.second[p]]).collect();
            rows.sort_unstable();
            rows
        };
        whole.chunks(pairs.max(1)).map(rows).collect()
    }
}

fn pick(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let ids: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    Ok(x.contiguous()?.index_select(&Tensor::from_vec(ids, rows.len(), x.device())?, 0)?)
}

/// Sum of a [B, T] input over every row's valid tokens, [B], with the input's gradient.
///
/// # Errors
/// [`Error::Missing`], [`Error::Type`].
pub fn row_sums(batch: &Batch, input: Input) -> Result<Tensor> {
    Ok(keep_where(&batch.tensor(input)?, batch.mask())?.sum(1)?)
}

/// The numbers of [`row_sums`], without gradient.
///
/// # Errors
/// As [`row_sums`].
pub fn row_sum_numbers(batch: &Batch, input: Input) -> Result<Vec<f64>> {
    numbers(&row_sums(batch, input)?)
}

/// A [B] tensor as numbers, without gradient.
pub(crate) fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.detach().to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1()?)
}

/// Numbers as a tensor like `like` in type and device.
pub(crate) fn tensor_like(x: &[f64], like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(x, x.len(), like.device())?.to_dtype(like.dtype())?)
}

/// Drops pairs in which a sequence has no valid token: they would only add a constant to the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComparablePairs {}

impl Block for ComparablePairs {
    fn needs(&self) -> Vec<Input> {
        vec![PAIR_IDS]
    }

    fn describe(&self) -> String {
        "pairs of two sequences with valid tokens".into()
    }
}

impl Kind for ComparablePairs {
    const KIND: &'static str = "comparable_pairs";
}

impl Filter for ComparablePairs {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        let pairs = Pairs::of(batch)?;
        let lengths = batch.mask().row_sums();
        let both = |pair: usize| lengths[pairs.first[pair]] > 0.0 && lengths[pairs.second[pair]] > 0.0;
        Ok(pairs.of_row.iter().map(|&pair| both(pair)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_usual_layouts_are_the_same_pairs_and_torn_pairs_are_refused() {
        let blocks = Pairs::from_ids(&halves(2)).unwrap();
        assert_eq!((blocks.first, blocks.second), (vec![0, 1], vec![2, 3]));
        let neighbours = Pairs::from_ids(&[7, 7, 3, 3]).unwrap();
        assert_eq!((neighbours.first.clone(), neighbours.second.clone()), (vec![0, 2], vec![1, 3]));
        assert_eq!(neighbours.parts(1), [vec![0, 1], vec![2, 3]]);
        for odd in [&[1, 1, 2][..], &[1, 1, 1], &[1, 2]] {
            assert!(matches!(Pairs::from_ids(odd), Err(Error::Invalid { .. })));
        }
        assert!(Pairs::from_ids(&[]).unwrap().is_empty());
    }
}
