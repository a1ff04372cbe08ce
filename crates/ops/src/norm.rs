//! Layer norm and RMS norm over the last axis, alone or together with the sum of a residual connection.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, DType, Shape, Tensor};
use rayon::prelude::*;

use crate::float::{Float, LANES, Lanes, sum, sum_lanes, sum_of};
use crate::matmul::{SUM_ROWS, add_in_order, build};
use crate::op::{Op, View, apply2, apply3};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Which statistics a row is divided by.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Mean removed, divided by the standard deviation.
    Layer,
    /// Divided by the root of the mean square.
    Rms,
}

/// What [`AddNorm`] has computed for the [`Norm`] behind it: rows and their statistics.
type Ready = Arc<Mutex<Option<(CpuStorage, CpuStorage)>>>;

pub(crate) struct Norm {
    pub(crate) kind: Kind,
    pub(crate) eps: f64,
    /// (mean, factor) of every row, for backward.
    statistics: OnceLock<CpuStorage>,
    /// The result, where it was made together with the argument.
    ready: Option<Ready>,
}

/// Mean to subtract and factor to multiply by.
#[inline(always)]
fn statistics<T: Float>(kind: Kind, eps: T, x: &[T]) -> [T; 2] {
    let n = T::of(x.len() as f64);
    let mean = match kind {
        Kind::Layer => sum(x) / n,
        Kind::Rms => T::ZERO,
    };
    let variance = sum_of(x, |x| (x - mean) * (x - mean)) / n;
    [mean, T::ONE / Float::sqrt(variance + eps)]
}

/// The row `x`, normalised and scaled.
#[inline(always)]
fn write_row<T: Float>(
    x: &[T],
    [mean, factor]: [T; 2],
    weight: &[T],
    bias: Option<&[T]>,
    out: &mut [MaybeUninit<T>],
) {
    match bias {
        Some(bias) => {
            for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                out.write(((x - mean) * factor).fma(w, b));
            }
        }
        None => {
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
                out.write((x - mean) * factor * w);
            }
        }
    }
}

/// Some rows forward; writes all of `out` and `statistics`.
struct Forward<'a, T> {
    kind: Kind,
    eps: T,
    x: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    out: &'a mut [MaybeUninit<T>],
    statistics: &'a mut [T],
}

impl<T: Float> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let d = self.weight.len();
        let rows = self.x.chunks_exact(d).zip(self.out.chunks_exact_mut(d));
        for ((x, out), kept) in rows.zip(self.statistics.chunks_exact_mut(2)) {
            let row = statistics(self.kind, self.eps, x);
            kept.copy_from_slice(&row);
            write_row(x, row, self.weight, self.bias, out);
        }
    }
}

/// Some rows of x + r and of their norm; writes all of `sum` and of what [`Forward`] writes.
struct AddForward<'a, T> {
    x: &'a [T],
    r: &'a [T],
    sum: &'a mut [MaybeUninit<T>],
    norm: Forward<'a, T>,
}

impl<T: Float> Kernel for AddForward<'_, T> {
    type Output = ();
    #[inline(always)]
    #[allow(unsafe_code)]
    fn run<L: Level>(self) {
        let norm = self.norm;
        let d = norm.weight.len();
        let sums = self.x.chunks_exact(d).zip(self.r.chunks_exact(d)).zip(self.sum.chunks_exact_mut(d));
        let rows = norm.out.chunks_exact_mut(d).zip(norm.statistics.chunks_exact_mut(2));
        for (((x, r), sum), (out, kept)) in sums.zip(rows) {
            for ((sum, &x), &r) in sum.iter_mut().zip(x).zip(r) {
                sum.write(x + r);
            }
            // SAFETY: x, r and sum are one row of D each, so the whole row has just been written.
            let sum = unsafe { &*(&raw const *sum as *const [T]) };
            let row = statistics(norm.kind, norm.eps, sum);
            kept.copy_from_slice(&row);
            write_row(sum, row, norm.weight, norm.bias, out);
        }
    }
}

/// Some rows backward: writes their dx, returns their share of (dw, db), each empty where nobody asks for it.
struct Backward<'a, T> {
    kind: Kind,
    /// Whether dw and db are asked for; those of frozen weights are not.
    wanted: [bool; 2],
    x: &'a [T],
    weight: &'a [T],
    grad: &'a [T],
    statistics: &'a [T],
    dx: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Kernel for Backward<'_, T> {
    type Output = (Vec<T>, Vec<T>);
    #[inline(always)]
    fn run<L: Level>(self) -> Self::Output {
        let d = self.weight.len();
        let n = T::of(d as f64);
        let layer = matches!(self.kind, Kind::Layer);
        let [mut dw, mut db] = self.wanted.map(|wanted| vec![T::ZERO; if wanted { d } else { 0 }]);
        let rows = self.x.chunks_exact(d).zip(self.grad.chunks_exact(d)).zip(self.dx.chunks_exact_mut(d));
        for (((x, grad), dx), row) in rows.zip(self.statistics.chunks_exact(2)) {
            let (mean, factor) = (row[0], row[1]);
            // sums of the gradient g w of the normalised row: along that row, and in all
            let (mut along, mut level) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            let ((xs, x_rest), (gs, g_rest)) = (x.as_chunks::<LANES>(), grad.as_chunks::<LANES>());
            let (ws, w_rest) = self.weight.as_chunks::<LANES>();
            for ((x, g), w) in xs.iter().zip(gs).zip(ws) {
                let normal: Lanes<T> = std::array::from_fn(|i| (x[i] - mean) * factor);
                let through: Lanes<T> = std::array::from_fn(|i| g[i] * w[i]);
                along = std::array::from_fn(|i| along[i] + through[i] * normal[i]);
                level = std::array::from_fn(|i| level[i] + through[i]);
            }
            let rest = x_rest.iter().zip(g_rest).zip(w_rest);
            for (((&x, &g), &w), (along, level)) in rest.zip(along.iter_mut().zip(&mut level)) {
                let (normal, through) = ((x - mean) * factor, g * w);
                *along += through * normal;
                *level += through;
            }
            for ((dw, &x), &g) in dw.iter_mut().zip(x).zip(grad) {
                *dw += g * ((x - mean) * factor);
            }
            let along = sum_lanes(&along) / n;
            if layer {
                let level = sum_lanes(&level) / n;
                db.iter_mut().zip(grad).for_each(|(db, &g)| *db += g);
                for (((dx, &x), &g), &w) in dx.iter_mut().zip(x).zip(grad).zip(self.weight) {
                    dx.write((g * w - level - (x - mean) * factor * along) * factor);
                }
            } else {
                for (((dx, &x), &g), &w) in dx.iter_mut().zip(x).zip(grad).zip(self.weight) {
                    dx.write((g * w - x * factor * along) * factor);
                }
            }
        }
        (dw, db)
    }
}

/// Rows of [.., D] per forward task: about 64 KiB.
fn block(width: usize) -> usize {
    ((1 << 14) / width).max(1)
}

impl Norm {
    pub(crate) fn new(kind: Kind, eps: f64) -> Self {
        Self { kind, eps, statistics: OnceLock::new(), ready: None }
    }

    #[allow(unsafe_code)]
    fn forward<T: Float>(&self, x: View<'_, T>, weight: &[T], bias: Option<&[T]>) -> (Vec<T>, Shape) {
        let ready = self.ready.as_ref().and_then(|ready| {
            let (rows, statistics) = ready.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            Some((T::cpu_storage_data(rows).ok()?, statistics))
        });
        if let Some((out, statistics)) = ready {
            let _ = self.statistics.set(statistics);
            return (out, x.dims.into());
        }
        let d = weight.len();
        let (block, eps) = (block(d), T::of(self.eps));
        let mut statistics = vec![T::ZERO; x.data.len() / d * 2];
        let fill = |out: &mut [MaybeUninit<T>]| {
            let tasks = out.par_chunks_mut(block * d).zip(x.data.par_chunks(block * d));
            tasks.zip(statistics.par_chunks_mut(block * 2)).for_each(|((out, x), statistics)| {
                dispatch(Forward { kind: self.kind, eps, x, weight, bias, out, statistics });
            });
        };
        // SAFETY: the chunks of `out` pair up with those of `x`, whole rows, and `Forward` writes each row.
        let out = unsafe { build(x.data.len(), fill) };
        // Set once: an operation's forward runs once.
        let _ = self.statistics.set(T::to_cpu_storage_owned(statistics));
        (out, x.dims.into())
    }

    #[allow(unsafe_code)]
    fn backward<T: Float>(
        &self,
        x: View<'_, T>,
        weight: &[T],
        grad: View<'_, T>,
        wanted: [bool; 2],
    ) -> [Vec<T>; 3] {
        let d = weight.len();
        let kept = self.statistics.get().and_then(|kept| T::cpu_storage_as_slice(kept).ok());
        let kept = kept.unwrap_or_default(); // forward has run: a missing entry would be an empty loop
        let mut parts: Vec<(Vec<T>, Vec<T>)> = Vec::new();
        let fill = |dx: &mut [MaybeUninit<T>]| {
            let rows = x.data.par_chunks(SUM_ROWS * d).zip(grad.data.par_chunks(SUM_ROWS * d));
            let rows = rows.zip(kept.par_chunks(SUM_ROWS * 2)).zip(dx.par_chunks_mut(SUM_ROWS * d));
            let one = |(((x, grad), statistics), dx)| {
                dispatch(Backward { kind: self.kind, wanted, x, weight, grad, statistics, dx })
            };
            parts = rows.map(one).collect();
        };
        assert_eq!(kept.len(), x.data.len() / d * 2, "forward has kept two numbers a row");
        // SAFETY: x, its gradient and the statistics have the same rows, and `Backward` writes each.
        let dx = unsafe { build(x.data.len(), fill) };
        let (dw, db) = parts.into_iter().unzip();
        let [weights, biases] = wanted.map(|wanted| if wanted { d } else { 0 });
        [dx, add_in_order(dw, weights), add_in_order(db, biases)]
    }
}

/// x + r, and on the way the norm of that for the [`Norm`] that holds the same `ready`.
pub(crate) struct AddNorm {
    kind: Kind,
    eps: f64,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    ready: Ready,
}

impl Op<2> for AddNorm {
    const NAME: &'static str = "add_norm";
    const PASSES: bool = true;

    #[allow(unsafe_code)]
    fn forward<T: Float>(&self, [x, r]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        let (dims, x, r) = (x.dims, x.data, r.data);
        let own = |values: &Vec<f64>| values.iter().map(|&v| T::of(v)).collect::<Vec<T>>();
        let (weight, bias) = (own(&self.weight), self.bias.as_ref().map(own));
        let (weight, bias) = (weight.as_slice(), bias.as_deref());
        let d = weight.len();
        let (block, eps) = (block(d), T::of(self.eps));
        let mut statistics = vec![T::ZERO; x.len() / d * 2];
        let mut out = Vec::new();
        let both = |total: &mut [MaybeUninit<T>]| {
            let fill = |out: &mut [MaybeUninit<T>]| {
                let results = total.par_chunks_mut(block * d).zip(out.par_chunks_mut(block * d));
                let tasks = x.par_chunks(block * d).zip(r.par_chunks(block * d)).zip(results);
                tasks.zip(statistics.par_chunks_mut(block * 2)).for_each(
                    |(((x, r), (sum, out)), statistics)| {
                        let norm = Forward { kind: self.kind, eps, x, weight, bias, out, statistics };
                        dispatch(AddForward { x, r, sum, norm });
                    },
                );
            };
            // SAFETY: the chunks of `out` pair up with those of `x`, whole rows, and `AddForward` writes each row.
            out = unsafe { build(x.len(), fill) };
        };
        // SAFETY: as above.
        let total = unsafe { build(x.len(), both) };
        let made = (T::to_cpu_storage_owned(out), T::to_cpu_storage_owned(statistics));
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        (total, dims.into())
    }

    fn backward<T: Float>(
        &self,
        _args: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        needs.map(|need| need.then(|| grad.data.to_vec()))
    }
}

impl Op<3> for Norm {
    const NAME: &'static str = "layer_norm";

    fn forward<T: Float>(&self, [x, weight, bias]: [View<'_, T>; 3]) -> (Vec<T>, Shape) {
        self.forward(x, weight.data, Some(bias.data))
    }

    fn backward<T: Float>(
        &self,
        [x, weight, _]: [View<'_, T>; 3],
        _out: View<'_, T>,
        grad: View<'_, T>,
        [x_needs, weight_needs, bias_needs]: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let [dx, dw, db] = self.backward(x, weight.data, grad, [weight_needs, bias_needs]);
        [x_needs.then_some(dx), weight_needs.then_some(dw), bias_needs.then_some(db)]
    }
}

impl Op<2> for Norm {
    const NAME: &'static str = "rms_norm";

    fn forward<T: Float>(&self, [x, weight]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        self.forward(x, weight.data, None)
    }

    fn backward<T: Float>(
        &self,
        [x, weight]: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        [x_needs, weight_needs]: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let [dx, dw, _] = self.backward(x, weight.data, grad, [weight_needs, false]);
        [x_needs.then_some(dx), weight_needs.then_some(dw)]
    }
}

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016, arXiv 1607.06450); variance
/// over D, not D - 1. `x` [.., D], `weight` and `bias` [D], result [.., D].
///
/// # Errors
/// Shapes or dtypes that do not fit, `eps` not positive.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    let d = checked(OP, x, weight, eps)?;
    check::same_dtype(OP, "bias", bias, x)?;
    check::dims(OP, "bias", bias, &[d], "[D], the last axis of x")?;
    Ok(apply3(Norm::new(Kind::Layer, eps), x, weight, bias)?)
}

/// x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467). `x` [.., D],
/// `weight` [D], result [.., D].
///
/// # Errors
/// Shapes or dtypes that do not fit, `eps` not positive.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    checked("rms_norm", x, weight, eps)?;
    Ok(apply2(Norm::new(Kind::Rms, eps), x, weight)?)
}

/// s = x + r and `layer_norm(s)`, in one pass over memory: a residual connection with the norm behind it. `x` and `r`
/// [.., D], `weight` and `bias` [D]; both results [.., D], in this order, the same bits as made one after the other.
///
/// # Errors
/// As [`layer_norm`]; `x` and `r` of different shapes.
pub fn add_layer_norm(
    x: &Tensor,
    r: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "add_layer_norm";
    let d = checked(OP, x, weight, eps)?;
    check::same_dtype(OP, "bias", bias, x)?;
    check::dims(OP, "bias", bias, &[d], "[D], the last axis of x")?;
    let (sum, norm) = add_norm(OP, (x, r), (weight, Some(bias)), Norm::new(Kind::Layer, eps))?;
    let normed = apply3(norm, &sum, weight, bias)?;
    Ok((sum, normed))
}

/// s = x + r and `rms_norm(s)`, in one pass over memory: a residual connection with the norm behind it. `x` and `r`
/// [.., D], `weight` [D]; both results [.., D], in this order, the same bits as made one after the other.
///
/// # Errors
/// As [`rms_norm`]; `x` and `r` of different shapes.
pub fn add_rms_norm(x: &Tensor, r: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    const OP: &str = "add_rms_norm";
    checked(OP, x, weight, eps)?;
    let (sum, norm) = add_norm(OP, (x, r), (weight, None), Norm::new(Kind::Rms, eps))?;
    let normed = apply2(norm, &sum, weight)?;
    Ok((sum, normed))
}

/// The sum, and the norm that will find its result made.
fn add_norm(
    op: &'static str,
    (x, r): (&Tensor, &Tensor),
    (weight, bias): (&Tensor, Option<&Tensor>),
    mut norm: Norm,
) -> Result<(Tensor, Norm)> {
    check::same_dtype(op, "r", r, x)?;
    check::fits(op, ("x", x), ("r", r), x.dims() == r.dims(), "shapes must be equal")?;
    if !x.device().is_cpu() {
        return Ok(((x + r)?, norm));
    }
    let own = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
    let ready = Ready::default();
    norm.ready = Some(ready.clone());
    let bias = bias.map(own).transpose()?;
    let add = AddNorm { kind: norm.kind, eps: norm.eps, weight: own(weight)?, bias, ready };
    Ok((apply2(add, x, r)?, norm))
}

fn checked(op: &'static str, x: &Tensor, weight: &Tensor, eps: f64) -> Result<usize> {
    check::float(op, "x", x)?;
    check::same_dtype(op, "weight", weight, x)?;
    let d = check::last_dim(op, "x", x)?;
    check::dims(op, "weight", weight, &[d], "[D], the last axis of x")?;
    check::value(op, "eps", eps, eps > 0.0 && eps.is_finite(), "a positive number")?;
    Ok(d)
}
