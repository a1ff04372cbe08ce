//! Layer norm and RMS norm on a device.

use candle_core::{DType, Result};

use super::launch::{Arg, Array, Launch, Machine, axis, symbol};
use super::linear::finish_column_sum;
use super::{DeviceOp, Kept, Made};
use crate::norm::{Kind, Norm};

/// Rows per partial sum of the gradients of weight and bias. Part of the result's bits.
const PART: usize = 16;

/// Mean and factor of every row, [rows, 2].
struct Stats<B>(B);

/// Threads for a row: eight numbers each, in whole warps.
fn block(width: usize) -> Result<u32> {
    if width > 8192 {
        candle_core::bail!("a norm on CUDA takes rows of at most 8192, not {width}");
    }
    Ok((width.div_ceil(8).next_multiple_of(32) as u32).clamp(32, 1024))
}

impl Norm {
    fn forward_on<M: Machine>(
        &self,
        machine: &M,
        [x, weight]: [Array<'_, M::Buffer>; 2],
        bias: Option<Array<'_, M::Buffer>>,
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let (rows, d) = (x.rows(), weight.len());
        let mut y = machine.alloc(x.dtype, rows * d)?;
        let mut stats = kept.wanted().then(|| machine.alloc(DType::F32, 2 * rows)).transpose()?;
        let name = match self.kind {
            Kind::Layer => "layer_norm",
            Kind::Rms => "rms_norm",
        };
        let mut args = vec![x.arg(), Arg::Null, weight.arg()];
        args.extend(bias.iter().map(Array::arg));
        args.extend([Arg::Null, Arg::Out(&mut y), Arg::maybe_out(stats.as_mut())]);
        args.extend([Arg::count(rows), Arg::size(d)?, Arg::F32(self.eps as f32)]);
        let launch = Launch::new([axis(rows)?, 1, 1], block(d)?);
        machine.launch(&symbol(name, x.dtype), launch, &mut args)?;
        if let Some(stats) = stats {
            kept.put(Stats(stats));
        }
        Made::new(y, x.dims)
    }

    /// Gradients of x, weight and bias (none for RMS norm).
    fn backward_on<M: Machine>(
        &self,
        machine: &M,
        [x, weight]: [Array<'_, M::Buffer>; 2],
        grad: Array<'_, M::Buffer>,
        kept: &Kept,
        needs: [bool; 3],
    ) -> Result<[Option<M::Buffer>; 3]> {
        let (rows, d, dtype) = (x.rows(), weight.len(), x.dtype);
        let parts = rows.div_ceil(PART);
        let stats = kept.get::<Stats<M::Buffer>>().map(|Stats(stats)| stats);
        let partial = |wanted: bool| wanted.then(|| machine.alloc(DType::F32, parts * d)).transpose();
        let mut dx = machine.alloc(dtype, rows * d)?;
        let (mut dw, mut db) = (partial(needs[1])?, partial(needs[2])?);
        let name = match self.kind {
            Kind::Layer => "layer_norm_grad",
            Kind::Rms => "rms_norm_grad",
        };
        let mut args = vec![x.arg(), weight.arg(), grad.arg(), Arg::Null, Arg::maybe(stats)];
        args.extend([Arg::Out(&mut dx), Arg::maybe_out(dw.as_mut())]);
        if let Kind::Layer = self.kind {
            args.push(Arg::maybe_out(db.as_mut()));
        }
        args.extend([Arg::count(rows), Arg::size(d)?, Arg::size(PART)?, Arg::F32(self.eps as f32)]);
        let launch = Launch::new([axis(parts)?, 1, 1], block(d)?);
        machine.launch(&symbol(name, dtype), launch, &mut args)?;
        let finish = |partial: Option<M::Buffer>| {
            partial.map(|partial| finish_column_sum(machine, &partial, dtype, parts, d)).transpose()
        };
        Ok([Some(dx), finish(dw)?, finish(db)?])
    }
}

impl DeviceOp<2> for Norm {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        args: [Array<'_, M::Buffer>; 2],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        self.forward_on(machine, args, None, kept)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        args: [Array<'_, M::Buffer>; 2],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; 2],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 2]> {
        let needs = [needs[0], needs[1], false];
        let [dx, dw, _] = self.backward_on(machine, args, grad, kept, needs)?;
        Ok([dx, dw])
    }
}

impl DeviceOp<3> for Norm {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x, weight, bias]: [Array<'_, M::Buffer>; 3],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        self.forward_on(machine, [x, weight], Some(bias), kept)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [x, weight, _]: [Array<'_, M::Buffer>; 3],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; 3],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 3]> {
        self.backward_on(machine, [x, weight], grad, kept, needs)
    }
}
