//! Frozen weights stored in half precision: half the memory and half the traffic, arithmetic in the dtype of the
//! activations.
//!
//! Weights are unpacked while they are packed for the product, a few panels at a time, so no full-precision copy of the
//! matrix exists. bf16 and f16 are exact in f32: results have the same bits as [`crate::linear`] on the rounded weight.
#![allow(unsafe_code)]

use candle_core::{CpuStorage, DType, Shape, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::{Left, Product, Right, Start, Target, build, column_sum, repack};
use crate::op::{Op, View, apply1, apply2};
use crate::{Error, Result, check};

/// Elements of unpacked panels in work per task: some 512 KiB of f32, half a second-level cache.
const GROUP: usize = 1 << 17;

/// Rows of the left factor per product, as in [`crate::matmul::multiply`].
const ROWS: usize = 96;

/// A half-precision matrix in memory.
#[derive(Clone, Copy)]
enum Halves<'a> {
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Halves<'a> {
    /// The numbers of a contiguous CPU tensor.
    fn of(storage: &'a Storage, start: usize) -> Option<Self> {
        match storage {
            Storage::Cpu(CpuStorage::BF16(data)) => Some(Halves::Bf16(&data[start..])),
            Storage::Cpu(CpuStorage::F16(data)) => Some(Halves::F16(&data[start..])),
            _ => None,
        }
    }

    /// Unpacks the numbers from `start` on into `out`; `scratch` is f32 room of the same length.
    #[inline]
    fn unpack<T: Float>(self, start: usize, out: &mut [T], scratch: &mut [f32]) {
        let scratch = &mut scratch[..out.len()];
        match self {
            // The bits of a bf16 are the upper half of an f32's.
            Halves::Bf16(data) => {
                for (out, &x) in scratch.iter_mut().zip(&data[start..]) {
                    *out = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            }
            Halves::F16(data) => data[start..start + scratch.len()].convert_to_f32_slice(scratch),
        }
        out.iter_mut().zip(scratch).for_each(|(out, x)| *out = T::of(f64::from(*x)));
    }
}

/// c[m, n] = left[m, k] * right[k, n] (+ bias), parallel over columns; `fill(first, panel)` writes the panel of columns
/// from `first` on.
fn multiply<T: Float, S>(
    (m, n, k): (usize, usize, usize),
    left: &[T],
    bias: Option<&[T]>,
    scratch: impl Fn() -> S + Sync + Send,
    fill: impl Fn(usize, &mut [T], &mut S) + Sync,
) -> Vec<T> {
    let padded = bias.map(|bias| {
        let mut padded = bias.to_vec();
        padded.resize(n.next_multiple_of(T::PANEL), T::ZERO);
        padded
    });
    let panels = n.div_ceil(T::PANEL);
    let most = panels.div_ceil(4 * rayon::current_num_threads()).max(1); // enough tasks for every thread
    let group = (GROUP / (k * T::PANEL).max(1)).clamp(1, most);
    let write = |out: &mut [std::mem::MaybeUninit<T>]| {
        let to = Target::uninit(out);
        let init = || (vec![T::ZERO; group * k * T::PANEL], scratch());
        (0..panels.div_ceil(group)).into_par_iter().for_each_init(init, |(packed, scratch), task| {
            let first = task * group * T::PANEL;
            let cols = (n - first).min(group * T::PANEL);
            let packed = &mut packed[..cols.div_ceil(T::PANEL) * k * T::PANEL];
            for (panel, out) in packed.chunks_mut((k * T::PANEL).max(1)).enumerate() {
                fill(first + panel * T::PANEL, out, scratch);
            }
            let start = padded.as_deref().map_or(Start::Zero, |bias| Start::Bias(&bias[first..]));
            for row in (0..m).step_by(ROWS) {
                let (rows, right) = ((m - row).min(ROWS), Right::packed(packed, k));
                let left = Left::rows(&left[row * k..], k);
                // SAFETY: columns first..first + cols are this task's own in every row of n.
                unsafe {
                    let c = to.add(row * n + first);
                    Product { m: rows, n: cols, k, left, right, c, stride: n, start }.write();
                }
            }
        });
    };
    // SAFETY: the groups cover all columns, and the products write all rows of each.
    unsafe { build(m * n, write) }
}

/// y = x W^T (+ b) with W [O, I] in half precision.
pub(crate) struct LinearHalf {
    weight: Tensor,
}

impl LinearHalf {
    fn forward<T: Float>(&self, x: View<'_, T>, bias: Option<&[T]>) -> (Vec<T>, Shape) {
        let (o, i) = (self.weight.dims()[0], self.weight.dims()[1]);
        let (storage, layout) = self.weight.storage_and_layout();
        let weight = Halves::of(&storage, layout.start_offset()).expect("checked in `linear_half`");
        let scratch = || (vec![T::ZERO; T::PANEL * i], vec![0f32; T::PANEL * i]);
        let fill = |first: usize, panel: &mut [T], (rows, room): &mut (Vec<T>, Vec<f32>)| {
            let cols = (o - first).min(T::PANEL);
            let rows = &mut rows[..cols * i];
            weight.unpack(first * i, rows, room);
            repack(panel, rows, i, cols, 1, i);
        };
        let y = multiply((x.data.len() / i, o, i), x.data, bias, scratch, fill);
        let mut dims = x.dims.to_vec();
        if let Some(last) = dims.last_mut() {
            *last = o;
        }
        (y, dims.into())
    }

    fn input_gradient<T: Float>(&self, grad: &[T]) -> Vec<T> {
        let (o, i) = (self.weight.dims()[0], self.weight.dims()[1]);
        let (storage, layout) = self.weight.storage_and_layout();
        let weight = Halves::of(&storage, layout.start_offset()).expect("checked in `linear_half`");
        let fill = |first: usize, panel: &mut [T], room: &mut Vec<f32>| {
            let cols = (i - first).min(T::PANEL);
            for (row, line) in panel.chunks_exact_mut(T::PANEL).enumerate() {
                weight.unpack(row * i + first, &mut line[..cols], room);
                line[cols..].fill(T::ZERO);
            }
        };
        multiply((grad.len() / o, i, o), grad, None, || vec![0f32; T::PANEL], fill)
    }
}

impl Op<1> for LinearHalf {
    const NAME: &'static str = "linear_half";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        self.forward(x, None)
    }

    fn backward<T: Float>(
        &self,
        _args: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [Some(self.input_gradient(grad.data))]
    }
}

impl Op<2> for LinearHalf {
    const NAME: &'static str = "linear_half";

    fn forward<T: Float>(&self, [x, bias]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        self.forward(x, Some(bias.data))
    }

    fn backward<T: Float>(
        &self,
        [_, bias]: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        [
            needs[0].then(|| self.input_gradient(grad.data)),
            needs[1].then(|| column_sum(grad.data, bias.data.len())),
        ]
    }
}

/// `weight` must be frozen, [rows, columns], bf16 or f16, on the CPU.
fn checked_half(op: &'static str, arg: &'static str, weight: &Tensor, meaning: &str) -> Result<()> {
    if !matches!(weight.dtype(), DType::BF16 | DType::F16) {
        let got = weight.dtype();
        return Err(Error::DType { op, arg, got, expected: "BF16 or F16".into() });
    }
    check::rank(op, arg, weight, 2, meaning)?;
    check::value(op, arg, "on another device", weight.device().is_cpu(), "on the CPU")?;
    // A half-precision weight has no gradient here, and updates at RL learning rates would round to nothing in it.
    check::value(op, arg, "a trained variable", !weight.track_op(), "frozen (detach it), or trained as F32")
}

/// [`crate::linear`] with a frozen half-precision weight: `x` [.., I] (f32 or f64), `weight` [O, I] (bf16 or f16),
/// `bias` [O] of x's dtype, result [.., O] of x's dtype.
///
/// The same bits as [`crate::linear`] on the weight converted to x's dtype, without that copy. x and bias get their
/// exact gradients, the weight none. CPU only.
///
/// # Errors
/// Shapes or dtypes that do not fit, a weight that gradients are tracked for.
pub fn linear_half(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear_half";
    check::float(OP, "x", x)?;
    checked_half(OP, "weight", weight, "[O, I]")?;
    let inner = check::last_dim(OP, "x", x)?;
    let fits = weight.dims()[1] == inner && weight.dims()[0] > 0;
    check::fits(OP, ("x", x), ("weight", weight), fits, "x is [.., I], weight [O, I]")?;
    let linear = LinearHalf { weight: weight.contiguous()? };
    let Some(bias) = bias else { return Ok(apply1(linear, x)?) };
    check::same_dtype(OP, "bias", bias, x)?;
    check::dims(OP, "bias", bias, &weight.dims()[..1], "[O] of the weight")?;
    Ok(apply2(linear, x, bias)?)
}

/// Rows of a frozen half-precision `table` [V, D] (bf16 or f16) at `ids` [..] (u32), as `dtype` (F32 or F64): [.., D].
/// A constant: no gradient. CPU only.
///
/// # Errors
/// Shapes or dtypes that do not fit, an id outside the table, a table that gradients are tracked for.
pub fn embedding_half(table: &Tensor, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    const OP: &str = "embedding_half";
    fn gather<T: Float>(table: Halves<'_>, ids: &[u32], d: usize) -> Vec<T> {
        let mut out = vec![T::ZERO; ids.len() * d];
        out.par_chunks_mut(d)
            .zip(ids)
            .for_each_init(|| vec![0f32; d], |room, (out, &id)| table.unpack(id as usize * d, out, room));
        out
    }
    checked_half(OP, "table", table, "[V, D]")?;
    let d = check::last_dim(OP, "table", table)?;
    let rows = check::ids(OP, ids, table.dims()[0])?;
    let dims = [ids.dims(), &[d]].concat();
    let table = table.contiguous()?;
    let (storage, layout) = table.storage_and_layout();
    let halves = Halves::of(&storage, layout.start_offset());
    match (halves, dtype) {
        (Some(halves), DType::F32) => {
            Ok(Tensor::from_vec(gather::<f32>(halves, &rows, d), dims, table.device())?)
        }
        (Some(halves), DType::F64) => {
            Ok(Tensor::from_vec(gather::<f64>(halves, &rows, d), dims, table.device())?)
        }
        (_, got) => Err(Error::DType { op: OP, arg: "dtype", got, expected: "F32 or F64".into() }),
    }
}
