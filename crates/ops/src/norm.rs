//! Layer norm and RMS norm over the last axis.

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::{Float, sum, sum_of, sum_of2};
use crate::matmul::{SUM_ROWS, add_in_order};
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

pub(crate) struct Norm {
    pub(crate) kind: Kind,
    pub(crate) eps: f64,
}

/// Mean to subtract and factor to multiply by.
#[inline(always)]
fn statistics<T: Float>(kind: Kind, eps: f64, x: &[T]) -> (T, T) {
    let n = T::of(x.len() as f64);
    let mean = match kind {
        Kind::Layer => sum(x) / n,
        Kind::Rms => T::ZERO,
    };
    let variance = sum_of(x, |x| (x - mean) * (x - mean)) / n;
    (mean, T::ONE / Float::sqrt(variance + T::of(eps)))
}

/// Some rows forward.
struct Forward<'a, T> {
    norm: &'a Norm,
    x: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    out: &'a mut [T],
}

impl<T: Float> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let d = self.weight.len();
        for (x, out) in self.x.chunks_exact(d).zip(self.out.chunks_exact_mut(d)) {
            let (mean, scale) = statistics(self.norm.kind, self.norm.eps, x);
            match self.bias {
                Some(bias) => {
                    for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(self.weight).zip(bias) {
                        *out = ((x - mean) * scale).fma(w, b);
                    }
                }
                None => {
                    for ((out, &x), &w) in out.iter_mut().zip(x).zip(self.weight) {
                        *out = (x - mean) * scale * w;
                    }
                }
            }
        }
    }
}

/// Some rows backward: writes their dx, returns their share of (dw, db).
struct Backward<'a, T> {
    norm: &'a Norm,
    x: &'a [T],
    weight: &'a [T],
    grad: &'a [T],
    dx: &'a mut [T],
}

impl<T: Float> Kernel for Backward<'_, T> {
    type Output = (Vec<T>, Vec<T>);
    #[inline(always)]
    fn run<L: Level>(self) -> Self::Output {
        let d = self.weight.len();
        let n = T::of(d as f64);
        let (mut dw, mut db) = (vec![T::ZERO; d], vec![T::ZERO; d]);
        // gradient with respect to the normalised row, and that row
        let (mut through, mut normal) = (vec![T::ZERO; d], vec![T::ZERO; d]);
        let rows = self.x.chunks_exact(d).zip(self.grad.chunks_exact(d)).zip(self.dx.chunks_exact_mut(d));
        for ((x, grad), dx) in rows {
            let (mean, scale) = statistics(self.norm.kind, self.norm.eps, x);
            for i in 0..d {
                normal[i] = (x[i] - mean) * scale;
                through[i] = grad[i] * self.weight[i];
                dw[i] += grad[i] * normal[i];
                db[i] += grad[i];
            }
            let along = sum_of2(&through, &normal, |g, x| g * x) / n;
            let level = match self.norm.kind {
                Kind::Layer => sum(&through) / n,
                Kind::Rms => T::ZERO,
            };
            for i in 0..d {
                dx[i] = (through[i] - level - normal[i] * along) * scale;
            }
        }
        (dw, db)
    }
}

impl Norm {
    fn forward<T: Float>(&self, x: View<'_, T>, weight: &[T], bias: Option<&[T]>) -> (Vec<T>, Shape) {
        let mut out = vec![T::ZERO; x.data.len()];
        let block = block(weight.len());
        out.par_chunks_mut(block).zip(x.data.par_chunks(block)).for_each(|(out, x)| {
            dispatch(Forward { norm: self, x, weight, bias, out });
        });
        (out, x.dims.into())
    }

    fn backward<T: Float>(&self, x: View<'_, T>, weight: &[T], grad: View<'_, T>) -> [Vec<T>; 3] {
        let d = weight.len();
        let mut dx = vec![T::ZERO; x.data.len()];
        let block = SUM_ROWS * d;
        let rows = x.data.par_chunks(block).zip(grad.data.par_chunks(block)).zip(dx.par_chunks_mut(block));
        let parts: Vec<(Vec<T>, Vec<T>)> =
            rows.map(|((x, grad), dx)| dispatch(Backward { norm: self, x, weight, grad, dx })).collect();
        let (dw, db) = parts.into_iter().unzip();
        [dx, add_in_order(dw, d), add_in_order(db, d)]
    }
}

/// Elements per forward task: whole rows, about 64 KiB.
fn block(width: usize) -> usize {
    ((1 << 14) / width).max(1) * width
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
        _needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        self.backward(x, weight.data, grad).map(Some)
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
        _needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let [dx, dw, _] = self.backward(x, weight.data, grad);
        [Some(dx), Some(dw)]
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
    Ok(apply3(Norm { kind: Kind::Layer, eps }, x, weight, bias)?)
}

/// x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467). `x` [.., D],
/// `weight` [D], result [.., D].
///
/// # Errors
/// Shapes or dtypes that do not fit, `eps` not positive.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    checked("rms_norm", x, weight, eps)?;
    Ok(apply2(Norm { kind: Kind::Rms, eps }, x, weight)?)
}

fn checked(op: &'static str, x: &Tensor, weight: &Tensor, eps: f64) -> Result<usize> {
    check::float(op, "x", x)?;
    check::same_dtype(op, "weight", weight, x)?;
    let d = check::last_dim(op, "x", x)?;
    check::dims(op, "weight", weight, &[d], "[D], the last axis of x")?;
    check::value(op, "eps", eps, eps > 0.0 && eps.is_finite(), "a positive number")?;
    Ok(d)
}
