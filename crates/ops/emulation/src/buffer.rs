//! "Device" memory with guard zones.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::{bf16, f16};

use crate::Arg;

/// Bytes before and after the content that must keep their value.
const GUARD: usize = 256;
/// What guards and fresh memory hold: NaN in every float type.
const POISON: u8 = 0xff;

/// Address of the content and its length, of all living buffers.
static LIVING: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn living() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tensors hold: every bit pattern is a value.
pub trait Element: Copy + 'static {}
impl Element for f32 {}
impl Element for f64 {}
impl Element for f16 {}
impl Element for bf16 {}
impl Element for u8 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for i32 {}
impl Element for i64 {}

/// Memory for `len` elements, 256-byte aligned as CUDA's allocations are, filled with NaN until written, between guard
/// zones that [`crate::launch`] checks.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    start: *mut u8,
    offset: usize,
    len: usize,
    layout: Layout,
    element: PhantomData<T>,
}

// SAFETY: the buffer owns its memory alone; what it hands out are copies and raw addresses.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Element> Sync for Buffer<T> {}

impl<T: Element> Buffer<T> {
    /// Room for `len` elements.
    pub fn new(len: usize) -> Self {
        Self::misaligned(len, 0)
    }

    /// Room for `len` elements that begins `offset` elements after an aligned address, as a view into a tensor does.
    ///
    /// # Panics
    /// Where memory ends.
    pub fn misaligned(len: usize, offset: usize) -> Self {
        let bytes = (len + offset) * size_of::<T>();
        let layout =
            Layout::from_size_align(bytes + 2 * GUARD, GUARD).unwrap_or(Layout::new::<[u8; GUARD]>());
        assert_eq!(layout.size(), bytes + 2 * GUARD, "a size that fits the address space");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: `start` is valid for the whole layout.
        unsafe { start.write_bytes(POISON, layout.size()) };
        let buffer = Self { start, offset, len, layout, element: PhantomData };
        living().insert(buffer.pointer() as usize, len * size_of::<T>());
        buffer
    }

    /// A copy of `data`.
    pub fn of(data: &[T]) -> Self {
        Self::misaligned_of(data, 0)
    }

    /// A copy of `data` that begins `offset` elements after an aligned address.
    pub fn misaligned_of(data: &[T], offset: usize) -> Self {
        let buffer = Self::misaligned(data.len(), offset);
        // SAFETY: the content has room for `len` elements and no one else knows it yet.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.pointer(), data.len()) };
        buffer
    }

    /// The content.
    pub fn read(&self) -> Vec<T> {
        // SAFETY: all `len` elements are initialised, with poison at least, and every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }.to_vec()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first element.
    pub fn pointer(&self) -> *mut T {
        // SAFETY: inside the allocation, by its size; aligned, as guards and offset are whole elements.
        unsafe { self.start.add(GUARD).cast::<T>().add(self.offset) }
    }

    /// The buffer as an argument.
    pub fn arg(&self) -> Arg {
        Arg::Pointer(self.pointer().cast::<c_void>())
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        living().remove(&(self.pointer() as usize));
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// What is wrong with the guards of the buffer that holds `address`, if it is one of ours.
pub(crate) fn damage(address: usize) -> Option<String> {
    let living = living();
    let (&start, &len) = living.range(..=address).next_back()?;
    if address > start + len {
        return None;
    }
    let intact = |from: usize| {
        // SAFETY: living buffers have guards of this size on both sides of their content, and none can be dropped while
        // the list is locked. A view that begins later has a longer guard in front.
        let guard = unsafe { std::slice::from_raw_parts(from as *const u8, GUARD) };
        guard.iter().all(|&byte| byte == POISON)
    };
    match (intact(start - GUARD), intact(start + len)) {
        (true, true) => None,
        (false, _) => Some("a write before the buffer".into()),
        (true, false) => Some(format!("a write behind the buffer of {len} bytes")),
    }
}
