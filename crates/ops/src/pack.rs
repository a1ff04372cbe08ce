//! The right factor of a product, laid out in panels of [`Float::PANEL`] columns.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::build;
use crate::simd::{Kernel, Level, dispatch};

/// Packs the [k, n] matrix whose element (p, j) is `data[p * row + j * col]` into panels, the last
/// one filled up with zeros.
pub(crate) fn pack<T: Float>(data: &[T], k: usize, n: usize, row: usize, col: usize) -> Vec<T> {
    let fill = |packed: &mut [MaybeUninit<T>]| pack_into(packed, data, k, n, row, col);
    // SAFETY: `pack_into` writes all of it.
    unsafe { build(k * n.next_multiple_of(T::PANEL), fill) }
}

/// [`pack`] into a buffer of the right size, all of which it writes; on several threads when it is large.
pub(crate) fn pack_into<T: Float>(
    packed: &mut [MaybeUninit<T>],
    data: &[T],
    k: usize,
    n: usize,
    row: usize,
    col: usize,
) {
    if k == 0 || n == 0 {
        return;
    }
    let one = |(panel, out): (usize, &mut [MaybeUninit<T>])| {
        let first = panel * T::PANEL;
        dispatch(PackPanel { data: &data[first * col..], cols: (n - first).min(T::PANEL), row, col, out });
    };
    if k * n >= 1 << 15 {
        packed.par_chunks_mut(k * T::PANEL).enumerate().for_each(one);
    } else {
        packed.chunks_mut(k * T::PANEL).enumerate().for_each(one);
    }
}

/// [`pack_into`] a buffer that is used again and again.
pub(crate) fn repack<T: Float>(packed: &mut [T], data: &[T], k: usize, n: usize, row: usize, col: usize) {
    // SAFETY: one layout, and `pack_into` only writes numbers, so the slice stays initialised.
    let packed = unsafe { &mut *(&raw mut *packed as *mut [MaybeUninit<T>]) };
    pack_into(packed, data, k, n, row, col);
}

/// One panel, all of which is written.
struct PackPanel<'a, T> {
    data: &'a [T],
    cols: usize,
    row: usize,
    col: usize,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Kernel for PackPanel<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let Self { data, cols, row, col, out } = self;
        if col == 1 {
            for (p, out) in out.chunks_exact_mut(T::PANEL).enumerate() {
                let line = &data[p * row..][..cols];
                if cols == T::PANEL {
                    // A constant length: a few vector moves instead of a call.
                    for (out, &x) in out.iter_mut().zip(&line[..T::PANEL]) {
                        out.write(x);
                    }
                } else {
                    for (out, &x) in out.iter_mut().zip(line) {
                        out.write(x);
                    }
                    out[cols..].fill(MaybeUninit::new(T::ZERO));
                }
            }
            return;
        }
        // Columns that lie apart, in squares of 16: reads and writes both stay within a few cache lines.
        const SIDE: usize = 16;
        let k = out.len() / T::PANEL;
        for (square, out) in out.chunks_mut(SIDE * T::PANEL).enumerate() {
            let p0 = square * SIDE;
            for j in 0..cols {
                let column = &data[j * col + p0 * row..];
                if row == 1 && p0 + SIDE <= k {
                    let column = &column[..SIDE];
                    for p in 0..SIDE {
                        out[p * T::PANEL + j].write(column[p]);
                    }
                } else {
                    for p in 0..(k - p0).min(SIDE) {
                        out[p * T::PANEL + j].write(column[p * row]);
                    }
                }
            }
            if cols < T::PANEL {
                for line in out.chunks_exact_mut(T::PANEL) {
                    line[cols..].fill(MaybeUninit::new(T::ZERO));
                }
            }
        }
    }
}
