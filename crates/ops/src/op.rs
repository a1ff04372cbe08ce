//! The one place where this crate meets candle's autograd.
//!
//! An operation is an [`Op`]: a forward and a backward function on plain slices, and for CUDA a [`DeviceOp`].
//! [`apply1`] to [`apply3`] wrap it as a candle `CustomOp`, so that `Tensor::backward` calls it; where its arguments
//! lie decides which of the two runs.

use std::cell::Cell;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor, Var,
};

#[cfg(any(feature = "cuda", test))]
pub(crate) use crate::cuda::DeviceOp;
use crate::float::Float;
use crate::tape::{self, Sum};

/// Without the CUDA backend nothing is asked of an operation.
#[cfg(not(any(feature = "cuda", test)))]
pub(crate) trait DeviceOp<const N: usize> {}
#[cfg(not(any(feature = "cuda", test)))]
impl<O, const N: usize> DeviceOp<N> for O {}

thread_local! {
    static GRAD: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f` without recording operations of this crate for backward: nothing is kept for gradients,
/// and results are constants. The numbers are the same bits as with recording. For sampling.
///
/// Holds for the calling thread. candle's own operations still record when one of their arguments is
/// a `Var`; call `detach` on those.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    set_grad(false, f)
}

/// Runs `f` with recording switched on or off.
pub(crate) fn set_grad<R>(on: bool, f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            GRAD.set(self.0);
        }
    }
    let _restore = Restore(GRAD.replace(on));
    f()
}

/// Whether this thread records, see [`no_grad`].
pub(crate) fn grad_is_on() -> bool {
    GRAD.get()
}

/// A contiguous argument.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub dims: &'a [usize],
}

impl<T> View<'_, T> {
    /// Size of the last axis.
    pub fn width(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }
}

/// A differentiable operation on `N` float arguments of one dtype.
pub(crate) trait Op<const N: usize>: DeviceOp<N> + Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// Whether every argument's gradient is the result's, as for a sum: on the tape nothing is copied then.
    const PASSES: bool = false;

    /// The result's data and shape.
    fn forward<T: Float>(&self, args: [View<'_, T>; N]) -> (Vec<T>, Shape);

    /// Gradients of the arguments, given the result and the gradient of the result. `needs[i]` says
    /// whether anybody wants the i-th.
    fn backward<T: Float>(
        &self,
        args: [View<'_, T>; N],
        out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; N],
    ) -> [Option<Vec<T>>; N];
}

struct Custom<O> {
    op: O,
    /// What its forward pass leaves on a device for its backward pass.
    #[cfg(feature = "cuda")]
    kept: crate::cuda::Kept,
}

impl<O> Custom<O> {
    fn new(op: O, recording: bool) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = recording;
        Custom {
            op,
            #[cfg(feature = "cuda")]
            kept: crate::cuda::Kept::new(recording),
        }
    }
}

fn view<'a, T: Float>(name: &str, storage: &'a CpuStorage, layout: &'a Layout) -> Result<View<'a, T>> {
    let data = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(View { data: &data[start..end], dims: layout.dims() }),
        None => candle_core::bail!("{name}: argument is not contiguous"),
    }
}

fn forward<O: Op<N>, const N: usize>(
    op: &O,
    args: [(&CpuStorage, &Layout); N],
) -> Result<(CpuStorage, Shape)> {
    fn run<T: Float, O: Op<N>, const N: usize>(
        op: &O,
        args: [(&CpuStorage, &Layout); N],
    ) -> Result<(CpuStorage, Shape)> {
        let mut views = [View { data: &[] as &[T], dims: &[] }; N];
        for (slot, (storage, layout)) in views.iter_mut().zip(args) {
            *slot = view(O::NAME, storage, layout)?;
        }
        let (data, shape) = op.forward(views);
        Ok((T::to_cpu_storage_owned(data), shape))
    }
    match &args[0].0 {
        CpuStorage::F32(_) => run::<f32, O, N>(op, args),
        CpuStorage::F64(_) => run::<f64, O, N>(op, args),
        _ => candle_core::bail!("{}: only F32 and F64 are supported", O::NAME),
    }
}

fn backward<O: Op<N>, const N: usize>(
    op: &O,
    args: [&Tensor; N],
    out: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    fn run<T: Float, O: Op<N>, const N: usize>(
        op: &O,
        args: [&Tensor; N],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let grad = grad.contiguous()?;
        let held = args.map(|arg| arg.storage_and_layout());
        let (out_held, grad_held) = (out.storage_and_layout(), grad.storage_and_layout());
        let mut views = [View { data: &[] as &[T], dims: &[] }; N];
        for (slot, (storage, layout)) in views.iter_mut().zip(&held) {
            *slot = view(O::NAME, cpu_storage(O::NAME, storage)?, layout)?;
        }
        let out_view = view(O::NAME, cpu_storage(O::NAME, &out_held.0)?, out_held.1)?;
        let grad_view = view(O::NAME, cpu_storage(O::NAME, &grad_held.0)?, grad_held.1)?;
        let needs = args.map(Tensor::track_op);
        let grads = op.backward::<T>(views, out_view, grad_view, needs);
        let mut tensors = [const { None }; N];
        for (((slot, data), arg), needed) in tensors.iter_mut().zip(grads).zip(args).zip(needs) {
            // What nobody wants would still be added up and kept by candle.
            if let Some(data) = data.filter(|_| needed) {
                *slot = Some(Tensor::from_vec(data, arg.shape(), arg.device())?);
            }
        }
        Ok(tensors)
    }
    match args[0].dtype() {
        DType::F32 => run::<f32, O, N>(op, args, out, grad),
        DType::F64 => run::<f64, O, N>(op, args, out, grad),
        _ => candle_core::bail!("{}: only F32 and F64 are supported", O::NAME),
    }
}

pub(crate) fn cpu_storage<'a>(name: &str, storage: &'a Storage) -> Result<&'a CpuStorage> {
    match storage {
        Storage::Cpu(cpu) => Ok(cpu),
        _ => candle_core::bail!("{name}: arguments lie on different devices"),
    }
}

#[cfg(feature = "cuda")]
impl<O> Custom<O> {
    fn cuda_forward<const N: usize>(&self, args: [(&CudaStorage, &Layout); N]) -> Result<(CudaStorage, Shape)>
    where
        O: Op<N>,
    {
        crate::cuda::forward(&self.op, args, &self.kept)
    }

    fn backward<const N: usize>(
        &self,
        args: [&Tensor; N],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]>
    where
        O: Op<N>,
    {
        match args[0].device() {
            Device::Cuda(_) => crate::cuda::backward(&self.op, args, out, grad, &self.kept),
            _ => backward(&self.op, args, out, grad),
        }
    }
}

#[cfg(not(feature = "cuda"))]
impl<O> Custom<O> {
    fn backward<const N: usize>(
        &self,
        args: [&Tensor; N],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]>
    where
        O: Op<N>,
    {
        backward(&self.op, args, out, grad)
    }
}

impl<O: Op<1>> CustomOp1 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        forward(&self.op, [(s, l)])
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda_forward([(s, l)])
    }
    fn bwd(&self, arg: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.backward([arg], out, grad)?;
        Ok(a)
    }
}

impl<O: Op<2>> CustomOp2 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward(&self.op, [(s1, l1), (s2, l2)])
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda_forward([(s1, l1), (s2, l2)])
    }
    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.backward([arg1, arg2], out, grad)?;
        Ok((a, b))
    }
}

impl<O: Op<3>> CustomOp3 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward(&self.op, [(s1, l1), (s2, l2), (s3, l3)])
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda_forward([(s1, l1), (s2, l2), (s3, l3)])
    }
    fn bwd(
        &self,
        arg1: &Tensor,
        arg2: &Tensor,
        arg3: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.backward([arg1, arg2, arg3], out, grad)?;
        Ok((a, b, c))
    }
}

/// An operation as the tape keeps it.
struct Taped<O, const N: usize>(O);

impl<O: Op<N>, const N: usize> tape::Backward for Taped<O, N> {
    fn backward(&self, args: &[Tensor], out: &Tensor, grad: &Tensor) -> Result<Vec<Option<Sum>>> {
        if O::PASSES {
            return Ok((0..N).map(|_| Some(Sum::Shared(grad.clone()))).collect());
        }
        let grads = backward(&self.0, std::array::from_fn(|i| &args[i]), out, grad)?;
        Ok(grads.map(|grad| grad.map(Sum::Own)).into())
    }
}

/// A leaf of candle's graph that takes over `storage`.
pub(crate) fn leaf(storage: CpuStorage, shape: Shape, device: &Device) -> Result<Tensor> {
    let var = match storage {
        CpuStorage::F32(data) => Var::from_vec(data, shape, device)?,
        CpuStorage::F64(data) => Var::from_vec(data, shape, device)?,
        _ => candle_core::bail!("only F32 and F64 go on the tape"),
    };
    Ok(var.into_inner())
}

/// Runs `op` and writes it on the tape; its result is a leaf for candle.
fn taped<O: Op<N>, const N: usize>(op: O, args: [&Tensor; N]) -> Result<Tensor> {
    let (storage, shape) = {
        let held = args.map(|arg| arg.storage_and_layout());
        let mut storages = Vec::with_capacity(N);
        for (storage, layout) in &held {
            storages.push((cpu_storage(O::NAME, storage)?, *layout));
        }
        forward(&op, std::array::from_fn(|i| storages[i]))?
    };
    let out = leaf(storage, shape, args[0].device())?;
    tape::record(args.map(Tensor::clone).into(), out.clone(), Box::new(Taped::<O, N>(op)));
    Ok(out)
}

/// Whether to write on the tape: where there is one, on the CPU.
pub(crate) fn on_tape(arg: &Tensor) -> bool {
    tape::active() && arg.device().is_cpu()
}

/// Whether an operation on `args` will be asked for gradients.
pub(crate) fn recording(args: &[&Tensor]) -> bool {
    GRAD.get() && args.iter().any(|arg| arg.track_op())
}

pub(crate) fn apply1<O: Op<1>>(op: O, arg: &Tensor) -> Result<Tensor> {
    let arg = arg.contiguous()?;
    if !recording(&[&arg]) {
        arg.apply_op1_no_bwd(&Custom::new(op, false))
    } else if on_tape(&arg) {
        taped(op, [&arg])
    } else {
        arg.apply_op1(Custom::new(op, true))
    }
}

pub(crate) fn apply2<O: Op<2>>(op: O, arg1: &Tensor, arg2: &Tensor) -> Result<Tensor> {
    let (arg1, arg2) = (arg1.contiguous()?, arg2.contiguous()?);
    if !recording(&[&arg1, &arg2]) {
        arg1.apply_op2_no_bwd(&arg2, &Custom::new(op, false))
    } else if on_tape(&arg1) {
        taped(op, [&arg1, &arg2])
    } else {
        arg1.apply_op2(&arg2, Custom::new(op, true))
    }
}

pub(crate) fn apply3<O: Op<3>>(op: O, arg1: &Tensor, arg2: &Tensor, arg3: &Tensor) -> Result<Tensor> {
    let (arg1, arg2, arg3) = (arg1.contiguous()?, arg2.contiguous()?, arg3.contiguous()?);
    if !recording(&[&arg1, &arg2, &arg3]) {
        arg1.apply_op3_no_bwd(&arg2, &arg3, &Custom::new(op, false))
    } else if on_tape(&arg1) {
        taped(op, [&arg1, &arg2, &arg3])
    } else {
        arg1.apply_op3(&arg2, &arg3, Custom::new(op, true))
    }
}
