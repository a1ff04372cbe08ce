//! Worker threads that draw.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// The process's pool of `threads` workers; 0 takes one per core. Made on first use and never taken down: workers own
/// drawing contexts, and a thread that ends while the process exits frees its context at the same time as libEGL tidies
/// up, which crashes the process after its work is done (seen with Mesa 22.3 in one of ten exits).
///
/// # Errors
/// [`Error::Threads`] when the threads cannot be started.
pub fn pool(threads: usize) -> Result<&'static rayon::ThreadPool> {
    static POOLS: Mutex<BTreeMap<usize, &'static rayon::ThreadPool>> = Mutex::new(BTreeMap::new());
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads) {
        return Ok(pool);
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("worker-{i}"))
        .build()
        .map_err(|source| Error::Threads { threads, source })?;
    let pool: &'static rayon::ThreadPool = Box::leak(Box::new(pool));
    pools.insert(threads, pool);
    Ok(pool)
}
