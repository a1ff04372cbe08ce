//! Rotary position embedding on a device.

use candle_core::Result;

use super::launch::{Arg, Array, Launch, Machine, symbol};
use super::{DeviceOp, Kept, Made};
use crate::rotary::Rotate;

impl Rotate {
    fn device_turn<M: Machine>(
        &self,
        machine: &M,
        x: Array<'_, M::Buffer>,
        dims: &[usize],
        inverse: bool,
    ) -> Result<M::Buffer> {
        let &[b, heads, tokens, width] = dims else { candle_core::bail!("x must be [B, H, T, Dh]") };
        let (rows, half) = (b * heads * tokens, width / 2);
        let table = self.table.device.get(machine, || {
            let single = |table: &[f64]| table.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            Ok((machine.upload(&single(&self.table.cos))?, machine.upload(&single(&self.table.sin))?))
        })?;
        let (cos, sin): &(M::Buffer, M::Buffer) = &table;
        let mut out = machine.alloc(x.dtype, rows * width)?;
        let args = &mut [
            x.arg(),
            Arg::In(cos, 0),
            Arg::In(sin, 0),
            Arg::Null,
            Arg::Out(&mut out),
            Arg::count(rows),
            Arg::size(heads)?,
            Arg::size(tokens)?,
            Arg::size(half)?,
            Arg::I32(0),
            Arg::size(self.offset)?,
            Arg::I32(inverse.into()),
        ];
        machine.launch(&symbol("rotary", x.dtype), Launch::each(rows * half), args)?;
        Ok(out)
    }
}

impl DeviceOp<1> for Rotate {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        Made::new(self.device_turn(machine, x, x.dims, false)?, x.dims)
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
        Ok([Some(self.device_turn(machine, grad, x.dims, true)?)])
    }
}
