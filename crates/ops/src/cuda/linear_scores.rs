//! Log-probabilities and entropies straight from hidden states on a device: the vocabulary is walked in chunks, so that
//! a [tokens, vocabulary] tensor never exists.

use candle_core::{DType, Result};

use super::launch::{Arg, Array, Gemm, Launch, Machine, axis, symbol};
use super::scores::{BLOCK, Stats};
use super::{DeviceOp, Kept, Made};
use crate::linear_scores::LinearScores;

/// Rows of the vocabulary matrix in work at a time. Part of the gradients' bits.
const CHUNK: usize = 8192;

/// Sizes of a call: tokens, vocabulary, width.
struct Sizes {
    n: usize,
    v: usize,
    d: usize,
}

impl Sizes {
    fn of<B>(hidden: &Array<'_, B>, weight: &Array<'_, B>) -> Self {
        Sizes { n: hidden.rows(), v: weight.dims[0], d: weight.dims[1] }
    }

    /// First row and number of rows of every chunk of the vocabulary.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let v = self.v;
        (0..v).step_by(CHUNK).map(move |start| (start, (v - start).min(CHUNK)))
    }
}

/// `rows` rows of `weight` from `start` on.
fn part<'a, B>(weight: &Array<'a, B>, dims: &'a [usize; 2], start: usize) -> Array<'a, B> {
    Array { offset: weight.offset + start * dims[1], dims, ..*weight }
}

impl LinearScores {
    fn inverse_temperature(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    /// Numbers of a token in the result: log-probability, entropy, and the mean log-probability where it is wanted.
    fn columns(&self) -> usize {
        if self.uniform { 3 } else { 2 }
    }
}

impl DeviceOp<2> for LinearScores {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [hidden, weight]: [Array<'_, M::Buffer>; 2],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let s = Sizes::of(&hidden, &weight);
        let ids = machine.upload(&self.ids)?;
        let mut state = machine.alloc(DType::F32, 5 * s.n)?;
        let mut logits = machine.alloc(hidden.dtype, s.n * s.v.min(CHUNK))?;
        let launch = Launch::new([axis(s.n)?, 1, 1], BLOCK);
        for (start, rows) in s.chunks() {
            let dims = [rows, s.d];
            let gemm =
                Gemm { m: s.n, n: rows, k: s.d, left_transposed: false, right_transposed: true, add: false };
            machine.matmul(gemm, hidden, part(&weight, &dims, start), (&mut logits, 0))?;
            let args = &mut [
                Arg::In(&logits, 0),
                Arg::In(&ids, 0),
                Arg::Out(&mut state),
                Arg::count(s.n),
                Arg::size(rows)?,
                Arg::size(start)?,
                Arg::I32((start == 0).into()),
                Arg::F32(self.inverse_temperature()),
            ];
            machine.launch(&symbol("token_scores_update", hidden.dtype), launch, args)?;
        }
        let columns = self.columns();
        let mut out = machine.alloc(DType::F32, columns * s.n)?;
        let mut stats = kept.wanted().then(|| machine.alloc(DType::F32, 3 * s.n)).transpose()?;
        let args = &mut [
            Arg::In(&state, 0),
            Arg::Out(&mut out),
            Arg::maybe_out(stats.as_mut()),
            Arg::count(s.n),
            Arg::size(s.v)?,
            Arg::size(columns)?,
        ];
        machine.launch("token_scores_finish", Launch::each(s.n), args)?;
        if let Some(stats) = stats {
            kept.put(Stats(stats));
        }
        Made::new(out, (s.n, columns))
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [hidden, weight]: [Array<'_, M::Buffer>; 2],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; 2],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 2]> {
        let Some(Stats(stats)) = kept.get::<Stats<M::Buffer>>() else {
            candle_core::bail!("forward kept nothing for backward")
        };
        let (s, dtype) = (Sizes::of(&hidden, &weight), hidden.dtype);
        let ids = machine.upload(&self.ids)?;
        // Summed over the chunks in f32.
        let mut d_hidden = needs[0].then(|| machine.alloc(DType::F32, s.n * s.d)).transpose()?;
        let mut d_weight = needs[1].then(|| machine.alloc(dtype, s.v * s.d)).transpose()?;
        let mut slopes = machine.alloc(dtype, s.n * s.v.min(CHUNK))?;
        let launch = Launch::new([axis(s.n)?, 1, 1], BLOCK);
        for (start, rows) in s.chunks() {
            let (dims, slope_dims) = ([rows, s.d], [s.n, rows]);
            let weight = part(&weight, &dims, start);
            let logits =
                Gemm { m: s.n, n: rows, k: s.d, left_transposed: false, right_transposed: true, add: false };
            machine.matmul(logits, hidden, weight, (&mut slopes, 0))?;
            let args = &mut [
                Arg::Out(&mut slopes),
                Arg::In(&ids, 0),
                Arg::In(stats, 0),
                grad.arg(),
                Arg::Same(0),
                Arg::count(s.n),
                Arg::size(rows)?,
                Arg::size(start)?,
                Arg::size(s.v)?,
                Arg::size(self.columns())?,
                Arg::F32(self.inverse_temperature()),
            ];
            machine.launch(&symbol("token_scores_grad", dtype), launch, args)?;
            let slopes = Array { buffer: &slopes, offset: 0, dims: &slope_dims, dtype };
            let plain = Gemm { right_transposed: false, ..logits };
            if let Some(d_hidden) = &mut d_hidden {
                let gemm = Gemm { n: s.d, k: rows, add: start > 0, ..plain };
                machine.matmul(gemm, slopes, weight, (d_hidden, 0))?;
            }
            if let Some(d_weight) = &mut d_weight {
                let gemm = Gemm { m: rows, n: s.d, k: s.n, left_transposed: true, ..plain };
                machine.matmul(gemm, slopes, hidden, (d_weight, start * s.d))?;
            }
        }
        let d_hidden = match d_hidden {
            Some(sum) if dtype != DType::F32 => {
                let (n, mut narrow) = (s.n * s.d, machine.alloc(dtype, s.n * s.d)?);
                let args = &mut [Arg::In(&sum, 0), Arg::Out(&mut narrow), Arg::count(n)];
                machine.launch(&symbol("cast_f32", dtype), Launch::each(n), args)?;
                Some(narrow)
            }
            other => other,
        };
        Ok([d_hidden, d_weight])
    }
}
