//! Rotary position embedding on several axes: time, row and column of a token in an image or a video.
//!
//! A layout says which axis and frequency each part of a head reads ([`AxialRotary`]); together with the positions of a
//! batch it gives angles ([`RotaryAngles`]), made once and used by every layer.

use std::sync::Arc;

use candle_core::{DType, Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::op::{Op, View, apply1};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result, check};

/// Axes a position has: time, row, column.
const AXES: usize = 3;

/// Which elements of a head belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// i and i + Dh / 2, one angle for both: Hugging Face's rotate-half.
    Halves,
    /// 2 i and 2 i + 1, an angle for each.
    Neighbours,
}

/// How a head is divided among the axes time, row and column.
#[derive(Clone, Debug)]
pub struct AxialRotary {
    head_dim: usize,
    pairs: Pairs,
    /// Axis and 1 / frequency of every angle: Dh / 2 of them for halves, Dh for neighbours.
    angles: Vec<(usize, f64)>,
}

fn checked_head(op: &'static str, head_dim: usize, base: f64) -> Result<()> {
    let even = head_dim > 0 && head_dim.is_multiple_of(2);
    check::value(op, "head_dim", head_dim, even, "an even number above 0")?;
    check::value(op, "base", base, base > 1.0 && base.is_finite(), "a number above 1")
}

fn checked_sections(op: &'static str, head_dim: usize, sections: [usize; AXES]) -> Result<()> {
    let sum = sections.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    let expected = format!("three numbers with the sum {}", head_dim / 2);
    check::value(op, "sections", format!("{sections:?}"), sum == Some(head_dim / 2), &expected)
}

impl AxialRotary {
    /// M-RoPE of Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL: frequency j is base^(-2 j / Dh); the first `sections[0]`
    /// frequencies turn with time, the next with the row, the last with the column (`mrope_section`). Rotate-half
    /// pairs. Equal positions on all axes give [`crate::RotaryTable`]'s rotation.
    ///
    /// # Errors
    /// `head_dim` odd or 0, `base` not above 1, sections that do not sum to `head_dim / 2`.
    pub fn sections(head_dim: usize, base: f64, sections: [usize; AXES]) -> Result<Self> {
        const OP: &str = "AxialRotary::sections";
        checked_head(OP, head_dim, base)?;
        checked_sections(OP, head_dim, sections)?;
        let axis = |j| usize::from(j >= sections[0]) + usize::from(j >= sections[0] + sections[1]);
        Ok(Self::halves(head_dim, base, axis))
    }

    /// M-RoPE of Qwen3-VL: frequencies as in [`AxialRotary::sections`], the axes interleaved: frequency j turns with the
    /// row where j mod 3 = 1 and j < 3 `sections[1]`, with the column where j mod 3 = 2 and j < 3 `sections[2]`, with
    /// time elsewhere.
    ///
    /// # Errors
    /// As [`AxialRotary::sections`]; a row or column section that the interleaving has no room for.
    pub fn interleaved(head_dim: usize, base: f64, sections: [usize; AXES]) -> Result<Self> {
        const OP: &str = "AxialRotary::interleaved";
        checked_head(OP, head_dim, base)?;
        checked_sections(OP, head_dim, sections)?;
        let axis = |j: usize| match j % AXES {
            axis @ (1 | 2) if j < AXES * sections[axis] => axis,
            _ => 0,
        };
        let rotary = Self::halves(head_dim, base, axis);
        let used = |axis| rotary.angles.iter().filter(|angle| angle.0 == axis).count();
        let room = (0..AXES).all(|axis| used(axis) == sections[axis]);
        check::value(OP, "sections", format!("{sections:?}"), room, "sections that fit in turns of three")?;
        Ok(rotary)
    }

    /// The vision tower of Qwen2-VL and Qwen2.5-VL: Dh / 4 frequencies base^(-4 j / Dh), first all with the row, then
    /// all with the column. Rotate-half pairs; time is not read.
    ///
    /// # Errors
    /// `head_dim` not a multiple of 4 or 0, `base` not above 1.
    pub fn image(head_dim: usize, base: f64) -> Result<Self> {
        const OP: &str = "AxialRotary::image";
        checked_head(OP, head_dim, base)?;
        let whole = head_dim.is_multiple_of(4);
        check::value(OP, "head_dim", head_dim, whole, "a multiple of 4")?;
        let quarter = head_dim / 4;
        let period = |j: usize| base.powf(4.0 * j as f64 / head_dim as f64);
        let angles = (0..2 * quarter).map(|j| (1 + j / quarter, period(j % quarter))).collect();
        Ok(Self { head_dim, pairs: Pairs::Halves, angles })
    }

    /// V-JEPA 2 (arXiv 2506.09985): a = 2 floor(floor(Dh / 3) / 2) elements each for time, row and column, the rest of
    /// the head stays. Neighbouring elements are a pair, but element i of an axis reads frequency
    /// base^(-(i mod a/2) / (a/2)), so the two of a pair have different angles: y = u cos + (-u_1, u_0, -u_3, u_2, ...)
    /// sin is not a rotation. The published weights were trained with it.
    ///
    /// # Errors
    /// `head_dim` below 6 or odd, `base` not above 1.
    pub fn video(head_dim: usize, base: f64) -> Result<Self> {
        const OP: &str = "AxialRotary::video";
        checked_head(OP, head_dim, base)?;
        check::value(OP, "head_dim", head_dim, head_dim >= 6, "6 or more")?;
        let part = head_dim / 3 / 2 * 2;
        let half = part / 2;
        let angle = |i: usize| match i / part {
            axis @ 0..AXES => (axis, base.powf((i % part % half) as f64 / half as f64)),
            _ => (0, f64::INFINITY), // stays
        };
        Ok(Self { head_dim, pairs: Pairs::Neighbours, angles: (0..head_dim).map(angle).collect() })
    }

    fn halves(head_dim: usize, base: f64, axis: impl Fn(usize) -> usize) -> Self {
        // As in `RotaryTable`, so that equal positions give the same bits.
        let period = |j: usize| base.powf(2.0 * j as f64 / head_dim as f64);
        let angles = (0..head_dim / 2).map(|j| (axis(j), period(j))).collect();
        Self { head_dim, pairs: Pairs::Halves, angles }
    }

    /// Angles of a batch: `positions` [3, B, T] (u32 or i64; time, row, column), one set for all heads.
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn at(&self, positions: &Tensor) -> Result<RotaryAngles> {
        const OP: &str = "AxialRotary::at";
        if !matches!(positions.dtype(), DType::U32 | DType::I64) {
            let got = positions.dtype();
            return Err(Error::DType { op: OP, arg: "positions", got, expected: "U32 or I64".into() });
        }
        check::rank(OP, "positions", positions, 3, "[3, B, T]")?;
        let (_, b, t) = positions.dims3()?;
        check::dims(OP, "positions", positions, &[AXES, b, t], "[3, B, T]")?;
        let positions = positions.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let angles: Vec<f64> = (0..b * t)
            .flat_map(|token| {
                let positions = &positions;
                self.angles.iter().map(move |&(axis, period)| positions[axis * b * t + token] as f64 / period)
            })
            .collect();
        let cos = Arc::new(angles.iter().map(|a| a.cos()).collect());
        let sin = Arc::new(angles.iter().map(|a| a.sin()).collect());
        Ok(RotaryAngles {
            pairs: self.pairs,
            head_dim: self.head_dim,
            batch: b,
            len: t,
            cos,
            sin,
            #[cfg(any(feature = "cuda", test))]
            device: Default::default(),
        })
    }

    /// Positions of the tokens of a video in the order time, row, column: [3, 1, t h w].
    ///
    /// # Errors
    /// A grid of more than u32 can count.
    pub fn grid(frames: usize, rows: usize, columns: usize) -> Result<Tensor> {
        const OP: &str = "AxialRotary::grid";
        let n = frames.checked_mul(rows).and_then(|n| n.checked_mul(columns));
        let grid = format!("{frames} x {rows} x {columns}");
        let Some(n) = n.filter(|&n| n > 0 && u32::try_from(n).is_ok()) else {
            return Err(Error::Value { op: OP, arg: "grid", got: grid, expected: "1 to 2^32 tokens".into() });
        };
        let tokens = || 0..n;
        let time = tokens().map(|i| (i / (rows * columns)) as u32);
        let row = tokens().map(|i| (i / columns % rows) as u32);
        let column = tokens().map(|i| (i % columns) as u32);
        let all: Vec<u32> = time.chain(row).chain(column).collect();
        Ok(Tensor::from_vec(all, (AXES, 1, n), &candle_core::Device::Cpu)?)
    }
}

/// Cosines and sines of a batch's tokens. Cheap to clone.
#[derive(Clone)]
pub struct RotaryAngles {
    pub(crate) pairs: Pairs,
    head_dim: usize,
    pub(crate) batch: usize,
    len: usize,
    pub(crate) cos: Arc<Vec<f64>>,
    pub(crate) sin: Arc<Vec<f64>>,
    /// The same in f32 on devices.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) device: crate::cuda::PerDevice,
}

impl RotaryAngles {
    /// Turns `x` [B, H, T, Dh] by its tokens' angles; angles of a batch of 1 serve every sample.
    ///
    /// # Errors
    /// Another rank, batch, length or head width; a dtype other than f32 and f64.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        const OP: &str = "RotaryAngles::apply";
        check::float(OP, "x", x)?;
        check::rank(OP, "x", x, 4, "[B, H, T, Dh]")?;
        let (b, h, _, _) = x.dims4()?;
        let batch = if self.batch == 1 { b } else { self.batch };
        check::dims(OP, "x", x, &[batch, h, self.len, self.head_dim], "B, T and Dh of the angles")?;
        Ok(apply1(Turn(self.clone()), x)?)
    }
}

pub(crate) struct Turn(pub(crate) RotaryAngles);

/// The rows of one (sample, head).
struct Head<'a, T> {
    pairs: Pairs,
    back: bool,
    width: usize,
    cos: &'a [T],
    sin: &'a [T],
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Float> Kernel for Head<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let Self { pairs, back, width, cos, sin, x, out } = self;
        let each = if pairs == Pairs::Halves { width / 2 } else { width };
        let tokens = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), (cos, sin)) in tokens.zip(cos.chunks_exact(each).zip(sin.chunks_exact(each))) {
            match (pairs, back) {
                (Pairs::Halves, _) => {
                    let turn = if back { -T::ONE } else { T::ONE };
                    let ((a, b), (out_a, out_b)) = (x.split_at(each), out.split_at_mut(each));
                    let halves = out_a.iter_mut().zip(out_b).zip(a.iter().zip(b));
                    for (((out_a, out_b), (&a, &b)), (&cos, &sin)) in halves.zip(cos.iter().zip(sin)) {
                        let s = sin * turn;
                        *out_a = a * cos - b * s;
                        *out_b = b * cos + a * s;
                    }
                }
                (Pairs::Neighbours, false) => {
                    let pairs = x.chunks_exact(2).zip(cos.chunks_exact(2)).zip(sin.chunks_exact(2));
                    for (out, ((x, cos), sin)) in out.chunks_exact_mut(2).zip(pairs) {
                        out[0] = x[0] * cos[0] - x[1] * sin[0];
                        out[1] = x[1] * cos[1] + x[0] * sin[1];
                    }
                }
                (Pairs::Neighbours, true) => {
                    // The transpose: each element has its own angle.
                    let pairs = x.chunks_exact(2).zip(cos.chunks_exact(2)).zip(sin.chunks_exact(2));
                    for (out, ((g, cos), sin)) in out.chunks_exact_mut(2).zip(pairs) {
                        out[0] = g[0] * cos[0] + g[1] * sin[1];
                        out[1] = g[1] * cos[1] - g[0] * sin[0];
                    }
                }
            }
        }
    }
}

impl Turn {
    fn turn<T: Float>(&self, x: View<'_, T>, back: bool) -> Vec<T> {
        let RotaryAngles { pairs, head_dim: width, batch, ref cos, ref sin, .. } = self.0;
        let narrow = |values: &[f64]| values.iter().map(|&v| T::of(v)).collect::<Vec<T>>();
        let (cos, sin) = (narrow(cos), narrow(sin));
        let sample = cos.len() / batch.max(1);
        let (heads, head) = (x.dims[1], (x.dims[2] * width).max(1));
        let mut out = vec![T::ZERO; x.data.len()];
        let tasks = out.par_chunks_mut(head).zip(x.data.par_chunks(head));
        tasks.enumerate().for_each(|(at, (out, x))| {
            let from = if batch == 1 { 0 } else { at / heads * sample };
            let (cos, sin) = (&cos[from..from + sample], &sin[from..from + sample]);
            dispatch(Head { pairs, back, width, cos, sin, x, out });
        });
        out
    }
}

impl Op<1> for Turn {
    const NAME: &'static str = "rotary_axes";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        (self.turn(x, false), x.dims.into())
    }

    fn backward<T: Float>(
        &self,
        [x]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [Some(self.turn(View { data: grad.data, dims: x.dims }, true))]
    }
}
