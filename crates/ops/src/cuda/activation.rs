//! Activations and the gated SiLU on a device.

use candle_core::Result;

use super::launch::{Arg, Array, Launch, Machine, symbol};
use super::{DeviceOp, Kept, Made};
use crate::activation::{Activate, Activation, SwiGlu};

/// The number by which kernels know an activation.
pub(super) fn kind(activation: Option<Activation>) -> i32 {
    match activation {
        Some(Activation::GeluTanh) => 0,
        Some(Activation::GeluErf) => 1,
        Some(Activation::Silu) => 2,
        Some(Activation::Relu) => 3,
        None => -1,
    }
}

impl DeviceOp<1> for Activate {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let n = x.len();
        let mut y = machine.alloc(x.dtype, n)?;
        let args = &mut [x.arg(), Arg::Out(&mut y), Arg::count(n), Arg::I32(kind(Some(self.0)))];
        machine.launch(&symbol("activation", x.dtype), Launch::each(n), args)?;
        Made::new(y, x.dims)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        _needs: [bool; 1],
        _kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 1]> {
        let n = x.len();
        let mut dx = machine.alloc(x.dtype, n)?;
        let kind = Arg::I32(kind(Some(self.0)));
        let args = &mut [x.arg(), grad.arg(), Arg::Out(&mut dx), Arg::count(n), kind];
        machine.launch(&symbol("activation_grad", x.dtype), Launch::each(n), args)?;
        Ok([Some(dx)])
    }
}

impl DeviceOp<2> for SwiGlu {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [gate, up]: [Array<'_, M::Buffer>; 2],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let n = gate.len();
        let mut out = machine.alloc(gate.dtype, n)?;
        let args = &mut [gate.arg(), up.arg(), Arg::Out(&mut out), Arg::count(n)];
        machine.launch(&symbol("swiglu", gate.dtype), Launch::each(n), args)?;
        Made::new(out, gate.dims)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [gate, up]: [Array<'_, M::Buffer>; 2],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        _needs: [bool; 2],
        _kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 2]> {
        let n = gate.len();
        let (mut dgate, mut dup) = (machine.alloc(gate.dtype, n)?, machine.alloc(gate.dtype, n)?);
        let args =
            &mut [gate.arg(), up.arg(), grad.arg(), Arg::Out(&mut dgate), Arg::Out(&mut dup), Arg::count(n)];
        machine.launch(&symbol("swiglu_grad", gate.dtype), Launch::each(n), args)?;
        Ok([Some(dgate), Some(dup)])
    }
}
