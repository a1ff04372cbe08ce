//! Running kernels by name.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::buffer;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A device pointer, here an address of host memory; null where the kernel allows it.
    Pointer(*mut c_void),
    /// `int`
    I32(i32),
    /// `long long`
    I64(i64),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
    /// `double`
    F64(f64),
}

impl Arg {
    /// The null pointer.
    pub const NULL: Arg = Arg::Pointer(std::ptr::null_mut());

    /// The letter of the type, as [`kernels`] lists them.
    pub fn letter(self) -> char {
        match self {
            Arg::Pointer(_) => 'p',
            Arg::I32(_) => 'i',
            Arg::I64(_) => 'l',
            Arg::U32(_) => 'u',
            Arg::F32(_) => 'f',
            Arg::F64(_) => 'd',
        }
    }

    /// The address of the value, as a launch takes it.
    fn address(&self) -> *const c_void {
        match self {
            Arg::Pointer(value) => std::ptr::from_ref(value).cast(),
            Arg::I32(value) => std::ptr::from_ref(value).cast(),
            Arg::I64(value) => std::ptr::from_ref(value).cast(),
            Arg::U32(value) => std::ptr::from_ref(value).cast(),
            Arg::F32(value) => std::ptr::from_ref(value).cast(),
            Arg::F64(value) => std::ptr::from_ref(value).cast(),
        }
    }
}

/// In which order blocks, warps and lanes run between barriers, and when asynchronous copies land. A correct kernel gives
/// the same bits in every order; one with a missing barrier or wait does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By their numbers; copies land when they are waited for.
    Forward,
    /// From the last to the first; copies land at once.
    Backward,
    /// Shuffled by a seed; copies land when they are waited for.
    Shuffled(u32),
}

/// A launch that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{symbol}`: {problem}")]
pub struct LaunchError {
    /// The kernel's name.
    pub symbol: String,
    /// What happened, with block and thread where known.
    pub problem: String,
}

unsafe extern "C" {
    fn efference_emulation_launch(
        symbol: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        arguments: *const *const c_void,
        types: *const c_char,
        schedule: u64,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn efference_emulation_kernel(i: usize, types: *mut *const c_char) -> *const c_char;
}

/// Names of all kernels and the letters of their arguments (`p` pointer, `i` i32, `l` i64, `u` u32, `f` f32, `d` f64),
/// sorted by name.
pub fn kernels() -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut types = std::ptr::null();
    // SAFETY: the function returns pointers to static strings, or null after the last kernel.
    unsafe {
        loop {
            let name = efference_emulation_kernel(all.len(), &mut types);
            if name.is_null() {
                break;
            }
            let text = |at| CStr::from_ptr(at).to_string_lossy().into_owned();
            all.push((text(name), text(types)));
        }
    }
    all.sort();
    all
}

/// Runs the kernel `symbol` to its end, with threads in [`Order::Forward`].
///
/// # Errors
/// No such kernel, arguments of other types than it takes, a launch that CUDA refuses, or a fault while it runs (see the
/// crate's front page). After a fault the outputs hold anything.
///
/// # Safety
/// Pointers must be valid for what the kernel does with them. Writes close behind a [`Buffer`] are caught afterwards,
/// others are not.
pub unsafe fn launch(
    symbol: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    args: &[Arg],
) -> Result<(), LaunchError> {
    // SAFETY: the caller's.
    unsafe { launch_in_order(symbol, grid, block, shared_bytes, args, Order::Forward) }
}

/// [`launch`] in a given order.
///
/// # Errors
/// As [`launch`].
///
/// # Safety
/// As [`launch`].
pub unsafe fn launch_in_order(
    symbol: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    args: &[Arg],
    order: Order,
) -> Result<(), LaunchError> {
    let error = |problem: String| LaunchError { symbol: symbol.to_string(), problem };
    let name = CString::new(symbol).map_err(|_| error("a name with a NUL".into()))?;
    let types = CString::new(args.iter().map(|arg| arg.letter()).collect::<String>()).unwrap_or_default();
    let addresses: Vec<*const c_void> = args.iter().map(Arg::address).collect();
    let schedule = match order {
        Order::Forward => 0,
        Order::Backward => 1,
        Order::Shuffled(seed) => u64::from(seed) + 2,
    };
    let mut message = [0u8; 512];
    // SAFETY: strings end with NUL, grid and block hold three numbers, there is one address per type letter (the callee
    // compares the letters with the kernel's before it reads any), the message's capacity is its length; the pointers
    // among the arguments are the caller's promise.
    let failed = unsafe {
        efference_emulation_launch(
            name.as_ptr(),
            grid.as_ptr(),
            block.as_ptr(),
            shared_bytes,
            addresses.as_ptr(),
            types.as_ptr(),
            schedule,
            message.as_mut_ptr().cast(),
            message.len(),
        )
    };
    if failed != 0 {
        let text = CStr::from_bytes_until_nul(&message).unwrap_or_default();
        return Err(error(text.to_string_lossy().into_owned()));
    }
    for (i, arg) in args.iter().enumerate() {
        if let Arg::Pointer(at) = arg
            && let Some(problem) = buffer::damage(*at as usize)
        {
            return Err(error(format!("argument {i}: {problem}")));
        }
    }
    Ok(())
}
