//! Attention on a device: tensor-core kernels for f16 and bf16, plain ones for f32 and odd shapes.

use candle_core::{DType, Result};

use super::launch::{Arg, Array, Launch, Machine, axis, symbol};
use super::{DeviceOp, Kept, Made};
use crate::attention::{Attention, AttentionMask};

/// Most queries for which heads are taken together.
const PACKED: usize = 16;

/// Log of the sum of exponentials of every query, [B, H, Tq].
struct LogSums<B>(B);

/// Which kernels fit a call.
struct Family {
    /// The part of a symbol after `attention_`.
    suffix: String,
    /// Queries of one block, and queries or keys of one where gradients are computed.
    tile: [usize; 2],
    block: u32,
    shared_forward: usize,
    shared_backward: usize,
    /// Whether the forward kernel can take the heads of a group together.
    packs: bool,
}

impl Family {
    fn of(dtype: DType, head_dim: usize, aligned: bool) -> Result<Self> {
        let half = matches!(dtype, DType::F16 | DType::BF16);
        let padded = [64, 80, 96, 128].into_iter().find(|&d| head_dim <= d);
        if let Some(padded) = padded
            && half
            && aligned
            && head_dim.is_multiple_of(8)
        {
            let shared = 512 * (padded + 8);
            let suffix = format!("{}_d{padded}", dtype.as_str());
            let (shared_forward, shared_backward) = (shared, shared);
            return Ok(Family {
                suffix,
                tile: [128, 64],
                block: 128,
                shared_forward,
                shared_backward,
                packs: true,
            });
        }
        let (name, tile) = match head_dim {
            ..=128 => ("plain", 32),
            129..=256 => ("plain_wide", 16),
            _ => candle_core::bail!("attention on CUDA takes heads of at most 256, not {head_dim}"),
        };
        let row = head_dim + 1;
        Ok(Family {
            suffix: symbol(name, dtype),
            tile: [tile; 2],
            block: 256,
            shared_forward: 4 * (2 * tile * row + tile * (tile + 1)),
            shared_backward: 4 * (4 * tile * row + 2 * tile * (tile + 1)),
            packs: false,
        })
    }

    fn launch(&self, backward: bool, length: usize, heads: usize, batch: usize) -> Result<Launch> {
        let shared = if backward { self.shared_backward } else { self.shared_forward };
        let tile = self.tile[usize::from(backward)];
        let grid = [axis(length.div_ceil(tile))?, axis(heads)?, axis(batch)?];
        Ok(Launch { grid, block: self.block, shared: axis(shared)? })
    }
}

/// What every attention kernel is told last.
struct Tail<B> {
    key_valid: Option<B>,
    blocks: Option<B>,
    sizes: [i32; 5],
    scale: f32,
    mask: i32,
    prefix: i32,
}

impl<B> Tail<B> {
    fn args(&self) -> [Arg<'_, B>; 10] {
        let [heads, kv_heads, tq, tk, d] = self.sizes.map(Arg::I32);
        let (valid, blocks) = (Arg::maybe(self.key_valid.as_ref()), Arg::maybe(self.blocks.as_ref()));
        let (scale, mask, prefix) = (Arg::F32(self.scale), Arg::I32(self.mask), Arg::I32(self.prefix));
        [valid, blocks, heads, kv_heads, tq, tk, d, scale, mask, prefix]
    }
}

/// Sizes [B, H, Hkv, Tq, Tk, Dh] of a call.
fn sizes<B>(q: &Array<'_, B>, k: &Array<'_, B>) -> [usize; 6] {
    [q.dims[0], q.dims[1], k.dims[1], q.dims[2], k.dims[2], q.dims[3]]
}

impl Attention {
    fn tail<M: Machine>(
        &self,
        machine: &M,
        q: &Array<'_, M::Buffer>,
        k: &Array<'_, M::Buffer>,
    ) -> Result<Tail<M::Buffer>> {
        let [_, heads, kv_heads, tq, tk, d] = sizes(q, k);
        let valid: Vec<u8> = self.key_valid.iter().map(|&valid| valid.into()).collect();
        let (mask, blocks, prefix) = match &self.mask {
            AttentionMask::Full => (0, None, 0),
            AttentionMask::Causal => (1, None, 0),
            AttentionMask::Blocks(blocks) => (2, Some(machine.upload(blocks)?), 0),
            AttentionMask::Prefix(prefix) => (3, None, super::launch::int(*prefix)?),
            AttentionMask::CausalSegments(_) => {
                candle_core::bail!(
                    "a mask of causal segments has no CUDA kernel yet; use a batch with padding"
                )
            }
        };
        let mut numbers = [0; 5];
        for (number, size) in numbers.iter_mut().zip([heads, kv_heads, tq, tk, d]) {
            *number = super::launch::int(size)?;
        }
        Ok(Tail {
            key_valid: (!valid.is_empty()).then(|| machine.upload(&valid)).transpose()?,
            blocks,
            sizes: numbers,
            scale: self.scale as f32,
            mask,
            prefix,
        })
    }
}

/// Whether vectors of 16 bytes of a two-byte type start at whole vectors.
fn aligned<B>(arrays: &[&Array<'_, B>]) -> bool {
    arrays.iter().all(|array| array.offset.is_multiple_of(8))
}

impl DeviceOp<3> for Attention {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [q, k, v]: [Array<'_, M::Buffer>; 3],
        kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let [b, heads, kv_heads, tq, _, d] = sizes(&q, &k);
        let family = Family::of(q.dtype, d, aligned(&[&q, &k, &v]))?;
        let tail = self.tail(machine, &q, &k)?;
        let mut out = machine.alloc(q.dtype, q.len())?;
        let mut log_sums = machine.alloc(DType::F32, b * heads * tq)?;
        let mut args = vec![q.arg(), k.arg(), v.arg(), Arg::Out(&mut out), Arg::Out(&mut log_sums)];
        args.extend(tail.args());
        // With few queries a block takes those of all heads that share a key-value head, and reads the keys once.
        let launch = if family.packs && tq <= PACKED {
            family.launch(false, heads / kv_heads * tq, kv_heads, b)?
        } else {
            family.launch(false, tq, heads, b)?
        };
        machine.launch(&format!("attention_{}", family.suffix), launch, &mut args)?;
        drop(args);
        kept.put(LogSums(log_sums));
        Made::new(out, q.dims)
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [q, k, v]: [Array<'_, M::Buffer>; 3],
        out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        needs: [bool; 3],
        kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 3]> {
        let Some(LogSums(log_sums)) = kept.get::<LogSums<M::Buffer>>() else {
            candle_core::bail!("forward kept nothing for backward")
        };
        let [b, heads, kv_heads, tq, tk, d] = sizes(&q, &k);
        let rows = b * heads * tq;
        let family = Family::of(q.dtype, d, aligned(&[&q, &k, &v, &out, &grad]))?;
        let tail = self.tail(machine, &q, &k)?;
        let mut delta = machine.alloc(DType::F32, rows)?;
        let args = &mut [out.arg(), grad.arg(), Arg::Out(&mut delta), Arg::count(rows), Arg::size(d)?];
        let launch = Launch::new([axis(rows.div_ceil(8))?, 1, 1], 256);
        machine.launch(&symbol("attention_delta", q.dtype), launch, args)?;
        let inputs = || vec![q.arg(), k.arg(), v.arg(), grad.arg(), Arg::In(log_sums, 0), Arg::In(&delta, 0)];

        let mut dq = needs[0].then(|| machine.alloc(q.dtype, q.len())).transpose()?;
        if let Some(dq) = &mut dq {
            let mut args = inputs();
            args.push(Arg::Out(dq));
            args.extend(tail.args());
            let launch = family.launch(true, tq, heads, b)?;
            machine.launch(&format!("attention_dq_{}", family.suffix), launch, &mut args)?;
        }
        if !(needs[1] || needs[2]) {
            return Ok([dq, None, None]);
        }
        let (mut dk, mut dv) = (machine.alloc(q.dtype, k.len())?, machine.alloc(q.dtype, v.len())?);
        let mut args = inputs();
        args.extend([Arg::Out(&mut dk), Arg::Out(&mut dv)]);
        args.extend(tail.args());
        let launch = family.launch(true, tk, kv_heads, b)?;
        machine.launch(&format!("attention_dkdv_{}", family.suffix), launch, &mut args)?;
        drop(args);
        Ok([dq, Some(dk), Some(dv)])
    }
}
