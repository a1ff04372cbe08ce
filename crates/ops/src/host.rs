//! Two habits of the process that slow a training step down if left alone.
#![allow(unsafe_code)]

/// Prepares the process for training on CPU. Call it first thing in `main`, before any thread exists.
///
/// - Freed memory stays in the process. A step frees and asks again for the same few megabytes hundreds of times;
///   by default each time the kernel takes the pages back and zeroes new ones.
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
    const CANDLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(CANDLE).is_none() {
        // SAFETY: called before any other thread exists (see above), so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(CANDLE, "1") };
    }
}
