//! The parameters an optimiser works on.

use std::collections::{BTreeMap, HashSet};

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;

use super::grads::Grads;
use crate::{Error, Result, check};

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

/// A parameter and how it is treated.
#[derive(Debug)]
pub(super) struct Param {
    pub var: Var,
    pub weight_decay: f64,
    pub lr_scale: f64,
}

/// Parameters of `groups` with what `state` makes for each, by name.
///
/// # Errors
/// A number outside its range, a parameter named twice or given under two names, one that is neither f32 nor f64.
pub(super) fn slots<S>(
    what: &'static str,
    groups: Vec<ParamGroup>,
    state: impl Fn(&Var) -> Result<S>,
) -> Result<BTreeMap<String, (Param, S)>> {
    let mut slots = BTreeMap::new();
    let mut seen = HashSet::new();
    for ParamGroup { params, weight_decay, lr_scale } in groups {
        let ok = |x: f64| x >= 0.0 && x.is_finite();
        check::value(what, "weight_decay", weight_decay, ok(weight_decay), "0 or more")?;
        check::value(what, "lr_scale", lr_scale, ok(lr_scale), "0 or more")?;
        for (name, var) in params {
            check::float(what, "params", &var)?;
            let problem = |text: &str| Error::Parameter { what, name: name.clone(), problem: text.into() };
            if !seen.insert(var.id()) {
                return Err(problem("is a variable that another name stands for already"));
            }
            let state = state(&var)?;
            let param = Param { var, weight_decay, lr_scale };
            if slots.insert(name.clone(), (param, state)).is_some() {
                return Err(problem("stands in two groups"));
            }
        }
    }
    Ok(slots)
}

/// Refuses gradients that do not belong to `slots`, before anything has changed.
pub(super) fn check_grads<S>(
    what: &'static str,
    slots: &BTreeMap<String, (Param, S)>,
    grads: &Grads,
    lr: f64,
) -> Result<()> {
    check::value(what, "lr", lr, lr >= 0.0 && lr.is_finite(), "0 or more")?;
    for (name, grad) in &grads.entries {
        let grad = &grad.tensor;
        let problem = match slots.get(name) {
            None => "has a gradient but is in no group".to_string(),
            Some((param, _)) if param.var.dims() != grad.dims() => {
                format!("is {:?}, its gradient {:?}", param.var.dims(), grad.dims())
            }
            Some((param, _)) if param.var.dtype() != grad.dtype() => {
                format!("is {:?}, its gradient {:?}", param.var.dtype(), grad.dtype())
            }
            Some((param, _)) if same_memory(param.var.as_tensor(), grad) => {
                "and its gradient are the same memory".to_string()
            }
            Some(_) => continue,
        };
        return Err(Error::Parameter { what, name: name.clone(), problem });
    }
    Ok(())
}

fn same_memory(a: &Tensor, b: &Tensor) -> bool {
    std::ptr::eq(&*a.storage_and_layout().0, &*b.storage_and_layout().0)
}

/// Runs `update` for every parameter that has a gradient. On CPU all parameters are one parallel job: while one is
/// being finished, idle threads work on the next. `update` may itself use all threads.
pub(super) fn for_each<S: Send>(
    slots: &mut BTreeMap<String, (Param, S)>,
    grads: &Grads,
    update: impl Fn(&Param, &mut S, &Tensor) -> Result<()> + Sync,
) -> Result<()> {
    let mut tasks: Vec<_> = slots
        .iter_mut()
        .filter_map(|(name, (param, state))| Some((&*param, state, &grads.entries.get(name)?.tensor)))
        .collect();
    if tasks.iter().all(|(param, _, _)| param.var.device().is_cpu()) {
        tasks.par_iter_mut().try_for_each(|(param, state, grad)| update(param, state, grad))
    } else {
        tasks.iter_mut().try_for_each(|(param, state, grad)| update(param, state, grad))
    }
}

/// State of an optimiser by name, as it goes into a checkpoint.
pub(super) struct Loading<'a> {
    pub what: &'static str,
    pub state: &'a BTreeMap<String, Tensor>,
}

impl Loading<'_> {
    pub fn problem(&self, name: &str, problem: String) -> Error {
        Error::Parameter { what: self.what, name: name.to_string(), problem }
    }

    /// The tensor `kind.name`, a copy of its own, of this shape and dtype.
    pub fn tensor(&self, kind: &str, name: &str, dims: &[usize], dtype: DType) -> Result<Tensor> {
        let full = format!("{kind}.{name}");
        let tensor =
            self.state.get(&full).ok_or_else(|| self.problem(name, format!("`{full}` is missing")))?;
        if tensor.dims() != dims || tensor.dtype() != dtype {
            let (got, is) = (tensor.dims(), tensor.dtype());
            let text = format!("`{kind}` is {got:?} {is:?}, expected {dims:?} {dtype:?}");
            return Err(self.problem(name, text));
        }
        Ok(tensor.contiguous()?.copy()?.detach())
    }

    /// The count `step.name`.
    pub fn step(&self, name: &str) -> Result<u64> {
        let step = self.tensor("step", name, &[1], DType::I64)?.to_vec1::<i64>()?[0];
        u64::try_from(step).map_err(|_| self.problem(name, format!("`step` is {step}")))
    }

    /// Refuses whatever is not one of `names`.
    pub fn only(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let known: HashSet<String> = names.into_iter().collect();
        match self.state.keys().find(|name| !known.contains(*name)) {
            Some(name) => Err(self.problem(name, "belongs to no parameter".into())),
            None => Ok(()),
        }
    }
}

/// Refuses parameters on other devices, for optimisers that only know the CPU.
pub(super) fn on_cpu<S>(what: &'static str, slots: &BTreeMap<String, (Param, S)>) -> Result<()> {
    match slots.iter().find(|(_, (param, _))| !param.var.device().is_cpu()) {
        Some((name, _)) => {
            let problem = "is not on the CPU, where this optimiser works; use AdamW".into();
            Err(Error::Parameter { what, name: name.clone(), problem })
        }
        None => Ok(()),
    }
}

/// The count of updates as a checkpoint holds it.
pub(super) fn step_tensor(step: u64, var: &Var) -> Result<Tensor> {
    Ok(Tensor::new(&[step as i64], var.device())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_variable_has_one_name_and_its_gradient_its_own_memory() {
        let w = Var::from_tensor(&Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        let tied = ParamGroup::split([("a", &w), ("b", &w)], 0.0, |_, _| true);
        let message = slots("test", tied, |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains("another name"), "{message}");
        let slots = slots("test", ParamGroup::split([("w", &w)], 0.0, |_, _| true), |_| Ok(())).unwrap();
        let mut grads = Grads::new();
        grads.add_one("w", w.as_tensor()).unwrap();
        let message = check_grads("test", &slots, &grads, 0.1).unwrap_err().to_string();
        assert!(message.contains("same memory"), "{message}");
    }
}
