//! Backward: a task takes one key-value head with the query heads that read it, so no two tasks add to one place.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::forward::{Packed, columns, rows, starts};
use super::mask::Sight;
use super::{Attention, KEYS, QUERIES, Sizes, product};
use crate::float::{Float, sum_of2};
use crate::matmul::{Left, Right, Start, Target, pack};
use crate::simd::{Kernel, Level, dispatch};

/// Scores and their gradients of a block: turns `scores` into probabilities P and `grads` (gradients of P) into
/// P (dP - along) scale.
struct Softmax<'a, T> {
    scores: &'a mut [T],
    grads: &'a mut [T],
    sight: Sight<'a>,
    queries: Range<usize>,
    keys: Range<usize>,
    scale: T,
    log_sums: &'a [T],
    along: &'a [T],
}

impl<T: Float> Kernel for Softmax<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.keys.len();
        let rows = self.scores.chunks_exact_mut(KEYS).zip(self.grads.chunks_exact_mut(KEYS));
        for (((i, (row, grads)), &log_sum), &along) in
            self.queries.zip(rows).zip(self.log_sums).zip(self.along)
        {
            let (row, grads) = (&mut row[..width], &mut grads[..width]);
            if log_sum == T::NEG_INFINITY {
                row.fill(T::ZERO);
                grads.fill(T::ZERO);
                continue;
            }
            for score in row.iter_mut() {
                *score = score.fma(self.scale, -log_sum);
            }
            self.sight.hide(i, self.keys.start, row);
            for (score, grad) in row.iter_mut().zip(grads) {
                let p = Float::exp(*score);
                *score = p;
                *grad = p * (*grad - along) * self.scale;
            }
        }
    }
}

/// sum over d of dO O, for every query of a block: what all of its probabilities lose.
struct Along<'a, T> {
    out: &'a [T],
    grad: &'a [T],
    stride: usize,
    d: usize,
    along: &'a mut [T],
}

impl<T: Float> Kernel for Along<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for (i, along) in self.along.iter_mut().enumerate() {
            let (out, grad) =
                (&self.out[i * self.stride..][..self.d], &self.grad[i * self.stride..][..self.d]);
            *along = sum_of2(out, grad, |out, grad| out * grad);
        }
    }
}

/// Rows `first..` of a [t, d] matrix as a right factor: in place where whole panels allow it, else packed into `buffer`.
fn right<'a, T: Float>(
    data: &'a [T],
    (row, d): (usize, usize),
    count: usize,
    buffer: &'a mut Vec<T>,
) -> Right<'a, T> {
    if d.is_multiple_of(T::PANEL) {
        return Right::in_place(data, row);
    }
    *buffer = pack(data, count, d, row, 1);
    Right::packed(buffer, count)
}

/// Gradients of q, k and v.
pub(super) fn run<T: Float>(
    attention: &Attention,
    [q, k, v]: [&[T]; 3],
    out: &[T],
    grad: &[T],
    log_sums: &[T],
) -> [Vec<T>; 3] {
    let Sizes { batch, heads, kv_heads, tq, tk, d } = attention.sizes;
    let (q_rows, kv_rows) = attention.rows();
    let (group, starts) = (heads / kv_heads, starts(attention));
    let keys = Packed::new(k, &starts, (d, tk), (1, kv_rows.row));
    let values = Packed::new(v, &starts, (d, tk), (1, kv_rows.row));
    let key_rows = Packed::new(k, &starts, (tk, d), (kv_rows.row, 1));
    let mut grads = [q, k, v].map(|x| Vec::with_capacity(x.len()));
    let [dq, dk, dv] = grads.each_mut().map(|grad: &mut Vec<T>| Target::uninit(grad.spare_capacity_mut()));
    (0..batch * kv_heads).into_par_iter().for_each(|at| {
        let sample = at / kv_heads;
        let sight = Sight::new(&attention.mask, &attention.key_valid, sample, tq, tk);
        let (mut scores, mut grads) = (vec![T::ZERO; QUERIES * KEYS], vec![T::ZERO; QUERIES * KEYS]);
        let mut along = [T::ZERO; QUERIES];
        let (mut q_buffer, mut grad_buffer) = (Vec::new(), Vec::new());
        // SAFETY: these rows are this task's own, see below.
        unsafe {
            for row in 0..tk {
                dk.add(starts[at] + row * kv_rows.row).0.write_bytes(0, d);
                dv.add(starts[at] + row * kv_rows.row).0.write_bytes(0, d);
            }
            for head in (0..group).map(|head| at % kv_heads * group + head) {
                for row in 0..tq {
                    dq.add(q_rows.start(sample, head) + row * q_rows.row).0.write_bytes(0, d);
                }
            }
        }
        for (head, first) in (0..group)
            .map(|head| at % kv_heads * group + head)
            .flat_map(|head| (0..tq).step_by(QUERIES).map(move |first| (head, first)))
        {
            let count = (tq - first).min(QUERIES);
            let from = q_rows.start(sample, head) + first * q_rows.row;
            let (q, out, grad) = (&q[from..], &out[from..], &grad[from..]);
            dispatch(Along { out, grad, stride: q_rows.row, d, along: &mut along[..count] });
            let q_right = right(q, (q_rows.row, d), count, &mut q_buffer);
            let grad_right = right(grad, (q_rows.row, d), count, &mut grad_buffer);
            let end = sight.end(&(first..first + count));
            for key in (0..end).step_by(KEYS) {
                let width = (end - key).min(KEYS);
                let (s, g) = (Target::of(&mut scores), Target::of(&mut grads));
                // SAFETY: both buffers are this task's own and hold QUERIES rows of KEYS.
                unsafe {
                    let size = (count, width, d);
                    product(
                        size,
                        Left::rows(q, q_rows.row),
                        columns(keys.head(at), d, key),
                        (s, KEYS),
                        Start::Zero,
                    );
                    let right = columns(values.head(at), d, key);
                    product(size, Left::rows(grad, q_rows.row), right, (g, KEYS), Start::Zero);
                }
                dispatch(Softmax {
                    scores: &mut scores,
                    grads: &mut grads,
                    sight,
                    queries: first..first + count,
                    keys: key..key + width,
                    scale: T::of(attention.scale),
                    log_sums: &log_sums[(sample * heads + head) * tq + first..][..count],
                    along: &along[..count],
                });
                let to = starts[at] + key * kv_rows.row;
                // SAFETY: dk and dv at this task's key-value head and dq at its query heads are written by no other
                // task; the targets lie inside the gradients, which hold values (zeros from above at first).
                unsafe {
                    let (p, ds) = (Left::transposed(&scores, KEYS), Left::transposed(&grads, KEYS));
                    product((width, d, count), p, grad_right, (dv.add(to), kv_rows.row), Start::Add);
                    product((width, d, count), ds, q_right, (dk.add(to), kv_rows.row), Start::Add);
                    let right = rows(key_rows.head(at), tk, key);
                    let c = (dq.add(from), q_rows.row);
                    product((count, d, width), Left::rows(&grads, KEYS), right, c, Start::Add);
                }
            }
        }
    });
    for (grad, x) in grads.iter_mut().zip([q, k, v]) {
        // SAFETY: the tasks have written every row of every head.
        unsafe { grad.set_len(x.len()) };
    }
    grads
}
