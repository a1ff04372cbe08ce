//! Gradients by the names of their parameters.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use crate::float::{Float, sum_of};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result, check};

/// Numbers of one parameter in its own precision.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// Elements per task, and per partial sum of a norm.
pub(super) const CHUNK: usize = 1 << 14;

impl Numbers {
    pub fn read(tensor: &Tensor) -> Result<Self> {
        let flat = tensor.flatten_all()?;
        Ok(match tensor.dtype() {
            DType::F64 => Numbers::F64(flat.to_vec1()?),
            _ => Numbers::F32(flat.to_dtype(DType::F32)?.to_vec1()?),
        })
    }

    pub fn zeros(tensor: &Tensor) -> Self {
        match tensor.dtype() {
            DType::F64 => Numbers::F64(vec![0.0; tensor.elem_count()]),
            _ => Numbers::F32(vec![0.0; tensor.elem_count()]),
        }
    }

    pub fn tensor(&self, dims: &[usize]) -> Result<Tensor> {
        Ok(match self {
            Numbers::F32(data) => Tensor::from_slice(data, dims, &Device::Cpu)?,
            Numbers::F64(data) => Tensor::from_slice(data, dims, &Device::Cpu)?,
        })
    }

    fn add(&mut self, other: &Numbers) -> bool {
        fn add<T: Float>(sums: &mut [T], terms: &[T]) -> bool {
            if sums.len() != terms.len() {
                return false;
            }
            sums.par_chunks_mut(CHUNK).zip(terms.par_chunks(CHUNK)).for_each(|(sums, terms)| {
                sums.iter_mut().zip(terms).for_each(|(sum, &term)| *sum += term);
            });
            true
        }
        match (self, other) {
            (Numbers::F32(a), Numbers::F32(b)) => add(a, b),
            (Numbers::F64(a), Numbers::F64(b)) => add(a, b),
            _ => false,
        }
    }

    fn scale(&mut self, factor: f64) {
        match self {
            Numbers::F32(data) => {
                data.par_chunks_mut(CHUNK).for_each(|part| part.iter_mut().for_each(|x| *x *= factor as f32));
            }
            Numbers::F64(data) => {
                data.par_chunks_mut(CHUNK).for_each(|part| part.iter_mut().for_each(|x| *x *= factor));
            }
        }
    }

    /// Sum of squares in f64, partial sums of fixed size added in order.
    fn sum_of_squares(&self) -> f64 {
        struct Squares<'a, T>(&'a [T]);
        impl<T: Float> Kernel for Squares<'_, T> {
            type Output = f64;
            #[inline(always)]
            fn run<L: Level>(self) -> f64 {
                // Squared in f64: the square of an f32 cannot overflow there.
                let mut wide = [0.0; 256];
                let mut total = 0.0;
                for part in self.0.chunks(256) {
                    for (wide, &x) in wide.iter_mut().zip(part) {
                        *wide = x.wide();
                    }
                    total += sum_of(&wide[..part.len()], |x: f64| x * x);
                }
                total
            }
        }
        let parts: Vec<f64> = match self {
            Numbers::F32(data) => data.par_chunks(CHUNK).map(|part| dispatch(Squares(part))).collect(),
            Numbers::F64(data) => data.par_chunks(CHUNK).map(|part| dispatch(Squares(part))).collect(),
        };
        parts.iter().sum()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Grad {
    pub dims: Vec<usize>,
    pub data: Numbers,
}

/// Gradients by parameter name, in f32 or f64 like their parameters. Micro-batches are summed in place, in the order
/// they are added.
#[derive(Clone, Debug, Default)]
pub struct Grads {
    pub(super) entries: BTreeMap<String, Grad>,
}

impl Grads {
    /// No gradients yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The gradients that one backward pass left for `params`.
    ///
    /// # Errors
    /// As [`Grads::add`].
    pub fn from_store<'a>(
        store: &GradStore,
        params: impl IntoIterator<Item = (&'a str, &'a Var)>,
    ) -> Result<Self> {
        let mut grads = Self::new();
        grads.add(store, params)?;
        Ok(grads)
    }

    /// Adds the gradients that one more backward pass left for `params`. A parameter without one stays as it is.
    ///
    /// # Errors
    /// A gradient whose shape or dtype is not that of the sum so far.
    pub fn add<'a>(
        &mut self,
        store: &GradStore,
        params: impl IntoIterator<Item = (&'a str, &'a Var)>,
    ) -> Result<()> {
        for (name, var) in params {
            if let Some(grad) = store.get(var.as_tensor()) {
                self.add_one(name, grad)?;
            }
        }
        Ok(())
    }

    /// Adds `grad` to the sum of the parameter `name`.
    ///
    /// # Errors
    /// A shape or dtype that is not that of the sum so far, or a dtype other than f32 and f64.
    pub fn add_one(&mut self, name: &str, grad: &Tensor) -> Result<()> {
        check::float("Grads::add", "grad", grad)?;
        let data = Numbers::read(grad)?;
        let Some(sum) = self.entries.get_mut(name) else {
            self.entries.insert(name.to_string(), Grad { dims: grad.dims().to_vec(), data });
            return Ok(());
        };
        if sum.dims != grad.dims() || !sum.data.add(&data) {
            return Err(Error::Parameter {
                what: "Grads::add",
                name: name.to_string(),
                problem: format!("gradient is {:?}, the sum so far {:?}", grad.dims(), sum.dims),
            });
        }
        Ok(())
    }

    /// The gradient of one parameter, a copy of the parameter's shape.
    ///
    /// # Errors
    /// candle cannot make the tensor.
    pub fn get(&self, name: &str) -> Result<Option<Tensor>> {
        self.entries.get(name).map(|grad| grad.data.tensor(&grad.dims)).transpose()
    }

    /// Names that have a gradient, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is no gradient at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Those of `params` that the backward pass did not reach: no gradient, or one of zeros only.
    pub fn unreached<'a>(&self, params: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let reached =
            |name: &str| self.entries.get(name).is_some_and(|grad| grad.data.sum_of_squares() != 0.0);
        params.into_iter().filter(|name| !reached(name)).map(str::to_string).collect()
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) {
        self.entries.values_mut().for_each(|grad| grad.data.scale(factor));
    }

    /// The root of the sum of all squares, in f64; the same bits whatever the number of threads.
    pub fn norm(&self) -> f64 {
        self.entries.values().map(|grad| grad.data.sum_of_squares()).sum::<f64>().sqrt()
    }
}

/// What [`clip_grad_norm`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradNorm {
    /// The norm before clipping.
    pub norm: f64,
    /// Whether every gradient is finite. If not, nothing was scaled, and the step should be skipped.
    pub finite: bool,
    /// Whether the gradients were scaled down.
    pub clipped: bool,
}

/// Scales all gradients by `max_norm` / (norm + 1e-6) where that is below 1 (PyTorch's `clip_grad_norm_`). An infinite
/// `max_norm` only measures.
///
/// # Errors
/// `max_norm` is not above 0.
pub fn clip_grad_norm(grads: &mut Grads, max_norm: f64) -> Result<GradNorm> {
    check::value("clip_grad_norm", "max_norm", max_norm, max_norm > 0.0, "a number above 0")?;
    let norm = grads.norm();
    let finite = norm.is_finite();
    let factor = max_norm / (norm + 1e-6);
    let clipped = finite && factor < 1.0;
    if clipped {
        grads.scale(factor);
    }
    Ok(GradNorm { norm, finite, clipped })
}
