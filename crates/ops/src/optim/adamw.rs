//! Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), in PyTorch's form.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::grads::Grads;
use super::params::{Loading, Param, ParamGroup, check_grads, for_each, slots, step_tensor};
use super::storage::{CHUNK, Element, change, read, slice_mut};
use crate::float::Float;
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Numbers of [`AdamW`] that are the same for all parameters. Defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the running mean of gradients, in [0, 1). Default 0.9.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients, in [0, 1). Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment, above 0. Default 1e-8.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Running means of a parameter, of its shape and dtype and on its device.
struct Moments {
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: u64,
}

/// The optimiser. Weights are changed in place, so that every tensor that shares their memory follows. Moments are f32
/// (f64 for f64 parameters). An update reads and writes every number once: clipping and decay happen on the way.
pub struct AdamW {
    config: AdamWConfig,
    slots: BTreeMap<String, (Param, Moments)>,
}

impl AdamWConfig {
    /// Refuses numbers outside their range.
    ///
    /// # Errors
    /// Which one, and what it may be.
    pub fn validate(&self) -> Result<()> {
        const OP: &str = "AdamW::new";
        let unit = |x: f64| (0.0..1.0).contains(&x);
        check::value(OP, "beta1", self.beta1, unit(self.beta1), "in [0, 1)")?;
        check::value(OP, "beta2", self.beta2, unit(self.beta2), "in [0, 1)")?;
        check::value(OP, "eps", self.eps, self.eps > 0.0 && self.eps.is_finite(), "above 0")
    }
}

impl AdamW {
    /// Moments zero.
    ///
    /// # Errors
    /// Numbers outside their range, a parameter named twice, or one that is neither f32 nor f64.
    pub fn new(groups: Vec<ParamGroup>, config: AdamWConfig) -> Result<Self> {
        config.validate()?;
        let zeros = |var: &Var| -> Result<Moments> {
            let (exp_avg, exp_avg_sq) = (var.zeros_like()?.detach(), var.zeros_like()?.detach());
            Ok(Moments { exp_avg, exp_avg_sq, step: 0 })
        };
        Ok(Self { config, slots: slots("AdamW::new", groups, zeros)? })
    }

    /// The settings.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// Names of the parameters, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// One update at learning rate `lr` (times each group's `lr_scale`). A parameter without a gradient is left as it
    /// is, moments and decay included. Gradients are taken as they are: see [`crate::clip_grad_norm`] for whether they
    /// are finite.
    ///
    /// # Errors
    /// A gradient of a parameter that is in no group or has another shape or dtype, `lr` negative or not finite; then
    /// nothing has changed.
    pub fn step(&mut self, grads: &Grads, lr: f64) -> Result<()> {
        check_grads("AdamW::step", &self.slots, grads, lr)?;
        let config = self.config;
        for_each(&mut self.slots, grads, |param, moments, grad| {
            moments.step += 1;
            let rule = Rule::new(config, param, moments.step, lr, grads.factor);
            let (exp_avg, exp_avg_sq) = (&moments.exp_avg, &moments.exp_avg_sq);
            param.var.inplace_op1(&Update { rule, grad, exp_avg, exp_avg_sq })?;
            Ok(())
        })
    }

    /// Everything needed to go on bit for bit: `exp_avg.NAME` and `exp_avg_sq.NAME` of the parameter's shape, and
    /// `step.NAME`, one i64.
    ///
    /// # Errors
    /// candle cannot make a tensor.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, (param, moments)) in &self.slots {
            state.insert(format!("exp_avg.{name}"), moments.exp_avg.copy()?);
            state.insert(format!("exp_avg_sq.{name}"), moments.exp_avg_sq.copy()?);
            state.insert(format!("step.{name}"), step_tensor(moments.step, &param.var)?);
        }
        Ok(state)
    }

    /// Takes over what [`AdamW::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing, unexpected, or has another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let loading = Loading { what: "AdamW::load_state", state };
        let mut loaded = Vec::with_capacity(self.slots.len());
        for (name, (param, _)) in &self.slots {
            let (dims, dtype) = (param.var.dims(), param.var.dtype());
            loaded.push(Moments {
                exp_avg: loading.tensor("exp_avg", name, dims, dtype)?.to_device(param.var.device())?,
                exp_avg_sq: loading.tensor("exp_avg_sq", name, dims, dtype)?.to_device(param.var.device())?,
                step: loading.step(name)?,
            });
        }
        let kinds = ["exp_avg", "exp_avg_sq", "step"];
        loading.only(self.slots.keys().flat_map(|name| kinds.map(|kind| format!("{kind}.{name}"))))?;
        self.slots.values_mut().zip(loaded).for_each(|((_, moments), loaded)| *moments = loaded);
        Ok(())
    }

    /// Bytes of the moments.
    pub fn state_bytes(&self) -> usize {
        self.slots.values().map(|(_, m)| 2 * m.exp_avg.elem_count() * m.exp_avg.dtype().size_in_bytes()).sum()
    }
}

/// The numbers of one update of one parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) config: AdamWConfig,
    /// What the gradient is multiplied by.
    pub(crate) factor: f64,
    /// 1 - lr * weight decay
    pub(crate) keep: f64,
    /// lr / (1 - beta1^t)
    pub(crate) rate: f64,
    /// 1 / sqrt(1 - beta2^t)
    pub(crate) root: f64,
}

impl Rule {
    /// Of the update that brings the count to `step`.
    pub(super) fn new(config: AdamWConfig, param: &Param, step: u64, lr: f64, factor: f64) -> Self {
        let lr = lr * param.lr_scale;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Rule {
            config,
            factor,
            keep: 1.0 - lr * param.weight_decay,
            rate: lr / correction(config.beta1),
            root: correction(config.beta2).sqrt().recip(),
        }
    }
}

/// The update of one parameter, in place of the weights and both moments.
pub(crate) struct Update<'a> {
    pub(crate) rule: Rule,
    pub(crate) grad: &'a Tensor,
    pub(crate) exp_avg: &'a Tensor,
    pub(crate) exp_avg_sq: &'a Tensor,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match storage {
            CpuStorage::F64(_) => self.run(slice_mut::<f64>(storage, layout)?),
            _ => self.run(slice_mut::<f32>(storage, layout)?),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        crate::cuda::adamw(self, storage, layout)
    }
}

impl Update<'_> {
    fn run<T: Element + Float>(&self, weights: &mut [T]) -> candle_core::Result<()> {
        read(self.grad, |grad: &[T]| {
            change(self.exp_avg, |exp_avg| {
                change(self.exp_avg_sq, |exp_avg_sq| {
                    self.rule.update(weights, grad, exp_avg, exp_avg_sq);
                })
            })
        })??
    }
}

struct Step<'a, T> {
    rule: Rule,
    weights: &'a mut [T],
    grad: &'a [T],
    exp_avg: &'a mut [T],
    exp_avg_sq: &'a mut [T],
}

impl<T: Float> Kernel for Step<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        self.rule.apply(self.weights, self.grad, self.exp_avg, self.exp_avg_sq);
    }
}

impl Rule {
    /// The update itself, on a piece of a parameter.
    #[inline(always)]
    pub(super) fn apply<T: Float>(
        self,
        weights: &mut [T],
        grad: &[T],
        exp_avg: &mut [T],
        exp_avg_sq: &mut [T],
    ) {
        let Rule { config, factor, keep, rate, root } = self;
        let (beta1, beta2) = (T::of(config.beta1), T::of(config.beta2));
        let (rest1, rest2) = (T::of(1.0 - config.beta1), T::of(1.0 - config.beta2));
        let (keep, rate, root, eps) = (T::of(keep), T::of(rate), T::of(root), T::of(config.eps));
        let factor = T::of(factor);
        let moments = exp_avg.iter_mut().zip(exp_avg_sq);
        for ((w, &g), (m, v)) in weights.iter_mut().zip(grad).zip(moments) {
            let g = g * factor;
            *m = *m * beta1 + g * rest1;
            *v = *v * beta2 + g * g * rest2;
            *w = *w * keep - *m / (Float::sqrt(*v) * root + eps) * rate;
        }
    }

    pub(crate) fn update<T: Float>(
        self,
        weights: &mut [T],
        grad: &[T],
        exp_avg: &mut [T],
        exp_avg_sq: &mut [T],
    ) {
        let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
        let tasks = weights.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments);
        tasks.for_each(|((weights, grad), (exp_avg, exp_avg_sq))| {
            dispatch(Step { rule: self, weights, grad, exp_avg, exp_avg_sq });
        });
    }
}
