//! Convolution over images as matrix products.
//!
//! Forward: the numbers under the kernel at a block of output pixels are laid straight into panels, which the weight
//! multiplies; nothing larger than a block exists. Backward goes the same way with the roles exchanged.
#![allow(unsafe_code)]

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::{Left, Product, Right, SUM_ROWS, Start, Target};
use crate::op::{Op, View, apply2, apply3};
use crate::{Result, check};

/// Output pixels in work at a time: whole panels of both number types.
const BLOCK: usize = 128;

pub(crate) struct Conv2d {
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
}

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    channels: usize,
    image: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    /// Output channels and output pixels.
    o: usize,
    output: [usize; 2],
}

impl Sizes {
    /// Numbers under the kernel: C kh kw.
    fn k(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }
    fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }
    fn sample(&self) -> usize {
        self.channels * self.image[0] * self.image[1]
    }
    /// Calls `f(j, from, len)` for every run of `len` output pixels, `first + j` and on (of `count`), that read the
    /// sample at `from` and every stride further under kernel element `p`; pixels that read padding are in no run.
    fn runs(&self, p: usize, first: usize, count: usize, mut f: impl FnMut(usize, usize, usize)) {
        let ([kh, kw], [h, w], out_w) = (self.kernel, self.image, self.output[1]);
        let (stride, left) = (self.stride[1], self.padding[1]);
        // columns of the output whose source column lies inside the image
        let inside_from = left.saturating_sub(p % kw).div_ceil(stride);
        let inside_to = (w + left).saturating_sub(p % kw).div_ceil(stride).min(out_w);
        let mut j = 0;
        while j < count {
            let (row, column) = ((first + j) / out_w, (first + j) % out_w);
            let end = (out_w - column).min(count - j);
            let (from, to) = (column.max(inside_from), (column + end).min(inside_to));
            let y = (row * self.stride[0] + p / kw % kh).checked_sub(self.padding[0]).filter(|&y| y < h);
            if let Some(y) = y
                && from < to
            {
                let x = from * stride + p % kw - left;
                f(j + from - column, (p / (kh * kw) * h + y) * w + x, to - from);
            }
            j += end;
        }
    }

    /// The [k, count] matrix of what the kernel reads at output pixels from `first` on, in panels.
    fn columns<T: Float>(&self, x: &[T], first: usize, count: usize, out: &mut [T]) {
        let k = self.k();
        let panels = out[..k * count.next_multiple_of(T::PANEL)].chunks_exact_mut(k * T::PANEL);
        for (panel, out) in panels.enumerate() {
            let from = panel * T::PANEL;
            let count = (count - from).min(T::PANEL);
            out.fill(T::ZERO);
            for (p, line) in out.chunks_exact_mut(T::PANEL).enumerate() {
                self.runs(p, first + from, count, |j, from, len| {
                    let step = self.stride[1];
                    for (line, i) in line[j..j + len].iter_mut().zip(0..) {
                        *line = x[from + i * step];
                    }
                });
            }
        }
    }

    /// The transpose of [`Sizes::columns`] for kernel elements `from..from + PANEL`: one panel, a line per pixel.
    fn rows<T: Float>(&self, x: &[T], from: usize, first: usize, out: &mut [T]) {
        out.fill(T::ZERO);
        let count = out.len() / T::PANEL;
        for p in from..(from + T::PANEL).min(self.k()) {
            self.runs(p, first, count, |j, at, len| {
                for i in 0..len {
                    out[(j + i) * T::PANEL + p - from] = x[at + i * self.stride[1]];
                }
            });
        }
    }
}

impl Conv2d {
    fn sizes<T>(&self, x: View<'_, T>, weight: View<'_, T>) -> Sizes {
        let (x, weight) = (x.dims, weight.dims);
        let (image, kernel) = ([x[2], x[3]], [weight[2], weight[3]]);
        let output =
            [0, 1].map(|axis| (image[axis] + 2 * self.padding[axis] - kernel[axis]) / self.stride[axis] + 1);
        let (stride, padding) = (self.stride, self.padding);
        Sizes { batch: x[0], channels: x[1], image, kernel, stride, padding, o: weight[0], output }
    }

    fn forward<T: Float>(&self, x: View<'_, T>, weight: View<'_, T>, bias: Option<&[T]>) -> (Vec<T>, Shape) {
        let s = self.sizes(x, weight);
        let (k, pixels) = (s.k(), s.pixels());
        let mut out = vec![T::ZERO; s.batch * s.o * pixels];
        let blocks = pixels.div_ceil(BLOCK);
        let to = Target::of(&mut out);
        (0..s.batch * blocks).into_par_iter().for_each_init(
            || vec![T::ZERO; k * BLOCK],
            |columns, task| {
                let (b, first) = (task / blocks, task % blocks * BLOCK);
                let n = (pixels - first).min(BLOCK);
                s.columns(&x.data[b * s.sample()..][..s.sample()], first, n, columns);
                let (left, right) = (Left::rows(weight.data, k), Right::packed(columns, k));
                // SAFETY: sample b and pixels first..first + n of every output channel are this task's own.
                unsafe {
                    let c = to.add((b * s.o) * pixels + first);
                    let mut start = Start::Zero;
                    if let Some(bias) = bias {
                        for (o, &bias) in bias.iter().enumerate() {
                            std::slice::from_raw_parts_mut(c.0.add(o * pixels), n).fill(bias);
                        }
                        start = Start::Add;
                    }
                    Product { m: s.o, n, k, left, right, c, stride: pixels, start }.write();
                }
            },
        );
        (out, (s.batch, s.o, s.output[0], s.output[1]).into())
    }

    /// Gradients of x, weight and bias.
    fn backward<T: Float>(
        &self,
        x: View<'_, T>,
        weight: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let s = self.sizes(x, weight);
        [
            needs[0].then(|| image_gradient(s, weight.data, grad.data)),
            needs[1].then(|| weight_gradient(s, x.data, grad.data)),
            needs[2].then(|| bias_gradient(s, grad.data)),
        ]
    }
}

/// dx: what the kernel read gets weight^T grad, scattered to where it was read. A task is some channels of one sample.
fn image_gradient<T: Float>(s: Sizes, weight: &[T], grad: &[T]) -> Vec<T> {
    let (k, pixels) = (s.k(), s.pixels());
    let area = s.image[0] * s.image[1];
    let kernel = s.kernel[0] * s.kernel[1];
    let packed = grad_panels(s, grad);
    let padded = pixels.next_multiple_of(T::PANEL);
    let group = 32usize.div_ceil(kernel).min(s.channels); // channels a task takes: some 32 rows of a product
    let groups = s.channels.div_ceil(group);
    let mut dx = vec![T::ZERO; s.batch * s.channels * area];
    let mut parts: Vec<&mut [T]> =
        dx.chunks_exact_mut(s.channels * area).flat_map(|sample| sample.chunks_mut(group * area)).collect();
    parts.par_iter_mut().enumerate().for_each_init(
        || vec![T::ZERO; group * kernel * BLOCK],
        |read, (task, dx)| {
            let (b, channel) = (task / groups, task % groups * group);
            let m = dx.len() / area * kernel;
            for first in (0..pixels).step_by(BLOCK) {
                let n = (pixels - first).min(BLOCK);
                let left = Left::transposed(&weight[channel * kernel..], k);
                let right = Right::packed(&packed[(b * padded + first) * s.o..], s.o);
                let c = Target::of(read);
                // SAFETY: `read` is ours and holds m rows of BLOCK.
                unsafe {
                    Product { m, n, k: s.o, left, right, c, stride: BLOCK, start: Start::Zero }.write();
                }
                for (p, line) in read.chunks_exact(BLOCK).take(m).enumerate() {
                    s.runs(p, first, n, |j, from, len| {
                        for i in 0..len {
                            dx[from + i * s.stride[1]] += line[j + i];
                        }
                    });
                }
            }
        },
    );
    dx
}

/// The gradient [B][O, pixels] as right factors, packed sample by sample.
fn grad_panels<T: Float>(s: Sizes, grad: &[T]) -> Vec<T> {
    let pixels = s.pixels();
    let size = pixels.next_multiple_of(T::PANEL) * s.o;
    let mut packed = vec![T::ZERO; s.batch * size];
    packed.par_chunks_mut(size).zip(grad.par_chunks(s.o * pixels)).for_each(|(packed, grad)| {
        crate::matmul::repack(packed, grad, s.o, pixels, pixels, 1);
    });
    packed
}

/// dW: grad times what the kernel read, summed over samples and blocks of [`SUM_ROWS`] pixels in order. A task is one
/// panel of kernel elements for some output channels.
fn weight_gradient<T: Float>(s: Sizes, x: &[T], grad: &[T]) -> Vec<T> {
    let (k, pixels) = (s.k(), s.pixels());
    let panels = k.div_ceil(T::PANEL);
    let stripe = 96.min(s.o);
    let stripes = s.o.div_ceil(stripe);
    let mut dw = vec![T::ZERO; s.o * k];
    let to = Target::of(&mut dw);
    (0..panels * stripes).into_par_iter().for_each_init(
        || vec![T::ZERO; SUM_ROWS * T::PANEL],
        |read, task| {
            let (p, o) = (task % panels * T::PANEL, task / panels * stripe);
            let (m, n) = ((s.o - o).min(stripe), (k - p).min(T::PANEL));
            for b in 0..s.batch {
                let x = &x[b * s.sample()..][..s.sample()];
                for first in (0..pixels).step_by(SUM_ROWS) {
                    let rows = (pixels - first).min(SUM_ROWS);
                    let read = &mut read[..rows * T::PANEL];
                    s.rows(x, p, first, read);
                    let left = Left::rows(&grad[(b * s.o + o) * pixels + first..], pixels);
                    let right = Right { data: read, panel: rows * T::PANEL, row: T::PANEL };
                    let start = if b + first == 0 { Start::Zero } else { Start::Add };
                    // SAFETY: columns p.. of rows o.. are this task's own.
                    unsafe {
                        let c = to.add(o * k + p);
                        Product { m, n, k: rows, left, right, c, stride: k, start }.write();
                    }
                }
            }
        },
    );
    dw
}

/// db: sums over samples and pixels.
fn bias_gradient<T: Float>(s: Sizes, grad: &[T]) -> Vec<T> {
    let pixels = s.pixels();
    let one = |o: usize| {
        let lines = (0..s.batch).map(|b| crate::float::sum(&grad[(b * s.o + o) * pixels..][..pixels]));
        lines.fold(T::ZERO, |sum, line| sum + line)
    };
    (0..s.o).into_par_iter().map(one).collect()
}

impl Op<2> for Conv2d {
    const NAME: &'static str = "conv2d";

    fn forward<T: Float>(&self, [x, weight]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        self.forward(x, weight, None)
    }

    fn backward<T: Float>(
        &self,
        [x, weight]: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let [dx, dw, _] = self.backward(x, weight, grad, [needs[0], needs[1], false]);
        [dx, dw]
    }
}

impl Op<3> for Conv2d {
    const NAME: &'static str = "conv2d";

    fn forward<T: Float>(&self, [x, weight, bias]: [View<'_, T>; 3]) -> (Vec<T>, Shape) {
        self.forward(x, weight, Some(bias.data))
    }

    fn backward<T: Float>(
        &self,
        [x, weight, _]: [View<'_, T>; 3],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        self.backward(x, weight, grad, needs)
    }
}

/// Cross-correlation of images `x` [B, C, H, W] with `weight` [O, C, kh, kw] plus `bias` [O], as PyTorch's `conv2d` with
/// one group and no dilation; `stride` and `padding` (zeros on each side) are (rows, columns). Result
/// [B, O, (H + 2 padding - kh) / stride + 1, (W + ...) / stride + 1], rounded down.
///
/// An image gives the same bits alone and in a batch. Where the kernel equals the stride, [`crate::patches2d`] and
/// [`crate::linear`] give tokens [B, N, O] without the transposition.
///
/// # Errors
/// Shapes or dtypes that do not fit, an empty axis, a stride of 0, padding not below the kernel's size, a kernel larger
/// than the padded image.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    const OP: &str = "conv2d";
    check::float(OP, "x", x)?;
    check::same_dtype(OP, "weight", weight, x)?;
    check::rank(OP, "x", x, 4, "[B, C, H, W]")?;
    check::rank(OP, "weight", weight, 4, "[O, C, kh, kw]")?;
    for (name, tensor) in [("x", x), ("weight", weight)] {
        let full = tensor.dims().iter().all(|&n| n > 0);
        check::value(OP, name, format!("{:?}", tensor.dims()), full, "no empty axis")?;
    }
    let ((_, c, h, w), (_, wc, kh, kw)) = (x.dims4()?, weight.dims4()?);
    check::fits(OP, ("x", x), ("weight", weight), c == wc, "x is [B, C, H, W], weight [O, C, kh, kw]")?;
    check::value(OP, "stride", format!("{stride:?}"), stride.0 > 0 && stride.1 > 0, "1 or more")?;
    let padded = format!("{padding:?}");
    check::value(OP, "padding", padded, padding.0 < kh && padding.1 < kw, "less than the kernel")?;
    let inside = kh <= h + 2 * padding.0 && kw <= w + 2 * padding.1;
    check::fits(OP, ("x", x), ("weight", weight), inside, "the kernel fits in the padded image")?;
    let conv = Conv2d { stride: [stride.0, stride.1], padding: [padding.0, padding.1] };
    let Some(bias) = bias else { return Ok(apply2(conv, x, weight)?) };
    check::same_dtype(OP, "bias", bias, x)?;
    check::dims(OP, "bias", bias, &weight.dims()[..1], "[O] of the weight")?;
    Ok(apply3(conv, x, weight, bias)?)
}
