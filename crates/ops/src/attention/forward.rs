//! Forward: a task takes some blocks of queries of one head and goes over the keys.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::mask::Sight;
use super::{Attention, KEYS, QUERIES, Sizes, product};
use crate::float::{Float, max, sum};
use crate::matmul::{Left, Right, Start, Target, build, pack_into};
use crate::simd::{Kernel, Level, dispatch};

/// Right factors of all key-value heads, packed once: keys as [Dh, Tk], values as [Tk, Dh].
pub(super) struct Packed<T> {
    data: Vec<T>,
    head: usize,
}

impl<T: Float> Packed<T> {
    /// The [rows, columns] factor of every head, whose element (p, j) lies at `row * p + column * j` of the head.
    pub fn new(
        data: &[T],
        starts: &[usize],
        (rows, columns): (usize, usize),
        (row, column): (usize, usize),
    ) -> Self {
        let head = rows * columns.next_multiple_of(T::PANEL);
        let fill = |packed: &mut [MaybeUninit<T>]| {
            packed.par_chunks_mut(head).zip(starts).for_each(|(packed, &start)| {
                pack_into(packed, &data[start..], rows, columns, row, column);
            });
        };
        // SAFETY: `pack_into` writes all of it.
        Self { data: unsafe { build(starts.len() * head, fill) }, head }
    }

    pub fn head(&self, head: usize) -> &[T] {
        &self.data[head * self.head..][..self.head]
    }
}

/// Columns `first..` of a packed [k, n] factor; `first` is a multiple of the panel.
pub(super) fn columns<T: Float>(packed: &[T], k: usize, first: usize) -> Right<'_, T> {
    Right::packed(&packed[first / T::PANEL * T::PANEL * k..], k)
}

/// Rows `first..` of a packed [k, n] factor.
pub(super) fn rows<T: Float>(packed: &[T], k: usize, first: usize) -> Right<'_, T> {
    Right { data: &packed[first * T::PANEL..], panel: k * T::PANEL, row: T::PANEL }
}

/// Starts of the rows of every (sample, key-value head).
pub(super) fn starts(attention: &Attention) -> Vec<usize> {
    let Sizes { batch, kv_heads, .. } = attention.sizes;
    let (_, kv) = attention.rows();
    (0..batch * kv_heads).map(|at| kv.start(at / kv_heads, at % kv_heads)).collect()
}

/// Numbers of the running softmax of a block of queries.
struct Running<T> {
    scores: Vec<T>,
    top: Vec<T>,
    total: Vec<T>,
    sums: Vec<T>,
}

/// Takes in one block of scores [queries, KEYS]: leaves exp(score - top) there, and scales what was summed before.
struct Update<'a, T> {
    running: &'a mut Running<T>,
    sight: Sight<'a>,
    queries: Range<usize>,
    keys: Range<usize>,
    scale: T,
    d: usize,
}

impl<T: Float> Kernel for Update<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let Running { scores, top, total, sums } = self.running;
        let width = self.keys.len();
        let rows = scores.chunks_exact_mut(KEYS).zip(sums.chunks_exact_mut(self.d));
        for (((i, (row, sums)), top), total) in self.queries.zip(rows).zip(top).zip(total) {
            let row = &mut row[..width];
            for score in row.iter_mut() {
                *score *= self.scale;
            }
            self.sight.hide(i, self.keys.start, row);
            let higher = top.larger(max(row));
            if higher == T::NEG_INFINITY {
                row.fill(T::ZERO);
                continue;
            }
            for score in row.iter_mut() {
                *score = Float::exp(*score - higher);
            }
            let shrink = Float::exp(*top - higher);
            *total = *total * shrink + sum(row);
            *top = higher;
            for sum in sums.iter_mut() {
                *sum *= shrink;
            }
        }
    }
}

/// Divides by the total and writes the rows out.
struct Finish<'a, T> {
    running: &'a Running<T>,
    count: usize,
    d: usize,
    out: Target<T>,
    stride: usize,
    log_sums: &'a mut [T],
}

impl<T: Float> Kernel for Finish<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let Running { top, total, sums, .. } = self.running;
        for i in 0..self.count {
            let seen = total[i] > T::ZERO;
            let inverse = if seen { T::ONE / total[i] } else { T::ZERO };
            for (j, &sum) in sums[i * self.d..][..self.d].iter().enumerate() {
                // SAFETY: row i of the block lies in the result, and only this task writes it.
                unsafe { self.out.0.add(i * self.stride + j).write(sum * inverse) };
            }
            self.log_sums[i] = if seen { top[i] + Float::ln(total[i]) } else { T::NEG_INFINITY };
        }
    }
}

/// The result in the order of the queries, and the log of every query's sum of exponentials [B, H, Tq].
pub(super) fn run<T: Float>(attention: &Attention, q: &[T], k: &[T], v: &[T]) -> (Vec<T>, Vec<T>) {
    let Sizes { batch, heads, kv_heads, tq, tk, d } = attention.sizes;
    let (q_rows, kv_rows) = attention.rows();
    let starts = starts(attention);
    let keys = Packed::new(k, &starts, (d, tk), (1, kv_rows.row));
    let values = Packed::new(v, &starts, (tk, d), (kv_rows.row, 1));
    let mut out: Vec<T> = Vec::with_capacity(batch * heads * tq * d);
    let mut log_sums = vec![T::ZERO; batch * heads * tq];
    let target = Target::uninit(out.spare_capacity_mut());
    // Few heads and long rows: several tasks per head, each of some blocks.
    let wanted = (4 * rayon::current_num_threads()).div_ceil(batch * heads);
    let task = tq.div_ceil(QUERIES).div_ceil(wanted) * QUERIES;
    let tasks: Vec<(usize, &mut [T])> = log_sums
        .chunks_mut(tq)
        .enumerate()
        .flat_map(|(at, rows)| {
            rows.chunks_mut(task).enumerate().map(move |(part, rows)| (at * tq + part * task, rows))
        })
        .collect();
    tasks.into_par_iter().for_each(|(first, log_sums)| {
        let (at, first) = (first / tq, first % tq);
        let (sample, head) = (at / heads, at % heads);
        let kv = sample * kv_heads + head / (heads / kv_heads);
        let (keys, values) = (keys.head(kv), values.head(kv));
        let sight = Sight::new(&attention.mask, &attention.key_valid, sample, tq, tk);
        let mut running = Running {
            scores: vec![T::ZERO; QUERIES * KEYS],
            top: vec![T::ZERO; QUERIES],
            total: vec![T::ZERO; QUERIES],
            sums: vec![T::ZERO; QUERIES * d],
        };
        for (block, log_sums) in log_sums.chunks_mut(QUERIES).enumerate() {
            let first = first + block * QUERIES;
            let count = log_sums.len();
            let at = q_rows.start(sample, head) + first * q_rows.row;
            running.top.fill(T::NEG_INFINITY);
            running.total.fill(T::ZERO);
            running.sums.fill(T::ZERO);
            let end = sight.end(&(first..first + count));
            for key in (0..end).step_by(KEYS) {
                let width = (end - key).min(KEYS);
                let scores = Target::of(&mut running.scores);
                // SAFETY: the buffer is this task's own and holds QUERIES rows of KEYS.
                unsafe {
                    let (left, right) = (Left::rows(&q[at..], q_rows.row), columns(keys, d, key));
                    product((count, width, d), left, right, (scores, KEYS), Start::Zero);
                }
                dispatch(Update {
                    running: &mut running,
                    sight,
                    queries: first..first + count,
                    keys: key..key + width,
                    scale: T::of(attention.scale),
                    d,
                });
                let sums = Target::of(&mut running.sums);
                // SAFETY: the buffer is this task's own and holds QUERIES rows of d.
                unsafe {
                    let (left, right) = (Left::rows(&running.scores, KEYS), rows(values, tk, key));
                    product((count, d, width), left, right, (sums, d), Start::Add);
                }
            }
            // SAFETY: `at` is the first of this block's rows.
            let out = unsafe { target.add(at) };
            dispatch(Finish { running: &running, count, d, out, stride: q_rows.row, log_sums });
        }
    });
    // SAFETY: the tasks have written every row of every head.
    unsafe { out.set_len(batch * heads * tq * d) };
    (out, log_sums)
}
