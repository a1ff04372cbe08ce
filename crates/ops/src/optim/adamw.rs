//! Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), in PyTorch's form.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::grads::{CHUNK, Grads, Numbers};
use crate::float::Float;
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result, check};

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

/// Parameters that are decayed alike.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// Names and variables, f32 or f64.
    pub params: Vec<(String, Var)>,
    /// Share of a weight that one update at learning rate 1 removes, 0 or more.
    pub weight_decay: f64,
    /// Factor on the learning rate, 0 or more.
    pub lr_scale: f64,
}

impl ParamGroup {
    /// Two groups: parameters for which `decays` holds get `weight_decay`, the others none.
    pub fn split<'a>(
        params: impl IntoIterator<Item = (&'a str, &'a Var)>,
        weight_decay: f64,
        decays: impl Fn(&str, &Var) -> bool,
    ) -> Vec<ParamGroup> {
        let (with, without) = params
            .into_iter()
            .map(|(name, var)| (name.to_string(), var.clone()))
            .partition(|(name, var)| decays(name, var));
        let group = |params, weight_decay| ParamGroup { params, weight_decay, lr_scale: 1.0 };
        vec![group(with, weight_decay), group(without, 0.0)]
    }
}

/// A parameter and its moments.
struct Slot {
    var: Var,
    weight_decay: f64,
    lr_scale: f64,
    exp_avg: Numbers,
    exp_avg_sq: Numbers,
    step: u64,
}

/// The optimiser. Weights are changed in place, so that every tensor that shares their memory follows. Moments are f32
/// (f64 for f64 parameters).
pub struct AdamW {
    config: AdamWConfig,
    slots: BTreeMap<String, Slot>,
}

const STATE: &str = "AdamW::load_state";

impl AdamW {
    /// Moments zero.
    ///
    /// # Errors
    /// Numbers outside their range, a parameter named twice, or one that is neither f32 nor f64.
    pub fn new(groups: Vec<ParamGroup>, config: AdamWConfig) -> Result<Self> {
        const OP: &str = "AdamW::new";
        let unit = |x: f64| (0.0..1.0).contains(&x);
        check::value(OP, "beta1", config.beta1, unit(config.beta1), "in [0, 1)")?;
        check::value(OP, "beta2", config.beta2, unit(config.beta2), "in [0, 1)")?;
        check::value(OP, "eps", config.eps, config.eps > 0.0 && config.eps.is_finite(), "above 0")?;
        let mut slots = BTreeMap::new();
        for ParamGroup { params, weight_decay, lr_scale } in groups {
            let ok = |x: f64| x >= 0.0 && x.is_finite();
            check::value(OP, "weight_decay", weight_decay, ok(weight_decay), "0 or more")?;
            check::value(OP, "lr_scale", lr_scale, ok(lr_scale), "0 or more")?;
            for (name, var) in params {
                check::float(OP, "params", &var)?;
                let (exp_avg, exp_avg_sq) = (Numbers::zeros(&var), Numbers::zeros(&var));
                let slot = Slot { var, weight_decay, lr_scale, exp_avg, exp_avg_sq, step: 0 };
                if slots.insert(name.clone(), slot).is_some() {
                    return Err(Error::Parameter { what: OP, name, problem: "stands in two groups".into() });
                }
            }
        }
        Ok(Self { config, slots })
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
        const OP: &str = "AdamW::step";
        check::value(OP, "lr", lr, lr >= 0.0 && lr.is_finite(), "0 or more")?;
        for (name, grad) in &grads.entries {
            let problem = match self.slots.get(name) {
                None => "has a gradient but is in no group".to_string(),
                Some(slot) if slot.var.dims() != grad.dims => {
                    format!("is {:?}, its gradient {:?}", slot.var.dims(), grad.dims)
                }
                Some(slot) if !same_kind(&slot.exp_avg, &grad.data) => {
                    format!("is {:?}, its gradient of another dtype", slot.var.dtype())
                }
                Some(_) => continue,
            };
            return Err(Error::Parameter { what: OP, name: name.clone(), problem });
        }
        let config = self.config;
        for (name, slot) in &mut self.slots {
            let Some(grad) = grads.entries.get(name) else { continue };
            slot.step += 1;
            let lr = lr * slot.lr_scale;
            let correction = |beta: f64| 1.0 - beta.powf(slot.step as f64);
            let rule = Rule {
                config,
                keep: 1.0 - lr * slot.weight_decay,
                rate: lr / correction(config.beta1),
                root: correction(config.beta2).sqrt().recip(),
            };
            let update = Update {
                rule,
                grad: &grad.data,
                moments: RefCell::new((&mut slot.exp_avg, &mut slot.exp_avg_sq)),
            };
            slot.var.inplace_op1(&update)?;
        }
        Ok(())
    }

    /// Everything needed to go on bit for bit: `exp_avg.NAME` and `exp_avg_sq.NAME` of the parameter's shape, and
    /// `step.NAME`, one i64.
    ///
    /// # Errors
    /// candle cannot make a tensor.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, slot) in &self.slots {
            let dims = slot.var.dims();
            state.insert(format!("exp_avg.{name}"), slot.exp_avg.tensor(dims)?);
            state.insert(format!("exp_avg_sq.{name}"), slot.exp_avg_sq.tensor(dims)?);
            state.insert(format!("step.{name}"), Tensor::new(&[slot.step as i64], slot.var.device())?);
        }
        Ok(state)
    }

    /// Takes over what [`AdamW::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing, unexpected, or has another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let problem =
            |name: &str, problem: String| Error::Parameter { what: STATE, name: name.to_string(), problem };
        let mut loaded = Vec::with_capacity(self.slots.len());
        for (name, slot) in &self.slots {
            let find = |kind: &str| {
                let full = format!("{kind}.{name}");
                state.get(&full).ok_or_else(|| problem(name, format!("`{full}` is missing")))
            };
            let moment = |kind: &str| -> Result<Numbers> {
                let tensor = find(kind)?;
                let (got, wanted) = (tensor.dims(), slot.var.dims());
                if got != wanted || tensor.dtype() != slot.var.dtype() {
                    let (is, want) = (tensor.dtype(), slot.var.dtype());
                    let text = format!("`{kind}` is {got:?} {is:?}, the parameter {wanted:?} {want:?}");
                    return Err(problem(name, text));
                }
                Numbers::read(tensor)
            };
            let step = find("step")?;
            let steps = step.to_dtype(candle_core::DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
            let &[step] = steps.as_slice() else {
                return Err(problem(name, format!("`step` is {:?}, expected [1]", step.dims())));
            };
            let step = u64::try_from(step).map_err(|_| problem(name, format!("`step` is {step}")))?;
            loaded.push((moment("exp_avg")?, moment("exp_avg_sq")?, step));
        }
        let known = |full: &str| {
            full.split_once('.').is_some_and(|(kind, name)| {
                ["exp_avg", "exp_avg_sq", "step"].contains(&kind) && self.slots.contains_key(name)
            })
        };
        if let Some(name) = state.keys().find(|name| !known(name)) {
            return Err(problem(name, "belongs to no parameter".into()));
        }
        for (slot, (exp_avg, exp_avg_sq, step)) in self.slots.values_mut().zip(loaded) {
            (slot.exp_avg, slot.exp_avg_sq, slot.step) = (exp_avg, exp_avg_sq, step);
        }
        Ok(())
    }
}

fn same_kind(a: &Numbers, b: &Numbers) -> bool {
    matches!((a, b), (Numbers::F32(_), Numbers::F32(_)) | (Numbers::F64(_), Numbers::F64(_)))
}

/// The numbers of one update of one parameter.
#[derive(Clone, Copy)]
struct Rule {
    config: AdamWConfig,
    /// 1 - lr * weight decay
    keep: f64,
    /// lr / (1 - beta1^t)
    rate: f64,
    /// 1 / sqrt(1 - beta2^t)
    root: f64,
}

struct Update<'a> {
    rule: Rule,
    grad: &'a Numbers,
    /// candle hands operations out by shared reference.
    moments: RefCell<(&'a mut Numbers, &'a mut Numbers)>,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw: the parameter is not contiguous")
        };
        let mut moments = self.moments.borrow_mut();
        let (m, v) = &mut *moments;
        match (storage, self.grad, m, v) {
            (CpuStorage::F32(w), Numbers::F32(g), Numbers::F32(m), Numbers::F32(v)) => {
                self.rule.update(&mut w[start..end], g, m, v);
            }
            (CpuStorage::F64(w), Numbers::F64(g), Numbers::F64(m), Numbers::F64(v)) => {
                self.rule.update(&mut w[start..end], g, m, v);
            }
            _ => candle_core::bail!("adamw: parameter, gradient and moments differ in dtype"),
        }
        Ok(())
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
        let Rule { config, keep, rate, root } = self.rule;
        let (beta1, beta2) = (T::of(config.beta1), T::of(config.beta2));
        let (rest1, rest2) = (T::of(1.0 - config.beta1), T::of(1.0 - config.beta2));
        let (keep, rate, root, eps) = (T::of(keep), T::of(rate), T::of(root), T::of(config.eps));
        let moments = self.exp_avg.iter_mut().zip(self.exp_avg_sq);
        for ((w, &g), (m, v)) in self.weights.iter_mut().zip(self.grad).zip(moments) {
            *m = *m * beta1 + g * rest1;
            *v = *v * beta2 + g * g * rest2;
            *w = *w * keep - *m / (Float::sqrt(*v) * root + eps) * rate;
        }
    }
}

impl Rule {
    fn update<T: Float>(self, weights: &mut [T], grad: &[T], exp_avg: &mut [T], exp_avg_sq: &mut [T]) {
        let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
        let tasks = weights.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments);
        tasks.for_each(|((weights, grad), (exp_avg, exp_avg_sq))| {
            dispatch(Step { rule: self, weights, grad, exp_avg, exp_avg_sq });
        });
    }
}
