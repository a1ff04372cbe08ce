//! Matrix products whose bits depend on nothing but the two rows and columns involved.
//!
//! Every element of a product is one chain of fused multiply-adds in the order of the inner index.
//! How rows are cut into tiles, blocks and threads, or what the other rows hold, changes nothing: a
//! sample gives the same bits alone and in a batch, on one thread or many, with AVX2 or AVX-512.
//! Sums over a batch (weight gradients) use partial sums over [`SUM_ROWS`] rows, added in order.
//!
//! The right factor is packed once per call into panels of [`Float::PANEL`] columns, so that the inner
//! loop reads it front to back; the left factor is read in place.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::float::Float;
pub(crate) use crate::pack::{pack, pack_into, repack};
use crate::simd::{Kernel, Level, Vector, dispatch};

/// Rows per partial sum where a sum runs over the batch.
pub(crate) const SUM_ROWS: usize = 256;

/// Elements of two of the widest vectors.
const WIDEST: usize = 32;

/// Left factor [m, k]: element (i, p) is `data[i * row + p * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub col: usize,
}

impl<'a, T> Left<'a, T> {
    pub fn rows(data: &'a [T], row: usize) -> Self {
        Left { data, row, col: 1 }
    }
    /// The transpose of a row-major matrix whose rows are `row` long.
    pub fn transposed(data: &'a [T], row: usize) -> Self {
        Left { data, row: 1, col: row }
    }
}

/// Right factor [k, n] in panels: element (p, j) is
/// `data[(j / PANEL) * panel + p * row + j % PANEL]`, readable for whole panels.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, T> {
    pub data: &'a [T],
    pub panel: usize,
    pub row: usize,
}

impl<'a, T: Float> Right<'a, T> {
    /// What [`pack`] wrote.
    pub fn packed(data: &'a [T], k: usize) -> Self {
        Right { data, panel: k * T::PANEL, row: T::PANEL }
    }
    /// A row-major matrix with rows `row` long, read in place: for `n` a multiple of the panel.
    pub fn in_place(data: &'a [T], row: usize) -> Self {
        Right { data, panel: T::PANEL, row }
    }
}

/// What a product does with its destination.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a, T> {
    /// c = left * right
    Zero,
    /// c = bias + left * right, the chain starting at the bias; padded to whole panels.
    Bias(&'a [T]),
    /// c = c + (left * right)
    Add,
}

/// One product on one thread: c[m, n] with rows `stride` apart.
pub(crate) struct Product<'a, T> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub left: Left<'a, T>,
    pub right: Right<'a, T>,
    pub c: Target<T>,
    pub stride: usize,
    pub start: Start<'a, T>,
}

/// Where a product is written; tasks of one parallel loop write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Target<T>(pub *mut T);

// SAFETY: a plain address; who dereferences it answers for disjointness (see `Product::write`).
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    pub fn of(data: &mut [T]) -> Self {
        Target(data.as_mut_ptr())
    }
    pub fn uninit(data: &mut [MaybeUninit<T>]) -> Self {
        Target(data.as_mut_ptr().cast())
    }
    /// The place `count` elements further on.
    ///
    /// # Safety
    /// It must lie inside the same allocation.
    pub unsafe fn add(self, count: usize) -> Self {
        // SAFETY: granted by the caller.
        Target(unsafe { self.0.add(count) })
    }
}

impl<T: Float> Product<'_, T> {
    /// Computes the product.
    ///
    /// # Safety
    /// `c` must be writable (for `Start::Add` also hold values) on `m` rows of `n` elements that are
    /// `stride` apart, and nobody else may touch those meanwhile.
    pub unsafe fn write(self) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        let (left, right) = (&self.left, &self.right);
        if self.k > 0 {
            let last = (self.m - 1) * left.row + (self.k - 1) * left.col;
            assert!(last < left.data.len(), "left factor is too short");
            let last = (self.n - 1) / T::PANEL * right.panel + (self.k - 1) * right.row + T::PANEL;
            assert!(last <= right.data.len(), "right factor is too short");
        }
        if let Start::Bias(bias) = self.start {
            assert!(bias.len() >= self.n.next_multiple_of(T::PANEL), "bias is too short");
        }
        dispatch(self);
    }
}

impl<T: Float> Kernel for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let lanes = <T::Vector<L> as Vector<T>>::LANES;
        let mut col = 0;
        while col < self.n {
            let in_panel = col % T::PANEL;
            let cols = (self.n - col).min(2 * lanes).min(T::PANEL - in_panel);
            // SAFETY: `write` has checked that both factors cover m, n (in whole panels) and k.
            let panel = unsafe { self.right.data.as_ptr().add(col / T::PANEL * self.right.panel + in_panel) };
            let mut row = 0;
            while row < self.m {
                let left = self.m - row;
                // SAFETY: rows `row..row + R` and `cols` columns from `col` lie inside, see above.
                row += unsafe {
                    match (left, cols) {
                        // What nearly all of the time is spent in: whole tiles.
                        (12.., _) if L::TILE_ROWS >= 12 && cols == 2 * lanes => {
                            self.full::<L, 12, 2>(row, col, panel)
                        }
                        (6.., _) if L::TILE_ROWS == 6 && cols == 2 * lanes => {
                            self.full::<L, 6, 2>(row, col, panel)
                        }
                        (12.., _) if L::TILE_ROWS >= 12 && cols == lanes => {
                            self.full::<L, 12, 1>(row, col, panel)
                        }
                        (8.., _) if L::TILE_ROWS >= 12 && cols == 2 * lanes => {
                            self.full::<L, 8, 2>(row, col, panel)
                        }
                        (4.., _) if cols == 2 * lanes => self.full::<L, 4, 2>(row, col, panel),
                        (12.., _) if L::TILE_ROWS >= 12 && cols > lanes => {
                            self.tile::<L, 12, 2>(row, col, cols, panel)
                        }
                        (12.., _) if L::TILE_ROWS >= 12 => self.tile::<L, 12, 1>(row, col, cols, panel),
                        (6.., _) if cols > lanes => self.tile::<L, 6, 2>(row, col, cols, panel),
                        (6.., _) => self.tile::<L, 6, 1>(row, col, cols, panel),
                        (3.., _) if cols > lanes => self.tile::<L, 3, 2>(row, col, cols, panel),
                        (3.., _) => self.tile::<L, 3, 1>(row, col, cols, panel),
                        _ if cols > lanes => self.tile::<L, 1, 2>(row, col, cols, panel),
                        _ => self.tile::<L, 1, 1>(row, col, cols, panel),
                    }
                };
            }
            col += cols;
        }
    }
}

impl<T: Float> Product<'_, T> {
    /// The sums of a tile of `R` rows by `V` vectors.
    ///
    /// # Safety
    /// The tile must lie inside the product; `panel` points at its first column in the right factor.
    #[inline(always)]
    unsafe fn sums<L: Level, const R: usize, const V: usize>(
        &self,
        row: usize,
        col: usize,
        panel: *const T,
    ) -> [[T::Vector<L>; V]; R] {
        let lanes = <T::Vector<L> as Vector<T>>::LANES;
        let mut acc = [[<T::Vector<L> as Vector<T>>::splat(T::ZERO); V]; R];
        if let Start::Bias(bias) = self.start {
            for v in 0..V {
                // SAFETY: the bias is padded to whole panels.
                let start = unsafe { Vector::load(bias.as_ptr().add(col + v * lanes)) };
                for line in &mut acc {
                    line[v] = start;
                }
            }
        }
        let (a_row, a_col) = (self.left.row, self.left.col);
        // SAFETY: row < m.
        let a = unsafe { self.left.data.as_ptr().add(row * a_row) };
        // Two copies of the loop, so that each has one stride the compiler knows.
        if a_col == 1 {
            for p in 0..self.k {
                // SAFETY: p < k, and the tile lies inside both factors.
                unsafe {
                    step::<T, T::Vector<L>, R, V>(&mut acc, a.add(p), a_row, panel.add(p * self.right.row))
                };
            }
        } else {
            for p in 0..self.k {
                // SAFETY: as above.
                unsafe {
                    step::<T, T::Vector<L>, R, V>(
                        &mut acc,
                        a.add(p * a_col),
                        a_row,
                        panel.add(p * self.right.row),
                    )
                };
            }
        }
        acc
    }

    /// `R` rows by `V` whole vectors. Returns `R`.
    ///
    /// # Safety
    /// The tile must lie inside the product; `panel` points at its first column in the right factor.
    #[inline(always)]
    unsafe fn full<L: Level, const R: usize, const V: usize>(
        &self,
        row: usize,
        col: usize,
        panel: *const T,
    ) -> usize {
        let lanes = <T::Vector<L> as Vector<T>>::LANES;
        // SAFETY: granted by the caller.
        let acc = unsafe { self.sums::<L, R, V>(row, col, panel) };
        let add = matches!(self.start, Start::Add);
        for (r, line) in acc.into_iter().enumerate() {
            for (v, mut value) in line.into_iter().enumerate() {
                // SAFETY: row + r < m and the vector's columns lie below n: the elements are the caller's, and for `Add`
                // they hold values.
                unsafe {
                    let c = self.c.0.add((row + r) * self.stride + col + v * lanes);
                    if add {
                        value = <T::Vector<L> as Vector<T>>::load(c).plus(value);
                    }
                    value.store(c);
                }
            }
        }
        R
    }

    /// `R` rows by `V` vectors, of which `cols` columns are stored. Returns `R`.
    ///
    /// # Safety
    /// The tile must lie inside the product; `panel` points at its first column in the right factor.
    #[inline(always)]
    unsafe fn tile<L: Level, const R: usize, const V: usize>(
        &self,
        row: usize,
        col: usize,
        cols: usize,
        panel: *const T,
    ) -> usize {
        let lanes = <T::Vector<L> as Vector<T>>::LANES;
        // SAFETY: granted by the caller.
        let acc = unsafe { self.sums::<L, R, V>(row, col, panel) };
        // A short row leaves through a buffer.
        let mut buffer = [[T::ZERO; WIDEST]; R];
        for (buffer, line) in buffer.iter_mut().zip(&acc) {
            for (v, &value) in line.iter().enumerate() {
                // SAFETY: V * LANES is at most WIDEST.
                unsafe { value.store(buffer.as_mut_ptr().add(v * lanes)) };
            }
        }
        let add = matches!(self.start, Start::Add);
        for (r, buffer) in buffer.iter().enumerate() {
            // SAFETY: row + r < m and col + cols <= n: these `cols` elements are the caller's. They may be
            // uninitialised unless `Add`, which is why they are written through the pointer.
            unsafe {
                let c = self.c.0.add((row + r) * self.stride + col);
                if add {
                    let c = std::slice::from_raw_parts_mut(c, cols);
                    c.iter_mut().zip(buffer).for_each(|(c, &value)| *c += value);
                } else {
                    c.copy_from_nonoverlapping(buffer.as_ptr(), cols);
                }
            }
        }
        R
    }
}

/// One step of the inner index: acc[r] += a[r] * b.
///
/// # Safety
/// `a` must be readable at `r * a_row` for r < R, `b` for V vectors.
#[inline(always)]
unsafe fn step<T: Float, Vec: Vector<T>, const R: usize, const V: usize>(
    acc: &mut [[Vec; V]; R],
    a: *const T,
    a_row: usize,
    b: *const T,
) {
    // SAFETY: granted by the caller.
    let b: [Vec; V] = std::array::from_fn(|v| unsafe { Vec::load(b.add(v * Vec::LANES)) });
    for (r, line) in acc.iter_mut().enumerate() {
        // SAFETY: granted by the caller.
        let a = Vec::splat(unsafe { *a.add(r * a_row) });
        for (acc, &b) in line.iter_mut().zip(&b) {
            *acc = acc.add_product(a, b);
        }
    }
}

/// A vector of `len` values that `fill` writes, every one of them.
///
/// # Safety
/// `fill` must initialise the whole slice.
pub(crate) unsafe fn build<T>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    fill(&mut data.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is there and the caller grants that all of it was written.
    unsafe { data.set_len(len) };
    data
}

/// Rows a task takes, in whole tiles: small enough that no thread waits long for the last task, large enough that a
/// panel of the right factor is used several times while it is in the cache.
fn block_rows(rows: usize) -> usize {
    rows.div_ceil(16 * rayon::current_num_threads()).next_multiple_of(12).clamp(12, 96)
}

/// Elements between the rows of [`pad_rows`]: a cache line of f32.
const PADDING: usize = 16;

/// The rows of `left` with some room between them.
fn pad_rows<T: Float>(left: Left<'_, T>, rows: usize, k: usize) -> Vec<T> {
    let mut padded = Vec::with_capacity(rows * (k + PADDING));
    for row in 0..rows {
        padded.extend_from_slice(&left.data[row * left.row..][..k]);
        padded.extend_from_slice(&[T::ZERO; PADDING]);
    }
    padded
}

/// c[m, n] = left[m, k] * right[k, n] (+ bias), parallel over rows. `done(first_row, rows)` is called
/// on every finished block while it is still in the cache.
pub(crate) fn multiply<T: Float>(
    (m, n, k): (usize, usize, usize),
    left: Left<'_, T>,
    right: Right<'_, T>,
    bias: Option<&[T]>,
    done: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let padded = bias.map(|bias| {
        let mut padded = bias.to_vec();
        padded.resize(n.next_multiple_of(T::PANEL), T::ZERO);
        padded
    });
    let start = padded.as_deref().map_or(Start::Zero, Start::Bias);
    let block = block_rows(m);
    // Twelve rows that lie whole pages apart fall on one set of the first-level cache, which holds eight.
    let apart = left.col == 1 && (left.row * size_of::<T>()).is_multiple_of(4096) && n >= 4 * T::PANEL;
    let fill = |out: &mut [MaybeUninit<T>]| {
        out.par_chunks_mut((block * n).max(1)).enumerate().for_each(|(i, out)| {
            let rows = out.len() / n;
            let left = Left { data: &left.data[i * block * left.row..], ..left };
            let padded = if apart { pad_rows(left, rows, k) } else { Vec::new() };
            let left = if apart { Left::rows(&padded, k + PADDING) } else { left };
            let c = Target::uninit(out);
            // SAFETY: `out` is this task's own, `rows` whole rows of n; the product writes all of it.
            let out = unsafe {
                Product { m: rows, n, k, left, right, c, stride: n, start }.write();
                std::slice::from_raw_parts_mut(c.0, rows * n)
            };
            done(i * block, out);
        });
    };
    // SAFETY: the blocks cover the slice, and each is written whole.
    unsafe { build(m * n, fill) }
}

/// The sum over rows of outer products: c[o, i] = sum over r of y[r, o] * x[r, i].
/// Partial sums over [`SUM_ROWS`] rows are added in order; parallel over c.
pub(crate) fn outer_sum<T: Float>(y: &[T], x: &[T], rows: usize, o: usize, i: usize) -> Vec<T> {
    if rows == 0 || o == 0 || i == 0 {
        return vec![T::ZERO; o * i];
    }
    let in_place = i.is_multiple_of(T::PANEL);
    let packed = if in_place { Vec::new() } else { pack(x, rows, i, i, 1) };
    let threads = rayon::current_num_threads();
    let stripe = o.div_ceil(16 * threads).next_multiple_of(12).clamp(24, 48);
    let fill = |out: &mut [MaybeUninit<T>]| {
        out.par_chunks_mut(stripe * i).enumerate().for_each(|(s, out)| {
            let m = out.len() / i;
            let c = Target::uninit(out);
            for first in (0..rows).step_by(SUM_ROWS) {
                let k = (rows - first).min(SUM_ROWS);
                let left = Left::transposed(&y[first * o + s * stripe..], o);
                let right = if in_place {
                    Right::in_place(&x[first * i..], i)
                } else {
                    Right { data: &packed[first * T::PANEL..], panel: rows * T::PANEL, row: T::PANEL }
                };
                let start = if first == 0 { Start::Zero } else { Start::Add };
                // SAFETY: `out` is this task's own, m rows of i; the first chunk writes all of it.
                unsafe { Product { m, n: i, k, left, right, c, stride: i, start }.write() };
            }
        });
    };
    // SAFETY: the stripes cover the slice, and the first partial sum writes each whole.
    unsafe { build(o * i, fill) }
}

/// Sum of the rows of y[rows, n]: partial sums over [`SUM_ROWS`] rows, added in order.
pub(crate) fn column_sum<T: Float>(y: &[T], n: usize) -> Vec<T> {
    struct Rows<'a, T>(&'a [T], Vec<T>);
    impl<T: Float> Kernel for Rows<'_, T> {
        type Output = Vec<T>;
        #[inline(always)]
        fn run<L: Level>(mut self) -> Vec<T> {
            for row in self.0.chunks_exact(self.1.len()) {
                for (sum, &y) in self.1.iter_mut().zip(row) {
                    *sum += y;
                }
            }
            self.1
        }
    }
    if n == 0 {
        return Vec::new();
    }
    let partial: Vec<Vec<T>> =
        y.par_chunks(SUM_ROWS * n).map(|rows| dispatch(Rows(rows, vec![T::ZERO; n]))).collect();
    add_in_order(partial, n)
}

/// Sum of partial results of length `n`, in their order.
pub(crate) fn add_in_order<T: Float>(partial: Vec<Vec<T>>, n: usize) -> Vec<T> {
    let mut parts = partial.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![T::ZERO; n]);
    for part in parts {
        for (sum, value) in sum.iter_mut().zip(part) {
            *sum += value;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::{available, with_isa};

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (m, n, k) = (29, 41, 17);
        let numbers =
            |len: usize| (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 33.0 - 1.5).collect::<Vec<_>>();
        let (left, right) = (numbers(m * k), numbers(k * n));
        let packed = pack(&right, k, n, n, 1);
        let run = |isa| {
            let mut c = vec![0f32; m * n];
            let (left, right) = (Left::rows(&left, k), Right::packed(&packed, k));
            // SAFETY: `c` is ours and holds m rows of n.
            with_isa(isa, || unsafe {
                Product { m, n, k, left, right, c: Target::of(&mut c), stride: n, start: Start::Zero }
                    .write();
            });
            c
        };
        let first = run(available()[0]);
        for (i, value) in first.iter().enumerate() {
            let exact: f64 =
                (0..k).map(|p| f64::from(left[i / n * k + p]) * f64::from(right[p * n + i % n])).sum();
            assert!((f64::from(*value) - exact).abs() < 1e-5);
        }
        for isa in available() {
            assert!(run(isa).iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
        }
    }
}
