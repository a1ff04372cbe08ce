//! How much memory the process has in use, and had at most.
//!
//! candle's CPU tensors are plain vectors, so an allocator that counts sees all of them. The system's own figure does
//! not serve: [`crate::host::prepare`] keeps freed memory in the process, so that its size never falls, and what it was
//! at most says nothing about the step that is running.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Smaller blocks are not counted: the many little ones then cost nothing, and together they are small beside tensors.
pub const SMALLEST_COUNTED: usize = 4096;

static COUNTING: AtomicBool = AtomicBool::new(false);
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting the bytes of blocks of [`SMALLEST_COUNTED`] bytes and more. A program installs it:
///
/// ```
/// use efference_ops::memory::CountingAllocator;
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;
///
/// fn main() {
///     let before = efference_ops::memory::current_bytes().unwrap();
///     let tensor = vec![0u8; 1 << 20];
///     assert_eq!(efference_ops::memory::current_bytes().unwrap() - before, tensor.len());
/// }
/// ```
///
/// What C libraries allocate (a simulator, a driver) is not seen.
pub struct CountingAllocator;

fn grow(bytes: usize) {
    // Written once: the line stays shared by all cores.
    if !COUNTING.load(Relaxed) {
        COUNTING.store(true, Relaxed);
    }
    if bytes >= SMALLEST_COUNTED {
        let now = CURRENT.fetch_add(bytes, Relaxed) + bytes;
        if now > PEAK.load(Relaxed) {
            PEAK.fetch_max(now, Relaxed);
        }
    }
}

fn shrink(bytes: usize) {
    if bytes >= SMALLEST_COUNTED {
        CURRENT.fetch_sub(bytes, Relaxed);
    }
}

// SAFETY: every call is handed on to the system's allocator unchanged; the counters are plain atomics and allocate
// nothing themselves.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `GlobalAlloc`'s contract, which is the system allocator's.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            grow(layout.size());
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            grow(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let moved = unsafe { System.realloc(block, layout, new_size) };
        if !moved.is_null() {
            shrink(layout.size());
            grow(new_size);
        }
        moved
    }
}

/// Bytes in use now, blocks below [`SMALLEST_COUNTED`] left out; `None` if [`CountingAllocator`] is not installed.
pub fn current_bytes() -> Option<usize> {
    COUNTING.load(Relaxed).then(|| CURRENT.load(Relaxed))
}

/// Most bytes in use since [`reset_peak`], or since the start; `None` if [`CountingAllocator`] is not installed.
pub fn peak_bytes() -> Option<usize> {
    COUNTING.load(Relaxed).then(|| PEAK.load(Relaxed).max(CURRENT.load(Relaxed)))
}

/// Starts a new measurement of [`peak_bytes`]. While other threads allocate, a block may be counted for either side.
pub fn reset_peak() {
    PEAK.store(CURRENT.load(Relaxed), Relaxed);
}
