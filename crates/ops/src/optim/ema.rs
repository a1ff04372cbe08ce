//! Exponential moving average of weights (Polyak and Juditsky 1992 average all; this form forgets).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::params::{Loading, step_tensor};
use super::storage::{CHUNK, Element, change, read};
use crate::float::Float;
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result, check};

/// How an [`Ema`] forgets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Share of the old average at each update, in [0, 1). Default 0.999.
    pub decay: f64,
    /// Whether the share starts small: at the n-th update at most n / (9 + n) (TensorFlow's rule, common for diffusion
    /// models), so that the first weights are soon forgotten. Default true.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999, warmup: true }
    }
}

/// Averages of variables, of their dtype, on CPU. They start as the weights are.
pub struct Ema {
    config: EmaConfig,
    averages: BTreeMap<String, (Var, Tensor)>,
    updates: u64,
    swapped: bool,
}

const OP: &str = "Ema";

impl Ema {
    /// Averages of `params`, starting from what they are now.
    ///
    /// # Errors
    /// A decay outside [0, 1), a parameter named twice, neither f32 nor f64, or not on the CPU.
    pub fn new<'a>(params: impl IntoIterator<Item = (&'a str, &'a Var)>, config: EmaConfig) -> Result<Self> {
        check::value(OP, "decay", config.decay, (0.0..1.0).contains(&config.decay), "in [0, 1)")?;
        let mut averages = BTreeMap::new();
        for (name, var) in params {
            check::float(OP, "params", var)?;
            let problem = |text: &str| Error::Parameter { what: OP, name: name.into(), problem: text.into() };
            if !var.device().is_cpu() {
                return Err(problem("is not on the CPU"));
            }
            let average = var.as_detached_tensor().copy()?;
            if averages.insert(name.to_string(), (var.clone(), average)).is_some() {
                return Err(problem("is there twice"));
            }
        }
        Ok(Self { config, averages, updates: 0, swapped: false })
    }

    /// Share of the old average at the next update.
    pub fn decay(&self) -> f64 {
        let n = self.updates as f64;
        if self.config.warmup { self.config.decay.min((1.0 + n) / (10.0 + n)) } else { self.config.decay }
    }

    /// Takes the weights as they are now into the averages: average = decay average + (1 - decay) weight. Call it after
    /// each update of the optimiser.
    ///
    /// # Errors
    /// The averages are swapped in, see [`Ema::swap`].
    pub fn update(&mut self) -> Result<()> {
        let expected = "the weights in their places: swap back first";
        check::value(OP, "update", "called while averages are swapped in", !self.swapped, expected)?;
        let share = 1.0 - self.decay();
        self.averages.par_iter_mut().try_for_each(|(_, (var, average))| match var.dtype() {
            DType::F64 => mix::<f64>(var, average, share),
            _ => mix::<f32>(var, average, share),
        })?;
        self.updates += 1;
        Ok(())
    }

    /// Exchanges averages and weights in place: the first call puts the averages to work (every tensor that shares the
    /// variables' memory follows), the second brings the weights back, bit for bit.
    ///
    /// # Errors
    /// candle refused the memory.
    pub fn swap(&mut self) -> Result<()> {
        self.averages.par_iter_mut().try_for_each(|(_, (var, average))| match var.dtype() {
            DType::F64 => exchange::<f64>(var, average),
            _ => exchange::<f32>(var, average),
        })?;
        self.swapped = !self.swapped;
        Ok(())
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The averages by name, copies: `ema.NAME`, and `step.ema`, one i64.
    ///
    /// # Errors
    /// The averages are swapped in; candle cannot make a tensor.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let expected = "the weights in their places: swap back first";
        check::value(OP, "state", "asked for while averages are swapped in", !self.swapped, expected)?;
        let mut state = BTreeMap::new();
        for (name, (var, average)) in &self.averages {
            state.insert(format!("ema.{name}"), average.copy()?);
            state.insert("step.ema".into(), step_tensor(self.updates, var)?);
        }
        Ok(state)
    }

    /// Takes over what [`Ema::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing, unexpected, or has another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let loading = Loading { what: "Ema::load_state", state };
        let mut loaded = Vec::with_capacity(self.averages.len());
        for (name, (var, _)) in &self.averages {
            loaded.push(loading.tensor("ema", name, var.dims(), var.dtype())?);
        }
        let updates = if loaded.is_empty() { 0 } else { loading.step("ema")? };
        loading.only(self.averages.keys().map(|name| format!("ema.{name}")).chain(["step.ema".into()]))?;
        self.averages.values_mut().zip(loaded).for_each(|((_, average), loaded)| *average = loaded);
        self.updates = updates;
        Ok(())
    }
}

struct Mix<'a, T>(&'a mut [T], &'a [T], T);

impl<T: Float> Kernel for Mix<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for (average, &w) in self.0.iter_mut().zip(self.1) {
            *average = (w - *average).fma(self.2, *average);
        }
    }
}

fn mix<T: Element + Float>(var: &Var, average: &Tensor, share: f64) -> Result<()> {
    read(var, |weights: &[T]| {
        change(average, |average: &mut [T]| {
            average.par_chunks_mut(CHUNK).zip(weights.par_chunks(CHUNK)).for_each(|(average, weights)| {
                dispatch(Mix(average, weights, T::of(share)));
            });
        })
    })??;
    Ok(())
}

fn exchange<T: Element>(var: &Var, average: &Tensor) -> Result<()> {
    change(var, |weights: &mut [T]| change(average, |average: &mut [T]| weights.swap_with_slice(average)))??;
    Ok(())
}
