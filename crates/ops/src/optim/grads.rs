//! Gradients by the names of their parameters.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Storage, Tensor, Var, WithDType};
use rayon::prelude::*;

use super::storage::{CHUNK, Element, slice_mut};
use crate::float::{self, Float};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result, check};

/// One parameter's gradient, contiguous, f32 or f64, where the backward pass left it.
#[derive(Debug)]
pub(super) struct Grad {
    pub tensor: Tensor,
    /// Whether nobody else holds the memory, so that it may be changed.
    owned: bool,
}

/// Gradients by parameter name, in f32 or f64 like their parameters, on their device. Nothing is copied: the first
/// micro-batch's tensors are kept, the following ones are added to them in place, in the order they come.
#[derive(Debug)]
pub struct Grads {
    pub(super) entries: BTreeMap<String, Grad>,
    /// What every number still has to be multiplied by; the optimiser does it on the way.
    pub(super) factor: f64,
}

impl Default for Grads {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), factor: 1.0 }
    }
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
        store: GradStore,
        params: impl IntoIterator<Item = (&'a str, &'a Var)>,
    ) -> Result<Self> {
        let mut grads = Self::new();
        grads.add(store, params)?;
        Ok(grads)
    }

    /// Adds the gradients that one more backward pass left for `params`. A parameter without one stays as it is. Each
    /// tensor leaves `store` as it is added, so that two whole sets never exist side by side longer than needed.
    ///
    /// # Errors
    /// A gradient whose shape or dtype is not that of the sum so far.
    pub fn add<'a>(
        &mut self,
        mut store: GradStore,
        params: impl IntoIterator<Item = (&'a str, &'a Var)>,
    ) -> Result<()> {
        for (name, var) in params {
            if let Some(grad) = store.remove(var.as_tensor()) {
                self.add_tensor(name, grad, true)?;
            }
        }
        Ok(())
    }

    /// Adds `grad` to the sum of the parameter `name`. The tensor itself is never changed.
    ///
    /// # Errors
    /// A shape or dtype that is not that of the sum so far, or a dtype other than f32 and f64.
    pub fn add_one(&mut self, name: &str, grad: &Tensor) -> Result<()> {
        self.add_tensor(name, grad.detach(), false)
    }

    fn add_tensor(&mut self, name: &str, grad: Tensor, owned: bool) -> Result<()> {
        const OP: &str = "Grads::add";
        check::float(OP, "grad", &grad)?;
        self.settle()?;
        let Some(sum) = self.entries.get_mut(name) else {
            let owned = owned || !grad.is_contiguous();
            self.entries.insert(name.to_string(), Grad { tensor: grad.contiguous()?, owned });
            return Ok(());
        };
        if sum.tensor.dims() != grad.dims() || sum.tensor.dtype() != grad.dtype() {
            let say = |tensor: &Tensor| format!("{:?} {:?}", tensor.dims(), tensor.dtype());
            let problem = format!("gradient is {}, the sum so far {}", say(&grad), say(&sum.tensor));
            return Err(Error::Parameter { what: OP, name: name.to_string(), problem });
        }
        if sum.owned {
            sum.tensor.inplace_op2(&grad.contiguous()?, &Accumulate)?;
        } else {
            (sum.tensor, sum.owned) = ((&sum.tensor + &grad)?.detach(), true);
        }
        Ok(())
    }

    /// Carries out a multiplication that [`Grads::scale`] has put off.
    fn settle(&mut self) -> Result<()> {
        if self.factor == 1.0 {
            return Ok(());
        }
        for grad in self.entries.values_mut() {
            if grad.owned {
                grad.tensor.inplace_op1(&Scale(self.factor))?;
            } else {
                (grad.tensor, grad.owned) = ((&grad.tensor * self.factor)?.detach(), true);
            }
        }
        self.factor = 1.0;
        Ok(())
    }

    /// The gradient of one parameter, a copy of the parameter's shape.
    ///
    /// # Errors
    /// candle cannot make the tensor.
    pub fn get(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.entries.get(name).map(|grad| &grad.tensor * self.factor).transpose()?)
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
    ///
    /// # Errors
    /// A device fails.
    pub fn unreached<'a>(&self, params: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>> {
        let squares = sums_of_squares(self.entries.values().map(|grad| &grad.tensor))?;
        let reached: BTreeMap<&str, f64> = self.names().zip(squares).collect();
        let missing = |name: &&str| reached.get(name).is_none_or(|&square| square == 0.0);
        Ok(params.into_iter().filter(missing).map(str::to_string).collect())
    }

    /// Multiplies every gradient by `factor`. Costs nothing now: whoever reads the gradients next does it.
    pub fn scale(&mut self, factor: f64) {
        self.factor *= factor;
    }

    /// The root of the sum of all squares, in f64; the same bits whatever the number of threads.
    ///
    /// # Errors
    /// A device fails.
    pub fn norm(&self) -> Result<f64> {
        let squares = sums_of_squares(self.entries.values().map(|grad| &grad.tensor))?;
        Ok(squares.iter().sum::<f64>().sqrt() * self.factor.abs())
    }
}

/// sum += term
struct Accumulate;

impl InplaceOp2 for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        term: &CpuStorage,
        term_layout: &Layout,
    ) -> candle_core::Result<()> {
        fn add<T: Element + Float>(
            sum: (&mut CpuStorage, &Layout),
            term: (&CpuStorage, &Layout),
        ) -> candle_core::Result<()> {
            let sums = slice_mut::<T>(sum.0, sum.1)?;
            let Some((start, end)) = term.1.contiguous_offsets() else {
                candle_core::bail!("accumulate: the term is not contiguous")
            };
            let terms = &T::cpu_storage_as_slice(term.0)?[start..end];
            sums.par_chunks_mut(CHUNK).zip(terms.par_chunks(CHUNK)).for_each(|(sums, terms)| {
                sums.iter_mut().zip(terms).for_each(|(sum, &term)| *sum += term);
            });
            Ok(())
        }
        match sum {
            CpuStorage::F64(_) => add::<f64>((sum, sum_layout), (term, term_layout)),
            _ => add::<f32>((sum, sum_layout), (term, term_layout)),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sum: &mut candle_core::CudaStorage,
        sum_layout: &Layout,
        term: &candle_core::CudaStorage,
        term_layout: &Layout,
    ) -> candle_core::Result<()> {
        crate::cuda::accumulate((sum, sum_layout), (term, term_layout))
    }
}

/// x *= factor
struct Scale(f64);

impl InplaceOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        fn scale<T: Float>(data: &mut [T], factor: f64) {
            let factor = T::of(factor);
            data.par_chunks_mut(CHUNK).for_each(|part| part.iter_mut().for_each(|x| *x *= factor));
        }
        match storage {
            CpuStorage::F64(_) => scale(slice_mut::<f64>(storage, layout)?, self.0),
            _ => scale(slice_mut::<f32>(storage, layout)?, self.0),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        crate::cuda::scale(storage, layout, self.0)
    }
}

/// Sum of squares of a slice in f64.
pub(super) struct Squares<'a, T>(pub &'a [T]);

impl<T: Float> Kernel for Squares<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<L: Level>(self) -> f64 {
        // A loop: what `map` calls may not be inlined, and then lacks the instruction set.
        let mut total = 0.0;
        for part in self.0.chunks(256) {
            total += float::sum_of_squares(part);
        }
        total
    }
}

/// The sum of squares of each tensor, in f64. On CPU one parallel pass over the chunks of all of them; partial sums of
/// fixed size are added in order.
fn sums_of_squares<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<f64>> {
    enum Part<'a> {
        F32(&'a [f32]),
        F64(&'a [f64]),
    }
    let tensors: Vec<&Tensor> = tensors.collect();
    let held: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut parts = Vec::new();
    let mut counts = Vec::with_capacity(held.len());
    for (storage, layout) in &held {
        let before = parts.len();
        if let (Storage::Cpu(data), Some((start, end))) = (&**storage, layout.contiguous_offsets()) {
            match data {
                CpuStorage::F64(data) => parts.extend(data[start..end].chunks(CHUNK).map(Part::F64)),
                other => {
                    let data = f32::cpu_storage_as_slice(other)?;
                    parts.extend(data[start..end].chunks(CHUNK).map(Part::F32));
                }
            }
        }
        counts.push(parts.len() - before);
    }
    let sums: Vec<f64> = parts
        .par_iter()
        .map(|part| match part {
            Part::F32(part) => dispatch(Squares(part)),
            Part::F64(part) => dispatch(Squares(part)),
        })
        .collect();
    let mut sums = sums.as_slice();
    let mut totals = Vec::with_capacity(tensors.len());
    for (tensor, count) in tensors.iter().zip(counts) {
        let (mine, rest) = sums.split_at(count);
        sums = rest;
        totals.push(if tensor.device().is_cpu() { mine.iter().sum() } else { sum_of_squares(tensor)? });
    }
    Ok(totals)
}

/// The sum of squares by our kernels on CUDA, by candle's operations elsewhere.
fn sum_of_squares(tensor: &Tensor) -> candle_core::Result<f64> {
    #[cfg(feature = "cuda")]
    if let Some(sum) = crate::cuda::sum_of_squares(tensor)? {
        return Ok(sum);
    }
    tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()
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
/// `max_norm` only measures. Reads the gradients once and writes nothing: the factor is applied by whoever reads them
/// next.
///
/// # Errors
/// `max_norm` is not above 0; a device fails.
pub fn clip_grad_norm(grads: &mut Grads, max_norm: f64) -> Result<GradNorm> {
    check::value("clip_grad_norm", "max_norm", max_norm, max_norm > 0.0, "a number above 0")?;
    let norm = grads.norm()?;
    let finite = norm.is_finite();
    let factor = max_norm / (norm + 1e-6);
    let clipped = finite && factor < 1.0;
    if clipped {
        grads.scale(factor);
    }
    Ok(GradNorm { norm, finite, clipped })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    #[test]
    fn squares_by_candle_are_ours() {
        let data: Vec<f32> = (0..40_001).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let tensor = Tensor::from_vec(data, 40_001, &Device::Cpu).unwrap();
        let ours = sums_of_squares([&tensor].into_iter()).unwrap()[0];
        let other = sum_of_squares(&tensor).unwrap();
        assert!((ours - other).abs() < 1e-9 * ours, "{ours} {other}");
    }

    #[test]
    fn micro_batches_are_added_where_the_first_one_lies() {
        let var = Var::from_tensor(&Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        let place = |grads: &Grads| {
            super::super::storage::read::<f32, _>(&grads.entries["w"].tensor, |x| x.as_ptr() as usize)
                .unwrap()
        };
        let backward = || var.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let mut grads = Grads::from_store(backward(), [("w", &var)]).unwrap();
        let first = place(&grads);
        grads.add(backward(), [("w", &var)]).unwrap();
        assert_eq!(place(&grads), first);
        grads.scale(0.5);
        // A factor that waits is settled before more is added.
        grads.add(backward(), [("w", &var)]).unwrap();
        assert_eq!(place(&grads), first);
        assert_eq!(grads.get("w").unwrap().unwrap().to_vec1::<f32>().unwrap(), [4.0, 8.0]);
        // What somebody else holds is left alone.
        let mine = Tensor::new(&[1f32, 1.0], &Device::Cpu).unwrap();
        grads.add_one("u", &mine).unwrap();
        grads.add_one("u", &mine).unwrap();
        grads.scale(2.0);
        grads.add_one("v", &mine).unwrap();
        grads.add_one("u", &mine).unwrap();
        let value = |name: &str| grads.get(name).unwrap().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((value("u"), value("v")), (vec![5.0, 5.0], vec![1.0, 1.0]));
        assert_eq!(mine.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
    }
}
