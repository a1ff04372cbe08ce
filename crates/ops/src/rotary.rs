//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in Hugging Face's rotate-half convention.

use std::sync::Arc;

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::op::{Op, View, apply1};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Cosines and sines of every position, [T_max, Dh/2].
#[derive(Clone)]
pub struct RotaryTable {
    head_dim: usize,
    max_len: usize,
    pub(crate) cos: Arc<Vec<f64>>,
    pub(crate) sin: Arc<Vec<f64>>,
    /// The same in f32 on devices.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) device: crate::cuda::PerDevice,
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
        Ok(Self {
            head_dim,
            max_len,
            cos,
            sin,
            #[cfg(any(feature = "cuda", test))]
            device: Default::default(),
        })
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
        let fits = offset.checked_add(t).is_some_and(|end| end <= self.max_len);
        check::value(OP, "offset + T", offset.saturating_add(t), fits, &format!("at most {}", self.max_len))?;
        Ok(apply1(Rotate { table: self.clone(), offset }, x)?)
    }
}

pub(crate) struct Rotate {
    pub(crate) table: RotaryTable,
    pub(crate) offset: usize,
}

/// The rows of one (sample, head).
struct Head<'a, T> {
    cos: &'a [T],
    sin: &'a [T],
    /// 1 forward, -1 for the transposed rotation.
    turn: T,
    x: &'a [T],
    out: &'a mut [T],
    half: usize,
}

impl<T: Float> Kernel for Head<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        let half = self.half;
        let tokens = self.x.chunks_exact(2 * half).zip(self.out.chunks_exact_mut(2 * half));
        for (t, (x, out)) in tokens.enumerate() {
            let (cos, sin) = (&self.cos[t * half..][..half], &self.sin[t * half..][..half]);
            let ((a, b), (out_a, out_b)) = (x.split_at(half), out.split_at_mut(half));
            for i in 0..half {
                let s = sin[i] * self.turn;
                out_a[i] = a[i] * cos[i] - b[i] * s;
                out_b[i] = b[i] * cos[i] + a[i] * s;
            }
        }
    }
}

impl Rotate {
    fn turn<T: Float>(&self, x: View<'_, T>, turn: T) -> Vec<T> {
        let (t, d) = (x.dims[2], x.dims[3]);
        let half = d / 2;
        let rows = self.offset * half..(self.offset + t) * half;
        let part = |table: &[f64]| table[rows.clone()].iter().map(|&v| T::of(v)).collect::<Vec<T>>();
        let (cos, sin) = (part(&self.table.cos), part(&self.table.sin));
        let mut out = vec![T::ZERO; x.data.len()];
        let head = (t * d).max(1);
        out.par_chunks_mut(head).zip(x.data.par_chunks(head)).for_each(|(out, x)| {
            dispatch(Head { cos: &cos, sin: &sin, turn, x, out, half });
        });
        out
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
