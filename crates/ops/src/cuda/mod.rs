//! The CUDA backend: how each operation runs on a device.
//!
//! An operation's arithmetic on the CPU stands in its own file; here stands which kernels (`kernels/*.cu`, described in
//! `kernels/README.md`) it launches on CUDA, with which arguments and grids. [`DeviceOp`] has the shape of
//! [`crate::op::Op`], over device memory instead of slices.

mod activation;
mod attention;
mod conv;
#[cfg(feature = "cuda")]
mod device;
mod embedding;
#[cfg(test)]
mod emulated;
#[cfg(feature = "cuda")]
mod inplace;
mod kept;
mod launch;
mod linear;
mod linear_scores;
mod norm;
mod optim;
mod rotary;
mod scores;
#[cfg(test)]
mod tests;

use candle_core::{Result, Shape};

#[cfg(feature = "cuda")]
pub(crate) use device::{backward, forward};
#[cfg(feature = "cuda")]
pub(crate) use inplace::{accumulate, adamw, scale, sum_of_squares};
pub(crate) use kept::{Kept, PerDevice};
pub(crate) use launch::{Array, Machine};

/// A result in device memory.
pub(crate) struct Made<B> {
    pub buffer: B,
    pub shape: Shape,
}

impl<B> Made<B> {
    pub fn new(buffer: B, shape: impl Into<Shape>) -> Result<Self> {
        Ok(Made { buffer, shape: shape.into() })
    }
}

/// How an operation with `N` arguments runs on a device: f32, f16 or bf16, arithmetic in f32.
///
/// An operation without kernels implements it with an empty body.
pub(crate) trait DeviceOp<const N: usize> {
    /// The result. What backward needs beside arguments and result goes into `kept`, if it is wanted.
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        args: [Array<'_, M::Buffer>; N],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let _ = (machine, args, kept);
        candle_core::bail!("there is no CUDA kernel for it yet; move its arguments to the CPU")
    }

    /// Gradients of the arguments in their dtypes, given the result and the gradient of the result. `needs[i]` says
    /// whether anybody wants the i-th.
    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        args: [Array<'_, M::Buffer>; N],
        out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; N],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; N]> {
        let _ = (machine, args, out, grad, needs, kept);
        candle_core::bail!("there is no CUDA kernel for its gradient yet; move its arguments to the CPU")
    }
}

// Without kernels: on a device a sum and its norm are two operations, and weights in half precision are what `linear`
// takes.
impl DeviceOp<2> for crate::norm::AddNorm {}
impl DeviceOp<2> for crate::residual::Add {}
impl DeviceOp<1> for crate::half_weights::LinearHalf {}
impl DeviceOp<2> for crate::half_weights::LinearHalf {}
