//! The little that an operation needs from a device: memory, kernel launches, matrix products.
//!
//! [`Machine`] has two implementations: the real one over cudarc (`device.rs`), and, for tests on machines without a
//! GPU, one that runs the same kernels on the CPU (`emulated.rs`). What an operation passes to a kernel is therefore
//! tested wherever the tests run.

use candle_core::{DType, Result, WithDType};

/// A contiguous tensor on a device.
pub(crate) struct Array<'a, B> {
    pub buffer: &'a B,
    /// Where it starts, in elements.
    pub offset: usize,
    pub dims: &'a [usize],
    pub dtype: DType,
}

impl<B> Clone for Array<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Array<'_, B> {}

impl<'a, B> Array<'a, B> {
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Size of the last axis.
    pub fn width(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// What all axes but the last hold together.
    pub fn rows(&self) -> usize {
        self.dims.iter().rev().skip(1).product()
    }

    /// As a kernel's input.
    pub fn arg<'b>(&self) -> Arg<'b, B>
    where
        'a: 'b,
    {
        Arg::In(self.buffer, self.offset)
    }
}

/// What a kernel is given, in the order of its parameters.
pub(crate) enum Arg<'a, B> {
    /// Memory that is read, from an element on.
    In(&'a B, usize),
    /// Memory that is written, or read and written.
    Out(&'a mut B),
    /// As `Out`, from an element on.
    OutAt(&'a mut B, usize),
    /// The same address as an earlier argument.
    Same(usize),
    Null,
    I32(i32),
    I64(i64),
    F32(f32),
}

impl<'a, B> Arg<'a, B> {
    /// Memory that is read, or a null pointer.
    pub fn maybe(buffer: Option<&'a B>) -> Self {
        buffer.map_or(Arg::Null, |buffer| Arg::In(buffer, 0))
    }

    /// Memory that is written, or a null pointer.
    pub fn maybe_out(buffer: Option<&'a mut B>) -> Self {
        buffer.map_or(Arg::Null, Arg::Out)
    }

    /// A count of rows or elements.
    pub fn count(n: usize) -> Self {
        Arg::I64(i64::try_from(n).unwrap_or(i64::MAX))
    }

    /// A size that a kernel takes as 32 bits.
    pub fn size(n: usize) -> Result<Self> {
        Ok(Arg::I32(int(n)?))
    }
}

/// A size as 32 bits.
pub(crate) fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("{n} is too large for a CUDA kernel")))
}

/// A size as an axis of a grid.
pub(crate) fn axis(n: usize) -> Result<u32> {
    Ok(int(n)? as u32)
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    pub fn new(grid: [u32; 3], block: u32) -> Self {
        Launch { grid, block, shared: 0 }
    }

    /// For kernels that stride over `n` elements, about eight to a thread.
    pub fn each(n: usize) -> Self {
        let blocks = n.div_ceil(2048).min(65_535) as u32;
        Launch::new([blocks, 1, 1], 256)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// c [m, n] = left [m, k] right [k, n], all row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The left factor lies in memory as [k, m].
    pub left_transposed: bool,
    /// The right factor lies in memory as [n, k].
    pub right_transposed: bool,
    /// Whether the product is added to what `c` holds.
    pub add: bool,
}

/// Where kernels run.
pub(crate) trait Machine {
    /// Memory of one dtype.
    type Buffer: Send + Sync + 'static;

    /// Memory for `len` elements (one at least), with anything in it.
    fn alloc(&self, dtype: DType, len: usize) -> Result<Self::Buffer>;

    /// A copy of host memory.
    fn upload<T: WithDType>(&self, data: &[T]) -> Result<Self::Buffer>;

    /// Runs a kernel; nothing happens when the grid is empty. `args` are the kernel's parameters.
    fn launch(&self, symbol: &str, launch: Launch, args: &mut [Arg<'_, Self::Buffer>]) -> Result<()>;

    /// A matrix product with f32 sums, rounded once to the dtype of `out` (that of the factors, or f32); it is written
    /// from an element of `out` on.
    fn matmul(
        &self,
        gemm: Gemm,
        left: Array<'_, Self::Buffer>,
        right: Array<'_, Self::Buffer>,
        out: (&mut Self::Buffer, usize),
    ) -> Result<()>;

    /// Distinguishes devices, for what is kept on each.
    fn id(&self) -> u64;

    /// Memory for `len` numbers, all 0.
    fn zeros(&self, dtype: DType, len: usize) -> Result<Self::Buffer> {
        let mut buffer = self.alloc(dtype, len)?;
        let args = &mut [Arg::Out(&mut buffer), Arg::count(len), Arg::F32(0.0)];
        self.launch(&symbol("fill", dtype), Launch::each(len), args)?;
        Ok(buffer)
    }
}

/// NAME_TYPE
pub(crate) fn symbol(name: &str, dtype: DType) -> String {
    format!("{name}_{}", dtype.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids() {
        assert!(Launch::each(0).is_empty());
        assert_eq!(Launch::each(1).grid, [1, 1, 1]);
        assert_eq!(Launch::each(2049).grid, [2, 1, 1]);
        assert_eq!(Launch::each(1 << 40).grid, [65_535, 1, 1]);
        assert!(int(1 << 31).is_err() && int((1 << 31) - 1).is_ok());
        assert_eq!(symbol("fill", DType::BF16), "fill_bf16");
    }
}
