//! [`Machine`] without a GPU: kernels run on the CPU, thread by thread, over guarded memory that starts as NaN.
#![allow(unsafe_code)]

use candle_core::{DType, Result, WithDType};
use efference_ops_emulation::{self as emulation, Buffer};
use half::{bf16, f16};

use super::launch::{Arg, Array, Gemm, Launch, Machine};

/// Memory of one dtype.
pub(super) enum Memory {
    U8(Buffer<u8>),
    U32(Buffer<u32>),
    F16(Buffer<f16>),
    BF16(Buffer<bf16>),
    F32(Buffer<f32>),
    F64(Buffer<f64>),
}

/// `$body` with `$buffer` as the typed memory.
macro_rules! each_memory {
    ($memory:expr, $buffer:ident => $body:expr) => {
        match $memory {
            Memory::U8($buffer) => $body,
            Memory::U32($buffer) => $body,
            Memory::F16($buffer) => $body,
            Memory::BF16($buffer) => $body,
            Memory::F32($buffer) => $body,
            Memory::F64($buffer) => $body,
        }
    };
}

impl Memory {
    /// Numbers rounded to `dtype`, behind `offset` elements of something else.
    pub fn of(dtype: DType, numbers: &[f64], offset: usize) -> Self {
        let padding = std::iter::repeat_n(f64::NAN, offset);
        let all: Vec<f64> = padding.chain(numbers.iter().copied()).collect();
        match dtype {
            DType::F16 => Memory::F16(Buffer::of(&all.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>())),
            DType::BF16 => {
                Memory::BF16(Buffer::of(&all.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>()))
            }
            DType::F32 => Memory::F32(Buffer::of(&all.iter().map(|&x| x as f32).collect::<Vec<_>>())),
            DType::F64 => Memory::F64(Buffer::of(&all)),
            other => panic!("no floats of {other:?}"),
        }
    }

    /// The content of float memory from `offset` on.
    pub fn numbers(&self, offset: usize) -> Vec<f64> {
        let all: Vec<f64> = match self {
            Memory::F16(buffer) => buffer.read().into_iter().map(f64::from).collect(),
            Memory::BF16(buffer) => buffer.read().into_iter().map(f64::from).collect(),
            Memory::F32(buffer) => buffer.read().into_iter().map(f64::from).collect(),
            Memory::F64(buffer) => buffer.read(),
            Memory::U8(_) | Memory::U32(_) => panic!("not float memory"),
        };
        all[offset..].to_vec()
    }

    pub fn dtype(&self) -> DType {
        match self {
            Memory::U8(_) => DType::U8,
            Memory::U32(_) => DType::U32,
            Memory::F16(_) => DType::F16,
            Memory::BF16(_) => DType::BF16,
            Memory::F32(_) => DType::F32,
            Memory::F64(_) => DType::F64,
        }
    }

    fn address(&self, offset: usize) -> emulation::Arg {
        each_memory!(self, buffer => emulation::Arg::Pointer(buffer.pointer().wrapping_add(offset).cast()))
    }
}

/// The CPU as a GPU.
pub(super) struct Emulated;

impl Machine for Emulated {
    type Buffer = Memory;

    fn alloc(&self, dtype: DType, len: usize) -> Result<Memory> {
        // Exactly as long as asked for, so that a kernel that writes more is caught.
        Ok(match dtype {
            DType::U8 => Memory::U8(Buffer::new(len)),
            DType::U32 => Memory::U32(Buffer::new(len)),
            DType::F16 => Memory::F16(Buffer::new(len)),
            DType::BF16 => Memory::BF16(Buffer::new(len)),
            DType::F32 => Memory::F32(Buffer::new(len)),
            DType::F64 => Memory::F64(Buffer::new(len)),
            other => candle_core::bail!("no CUDA kernel works on {other:?}"),
        })
    }

    fn upload<T: WithDType>(&self, data: &[T]) -> Result<Memory> {
        use candle_core::CpuStorage;
        Ok(match T::to_cpu_storage(data) {
            CpuStorage::U8(data) => Memory::U8(Buffer::of(&data)),
            CpuStorage::U32(data) => Memory::U32(Buffer::of(&data)),
            CpuStorage::F32(data) => Memory::F32(Buffer::of(&data)),
            other => candle_core::bail!("no upload of {other:?}"),
        })
    }

    fn launch(&self, symbol: &str, launch: Launch, args: &mut [Arg<'_, Memory>]) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let mut values: Vec<emulation::Arg> = Vec::new();
        for arg in args.iter() {
            values.push(match arg {
                Arg::In(memory, offset) => memory.address(*offset),
                Arg::Out(memory) => memory.address(0),
                Arg::OutAt(memory, offset) => memory.address(*offset),
                Arg::Same(earlier) => values[*earlier],
                Arg::Null => emulation::Arg::NULL,
                Arg::I32(x) => emulation::Arg::I32(*x),
                Arg::I64(x) => emulation::Arg::I64(*x),
                Arg::F32(x) => emulation::Arg::F32(*x),
            });
        }
        let Launch { grid, block, shared } = launch;
        // SAFETY: pointers are of living buffers; their sizes are what these tests are about, and a kernel that writes
        // past one runs into its guard zone.
        unsafe { emulation::launch(symbol, grid, [block, 1, 1], shared, &values) }
            .map_err(candle_core::Error::wrap)
    }

    fn matmul(
        &self,
        Gemm { m, n, k, left_transposed, right_transposed, add }: Gemm,
        left: Array<'_, Memory>,
        right: Array<'_, Memory>,
        (out, offset): (&mut Memory, usize),
    ) -> Result<()> {
        let (a, b) = (left.buffer.numbers(left.offset), right.buffer.numbers(right.offset));
        let left = |i: usize, p: usize| if left_transposed { a[p * m + i] } else { a[i * k + p] };
        let right = |p: usize, j: usize| if right_transposed { b[j * k + p] } else { b[p * n + j] };
        let mut all = out.numbers(0);
        assert!(all.len() >= offset + m * n, "a product of {} in memory for {}", offset + m * n, all.len());
        for (at, c) in all[offset..offset + m * n].iter_mut().enumerate() {
            let product: f64 = (0..k).map(|p| left(at / n, p) * right(p, at % n)).sum();
            *c = if add { *c + product } else { product };
        }
        *out = Memory::of(out.dtype(), &all, 0);
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}
