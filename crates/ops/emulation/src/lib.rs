//! The CUDA kernels of `efference-ops` on the CPU.
//!
//! `crates/ops/kernels/*.cu` compile as C++ against an emulation of CUDA in which every thread of a block is a fiber:
//! barriers, shuffles, asynchronous copies and tensor-core products really synchronise. [`launch`] runs a kernel by
//! name on host memory. It fails on a barrier that not all threads reach, a warp operation with absent lanes, writes
//! outside shared memory or outside a [`Buffer`], arguments of the wrong type, and launches that CUDA would refuse.
//! What it cannot show: speed, and whether the device compiler keeps the meaning.
// The kernels are foreign code on raw memory.
#![allow(unsafe_code)]

mod buffer;
mod launch;

pub use buffer::{Buffer, Element};
pub use launch::{Arg, LaunchError, Order, kernels, launch, launch_in_order};
