//! Habits of the process that slow a training step down if left alone.
#![allow(unsafe_code)]

/// Prepares the process for training on CPU. Call it first thing in `main`, before any thread exists.
///
/// - Freed memory stays in the process. A step frees and asks again for the same few megabytes hundreds of times;
///   by default each time the kernel takes the pages back and zeroes new ones.
/// - The heap uses huge pages where the kernel has them.
/// - candle's element-wise loops run on the calling thread. Its own pool waits by spinning, which takes the cores away
///   from the threads that compute. Our operations use rayon's pool and are not concerned.
///
/// `CANDLE_NUM_THREADS` is left alone if it is set, and so is another allocator if one is linked.
pub fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator; invalid ones are refused by its return value.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    use_huge_pages();
    const CANDLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(CANDLE).is_none() {
        // SAFETY: called before any other thread exists (see above), so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(CANDLE, "1") };
    }
}

/// Asks for pages of 2 MiB for the memory that `malloc` will hand out: with small ones every row of a matrix lies on a
/// page of its own, and looking pages up is a good part of reading them.
///
/// The heap grows by a block nobody has touched yet, which costs nothing, is marked, and goes back to `malloc`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn use_huge_pages() {
    const PAGE: usize = 2 << 20;
    // SAFETY: plain queries of the system.
    let memory =
        unsafe { libc::sysconf(libc::_SC_AVPHYS_PAGES).max(0) * libc::sysconf(libc::_SC_PAGESIZE).max(0) };
    // Beyond 2 GiB, the most that M_TRIM_THRESHOLD can say, `malloc` would give the block back to the system.
    let size = (memory as usize / 2).min(7 << 28) / PAGE * PAGE;
    // SAFETY: the block is ours until it is freed; `madvise` only changes how its pages are made. Without the memory
    // (`malloc` gives null) or without huge pages in the kernel nothing happens.
    unsafe {
        let block = libc::malloc(size);
        if !block.is_null() {
            let first = (block as usize).next_multiple_of(PAGE);
            let end = (block as usize + size) / PAGE * PAGE;
            libc::madvise(first as *mut libc::c_void, end.saturating_sub(first), libc::MADV_HUGEPAGE);
            libc::free(block);
        }
    }
}
