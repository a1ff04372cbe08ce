//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in Hugging Face's rotate-half convention.

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::build;
use crate::op::{Op, View, apply1};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Cosines and sines of every position, [T_max, Dh/2].
#[derive(Clone)]
pub struct RotaryTable {
    head_dim: usize,
    max_len: usize,
    cos: Arc<Vec<f64>>,
    sin: Arc<Vec<f64>>,
}

impl RotaryTable {
    /// Angles position / base^(2 i / head_dim) for i in 0..head_dim/2, kept in f64 and rounded to the dtype of what is
    /// rotated.
    ///
    /// # Errors
    /// `head_dim` is odd or 0, `max_len` is 0, `base` is not above 1.
    pub fn new(head_dim: usize, max_len: usize, base: f64) -> Result<Self> {
        const OP: &str = "RotaryTable::new";
        let even = head_dim > 0 && head_dim.is_multiple_of(2);
        check::value(OP, "head_dim", head_dim, even, "an even number above 0")?;
        check::value(OP, "max_len", max_len, max_len > 0, "1 or more")?;
        check::value(OP, "base", base, base > 1.0 && base.is_finite(), "a number above 1")?;
        let half = head_dim / 2;
        let angle = |at: usize| {
            let (position, i) = (at / half, at % half);
            position as f64 / base.powf(2.0 * i as f64 / head_dim as f64)
        };
        let angles: Vec<f64> = (0..max_len * half).map(angle).collect();
        let cos = Arc::new(angles.iter().map(|a| a.cos()).collect());
        let sin = Arc::new(angles.iter().map(|a| a.sin()).collect());
        Ok(Self { head_dim, max_len, cos, sin })
    }

    /// Rotates `x` [B, H, T, Dh], whose first token stands at position `offset`: with halves a and b of the last axis,
    /// (a cos - b sin, b cos + a sin).
    ///
    /// # Errors
    /// Another rank or head width, positions beyond the table, a dtype other than f32 and f64.
    pub fn apply(&self, x: &Tensor, offset: usize) -> Result<Tensor> {
        const OP: &str = "RotaryTable::apply";
        check::float(OP, "x", x)?;
        check::rank(OP, "x", x, 4, "[B, H, T, Dh]")?;
        let (b, h, t, _) = x.dims4()?;
        check::dims(OP, "x", x, &[b, h, t, self.head_dim], "Dh of the table")?;
        self.reach(OP, offset, t)?;
        Ok(apply1(Rotate { table: self.clone(), offset, heads: None }, x)?)
    }

    /// [`apply`](Self::apply) on tokens as linear layers leave them, `x` [B, T, H * Dh]; the same numbers.
    ///
    /// # Errors
    /// Another rank, a width that is no multiple of the head's, positions beyond the table, a dtype other than f32 and
    /// f64.
    pub fn apply_tokens(&self, x: &Tensor, offset: usize) -> Result<Tensor> {
        const OP: &str = "RotaryTable::apply_tokens";
        check::float(OP, "x", x)?;
        check::rank(OP, "x", x, 3, "[B, T, H * Dh]")?;
        let (b, t, width) = x.dims3()?;
        let whole = width > 0 && width.is_multiple_of(self.head_dim);
        check::value(OP, "H * Dh", width, whole, &format!("a multiple of the head width {}", self.head_dim))?;
        self.reach(OP, offset, t)?;
        let heads = width / self.head_dim;
        if !x.device().is_cpu() {
            let apart = x.reshape((b, t, heads, self.head_dim))?.transpose(1, 2)?;
            return Ok(self.apply(&apart, offset)?.transpose(1, 2)?.reshape((b, t, width))?);
        }
        Ok(apply1(Rotate { table: self.clone(), offset, heads: Some(heads) }, x)?)
    }

    fn reach(&self, op: &'static str, offset: usize, t: usize) -> Result<()> {
        let fits = offset.checked_add(t).is_some_and(|end| end <= self.max_len);
        check::value(op, "offset + T", offset.saturating_add(t), fits, &format!("at most {}", self.max_len))
    }
}

struct Rotate {
    table: RotaryTable,
    offset: usize,
    /// `None`: the argument is [B, H, T, Dh]. Otherwise [B, T, H * Dh] with this many heads.
    heads: Option<usize>,
}

/// Some tokens, each with `heads` heads that stand side by side.
struct Tokens<'a, T> {
    cos: &'a [T],
    sin: &'a [T],
    /// 1 forward, -1 for the transposed rotation.
    turn: T,
    x: &'a [T],
    out: &'a mut [MaybeUninit<T>],
    half: usize,
    heads: usize,
}

impl<T: Float> Kernel for Tokens<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let half = self.half;
        let width = 2 * half * self.heads;
        let tokens = self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width));
        for (t, (x, out)) in tokens.enumerate() {
            let (cos, sin) = (&self.cos[t * half..][..half], &self.sin[t * half..][..half]);
            for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
                let ((a, b), (out_a, out_b)) = (x.split_at(half), out.split_at_mut(half));
                for i in 0..half {
                    let s = sin[i] * self.turn;
                    out_a[i].write(a[i] * cos[i] - b[i] * s);
                    out_b[i].write(b[i] * cos[i] + a[i] * s);
                }
            }
        }
    }
}

impl Rotate {
    #[allow(unsafe_code)]
    fn turn<T: Float>(&self, x: View<'_, T>, turn: T) -> Vec<T> {
        let half = self.table.head_dim / 2;
        let (t, heads) = match self.heads {
            Some(heads) => (x.dims[1], heads),
            None => (x.dims[2], 1),
        };
        let rows = self.offset * half..(self.offset + t) * half;
        let part = |table: &[f64]| table[rows.clone()].iter().map(|&v| T::of(v)).collect::<Vec<T>>();
        let (cos, sin) = (part(&self.table.cos), part(&self.table.sin));
        let width = 2 * half * heads;
        // Runs of tokens, so that a lone long sample has work for every thread.
        let run = (1usize << 14).div_ceil(width).clamp(1, t.max(1));
        let fill = |out: &mut [MaybeUninit<T>]| {
            let samples = out.par_chunks_mut((t * width).max(1)).zip(x.data.par_chunks((t * width).max(1)));
            samples.for_each(|(out, x)| {
                let runs = out.par_chunks_mut(run * width).zip(x.par_chunks(run * width)).enumerate();
                runs.for_each(|(i, (out, x))| {
                    let (cos, sin) = (&cos[i * run * half..], &sin[i * run * half..]);
                    dispatch(Tokens { cos, sin, turn, x, out, half, heads });
                });
            });
        };
        // SAFETY: the runs cover the result, and each writes all of its own.
        unsafe { build(x.data.len(), fill) }
    }
}

impl Op<1> for Rotate {
    const NAME: &'static str = "rotary";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        (self.turn(x, T::ONE), x.dims.into())
    }

    fn backward<T: Float>(
        &self,
        [x]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let grad = View { data: grad.data, dims: x.dims };
        [Some(self.turn(grad, -T::ONE))]
    }
}
