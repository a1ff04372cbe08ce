//! Rotary position embedding on a device.

use candle_core::Result;

use super::launch::{Arg, Array, Launch, Machine, symbol};
use super::{DeviceOp, Kept, Made, PerDevice};
use crate::rotary::Rotate;
use crate::rotary_axes::{Pairs, Turn};

/// Which row of a table of cosines and sines a token reads.
#[derive(Clone, Copy)]
struct Rows {
    /// From one sample to the next: 0 when all read the same.
    batch_stride: usize,
    /// Of the first token.
    offset: usize,
}

/// Turns `x` [B, H, T, Dh], whose shape is `dims`, by the angles of `table`, or back.
fn turn<M: Machine>(
    machine: &M,
    x: Array<'_, M::Buffer>,
    dims: &[usize],
    (device, cos, sin): (&PerDevice, &[f64], &[f64]),
    (pairs, rows): (Pairs, Rows),
    inverse: bool,
) -> Result<M::Buffer> {
    let &[b, heads, tokens, width] = dims else { candle_core::bail!("x must be [B, H, T, Dh]") };
    let (lines, half) = (b * heads * tokens, width / 2);
    let table = device.get(machine, || {
        let single = |table: &[f64]| table.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        Ok((machine.upload(&single(cos))?, machine.upload(&single(sin))?))
    })?;
    let (cos, sin): &(M::Buffer, M::Buffer) = &table;
    let mut out = machine.alloc(x.dtype, lines * width)?;
    let mut args = vec![x.arg(), Arg::In(cos, 0), Arg::In(sin, 0)];
    if pairs == Pairs::Halves {
        args.push(Arg::Null);
    }
    args.extend([Arg::Out(&mut out), Arg::count(lines)]);
    args.extend([Arg::size(heads)?, Arg::size(tokens)?, Arg::size(half)?, Arg::size(rows.batch_stride)?]);
    let name = match pairs {
        Pairs::Halves => {
            args.push(Arg::size(rows.offset)?);
            "rotary"
        }
        Pairs::Neighbours => "rotary_pairs",
    };
    args.push(Arg::I32(inverse.into()));
    machine.launch(&symbol(name, x.dtype), Launch::each(lines * half), &mut args)?;
    drop(args);
    Ok(out)
}

impl Rotate {
    fn turn_on<M: Machine>(
        &self,
        machine: &M,
        x: Array<'_, M::Buffer>,
        dims: &[usize],
        inverse: bool,
    ) -> Result<M::Buffer> {
        let table = (&self.table.device, self.table.cos.as_slice(), self.table.sin.as_slice());
        let rows = Rows { batch_stride: 0, offset: self.offset };
        turn(machine, x, dims, table, (Pairs::Halves, rows), inverse)
    }
}

impl Turn {
    fn turn_on<M: Machine>(
        &self,
        machine: &M,
        x: Array<'_, M::Buffer>,
        dims: &[usize],
        inverse: bool,
    ) -> Result<M::Buffer> {
        let angles = &self.0;
        let batch_stride = if angles.batch == 1 { 0 } else { dims[2] };
        let table = (&angles.device, angles.cos.as_slice(), angles.sin.as_slice());
        turn(machine, x, dims, table, (angles.pairs, Rows { batch_stride, offset: 0 }), inverse)
    }
}

impl DeviceOp<1> for Rotate {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        Made::new(self.turn_on(machine, x, x.dims, false)?, x.dims)
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
        Ok([Some(self.turn_on(machine, grad, x.dims, true)?)])
    }
}

impl DeviceOp<1> for Turn {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        Made::new(self.turn_on(machine, x, x.dims, false)?, x.dims)
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
        Ok([Some(self.turn_on(machine, grad, x.dims, true)?)])
    }
}
