//! Log-probabilities, entropies and cross entropies on a device. Results are f32 whatever the logits are.

use candle_core::{DType, Result};

use super::launch::{Arg, Array, Launch, Machine, axis, symbol};
use super::{DeviceOp, Kept, Made};
use crate::scores::{Scores, Soft};

/// Threads for a row. Part of the result's bits.
pub(super) const BLOCK: u32 = 256;

/// Three numbers that summarise every row, [rows, 3].
pub(super) struct Stats<B>(pub(super) B);

fn rows_launch(rows: usize) -> Result<Launch> {
    Ok(Launch::new([axis(rows)?, 1, 1], BLOCK))
}

impl DeviceOp<1> for Scores {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let (rows, vocab) = (x.rows(), x.width());
        let ids = machine.upload(&self.ids)?;
        let mut out = machine.alloc(DType::F32, 2 * rows)?;
        let mut stats = kept.wanted().then(|| machine.alloc(DType::F32, 3 * rows)).transpose()?;
        let args = &mut [
            x.arg(),
            Arg::In(&ids, 0),
            Arg::Out(&mut out),
            Arg::maybe_out(stats.as_mut()),
            Arg::count(rows),
            Arg::size(vocab)?,
            Arg::F32((1.0 / self.temperature) as f32),
        ];
        machine.launch(&symbol("token_scores", x.dtype), rows_launch(rows)?, args)?;
        if let Some(stats) = stats {
            kept.put(Stats(stats));
        }
        Made::new(out, (rows, 2))
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        _needs: [bool; 1],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 1]> {
        let (rows, vocab) = (x.rows(), x.width());
        let ids = machine.upload(&self.ids)?;
        let mut dx = machine.alloc(x.dtype, rows * vocab)?;
        let args = &mut [
            x.arg(),
            Arg::In(&ids, 0),
            Arg::maybe(kept.get::<Stats<M::Buffer>>().map(|Stats(stats)| stats)),
            grad.arg(),
            Arg::Out(&mut dx),
            Arg::count(rows),
            Arg::size(vocab)?,
            Arg::I32(0),
            Arg::size(vocab)?,
            Arg::I32(2),
            Arg::F32((1.0 / self.temperature) as f32),
        ];
        machine.launch(&symbol("token_scores_grad", x.dtype), rows_launch(rows)?, args)?;
        Ok([Some(dx)])
    }
}

impl Soft {
    /// The targets in the dtype of the logits.
    fn device_targets<M: Machine>(&self, machine: &M, dtype: DType) -> Result<M::Buffer> {
        let single: Vec<f32> = self.0.iter().map(|&t| t as f32).collect();
        let n = single.len();
        let wide = machine.upload(&single)?;
        if dtype == DType::F32 {
            return Ok(wide);
        }
        let mut narrow = machine.alloc(dtype, n)?;
        let args = &mut [Arg::In(&wide, 0), Arg::Out(&mut narrow), Arg::count(n)];
        machine.launch(&symbol("cast_f32", dtype), Launch::each(n), args)?;
        Ok(narrow)
    }
}

impl DeviceOp<1> for Soft {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let (rows, vocab) = (x.rows(), x.width());
        let targets = self.device_targets(machine, x.dtype)?;
        let mut out = machine.alloc(DType::F32, rows)?;
        let mut stats = kept.wanted().then(|| machine.alloc(DType::F32, 3 * rows)).transpose()?;
        let args = &mut [
            x.arg(),
            Arg::In(&targets, 0),
            Arg::Out(&mut out),
            Arg::maybe_out(stats.as_mut()),
            Arg::count(rows),
            Arg::size(vocab)?,
        ];
        machine.launch(&symbol("cross_entropy_soft", x.dtype), rows_launch(rows)?, args)?;
        if let Some(stats) = stats {
            kept.put(Stats(stats));
        }
        Made::new(out, rows)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        _needs: [bool; 1],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 1]> {
        let (rows, vocab) = (x.rows(), x.width());
        let targets = self.device_targets(machine, x.dtype)?;
        let mut dx = machine.alloc(x.dtype, rows * vocab)?;
        let args = &mut [
            x.arg(),
            Arg::In(&targets, 0),
            Arg::maybe(kept.get::<Stats<M::Buffer>>().map(|Stats(stats)| stats)),
            grad.arg(),
            Arg::Out(&mut dx),
            Arg::count(rows),
            Arg::size(vocab)?,
        ];
        machine.launch(&symbol("cross_entropy_soft_grad", x.dtype), rows_launch(rows)?, args)?;
        Ok([Some(dx)])
    }
}
