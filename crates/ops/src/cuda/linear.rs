//! Linear layers on a device: a matrix product, and one kernel for bias and activation.

use candle_core::{DType, Result};

use super::activation::kind;
use super::launch::{Arg, Array, Gemm, Launch, Machine, axis, symbol};
use super::{DeviceOp, Kept, Made};
use crate::activation::Activation;
use crate::linear::Linear;

/// Rows per partial sum of a bias gradient. Part of the result's bits.
const PART: usize = 128;

/// What the activation saw.
struct Before<B>(B);

/// Sum of `parts` partial sums of length `width`, in their order.
pub(super) fn finish_column_sum<M: Machine>(
    machine: &M,
    partial: &M::Buffer,
    dtype: DType,
    parts: usize,
    width: usize,
) -> Result<M::Buffer> {
    if parts == 0 {
        return machine.zeros(dtype, width);
    }
    let mut sum = machine.alloc(dtype, width)?;
    let launch = Launch::new([axis(width.div_ceil(32))?, 1, 1], 256);
    let args = &mut [Arg::In(partial, 0), Arg::Out(&mut sum), Arg::size(parts)?, Arg::size(width)?];
    machine.launch(&symbol("column_sum_finish", dtype), launch, args)?;
    Ok(sum)
}

/// Sum of the rows of `x` [rows, width]: partial sums of [`PART`] rows, added in their order.
pub(super) fn column_sum<M: Machine>(
    machine: &M,
    x: Array<'_, M::Buffer>,
    rows: usize,
    width: usize,
) -> Result<M::Buffer> {
    let parts = rows.div_ceil(PART);
    let mut partial = machine.alloc(DType::F32, parts * width)?;
    let through = Through { before: None, dx: None, partial: Some(&mut partial), activation: None };
    through.launch(machine, x, rows, width)?;
    finish_column_sum(machine, &partial, x.dtype, parts, width)
}

/// x [rows, width] + bias, in place.
pub(super) fn add_bias<M: Machine>(
    machine: &M,
    x: &mut M::Buffer,
    bias: Array<'_, M::Buffer>,
    rows: usize,
) -> Result<()> {
    let (width, symbol) = (bias.len(), symbol("bias_activation", bias.dtype));
    let (rows_arg, kind) = (Arg::count(rows), Arg::I32(kind(None)));
    let args = &mut [Arg::Out(x), bias.arg(), Arg::Null, Arg::Same(0), rows_arg, Arg::size(width)?, kind];
    machine.launch(&symbol, Launch::each(rows * width), args)
}

/// One pass over the gradient of a linear layer's result: through the activation, and partial sums for the bias.
struct Through<'a, B> {
    before: Option<&'a B>,
    dx: Option<&'a mut B>,
    partial: Option<&'a mut B>,
    activation: Option<Activation>,
}

impl<B> Through<'_, B> {
    fn launch<M: Machine<Buffer = B>>(
        self,
        machine: &M,
        grad: Array<'_, B>,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        let grid = [axis(width.div_ceil(128))?, axis(rows.div_ceil(PART))?, 1];
        let args = &mut [
            Arg::maybe(self.before),
            grad.arg(),
            Arg::maybe_out(self.dx),
            Arg::maybe_out(self.partial),
            Arg::count(rows),
            Arg::size(width)?,
            Arg::size(PART)?,
            Arg::I32(kind(self.activation)),
        ];
        machine.launch(&symbol("bias_activation_grad", grad.dtype), Launch::new(grid, 256), args)
    }
}

impl Linear {
    fn forward_on<M: Machine>(
        &self,
        machine: &M,
        [x, weight]: [Array<'_, M::Buffer>; 2],
        bias: Option<Array<'_, M::Buffer>>,
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let (o, i, rows, dtype) = (weight.dims[0], weight.dims[1], x.rows(), x.dtype);
        let mut product = machine.alloc(dtype, rows * o)?;
        let gemm = Gemm { m: rows, n: o, k: i, left_transposed: false, right_transposed: true, add: false };
        machine.matmul(gemm, x, weight, (&mut product, 0))?;
        let dims = [&x.dims[..x.dims.len() - 1], &[o]].concat();
        if bias.is_none() && self.activation.is_none() {
            return Made::new(product, dims);
        }
        let tail =
            |activation| -> Result<_> { Ok([Arg::count(rows), Arg::size(o)?, Arg::I32(kind(activation))]) };
        let bias = bias.map_or(Arg::Null, |bias| bias.arg());
        let (symbol, launch) = (symbol("bias_activation", dtype), Launch::each(rows * o));
        if self.activation.is_some() && kept.wanted() {
            let mut y = machine.alloc(dtype, rows * o)?;
            let [rows, width, kind] = tail(self.activation)?;
            let args = &mut [Arg::Out(&mut product), bias, Arg::Same(0), Arg::Out(&mut y), rows, width, kind];
            machine.launch(&symbol, launch, args)?;
            kept.put(Before(product));
            return Made::new(y, dims);
        }
        let [n, width, kind] = tail(self.activation)?;
        let args = &mut [Arg::Out(&mut product), bias, Arg::Null, Arg::Same(0), n, width, kind];
        machine.launch(&symbol, launch, args)?;
        Made::new(product, dims)
    }

    fn backward_on<M: Machine>(
        &self,
        machine: &M,
        [x, weight]: [Array<'_, M::Buffer>; 2],
        grad: Array<'_, M::Buffer>,
        needs: [bool; 3],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 3]> {
        let (o, i, rows, dtype) = (weight.dims[0], weight.dims[1], x.rows(), x.dtype);
        let before = match self.activation {
            None => None,
            Some(_) => match kept.get::<Before<M::Buffer>>() {
                Some(Before(before)) => Some(before),
                None => candle_core::bail!("forward kept nothing for backward"),
            },
        };
        let parts = rows.div_ceil(PART);
        let mut through = before.map(|_| machine.alloc(dtype, rows * o)).transpose()?;
        let mut partial = needs[2].then(|| machine.alloc(DType::F32, parts * o)).transpose()?;
        if through.is_some() || partial.is_some() {
            let (dx, partial) = (through.as_mut(), partial.as_mut());
            Through { before, dx, partial, activation: self.activation }.launch(machine, grad, rows, o)?;
        }
        let db = partial.map(|partial| finish_column_sum(machine, &partial, dtype, parts, o)).transpose()?;
        let grad = match &through {
            Some(buffer) => Array { buffer, offset: 0, ..grad },
            None => grad,
        };
        let product = |gemm: Gemm, left, right| -> Result<M::Buffer> {
            let mut out = machine.alloc(dtype, gemm.m * gemm.n)?;
            machine.matmul(gemm, left, right, (&mut out, 0))?;
            Ok(out)
        };
        let to_x = Gemm { m: rows, n: i, k: o, left_transposed: false, right_transposed: false, add: false };
        let to_weight =
            Gemm { m: o, n: i, k: rows, left_transposed: true, right_transposed: false, add: false };
        let dx = needs[0].then(|| product(to_x, grad, weight)).transpose()?;
        let dw = needs[1].then(|| product(to_weight, grad, x)).transpose()?;
        Ok([dx, dw, db])
    }
}

impl DeviceOp<2> for Linear {
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
        let [dx, dw, _] = self.backward_on(machine, args, grad, needs, kept)?;
        Ok([dx, dw])
    }
}

impl DeviceOp<3> for Linear {
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
        self.backward_on(machine, [x, weight], grad, needs, kept)
    }
}
