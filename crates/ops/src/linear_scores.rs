//! What a policy says about chosen tokens, straight from hidden states and the vocabulary matrix.
//!
//! Logits exist a tile at a time: the vocabulary is walked in strips of [`STRIP`] rows of the matrix, a strip is packed
//! once, and tasks multiply blocks of hidden states by chunks of it into tiles that stay in the second-level cache.
//! Backward makes the tiles again. Beside the gradients themselves, memory is a strip of the matrix, a round of slopes
//! ([`ROUND`] x [`STRIP`]) and five numbers a token, whatever the vocabulary.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use candle_core::{D, Shape, Tensor};
use rayon::prelude::*;

use crate::float::{Float, sum_of};
use crate::log_softmax::{CHUNK, Running, Summary};
use crate::matmul::{Left, Product, Right, SUM_ROWS, Start, Target, build, pack, repack};
use crate::op::{Op, View, apply2};
use crate::scores::TokenScores;
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Rows of the vocabulary matrix in work at a time.
const STRIP: usize = 4 * CHUNK;

/// Tokens per round of backward.
const ROUND: usize = 4 * SUM_ROWS;

/// Numbers kept per token: log-probability, entropy, mean log-probability, then the three of [`Summary`].
const KEPT: usize = 6;

/// Hidden states [N, D] and vocabulary matrix [V, D] -> [N, KEPT].
pub(crate) struct LinearScores {
    pub(crate) ids: Vec<u32>,
    pub(crate) temperature: f64,
    /// Whether the mean over the vocabulary of log-probabilities is wanted; else it is 0.
    pub(crate) uniform: bool,
}

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    v: usize,
    d: usize,
}

/// What is known of a token after some strips.
#[derive(Clone, Copy)]
struct State<T> {
    running: Running<T>,
    chosen: T,
    sum: T,
}

/// Takes a tile of logits into the states of its rows; the tile's first column is `first`.
struct Take<'a, T> {
    tile: &'a [T],
    cols: usize,
    first: usize,
    states: &'a mut [State<T>],
    ids: &'a [u32],
    inverse: T,
    uniform: bool,
}

impl<T: Float> Kernel for Take<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for ((x, state), &id) in self.tile.chunks_exact(self.cols).zip(self.states).zip(self.ids) {
            state.running.take(x, self.inverse);
            if let Some(&chosen) = (id as usize).checked_sub(self.first).and_then(|at| x.get(at)) {
                state.chosen = chosen;
            }
            if self.uniform {
                state.sum += sum_of(x, |x| x * self.inverse);
            }
        }
    }
}

/// Logits to slopes, in place, on a tile with rows `stride` apart.
struct Slopes<'a, T> {
    tile: &'a mut [T],
    stride: usize,
    cols: usize,
    first: usize,
    kept: &'a [T],
    grad: &'a [T],
    ids: &'a [u32],
    inverse: T,
    /// 1 / V where the mean log-probability is wanted.
    share: Option<T>,
}

impl<T: Float> Kernel for Slopes<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let inverse = self.inverse;
        let rows = self.kept.chunks_exact(KEPT).zip(self.grad.chunks_exact(KEPT)).zip(self.ids);
        for (tile, ((kept, grad), &id)) in self.tile.chunks_mut(self.stride).zip(rows) {
            let tile = &mut tile[..self.cols];
            let summary = Summary { top: kept[3], log_total: kept[4], mean: kept[5] };
            let (chosen, entropy) = (grad[0] * inverse, grad[1] * inverse);
            let log = if self.share.is_some() { chosen + grad[2] * inverse } else { chosen };
            for x in tile.iter_mut() {
                *x = summary.slope(*x, inverse, log, entropy);
            }
            if !summary.possible() {
                continue;
            }
            if let Some(share) = self.share {
                let share = grad[2] * inverse * share;
                tile.iter_mut().for_each(|x| *x += share);
            }
            if let Some(x) = (id as usize).checked_sub(self.first).and_then(|at| tile.get_mut(at)) {
                *x += chosen;
            }
        }
    }
}

/// Tokens a task takes: whole tiles, enough tasks for every thread.
fn block_rows(rows: usize) -> usize {
    rows.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(12).clamp(12, 96)
}

/// The strips of a vocabulary of `v`: first row and number of rows.
fn strips(v: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..v).step_by(STRIP).map(move |first| (first, (v - first).min(STRIP)))
}

/// One tile of logits: rows `left` [rows, D] by chunk `at` of the packed strip, into `c` with rows `stride` apart.
///
/// # Safety
/// As [`Product::write`].
unsafe fn tile<T: Float>(
    left: &[T],
    strip: &[T],
    d: usize,
    (at, cols): (usize, usize),
    c: Target<T>,
    stride: usize,
) {
    let right = Right::packed(&strip[at * d..], d); // chunks are whole panels
    let (m, left) = (left.len() / d, Left::rows(left, d));
    // SAFETY: granted by the caller.
    unsafe { Product { m, n: cols, k: d, left, right, c, stride, start: Start::Zero }.write() }
}

impl LinearScores {
    fn sizes<T>(&self, [hidden, weight]: [View<'_, T>; 2]) -> Sizes {
        Sizes { n: self.ids.len(), v: weight.dims[0], d: hidden.width() }
    }

    /// Slopes of the loss by the logits of some tokens in one strip, rows `cols` long.
    fn slopes<T: Float>(
        &self,
        (hidden, strip): (&[T], &[T]),
        (s, first): (Sizes, usize),
        (ids, kept, grad): (&[u32], &[T], &[T]),
        slopes: &mut [T],
    ) {
        let cols = slopes.len() / ids.len();
        let share = self.uniform.then(|| T::of(1.0 / s.v as f64));
        for at in (0..cols).step_by(CHUNK) {
            let width = (cols - at).min(CHUNK);
            let c = &mut slopes[at..];
            // SAFETY: rows of `slopes` are `cols` apart and ours; a chunk lies inside each.
            unsafe { tile(hidden, strip, s.d, (at, width), Target::of(c), cols) };
            dispatch(Slopes {
                tile: c,
                stride: cols,
                cols: width,
                first: first + at,
                kept,
                grad,
                ids,
                inverse: T::of(1.0 / self.temperature),
                share,
            });
        }
    }
}

impl Op<2> for LinearScores {
    const NAME: &'static str = "linear_scores";

    fn forward<T: Float>(&self, args: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        let [hidden, weight] = args;
        let s = self.sizes(args);
        let inverse = T::of(1.0 / self.temperature);
        let state = State { running: Running::EMPTY, chosen: T::ZERO, sum: T::ZERO };
        let mut states = vec![state; s.n];
        let block = block_rows(s.n);
        let mut packed = vec![T::ZERO; s.v.min(STRIP).next_multiple_of(T::PANEL) * s.d];
        for (first, rows) in strips(s.v) {
            let packed = &mut packed[..rows.next_multiple_of(T::PANEL) * s.d];
            repack(packed, &weight.data[first * s.d..(first + rows) * s.d], s.d, rows, 1, s.d);
            let strip: &[T] = packed;
            let tasks = states.par_chunks_mut(block).zip(self.ids.par_chunks(block));
            tasks.zip(hidden.data.par_chunks(block * s.d)).for_each_init(
                || vec![T::ZERO; block * CHUNK],
                |buffer, ((states, ids), hidden)| {
                    for at in (0..rows).step_by(CHUNK) {
                        let cols = (rows - at).min(CHUNK);
                        let logits = &mut buffer[..ids.len() * cols];
                        // SAFETY: the buffer is this task's own and holds a row of `cols` per token.
                        unsafe { tile(hidden, strip, s.d, (at, cols), Target::of(logits), cols) };
                        let (first, uniform) = (first + at, self.uniform);
                        dispatch(Take { tile: logits, cols, first, states, ids, inverse, uniform });
                    }
                },
            );
        }
        let mut out = Vec::with_capacity(KEPT * s.n);
        for state in states {
            let summary = state.running.finish();
            let mean = if self.uniform {
                (state.sum / T::of(s.v as f64) - summary.top) - summary.log_total
            } else {
                T::ZERO
            };
            out.extend([summary.log_prob(state.chosen, inverse), summary.entropy(), mean]);
            out.extend([summary.top, summary.log_total, summary.mean]);
        }
        (out, (s.n, KEPT).into())
    }

    fn backward<T: Float>(
        &self,
        args: [View<'_, T>; 2],
        out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let [hidden, weight] = args;
        let s @ Sizes { n, v, d } = self.sizes(args);
        if n == 0 {
            return [needs[0].then(Vec::new), needs[1].then(|| vec![T::ZERO; v * d])];
        }
        let mut d_hidden = vec![T::ZERO; if needs[0] { n * d } else { 0 }];
        let hidden_right =
            if needs[1] && !d.is_multiple_of(T::PANEL) { pack(hidden.data, n, d, d, 1) } else { Vec::new() };
        let mut packed = vec![T::ZERO; v.min(STRIP).next_multiple_of(T::PANEL) * d];
        let mut slopes = vec![T::ZERO; n.min(ROUND) * v.min(STRIP)];
        let mut fill = |d_weight: &mut [MaybeUninit<T>]| {
            for (first, rows) in strips(v) {
                let part = &weight.data[first * d..(first + rows) * d];
                let packed = &mut packed[..rows.next_multiple_of(T::PANEL) * d];
                repack(packed, part, d, rows, 1, d);
                let by_row = if needs[0] { pack(part, rows, d, d, 1) } else { Vec::new() };
                for start in (0..n).step_by(ROUND) {
                    let tokens = start..(start + ROUND).min(n);
                    let block = block_rows(tokens.len());
                    let slopes = &mut slopes[..tokens.len() * rows];
                    let hidden = &hidden.data[tokens.start * d..tokens.end * d];
                    let kept = &out.data[tokens.start * KEPT..tokens.end * KEPT];
                    let grad = &grad.data[tokens.start * KEPT..tokens.end * KEPT];
                    // 1. slopes of these tokens in this strip, and what they give the hidden states
                    let given = kept.par_chunks(block * KEPT).zip(grad.par_chunks(block * KEPT));
                    let tasks =
                        slopes.par_chunks_mut(block * rows).zip(hidden.par_chunks(block * d)).zip(given);
                    let mut d_hidden: Vec<&mut [T]> = if needs[0] {
                        d_hidden[tokens.start * d..tokens.end * d].chunks_mut(block * d).collect()
                    } else {
                        (0..tokens.len()).step_by(block).map(|_| [].as_mut_slice()).collect()
                    };
                    let tasks = tasks.zip(&mut d_hidden).enumerate();
                    tasks.for_each(|(i, (((slopes, hidden), (kept, grad)), d_hidden))| {
                        let ids = &self.ids[start + i * block..][..hidden.len() / d];
                        self.slopes((hidden, packed), (s, first), (ids, kept, grad), slopes);
                        if needs[0] {
                            let (left, right) = (Left::rows(slopes, rows), Right::packed(&by_row, rows));
                            let begin = if first == 0 { Start::Zero } else { Start::Add };
                            let c = Target::of(d_hidden);
                            // SAFETY: `d_hidden` is this task's own, a row of D for each token.
                            unsafe {
                                Product {
                                    m: ids.len(),
                                    n: d,
                                    k: rows,
                                    left,
                                    right,
                                    c,
                                    stride: d,
                                    start: begin,
                                }
                                .write();
                            }
                        }
                    });
                    // 2. what they give the vocabulary, in partial sums over SUM_ROWS tokens
                    if needs[1] {
                        let d_weight = &mut d_weight[first * d..(first + rows) * d];
                        vocabulary_sum(d_weight, (slopes, rows), (hidden, &hidden_right), (start, s));
                    }
                }
            }
        };
        let d_weight = if needs[1] {
            // SAFETY: the strips cover the matrix, and the first round writes each whole.
            Some(unsafe { build(v * d, fill) })
        } else {
            fill(&mut []);
            None
        };
        [needs[0].then_some(d_hidden), d_weight]
    }
}

/// Adds slopes^T hidden of a round of tokens from `start` on to the gradient of a strip; the first round sets it.
fn vocabulary_sum<T: Float>(
    d_weight: &mut [MaybeUninit<T>],
    (slopes, cols): (&[T], usize),
    (hidden, packed): (&[T], &[T]),
    (start, Sizes { n, d, .. }): (usize, Sizes),
) {
    let tokens = hidden.len() / d;
    let stripe = cols.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(12).clamp(12, 96);
    d_weight.par_chunks_mut(stripe * d).enumerate().for_each(|(i, out)| {
        let c = Target::uninit(out);
        for from in (0..tokens).step_by(SUM_ROWS) {
            let k = (tokens - from).min(SUM_ROWS);
            let left = Left::transposed(&slopes[from * cols + i * stripe..], cols);
            let right = if packed.is_empty() {
                Right::in_place(&hidden[from * d..], d)
            } else {
                Right { data: &packed[(start + from) * T::PANEL..], panel: n * T::PANEL, row: T::PANEL }
            };
            let begin = if start + from == 0 { Start::Zero } else { Start::Add };
            // SAFETY: `out` is this task's own, whole rows of D; the first partial sum of all writes it.
            unsafe {
                Product { m: out.len() / d, n: d, k, left, right, c, stride: d, start: begin }.write();
            }
        }
    });
}

fn scores(
    op: &'static str,
    hidden: &Tensor,
    weight: &Tensor,
    ids: &Tensor,
    (temperature, uniform): (f64, bool),
) -> Result<Tensor> {
    check::float(op, "hidden", hidden)?;
    check::same_dtype(op, "weight", weight, hidden)?;
    check::rank(op, "hidden", hidden, 2, "[N, D]")?;
    check::rank(op, "weight", weight, 2, "[V, D]")?;
    let d = check::last_dim(op, "hidden", hidden)?;
    let fits = weight.dims()[1] == d && weight.dims()[0] > 0;
    check::fits(op, ("hidden", hidden), ("weight", weight), fits, "hidden is [N, D], weight [V, D]")?;
    check::dims(op, "ids", ids, &hidden.dims()[..1], "[N], one per row of hidden")?;
    let positive = temperature > 0.0 && temperature.is_finite();
    check::value(op, "temperature", temperature, positive, "a positive number")?;
    let ids = check::ids(op, ids, weight.dims()[0])?;
    Ok(apply2(LinearScores { ids, temperature, uniform }, hidden, weight)?)
}

fn column(all: &Tensor, i: usize) -> Result<Tensor> {
    Ok(all.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1)?)
}

/// `token_scores(linear(hidden, weight), ids, temperature)` without the logits: `hidden` [N, D], the vocabulary matrix
/// `weight` [V, D], `ids` [N] (u32); both results [N] and differentiable.
///
/// The numbers are the same bits as those of [`crate::token_scores`] on the logits of [`crate::linear`], so a sampler
/// that has logits and a trainer that does not agree exactly. Gradients agree to rounding. No [N, V] tensor is made,
/// forward or backward; backward multiplies the logits out again.
///
/// # Errors
/// Shapes or dtypes that do not fit, an id outside the vocabulary, a temperature that is not positive.
pub fn linear_scores(
    hidden: &Tensor,
    weight: &Tensor,
    ids: &Tensor,
    temperature: f64,
) -> Result<TokenScores> {
    let all = scores("linear_scores", hidden, weight, ids, (temperature, false))?; // [N, KEPT]
    Ok(TokenScores { log_probs: column(&all, 0)?, entropy: column(&all, 1)? })
}

/// Cross entropy of `ids` [N] (u32) under softmax(hidden weight^T), without the logits: `hidden` [N, D], `weight`
/// [V, D], result [N]. With `label_smoothing` e the target is 1 - e on the id plus e / V on every token, as in
/// PyTorch's `CrossEntropyLoss`.
///
/// # Errors
/// As [`linear_scores`]; `label_smoothing` outside [0, 1].
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    ids: &Tensor,
    label_smoothing: f64,
) -> Result<Tensor> {
    const OP: &str = "linear_cross_entropy";
    let share = (0.0..=1.0).contains(&label_smoothing);
    check::value(OP, "label_smoothing", label_smoothing, share, "in [0, 1]")?;
    let smooth = label_smoothing > 0.0;
    let all = scores(OP, hidden, weight, ids, (1.0, smooth))?;
    let chosen = column(&all, 0)?;
    if !smooth {
        return Ok(chosen.neg()?);
    }
    Ok(((chosen * (label_smoothing - 1.0))? - (column(&all, 2)? * label_smoothing)?)?)
}
