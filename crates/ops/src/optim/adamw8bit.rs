//! AdamW with both moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861): a quarter of the memory.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;

use super::adamw::{AdamWConfig, Rule, Update};
use super::grads::Grads;
use super::params::{Loading, Param, ParamGroup, check_grads, for_each, on_cpu, slots, step_tensor};
use super::quantized::{BLOCK, Code};
use super::storage::{change, read};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result};

/// Parameters with fewer numbers keep moments of full precision, as in the paper's implementation: they weigh nothing
/// and are the sensitive ones (norms, biases).
const LEAST: usize = 4096;

enum Moments {
    Full {
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
    },
    /// Codes of the parameter's shape and one scale per block.
    Coded {
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        scale: Tensor,
        scale_sq: Tensor,
    },
}

struct State {
    moments: Moments,
    step: u64,
}

/// The optimiser, on CPU, for f32 parameters. An update decodes a block of moments, does what [`crate::AdamW`] does in
/// f32, and codes them again. A second moment above zero is never coded as zero: its update would be divided by almost
/// nothing. (The paper has no such rule and keeps embeddings in full precision instead, against the same evil.)
pub struct AdamW8bit {
    config: AdamWConfig,
    slots: BTreeMap<String, (Param, State)>,
}

fn blocks(var: &Tensor) -> usize {
    var.elem_count().div_ceil(BLOCK)
}

impl AdamW8bit {
    /// Moments zero.
    ///
    /// # Errors
    /// Numbers outside their range, a parameter named twice, one that is not f32 or not on the CPU.
    pub fn new(groups: Vec<ParamGroup>, config: AdamWConfig) -> Result<Self> {
        config.validate()?;
        let what = "AdamW8bit::new";
        let zeros = |var: &Var| -> Result<State> {
            let moments = if var.elem_count() < LEAST {
                let (exp_avg, exp_avg_sq) = (var.zeros_like()?.detach(), var.zeros_like()?.detach());
                Moments::Full { exp_avg, exp_avg_sq }
            } else {
                let codes = |code: &Code| {
                    Tensor::full(code.encode(0.0), var.dims(), var.device())?.contiguous()?.copy()
                };
                let scale = || Tensor::zeros(blocks(var), DType::F32, var.device());
                let (exp_avg, exp_avg_sq) = (codes(Code::signed())?, codes(Code::unsigned())?);
                Moments::Coded { exp_avg, exp_avg_sq, scale: scale()?, scale_sq: scale()? }
            };
            Ok(State { moments, step: 0 })
        };
        let slots = slots(what, groups, zeros)?;
        on_cpu(what, &slots)?;
        if let Some((name, _)) = slots.iter().find(|(_, (param, _))| param.var.dtype() != DType::F32) {
            let problem = "is F64; 8-bit moments are for F32".into();
            return Err(Error::Parameter { what, name: name.clone(), problem });
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

    /// As [`crate::AdamW::step`].
    ///
    /// # Errors
    /// As [`crate::AdamW::step`].
    pub fn step(&mut self, grads: &Grads, lr: f64) -> Result<()> {
        check_grads("AdamW8bit::step", &self.slots, grads, lr)?;
        let config = self.config;
        for_each(&mut self.slots, grads, |param, state, grad| {
            state.step += 1;
            let rule = Rule::new(config, param, state.step, lr, grads.factor);
            match &state.moments {
                Moments::Full { exp_avg, exp_avg_sq } => {
                    param.var.inplace_op1(&Update { rule, grad, exp_avg, exp_avg_sq })?;
                }
                Moments::Coded { exp_avg, exp_avg_sq, scale, scale_sq } => {
                    read(grad, |grad: &[f32]| {
                        change(&param.var, |weights: &mut [f32]| {
                            coded((exp_avg, scale), (exp_avg_sq, scale_sq), |first, second| {
                                update(rule, weights, grad, first, second);
                            })
                        })
                    })???;
                }
            }
            Ok(())
        })
    }

    /// Everything needed to go on bit for bit: `exp_avg.NAME` and `exp_avg_sq.NAME` of the parameter's shape, as codes
    /// (u8) with `scale.NAME` and `scale_sq.NAME`, or f32 for a small parameter; and `step.NAME`, one i64.
    ///
    /// # Errors
    /// candle cannot make a tensor.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (name, (param, state)) in &self.slots {
            let (exp_avg, exp_avg_sq) = match &state.moments {
                Moments::Full { exp_avg, exp_avg_sq } => (exp_avg, exp_avg_sq),
                Moments::Coded { exp_avg, exp_avg_sq, scale, scale_sq } => {
                    all.insert(format!("scale.{name}"), scale.copy()?);
                    all.insert(format!("scale_sq.{name}"), scale_sq.copy()?);
                    (exp_avg, exp_avg_sq)
                }
            };
            all.insert(format!("exp_avg.{name}"), exp_avg.copy()?);
            all.insert(format!("exp_avg_sq.{name}"), exp_avg_sq.copy()?);
            all.insert(format!("step.{name}"), step_tensor(state.step, &param.var)?);
        }
        Ok(all)
    }

    /// Takes over what [`AdamW8bit::state`] gave.
    ///
    /// # Errors
    /// A tensor is missing, unexpected, or has another shape or dtype; then nothing has changed.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let loading = Loading { what: "AdamW8bit::load_state", state };
        let mut loaded = Vec::with_capacity(self.slots.len());
        let mut names = Vec::new();
        for (name, (param, state)) in &self.slots {
            let dims = param.var.dims();
            let moments = match state.moments {
                Moments::Full { .. } => Moments::Full {
                    exp_avg: loading.tensor("exp_avg", name, dims, DType::F32)?,
                    exp_avg_sq: loading.tensor("exp_avg_sq", name, dims, DType::F32)?,
                },
                Moments::Coded { .. } => {
                    names.extend([format!("scale.{name}"), format!("scale_sq.{name}")]);
                    let count = [blocks(&param.var)];
                    Moments::Coded {
                        exp_avg: loading.tensor("exp_avg", name, dims, DType::U8)?,
                        exp_avg_sq: loading.tensor("exp_avg_sq", name, dims, DType::U8)?,
                        scale: loading.tensor("scale", name, &count, DType::F32)?,
                        scale_sq: loading.tensor("scale_sq", name, &count, DType::F32)?,
                    }
                }
            };
            names.extend(["exp_avg", "exp_avg_sq", "step"].map(|kind| format!("{kind}.{name}")));
            loaded.push(State { moments, step: loading.step(name)? });
        }
        loading.only(names)?;
        self.slots.values_mut().zip(loaded).for_each(|((_, state), loaded)| *state = loaded);
        Ok(())
    }

    /// Bytes of the moments.
    pub fn state_bytes(&self) -> usize {
        let one = |(param, state): &(Param, State)| match state.moments {
            Moments::Full { .. } => 8 * param.var.elem_count(),
            Moments::Coded { .. } => 2 * param.var.elem_count() + 8 * blocks(&param.var),
        };
        self.slots.values().map(one).sum()
    }
}

/// Codes and scales of one moment.
type Codes<'a> = (&'a mut [u8], &'a mut [f32]);

/// Opens the codes and scales of both moments to `f`.
fn coded<R>(
    first: (&Tensor, &Tensor),
    second: (&Tensor, &Tensor),
    f: impl FnOnce(Codes<'_>, Codes<'_>) -> R,
) -> candle_core::Result<R> {
    change(first.0, |first_codes: &mut [u8]| {
        change(first.1, |first_scales: &mut [f32]| {
            change(second.0, |second_codes: &mut [u8]| {
                change(second.1, |second_scales: &mut [f32]| {
                    f((first_codes, first_scales), (second_codes, second_scales))
                })
            })
        })
    })???
}

fn update(rule: Rule, weights: &mut [f32], grad: &[f32], first: Codes<'_>, second: Codes<'_>) {
    let moments =
        first.0.par_chunks_mut(BLOCK).zip(first.1).zip(second.0.par_chunks_mut(BLOCK).zip(second.1));
    let tasks = weights.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK)).zip(moments);
    // Some blocks a task: one is too small to be worth handing over.
    tasks.with_min_len(4).for_each(|((weights, grad), ((codes, scale), (codes_sq, scale_sq)))| {
        dispatch(Block { rule, weights, grad, codes, scale, codes_sq, scale_sq });
    });
}

struct Block<'a> {
    rule: Rule,
    weights: &'a mut [f32],
    grad: &'a [f32],
    codes: &'a mut [u8],
    scale: &'a mut f32,
    codes_sq: &'a mut [u8],
    scale_sq: &'a mut f32,
}

impl Kernel for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let (signed, unsigned) = (Code::signed(), Code::unsigned());
        let n = self.weights.len();
        let (mut m, mut v) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        let (m, v) = (&mut m[..n], &mut v[..n]);
        for (m, &code) in m.iter_mut().zip(&*self.codes) {
            *m = signed.decode(code) * *self.scale;
        }
        for (v, &code) in v.iter_mut().zip(&*self.codes_sq) {
            *v = unsigned.decode(code) * *self.scale_sq;
        }
        self.rule.apply(self.weights, self.grad, m, v);
        let top = |x: &[f32]| x.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        (*self.scale, *self.scale_sq) = (top(m), top(v));
        let inverse = |scale: f32| if scale > 0.0 { scale.recip() } else { 0.0 };
        let (one, two) = (inverse(*self.scale), inverse(*self.scale_sq));
        for (code, &m) in self.codes.iter_mut().zip(&*m) {
            // A subnormal scale has no finite inverse.
            *code = signed.encode((m * one).clamp(-1.0, 1.0));
        }
        let least = unsigned.smallest_positive();
        for (code, &v) in self.codes_sq.iter_mut().zip(&*v) {
            let nearest = unsigned.encode((v * two).clamp(0.0, 1.0));
            *code = if v > 0.0 { nearest.max(least) } else { nearest };
        }
    }
}
