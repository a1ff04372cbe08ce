//! Adafactor (Shazeer and Stern 2018, arXiv 1804.04235): Adam whose second moment of a matrix is the product of a
//! column and a row, so that its state is n + m numbers instead of 2 n m. No first moment is kept.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::grads::{Grads, Squares};
use super::params::{Loading, Param, ParamGroup, check_grads, for_each, on_cpu, slots, step_tensor};
use super::storage::{CHUNK, Element, change, read};
use crate::float::{Float, sum_of, sum_of2};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Numbers of [`Adafactor`] that are the same for all parameters. Defaults are the paper's (its algorithm 6).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdafactorConfig {
    /// c of the decay 1 - t^-c of the second moment at update t, in (0, 1]. Default 0.8.
    pub decay_rate: f64,
    /// Added to squared gradients, above 0. Default 1e-30.
    pub eps1: f64,
    /// Least root mean square that a parameter counts with under `scale_parameter`, above 0. Default 1e-3.
    pub eps2: f64,
    /// Largest root mean square of an update before the learning rate, above 0. Default 1.
    pub clip_threshold: f64,
    /// Whether the learning rate is relative: times the root mean square of the parameter. Default true. Off, rates are
    /// of the size that AdamW takes.
    pub scale_parameter: bool,
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self { decay_rate: 0.8, eps1: 1e-30, eps2: 1e-3, clip_threshold: 1.0, scale_parameter: true }
    }
}

impl AdafactorConfig {
    /// Refuses numbers outside their range.
    ///
    /// # Errors
    /// Which one, and what it may be.
    pub fn validate(&self) -> Result<()> {
        const OP: &str = "Adafactor::new";
        let rate = self.decay_rate;
        check::value(OP, "decay_rate", rate, rate > 0.0 && rate <= 1.0, "above 0, at most 1")?;
        for (name, x) in [("eps1", self.eps1), ("eps2", self.eps2), ("clip_threshold", self.clip_threshold)] {
            check::value(OP, name, x, x > 0.0 && x.is_finite(), "a number above 0")?;
        }
        Ok(())
    }
}

/// Running means of squared gradients.
enum Second {
    /// Of the rows [n] and columns [m] of a matrix.
    Factored { row: Tensor, col: Tensor },
    /// Of every number of a vector or scalar.
    Full(Tensor),
}

struct State {
    second: Second,
    step: u64,
}

/// The optimiser, on CPU. Weights are changed in place. A parameter with more than two axes is the matrix of its first
/// axis and the rest, as it is multiplied (a convolution's weight); Hugging Face and fairseq take the last two axes
/// there. Weight decay is decoupled and goes with the learning rate alone, also under `scale_parameter`.
pub struct Adafactor {
    config: AdafactorConfig,
    slots: BTreeMap<String, (Param, State)>,
}

/// Rows and columns of a factored parameter.
fn matrix(var: &Tensor) -> Option<(usize, usize)> {
    let dims = var.dims();
    (dims.len() >= 2 && var.elem_count() > 0).then(|| (dims[0], var.elem_count() / dims[0]))
}

impl Adafactor {
    /// Second moments zero.
    ///
    /// # Errors
    /// Numbers outside their range, a parameter named twice, one that is neither f32 nor f64 or not on the CPU.
    pub fn new(groups: Vec<ParamGroup>, config: AdafactorConfig) -> Result<Self> {
        config.validate()?;
        let zeros = |var: &Var| -> Result<State> {
            let zeros = |n: usize| Tensor::zeros(n, var.dtype(), var.device());
            let second = match matrix(var) {
                Some((n, m)) => Second::Factored { row: zeros(n)?, col: zeros(m)? },
                None => Second::Full(var.zeros_like()?.detach()),
            };
            Ok(State { second, step: 0 })
        };
        let slots = slots("Adafactor::new", groups, zeros)?;
        on_cpu("Adafactor::new", &slots)?;
        Ok(Self { config, slots })
    }

    /// The settings.
    pub fn config(&self) -> &AdafactorConfig {
        &self.config
    }

    /// Names of the parameters, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// One update at learning rate `lr`; the rest as [`crate::AdamW::step`].
    ///
    /// # Errors
    /// As [`crate::AdamW::step`].
    pub fn step(&mut self, grads: &Grads, lr: f64) -> Result<()> {
        check_grads("Adafactor::step", &self.slots, grads, lr)?;
        let config = self.config;
        for_each(&mut self.slots, grads, |param, state, grad| {
            state.step += 1;
            let lr = lr * param.lr_scale;
            let rule = Rule {
                config,
                keep: 1.0 - lr * param.weight_decay,
                lr,
                decay: 1.0 - (state.step as f64).powf(-config.decay_rate),
                factor: grads.factor,
            };
            match param.var.dtype() {
                DType::F64 => rule.apply::<f64>(&param.var, grad, &state.second)?,
                _ => rule.apply::<f32>(&param.var, grad, &state.second)?,
            }
            Ok(())
        })
    }

    /// Everything needed to go on bit for bit: `row.NAME` and `col.NAME` of a matrix, `exp_avg_sq.NAME` of another
    /// parameter, and `step.NAME`, one i64.
    ///
    /// # Errors
    /// candle cannot make a tensor.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (name, (param, state)) in &self.slots {
            match &state.second {
                Second::Factored { row, col } => {
                    all.insert(format!("row.{name}"), row.copy()?);
                    all.insert(format!("col.{name}"), col.copy()?);
                }
                Second::Full(full) => drop(all.insert(format!("exp_avg_sq.{name}"), full.copy()?)),
            }
            all.insert(format!("step.{name}"), step_tensor(state.step, &param.var)?);
        }
        Ok(all)
    }

    /// Takes over what [`Adafactor::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing, unexpected, or has another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let loading = Loading { what: "Adafactor::load_state", state };
        let mut loaded = Vec::with_capacity(self.slots.len());
        let mut kinds = Vec::new();
        for (name, (param, _)) in &self.slots {
            let dtype = param.var.dtype();
            let second = match matrix(&param.var) {
                Some((n, m)) => {
                    kinds.extend([format!("row.{name}"), format!("col.{name}")]);
                    let row = loading.tensor("row", name, &[n], dtype)?;
                    Second::Factored { row, col: loading.tensor("col", name, &[m], dtype)? }
                }
                None => {
                    kinds.push(format!("exp_avg_sq.{name}"));
                    Second::Full(loading.tensor("exp_avg_sq", name, param.var.dims(), dtype)?)
                }
            };
            kinds.push(format!("step.{name}"));
            loaded.push(State { second, step: loading.step(name)? });
        }
        loading.only(kinds)?;
        self.slots.values_mut().zip(loaded).for_each(|((_, state), loaded)| *state = loaded);
        Ok(())
    }

    /// Bytes of the second moments.
    pub fn state_bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        let one = |second: &Second| match second {
            Second::Factored { row, col } => bytes(row) + bytes(col),
            Second::Full(full) => bytes(full),
        };
        self.slots.values().map(|(_, state)| one(&state.second)).sum()
    }
}

/// The numbers of one update of one parameter.
#[derive(Clone, Copy)]
struct Rule {
    config: AdafactorConfig,
    /// 1 - lr * weight decay
    keep: f64,
    lr: f64,
    /// Share of the old second moment.
    decay: f64,
    /// What the gradient is multiplied by.
    factor: f64,
}

impl Rule {
    fn apply<T: Element + Float>(
        self,
        var: &Tensor,
        grad: &Tensor,
        second: &Second,
    ) -> candle_core::Result<()> {
        read(grad, |grad: &[T]| match second {
            Second::Factored { row, col } => change(row, |row| {
                change(col, |col| change(var, |weights| self.factored(weights, grad, row, col)))
            })??,
            Second::Full(full) => change(full, |full| change(var, |weights| self.full(weights, grad, full)))?,
        })?
    }

    /// Learning rate over the clipped size of the update, whose squares sum to `squares`.
    fn rate<T: Float>(&self, weights: &[T], squares: f64) -> f64 {
        let n = weights.len().max(1) as f64;
        let lr = if self.config.scale_parameter {
            let parts: Vec<f64> = weights.par_chunks(CHUNK).map(|part| dispatch(Squares(part))).collect();
            self.lr * (parts.iter().sum::<f64>() / n).sqrt().max(self.config.eps2)
        } else {
            self.lr
        };
        lr / ((squares / n).sqrt() / self.config.clip_threshold).max(1.0)
    }

    fn full<T: Float>(&self, weights: &mut [T], grad: &[T], second: &mut [T]) {
        let tasks = second.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
        let squares: Vec<f64> =
            tasks.map(|(second, grad)| dispatch(Average { rule: *self, second, grad })).collect();
        let rate = self.rate(weights, squares.iter().sum());
        let tasks = weights.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(second.par_chunks(CHUNK));
        tasks.for_each(|((weights, grad), second)| {
            dispatch(Move { rule: *self, rate, weights, grad, second });
        });
    }

    fn factored<T: Float>(&self, weights: &mut [T], grad: &[T], row: &mut [T], col: &mut [T]) {
        let (n, m) = (row.len(), col.len());
        // Whole rows; at least 64, so that the partial sums of columns stay small beside the matrix.
        let block = (CHUNK / m).max(64);
        let parts: Vec<(Vec<f64>, Vec<T>)> =
            grad.par_chunks(block * m).map(|grad| dispatch(Sums { rule: *self, grad, m })).collect();
        let mut cols = vec![0.0; m];
        let mut rows = Vec::with_capacity(n);
        for (part_rows, part_cols) in parts {
            rows.extend(part_rows);
            cols.iter_mut().zip(part_cols).for_each(|(sum, x)| *sum += x.wide());
        }
        let average = |old: &mut [T], sums: &[f64], count: usize| {
            for (old, sum) in old.iter_mut().zip(sums) {
                *old = T::of(old.wide() * self.decay + (1.0 - self.decay) * sum / count as f64);
            }
        };
        average(row, &rows, m);
        average(col, &cols, n);
        // The second moment of element (i, j) is row_i * col_j / mean(row).
        let mean = row.iter().map(|x| x.wide()).sum::<f64>() / n as f64;
        let row: Vec<T> = row.iter().map(|x| T::of((mean / x.wide()).sqrt())).collect();
        let col: Vec<T> = col.iter().map(|x| T::of(x.wide().sqrt().recip())).collect();
        let factor = T::of(self.factor);
        let tasks = grad.par_chunks(block * m).zip(row.par_chunks(block));
        let squares: Vec<f64> =
            tasks.map(|(grad, row)| dispatch(UpdateSquares { grad, row, col: &col, factor })).collect();
        let rate = self.rate(weights, squares.iter().sum());
        let tasks = weights.par_chunks_mut(block * m).zip(grad.par_chunks(block * m));
        tasks.zip(row.par_chunks(block)).for_each(|((weights, grad), row)| {
            dispatch(MoveRows { rule: *self, rate, weights, grad, row, col: &col });
        });
    }
}

/// Sums of g^2 + eps1 over the rows and columns of some rows.
struct Sums<'a, T> {
    rule: Rule,
    grad: &'a [T],
    m: usize,
}

impl<T: Float> Kernel for Sums<'_, T> {
    type Output = (Vec<f64>, Vec<T>);
    #[inline(always)]
    fn run<L: Level>(self) -> Self::Output {
        let (factor, eps) = (T::of(self.rule.factor), T::of(self.rule.config.eps1));
        let mut rows = Vec::with_capacity(self.grad.len() / self.m);
        let mut cols = vec![T::ZERO; self.m];
        for grad in self.grad.chunks_exact(self.m) {
            rows.push(sum_of(grad, |g| (g * factor) * (g * factor) + eps).wide());
            for (sum, &g) in cols.iter_mut().zip(grad) {
                *sum += (g * factor) * (g * factor) + eps;
            }
        }
        (rows, cols)
    }
}

/// The sum of squares of the updates of some rows, before the learning rate.
struct UpdateSquares<'a, T> {
    grad: &'a [T],
    row: &'a [T],
    col: &'a [T],
    factor: T,
}

impl<T: Float> Kernel for UpdateSquares<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<L: Level>(self) -> f64 {
        let mut total = 0.0;
        for (grad, &row) in self.grad.chunks_exact(self.col.len()).zip(self.row) {
            let scale = row * self.factor;
            total += sum_of2(grad, self.col, |g, c| (g * scale * c) * (g * scale * c)).wide();
        }
        total
    }
}

/// w = w keep - update rate, some rows.
struct MoveRows<'a, T> {
    rule: Rule,
    rate: f64,
    weights: &'a mut [T],
    grad: &'a [T],
    row: &'a [T],
    col: &'a [T],
}

impl<T: Float> Kernel for MoveRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let (keep, rate) = (T::of(self.rule.keep), T::of(self.rate));
        let m = self.col.len();
        let rows = self.weights.chunks_exact_mut(m).zip(self.grad.chunks_exact(m));
        for ((weights, grad), &row) in rows.zip(self.row) {
            let scale = row * T::of(self.rule.factor);
            for ((w, &g), &c) in weights.iter_mut().zip(grad).zip(self.col) {
                *w = *w * keep - g * scale * c * rate;
            }
        }
    }
}

/// New second moments of a piece of a vector; the sum of squares of its update.
struct Average<'a, T> {
    rule: Rule,
    second: &'a mut [T],
    grad: &'a [T],
}

impl<T: Float> Kernel for Average<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<L: Level>(self) -> f64 {
        let (decay, rest) = (T::of(self.rule.decay), T::of(1.0 - self.rule.decay));
        let (factor, eps) = (T::of(self.rule.factor), T::of(self.rule.config.eps1));
        for (v, &g) in self.second.iter_mut().zip(self.grad) {
            *v = *v * decay + ((g * factor) * (g * factor) + eps) * rest;
        }
        sum_of2(self.grad, self.second, |g, v| (g * factor) * (g * factor) / v).wide()
    }
}

/// w = w keep - update rate, a piece of a vector.
struct Move<'a, T> {
    rule: Rule,
    rate: f64,
    weights: &'a mut [T],
    grad: &'a [T],
    second: &'a [T],
}

impl<T: Float> Kernel for Move<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let (keep, rate, factor) = (T::of(self.rule.keep), T::of(self.rate), T::of(self.rule.factor));
        for ((w, &g), &v) in self.weights.iter_mut().zip(self.grad).zip(self.second) {
            *w = *w * keep - g * factor / Float::sqrt(v) * rate;
        }
    }
}
