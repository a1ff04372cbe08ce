//! What a policy says about chosen tokens: log-probability, entropy, cross entropy. No softmax is kept: the backward
//! pass computes it again from the logits.

use candle_core::{D, Shape, Tensor};
use rayon::prelude::*;

use crate::float::{Float, sum, sum_of2};
use crate::log_softmax::Summary;
use crate::op::{Op, View, apply1};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Log-probabilities and entropies of N tokens.
#[derive(Clone, Debug)]
pub struct TokenScores {
    /// Natural log-probability of the chosen id, [N].
    pub log_probs: Tensor,
    /// Entropy of the distribution in nats, [N].
    pub entropy: Tensor,
}

/// [N, V] -> [N, 2].
pub(crate) struct Scores {
    pub(crate) ids: Vec<u32>,
    pub(crate) temperature: f64,
}

struct ScoreRows<'a, T>(&'a [T], &'a [u32], T, &'a mut [T]);

impl<T: Float> Kernel for ScoreRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let Self(x, ids, inverse, out) = self;
        let v = x.len() / ids.len().max(1);
        for ((x, &id), out) in x.chunks_exact(v).zip(ids).zip(out.chunks_exact_mut(2)) {
            let summary = Summary::of(x, inverse);
            out[0] = summary.log_prob(x[id as usize], inverse);
            out[1] = summary.entropy();
        }
    }
}

struct ScoreGrad<'a, T> {
    x: &'a [T],
    ids: &'a [u32],
    inverse: T,
    grad: &'a [T],
    dx: &'a mut [T],
}

impl<T: Float> Kernel for ScoreGrad<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let v = self.x.len() / self.ids.len().max(1);
        let rows = self.x.chunks_exact(v).zip(self.dx.chunks_exact_mut(v));
        for (((x, dx), &id), grad) in rows.zip(self.ids).zip(self.grad.chunks_exact(2)) {
            let summary = Summary::of(x, self.inverse);
            let (g_log, g_entropy) = (grad[0] * self.inverse, grad[1] * self.inverse);
            // d log p_id = -p_j (+1 at id), d entropy = -p_j (z_j - mean)
            summary.slopes(x, self.inverse, g_log, g_entropy, dx);
            if summary.possible() {
                dx[id as usize] += g_log;
            }
        }
    }
}

/// Rows per task.
fn rows(v: usize) -> usize {
    ((1 << 14) / v.max(1)).max(1)
}

impl Op<1> for Scores {
    const NAME: &'static str = "token_scores";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        let (n, v) = (self.ids.len(), x.width());
        let mut out = vec![T::ZERO; 2 * n];
        let (block, inverse) = (rows(v), T::of(1.0 / self.temperature));
        let tasks = x.data.par_chunks(block * v).zip(self.ids.par_chunks(block));
        tasks.zip(out.par_chunks_mut(2 * block)).for_each(|((x, ids), out)| {
            dispatch(ScoreRows(x, ids, inverse, out));
        });
        (out, (n, 2).into())
    }

    fn backward<T: Float>(
        &self,
        [x]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let v = x.width();
        let mut dx = vec![T::ZERO; x.data.len()];
        let (block, inverse) = (rows(v), T::of(1.0 / self.temperature));
        let tasks = x.data.par_chunks(block * v).zip(self.ids.par_chunks(block));
        tasks.zip(grad.data.par_chunks(2 * block)).zip(dx.par_chunks_mut(block * v)).for_each(
            |(((x, ids), grad), dx)| {
                dispatch(ScoreGrad { x, ids, inverse, grad, dx });
            },
        );
        [Some(dx)]
    }
}

/// Natural log-probability and entropy of `ids` [N] (u32) under softmax(`logits` / temperature), `logits` [N, V]; both
/// results [N] and differentiable.
///
/// # Errors
/// Shapes or dtypes that do not fit, an id outside the vocabulary, a temperature that is not positive.
pub fn token_scores(logits: &Tensor, ids: &Tensor, temperature: f64) -> Result<TokenScores> {
    const OP: &str = "token_scores";
    let positive = temperature > 0.0 && temperature.is_finite();
    check::value(OP, "temperature", temperature, positive, "a positive number")?;
    let ids = checked_ids(OP, logits, ids)?;
    let both = apply1(Scores { ids, temperature }, logits)?; // [N, 2]
    let column = |i| both.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
    Ok(TokenScores { log_probs: column(0)?, entropy: column(1)? })
}

/// Negative log-likelihood of `ids` [N] under softmax(`logits`), `logits` [N, V]; times `weight` [N] where given.
/// Result [N].
///
/// # Errors
/// Shapes or dtypes that do not fit, an id outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, ids: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "cross_entropy";
    let nll = token_scores(logits, ids, 1.0)?.log_probs.neg()?;
    let Some(weight) = weight else { return Ok(nll) };
    check::same_dtype(OP, "weight", weight, logits)?;
    check::dims(OP, "weight", weight, nll.dims(), "[N], one per row of the logits")?;
    Ok((nll.clone() * weight.to_dtype(nll.dtype())?)?)
}

fn checked_ids(op: &'static str, logits: &Tensor, ids: &Tensor) -> Result<Vec<u32>> {
    check::float(op, "logits", logits)?;
    check::rank(op, "logits", logits, 2, "[N, V]")?;
    let v = check::last_dim(op, "logits", logits)?;
    check::dims(op, "ids", ids, &logits.dims()[..1], "[N], one per row of the logits")?;
    check::ids(op, ids, v)
}

/// [N, V] -> [N]; the targets are constants.
pub(crate) struct Soft(pub(crate) Vec<f64>);

impl Soft {
    fn targets<T: Float>(&self) -> Vec<T> {
        self.0.iter().map(|&t| T::of(t)).collect()
    }
}

struct SoftRows<'a, T>(&'a [T], &'a [T], &'a mut [T]);

impl<T: Float> Kernel for SoftRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let v = self.0.len() / self.2.len().max(1);
        for ((x, t), out) in self.0.chunks_exact(v).zip(self.1.chunks_exact(v)).zip(self.2) {
            let Summary { top, log_total, .. } = Summary::of(x, T::ONE);
            *out = sum_of2(x, t, |x, t| if t > T::ZERO { t * (log_total - (x - top)) } else { T::ZERO });
        }
    }
}

struct SoftGrad<'a, T>(&'a [T], &'a [T], &'a [T], &'a mut [T]);

impl<T: Float> Kernel for SoftGrad<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let v = self.0.len() / self.2.len().max(1);
        let rows = self.0.chunks_exact(v).zip(self.1.chunks_exact(v)).zip(self.3.chunks_exact_mut(v));
        for (((x, t), dx), &grad) in rows.zip(self.2) {
            let Summary { top, log_total, .. } = Summary::of(x, T::ONE);
            let mass = sum(t);
            for ((dx, &x), &t) in dx.iter_mut().zip(x).zip(t) {
                *dx = (Float::exp((x - top) - log_total) * mass - t) * grad;
            }
        }
    }
}

impl Op<1> for Soft {
    const NAME: &'static str = "cross_entropy_soft";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        let v = x.width();
        let n = x.data.len() / v;
        let targets = self.targets::<T>();
        let mut out = vec![T::ZERO; n];
        let block = rows(v);
        let tasks = x.data.par_chunks(block * v).zip(targets.par_chunks(block * v));
        tasks.zip(out.par_chunks_mut(block)).for_each(|((x, t), out)| dispatch(SoftRows(x, t, out)));
        (out, n.into())
    }

    fn backward<T: Float>(
        &self,
        [x]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let v = x.width();
        let targets = self.targets::<T>();
        let mut dx = vec![T::ZERO; x.data.len()];
        let block = rows(v);
        let tasks = x.data.par_chunks(block * v).zip(targets.par_chunks(block * v));
        tasks
            .zip(grad.data.par_chunks(block))
            .zip(dx.par_chunks_mut(block * v))
            .for_each(|(((x, t), grad), dx)| dispatch(SoftGrad(x, t, grad, dx)));
        [Some(dx)]
    }
}

/// Cross entropy against whole distributions: sum over v of t_v (log sum exp x - x_v), result [N]. `logits` and
/// `target_probs` [N, V]; no gradient goes to the targets.
///
/// # Errors
/// Shapes or dtypes that do not fit.
pub fn cross_entropy_soft(logits: &Tensor, target_probs: &Tensor) -> Result<Tensor> {
    const OP: &str = "cross_entropy_soft";
    check::float(OP, "logits", logits)?;
    check::rank(OP, "logits", logits, 2, "[N, V]")?;
    check::last_dim(OP, "logits", logits)?;
    check::same_dtype(OP, "target_probs", target_probs, logits)?;
    check::dims(OP, "target_probs", target_probs, logits.dims(), "[N, V] of the logits")?;
    let targets = target_probs.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(apply1(Soft(targets), logits)?)
}
