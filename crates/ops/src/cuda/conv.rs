//! Convolution of images on a device: what every output pixel reads as rows of a matrix, times the weight.

use candle_core::Result;

use super::launch::{Arg, Array, Gemm, Launch, Machine, symbol};
use super::linear::{add_bias, column_sum};
use super::{DeviceOp, Kept, Made};
use crate::conv::Conv2d;

/// Sizes of a call.
struct Sizes {
    batch: usize,
    image: [usize; 3],
    kernel: [usize; 2],
    /// Output channels, rows, columns.
    output: [usize; 3],
}

impl Sizes {
    fn of<B>(conv: &Conv2d, x: &Array<'_, B>, weight: &Array<'_, B>) -> Self {
        let kernel = [weight.dims[2], weight.dims[3]];
        let out =
            |axis: usize| (x.dims[axis + 2] + 2 * conv.padding[axis] - kernel[axis]) / conv.stride[axis] + 1;
        let output = [weight.dims[0], out(0), out(1)];
        Sizes { batch: x.dims[0], image: [x.dims[1], x.dims[2], x.dims[3]], kernel, output }
    }

    /// Output pixels of all images.
    fn rows(&self) -> usize {
        self.batch * self.output[1] * self.output[2]
    }

    /// Numbers an output pixel reads.
    fn width(&self) -> usize {
        self.image[0] * self.kernel[0] * self.kernel[1]
    }
}

impl Conv2d {
    fn size_args<B>(&self, s: &Sizes) -> Result<Vec<Arg<'_, B>>> {
        let sizes = [&s.image[..], &s.kernel, &self.stride, &self.padding, &s.output[1..]].concat();
        sizes.into_iter().map(Arg::size).collect()
    }

    /// What every output pixel reads, [B oh ow, C kh kw].
    fn columns<M: Machine>(&self, machine: &M, x: Array<'_, M::Buffer>, s: &Sizes) -> Result<M::Buffer> {
        let n = s.rows() * s.width();
        let mut columns = machine.alloc(x.dtype, n)?;
        let mut args = vec![x.arg(), Arg::Out(&mut columns), Arg::count(n)];
        args.extend(self.size_args(s)?);
        machine.launch(&symbol("im2col", x.dtype), Launch::each(n), &mut args)?;
        drop(args);
        Ok(columns)
    }

    /// Pixels with their channels side by side, [B oh ow, O], to images [B, O, oh, ow], or back.
    fn exchange<M: Machine>(
        &self,
        machine: &M,
        from: Array<'_, M::Buffer>,
        s: &Sizes,
        to_images: bool,
    ) -> Result<M::Buffer> {
        // Patches of one pixel.
        let n = s.rows() * s.output[0];
        let mut to = machine.alloc(from.dtype, n)?;
        let mut args = vec![from.arg(), Arg::Out(&mut to), Arg::count(n)];
        for size in [s.output[0], 1, s.output[1], s.output[2], 1, 1, 1] {
            args.push(Arg::size(size)?);
        }
        args.push(Arg::I32(to_images.into()));
        machine.launch(&symbol("patchify", from.dtype), Launch::each(n), &mut args)?;
        drop(args);
        Ok(to)
    }

    fn forward_on<M: Machine>(
        &self,
        machine: &M,
        [x, weight]: [Array<'_, M::Buffer>; 2],
        bias: Option<Array<'_, M::Buffer>>,
    ) -> Result<Made<M::Buffer>> {
        let s = Sizes::of(self, &x, &weight);
        let (rows, width, o) = (s.rows(), s.width(), s.output[0]);
        let columns = self.columns(machine, x, &s)?;
        let columns = Array { buffer: &columns, offset: 0, ..x };
        let mut pixels = machine.alloc(x.dtype, rows * o)?;
        let gemm =
            Gemm { m: rows, n: o, k: width, left_transposed: false, right_transposed: true, add: false };
        machine.matmul(gemm, columns, weight, (&mut pixels, 0))?;
        if let Some(bias) = bias {
            add_bias(machine, &mut pixels, bias, rows)?;
        }
        let images = self.exchange(machine, Array { buffer: &pixels, ..columns }, &s, true)?;
        Made::new(images, (s.batch, o, s.output[1], s.output[2]))
    }

    fn backward_on<M: Machine>(
        &self,
        machine: &M,
        [x, weight]: [Array<'_, M::Buffer>; 2],
        grad: Array<'_, M::Buffer>,
        needs: [bool; 3],
    ) -> Result<[Option<M::Buffer>; 3]> {
        let s = Sizes::of(self, &x, &weight);
        let (rows, width, o) = (s.rows(), s.width(), s.output[0]);
        let pixels = self.exchange(machine, grad, &s, false)?;
        let pixels = Array { buffer: &pixels, offset: 0, ..grad };
        let plain =
            Gemm { m: rows, n: width, k: o, left_transposed: false, right_transposed: false, add: false };
        let mut dx = None;
        if needs[0] {
            let mut columns = machine.alloc(x.dtype, rows * width)?;
            machine.matmul(plain, pixels, weight, (&mut columns, 0))?;
            let n = x.len();
            let mut sums = machine.alloc(x.dtype, n)?;
            let mut args = vec![Arg::In(&columns, 0), Arg::Out(&mut sums), Arg::count(n)];
            args.extend(self.size_args(&s)?);
            machine.launch(&symbol("col2im", x.dtype), Launch::each(n), &mut args)?;
            drop(args);
            dx = Some(sums);
        }
        let mut dw = None;
        if needs[1] {
            let columns = self.columns(machine, x, &s)?;
            let columns = Array { buffer: &columns, offset: 0, ..x };
            let mut sums = machine.alloc(x.dtype, o * width)?;
            let gemm = Gemm { m: o, k: rows, left_transposed: true, ..plain };
            machine.matmul(gemm, pixels, columns, (&mut sums, 0))?;
            dw = Some(sums);
        }
        let db = needs[2].then(|| column_sum(machine, pixels, rows, o)).transpose()?;
        Ok([dx, dw, db])
    }
}

impl DeviceOp<2> for Conv2d {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        args: [Array<'_, M::Buffer>; 2],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        self.forward_on(machine, args, None)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        args: [Array<'_, M::Buffer>; 2],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; 2],
        _kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 2]> {
        let [dx, dw, _] = self.backward_on(machine, args, grad, [needs[0], needs[1], false])?;
        Ok([dx, dw])
    }
}

impl DeviceOp<3> for Conv2d {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x, weight, bias]: [Array<'_, M::Buffer>; 3],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        self.forward_on(machine, [x, weight], Some(bias))
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [x, weight, _]: [Array<'_, M::Buffer>; 3],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; 3],
        _kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 3]> {
        self.backward_on(machine, [x, weight], grad, needs)
    }
}
