//! Numbers of tensors, read and changed where they lie.

use std::cell::RefCell;
use std::marker::PhantomData;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, WithDType};

/// Elements per task, and per partial sum of a norm.
pub(super) const CHUNK: usize = 1 << 14;

/// A number type whose values in a CPU tensor can be changed.
pub(super) trait Element: WithDType {
    /// `None` if the storage holds another type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! element {
    ($number:ty, $variant:ident) => {
        impl Element for $number {
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(data) => Some(data),
                    _ => None,
                }
            }
        }
    };
}
element!(f32, F32);
element!(f64, F64);
element!(u8, U8);

/// The numbers of a contiguous piece of CPU memory.
pub(super) fn slice_mut<'a, T: Element>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    match (layout.contiguous_offsets(), T::slice_mut(storage)) {
        (Some((start, end)), Some(data)) => Ok(&mut data[start..end]),
        (None, _) => candle_core::bail!("expected a contiguous tensor"),
        (_, None) => candle_core::bail!("expected a tensor of {:?}", T::DTYPE),
    }
}

/// Calls `f` with the numbers of a contiguous CPU tensor.
pub(super) fn read<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(data), Some((start, end))) => Ok(f(&T::cpu_storage_as_slice(data)?[start..end])),
        _ => candle_core::bail!("expected a contiguous tensor on the CPU"),
    }
}

/// Calls `f` with the numbers of a contiguous CPU tensor, to change them. Every tensor that shares the memory follows.
pub(super) fn change<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&mut [T]) -> R) -> Result<R> {
    /// The function and its result; candle hands operations out by shared reference.
    struct Change<T, F, R>(RefCell<Option<F>>, RefCell<Option<R>>, PhantomData<fn() -> T>);
    impl<T: Element, R, F: FnOnce(&mut [T]) -> R> InplaceOp1 for Change<T, F, R> {
        fn name(&self) -> &'static str {
            "change"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let data = slice_mut(storage, layout)?;
            *self.1.borrow_mut() = self.0.take().map(|f| f(data));
            Ok(())
        }
    }
    let op = Change(RefCell::new(Some(f)), RefCell::new(None), PhantomData);
    tensor.inplace_op1(&op)?;
    match op.1.into_inner() {
        Some(result) => Ok(result),
        None => candle_core::bail!("expected a tensor on the CPU"),
    }
}
