//! What the optimiser's in-place operations do with tensors on a GPU.

use std::cell::RefCell;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor};

use super::device::{Cuda, array};
use super::optim::{self, Target};
use crate::optim::Update;

fn target<'a>(name: &str, storage: &'a mut CudaStorage, layout: &Layout) -> Result<Target<'a, CudaStorage>> {
    match layout.contiguous_offsets() {
        Some((offset, _)) => Ok(Target { buffer: storage, offset }),
        None => candle_core::bail!("{name}: expected a contiguous tensor"),
    }
}

/// Calls `f` with the memory of a CUDA tensor, to change it. Every tensor that shares the memory follows.
fn change<R>(tensor: &Tensor, f: impl FnOnce(Target<'_, CudaStorage>) -> Result<R>) -> Result<R> {
    /// The function and its result; candle hands operations out by shared reference.
    struct Change<F, R>(RefCell<Option<F>>, RefCell<Option<R>>);
    impl<R, F: FnOnce(Target<'_, CudaStorage>) -> Result<R>> InplaceOp1 for Change<F, R> {
        fn name(&self) -> &'static str {
            "change"
        }
        fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
            candle_core::bail!("expected a tensor on CUDA")
        }
        fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
            let target = target(self.name(), storage, layout)?;
            if let Some(f) = self.0.take() {
                *self.1.borrow_mut() = Some(f(target)?);
            }
            Ok(())
        }
    }
    let op = Change(RefCell::new(Some(f)), RefCell::new(None));
    tensor.inplace_op1(&op)?;
    match op.1.into_inner() {
        Some(result) => Ok(result),
        None => candle_core::bail!("expected a tensor on CUDA"),
    }
}

/// The update of one parameter, in place of the weights and both moments.
pub(crate) fn adamw(update: &Update<'_>, weight: &mut CudaStorage, layout: &Layout) -> Result<()> {
    const NAME: &str = "adamw";
    if weight.dtype() != DType::F32 {
        let got = weight.dtype();
        candle_core::bail!(
            "adamw: weights on CUDA must be F32 (a model may cast them for its work), not {got:?}"
        );
    }
    let machine = Cuda::new(&weight.device);
    let (storage, grad_layout) = update.grad.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("adamw: weight and gradient lie on different devices")
    };
    let grad = array(NAME, storage, grad_layout)?;
    let weight = target(NAME, weight, layout)?;
    change(update.exp_avg, |exp_avg| {
        change(update.exp_avg_sq, |exp_avg_sq| {
            optim::adamw(&machine, &update.rule, weight, grad, exp_avg, exp_avg_sq)
        })
    })
}

/// sum += term
pub(crate) fn accumulate(
    (sum, sum_layout): (&mut CudaStorage, &Layout),
    (term, term_layout): (&CudaStorage, &Layout),
) -> Result<()> {
    const NAME: &str = "accumulate";
    let machine = Cuda::new(&sum.device);
    optim::accumulate(&machine, target(NAME, sum, sum_layout)?, array(NAME, term, term_layout)?)
}

/// x *= factor
pub(crate) fn scale(x: &mut CudaStorage, layout: &Layout, factor: f64) -> Result<()> {
    let (machine, dtype, n) = (Cuda::new(&x.device), x.dtype(), layout.shape().elem_count());
    optim::scale(&machine, target("scale", x, layout)?, (dtype, n), factor)
}

/// The sum of squares of a CUDA tensor in f64, or `None` for tensors that lie elsewhere.
pub(crate) fn sum_of_squares(tensor: &Tensor) -> Result<Option<f64>> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Ok(None) };
    let sum = optim::sum_of_squares(&Cuda::new(&storage.device), array("sum of squares", storage, layout)?)?;
    let sum = storage.device.clone_dtoh(sum.as_cuda_slice::<f64>()?)?;
    Ok(sum.first().copied())
}
