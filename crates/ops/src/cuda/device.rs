//! [`Machine`] on a GPU, through the cudarc that candle uses.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys as cublas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg,
    SyncOnDrop, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::Kept;
use super::launch::{Arg, Array, Gemm, Launch, Machine, int};
use crate::op::Op;

/// One source file of kernels, compiled.
struct Module {
    name: &'static str,
    /// For compute capability 8.0 and above; the driver compiles it once and keeps the result.
    ptx: &'static str,
    /// Machine code for compute capability 9.0.
    cubin: &'static [u8],
    kernels: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Modules and kernels of every device, loaded when first used.
#[derive(Default)]
struct Loaded {
    modules: HashMap<(u64, &'static str), Arc<CudaModule>>,
    kernels: HashMap<(u64, &'static str), CudaFunction>,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// A GPU.
pub(crate) struct Cuda {
    device: CudaDevice,
    stream: Arc<CudaStream>,
}

impl Cuda {
    pub fn new(device: &CudaDevice) -> Self {
        Cuda { device: device.clone(), stream: device.cuda_stream() }
    }

    fn kernel(&self, symbol: &str) -> Result<CudaFunction> {
        let found = MODULES.iter().find_map(|module| {
            module.kernels.iter().find(|&&name| name == symbol).map(|&name| (module, name))
        });
        let Some((module, name)) = found else {
            candle_core::bail!("this executable has no CUDA kernel `{symbol}`")
        };
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        let id = self.id();
        if let Some(kernel) = loaded.kernels.get(&(id, name)) {
            return Ok(kernel.clone());
        }
        let code = match loaded.modules.get(&(id, module.name)) {
            Some(code) => Arc::clone(code),
            None => {
                let context = self.stream.context();
                let (major, _) = context.compute_capability().w()?;
                let image = match major {
                    9 => Ptx::from_binary(module.cubin.to_vec()),
                    _ => Ptx::from_src(module.ptx),
                };
                let code = context.load_module(image).w()?;
                loaded.modules.insert((id, module.name), Arc::clone(&code));
                code
            }
        };
        let kernel = code.load_function(name).w()?;
        loaded.kernels.insert((id, name), kernel.clone());
        Ok(kernel)
    }
}

/// `$body` with `$slice` as the typed memory of a storage, whatever its type.
macro_rules! each_slice {
    ($storage:expr, $slice:ident => $body:expr) => {
        match $storage {
            CudaStorageSlice::U8($slice) => $body,
            CudaStorageSlice::U32($slice) => $body,
            CudaStorageSlice::I64($slice) => $body,
            CudaStorageSlice::F16($slice) => $body,
            CudaStorageSlice::BF16($slice) => $body,
            CudaStorageSlice::F32($slice) => $body,
            CudaStorageSlice::F64($slice) => $body,
            _ => candle_core::bail!("a CUDA kernel was given memory of a type it cannot take"),
        }
    };
}

/// An address, and what must live until the work that uses it has been queued.
type Pointer<'a> = (sys::CUdeviceptr, SyncOnDrop<'a>);

fn read<'a>(storage: &'a CudaStorage, offset: usize, stream: &'a CudaStream) -> Result<Pointer<'a>> {
    fn at<'a, T>(slice: &'a CudaSlice<T>, offset: usize, stream: &'a CudaStream) -> Pointer<'a> {
        let (start, guard) = slice.device_ptr(stream);
        (start + (offset * size_of::<T>()) as u64, guard)
    }
    Ok(each_slice!(&storage.slice, slice => at(slice, offset, stream)))
}

fn write<'a>(storage: &'a mut CudaStorage, offset: usize, stream: &'a CudaStream) -> Result<Pointer<'a>> {
    fn at<'a, T>(slice: &'a mut CudaSlice<T>, offset: usize, stream: &'a CudaStream) -> Pointer<'a> {
        let (start, guard) = slice.device_ptr_mut(stream);
        (start + (offset * size_of::<T>()) as u64, guard)
    }
    Ok(each_slice!(&mut storage.slice, slice => at(slice, offset, stream)))
}

/// A parameter as it is handed to the driver.
#[derive(Clone, Copy)]
enum Value {
    Address(u64),
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Machine for Cuda {
    type Buffer = CudaStorage;

    fn alloc(&self, dtype: DType, len: usize) -> Result<CudaStorage> {
        let (device, len) = (&self.device, len.max(1));
        // SAFETY: the memory holds anything at first; plain numbers have no invalid values, and kernels write whole
        // outputs before anybody reads them.
        let slice = unsafe {
            match dtype {
                DType::U8 => CudaStorageSlice::U8(device.alloc(len)?),
                DType::U32 => CudaStorageSlice::U32(device.alloc(len)?),
                DType::F16 => CudaStorageSlice::F16(device.alloc::<f16>(len)?),
                DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(len)?),
                DType::F32 => CudaStorageSlice::F32(device.alloc(len)?),
                DType::F64 => CudaStorageSlice::F64(device.alloc(len)?),
                other => candle_core::bail!("no CUDA kernel works on {other:?}"),
            }
        };
        Ok(CudaStorage { slice, device: device.clone() })
    }

    fn upload<T: WithDType>(&self, data: &[T]) -> Result<CudaStorage> {
        use candle_core::backend::BackendDevice;
        if data.is_empty() {
            return self.alloc(T::DTYPE, 1);
        }
        let storage: CpuStorage = T::to_cpu_storage(data);
        self.device.storage_from_cpu_storage(&storage)
    }

    fn launch(&self, symbol: &str, launch: Launch, args: &mut [Arg<'_, CudaStorage>]) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let kernel = self.kernel(symbol)?;
        if launch.shared > 48 << 10 {
            let limit = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel.set_attribute(limit, int(launch.shared as usize)?).w()?;
        }
        let mut guards = Vec::with_capacity(args.len());
        let mut values: Vec<Value> = Vec::with_capacity(args.len());
        for arg in args.iter_mut() {
            let pointer = match arg {
                Arg::In(buffer, offset) => read(buffer, *offset, &self.stream)?,
                Arg::Out(buffer) => write(buffer, 0, &self.stream)?,
                Arg::OutAt(buffer, offset) => write(buffer, *offset, &self.stream)?,
                plain => {
                    values.push(match *plain {
                        Arg::Same(earlier) => values[earlier],
                        Arg::I32(x) => Value::I32(x),
                        Arg::I64(x) => Value::I64(x),
                        Arg::F32(x) => Value::F32(x),
                        _ => Value::Address(0),
                    });
                    continue;
                }
            };
            values.push(Value::Address(pointer.0));
            guards.push(pointer.1);
        }
        let mut builder = self.stream.launch_builder(&kernel);
        for value in &values {
            match value {
                Value::Address(x) => builder.arg(x),
                Value::I32(x) => builder.arg(x),
                Value::I64(x) => builder.arg(x),
                Value::F32(x) => builder.arg(x),
            };
        }
        let Launch { grid: [x, y, z], block, shared } = launch;
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (block, 1, 1), shared_mem_bytes: shared };
        // SAFETY: the arguments are those of the kernel's table in `kernels/README.md`, in number, order and type; that
        // their memory is large enough is checked by the tests, which run the same calls over guarded host memory.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    fn matmul(
        &self,
        Gemm { m, n, k, left_transposed, right_transposed, add }: Gemm,
        left: Array<'_, CudaStorage>,
        right: Array<'_, CudaStorage>,
        (out, offset): (&mut CudaStorage, usize),
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;
        use cublas::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        if m == 0 || n == 0 {
            return Ok(());
        }
        let kind = |dtype: DType| {
            Ok(match dtype {
                DType::F32 => cublas::cudaDataType::CUDA_R_32F,
                DType::F16 => cublas::cudaDataType::CUDA_R_16F,
                DType::BF16 => cublas::cudaDataType::CUDA_R_16BF,
                other => candle_core::bail!("no matrix product of {other:?} on CUDA"),
            })
        };
        let (factors, result) = (kind(left.dtype)?, kind(out.dtype())?);
        // cuBLAS counts in columns: what it sees of a row-major matrix is its transpose. So c^T = right^T left^T.
        let (op_right, row_right) = if right_transposed { (CUBLAS_OP_T, k) } else { (CUBLAS_OP_N, n) };
        let (op_left, row_left) = if left_transposed { (CUBLAS_OP_T, m) } else { (CUBLAS_OP_N, k) };
        let blas = self.device.cublas_handle();
        let (a, _a) = read(right.buffer, right.offset, &self.stream)?;
        let (b, _b) = read(left.buffer, left.offset, &self.stream)?;
        let (c, _c) = write(out, offset, &self.stream)?;
        let (one, before) = (1f32, if add { 1f32 } else { 0.0 });
        // SAFETY: the handle is the device's; the three matrices lie in memory of their sizes on this device, which the
        // guards keep until the product is queued; the factors are f32 as CUBLAS_COMPUTE_32F asks.
        unsafe {
            gemm_ex(
                *blas.handle(),
                op_right,
                op_left,
                int(n)?,
                int(m)?,
                int(k)?,
                (&raw const one).cast(),
                a as *const _,
                factors,
                int(row_right.max(1))?,
                b as *const _,
                factors,
                int(row_left.max(1))?,
                (&raw const before).cast(),
                c as *mut _,
                result,
                int(n)?,
                cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()?;
        Ok(())
    }

    fn id(&self) -> u64 {
        // Streams and contexts are one per device; a device that candle opens again has the same ordinal.
        self.stream.context().ordinal() as u64
    }
}

/// An argument of a custom operation.
pub(crate) fn array<'a>(
    name: &str,
    storage: &'a CudaStorage,
    layout: &'a Layout,
) -> Result<Array<'a, CudaStorage>> {
    use candle_core::backend::BackendStorage;
    match layout.contiguous_offsets() {
        Some((offset, _)) => {
            Ok(Array { buffer: storage, offset, dims: layout.dims(), dtype: storage.dtype() })
        }
        None => candle_core::bail!("{name}: argument is not contiguous"),
    }
}

fn named(name: &str) -> impl FnOnce(candle_core::Error) -> candle_core::Error + '_ {
    move |error| error.context(format!("{name} on CUDA"))
}

/// An operation's forward pass, for `CustomOp::cuda_fwd`.
pub(crate) fn forward<O: Op<N>, const N: usize>(
    op: &O,
    args: [(&CudaStorage, &Layout); N],
    kept: &Kept,
) -> Result<(CudaStorage, Shape)> {
    let machine = Cuda::new(&args[0].0.device);
    let mut arrays = Vec::with_capacity(N);
    for (storage, layout) in args {
        arrays.push(array(O::NAME, storage, layout)?);
    }
    let Ok(arrays) = arrays.try_into() else { candle_core::bail!("{}: {N} arguments", O::NAME) };
    let made = op.device_forward(&machine, arrays, kept).map_err(named(O::NAME))?;
    Ok((made.buffer, made.shape))
}

/// An operation's backward pass, for `CustomOp::bwd`.
pub(crate) fn backward<O: Op<N>, const N: usize>(
    op: &O,
    args: [&Tensor; N],
    out: &Tensor,
    grad: &Tensor,
    kept: &Kept,
) -> Result<[Option<Tensor>; N]> {
    let Device::Cuda(device) = args[0].device() else {
        candle_core::bail!("{}: arguments lie on different devices", O::NAME)
    };
    let machine = Cuda::new(device);
    let grad = grad.contiguous()?;
    let held = args.map(|arg| arg.storage_and_layout());
    let (out_held, grad_held) = (out.storage_and_layout(), grad.storage_and_layout());
    let mut arrays = Vec::with_capacity(N);
    for (storage, layout) in &held {
        arrays.push(array(O::NAME, cuda_storage(O::NAME, storage)?, layout)?);
    }
    let Ok(arrays) = arrays.try_into() else { candle_core::bail!("{}: {N} arguments", O::NAME) };
    let out = array(O::NAME, cuda_storage(O::NAME, &out_held.0)?, out_held.1)?;
    let grad = array(O::NAME, cuda_storage(O::NAME, &grad_held.0)?, grad_held.1)?;
    let needs = args.map(Tensor::track_op);
    let grads = op.device_backward(&machine, arrays, out, grad, needs, kept).map_err(named(O::NAME))?;
    let mut tensors = [const { None }; N];
    for ((slot, buffer), arg) in tensors.iter_mut().zip(grads).zip(args) {
        *slot = buffer.map(|buffer| {
            Tensor::from_storage(Storage::Cuda(buffer), arg.shape(), BackpropOp::none(), false)
        });
    }
    Ok(tensors)
}

fn cuda_storage<'a>(name: &str, storage: &'a Storage) -> Result<&'a CudaStorage> {
    match storage {
        Storage::Cuda(cuda) => Ok(cuda),
        _ => candle_core::bail!("{name}: arguments lie on different devices"),
    }
}

#[cfg(test)]
mod tests {
    use super::MODULES;

    #[test]
    fn what_nvcc_compiled_is_what_the_emulation_runs() {
        let mut here: Vec<&str> = MODULES.iter().flat_map(|module| module.kernels.iter().copied()).collect();
        here.sort_unstable();
        // Beside them the emulation has kernels that are wrong on purpose, for its own tests.
        let emulated = efference_ops_emulation::kernels();
        let emulated =
            emulated.iter().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with("fault_"));
        assert_eq!(here, emulated.collect::<Vec<_>>());
        assert!(MODULES.iter().all(|module| !module.cubin.is_empty()));
    }
}
