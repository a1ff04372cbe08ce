//! Scaled dot-product attention, block by block with a running softmax (Dao 2023, arXiv 2307.08691): scores exist for
//! one block of queries and keys at a time, nothing of size [heads, len, len] is ever kept, and blocks that a mask hides
//! whole are skipped.
//!
//! Blocks of keys begin at fixed positions, so a query's result does not depend on which other queries stand beside it.

mod backward;
mod forward;
mod mask;

use std::sync::OnceLock;

use candle_core::{CpuStorage, Shape, Tensor};

use crate::float::Float;
use crate::matmul::{Left, Product, Right, Start, Target};
use crate::op::{Op, View, apply3, recording};
use crate::{Error, Result, check};

pub use mask::AttentionMask;

/// Queries and keys of a block of scores: 16 KiB of f32, beside the block's operands in the first-level cache.
const QUERIES: usize = 48;
const KEYS: usize = 64;

/// Which axis comes first after the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// [B, H, T, Dh]
    Heads,
    /// [B, T, H * Dh]
    Tokens,
}

struct Attention {
    mask: AttentionMask,
    /// \[B * Tk\], empty when everything is valid.
    key_valid: Vec<bool>,
    scale: f64,
    sizes: Sizes,
    order: Order,
    /// Whether backward will come.
    keep: bool,
    /// Log of the sum of exponentials of every query's scores, [B, H, Tq]; -infinity where nothing is seen.
    log_sums: OnceLock<CpuStorage>,
}

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tq: usize,
    tk: usize,
    d: usize,
}

/// Where the rows of one (sample, head) lie.
#[derive(Clone, Copy)]
struct Rows {
    batch: usize,
    head: usize,
    row: usize,
}

impl Rows {
    fn new(order: Order, heads: usize, t: usize, d: usize) -> Self {
        match order {
            Order::Heads => Self { batch: heads * t * d, head: t * d, row: d },
            Order::Tokens => Self { batch: t * heads * d, head: d, row: heads * d },
        }
    }

    fn start(&self, sample: usize, head: usize) -> usize {
        sample * self.batch + head * self.head
    }
}

impl Attention {
    /// Rows of the queries (and the result), rows of keys and values.
    fn rows(&self) -> (Rows, Rows) {
        let Sizes { heads, kv_heads, tq, tk, d, .. } = self.sizes;
        (Rows::new(self.order, heads, tq, d), Rows::new(self.order, kv_heads, tk, d))
    }
}

/// A product on this thread, c[m, n] (+)= left [m, k] * right [k, n], with c's rows `stride` apart.
///
/// # Safety
/// As [`Product::write`].
#[allow(unsafe_code)]
unsafe fn product<T: Float>(
    (m, n, k): (usize, usize, usize),
    left: Left<'_, T>,
    right: Right<'_, T>,
    (c, stride): (Target<T>, usize),
    start: Start<'_, T>,
) {
    // SAFETY: granted by the caller.
    unsafe { Product { m, n, k, left, right, c, stride, start }.write() }
}

impl Op<3> for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, [q, k, v]: [View<'_, T>; 3]) -> (Vec<T>, Shape) {
        let (out, log_sums) = forward::run(self, q.data, k.data, v.data);
        if self.keep {
            // Set once: an operation's forward runs once.
            let _ = self.log_sums.set(T::to_cpu_storage_owned(log_sums));
        }
        (out, q.dims.into())
    }

    fn backward<T: Float>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let kept = self.log_sums.get().and_then(|kept| T::cpu_storage_as_slice(kept).ok());
        let again;
        let log_sums = match kept {
            Some(kept) => kept,
            None => {
                again = forward::run(self, q.data, k.data, v.data).1;
                &again
            }
        };
        backward::run(self, [q.data, k.data, v.data], out.data, grad.data, log_sums).map(Some)
    }
}

/// softmax(q k^T * scale + mask) v. `q` [B, H, Tq, Dh], `k` and `v` [B, Hkv, Tk, Dh] with Hkv dividing H (query heads in
/// consecutive groups share a key-value head), `key_valid` [B][Tk] hides padding; result [B, H, Tq, Dh]. A query that
/// sees nothing gets zeros, and gives no gradient.
///
/// # Errors
/// Shapes, dtypes or masks that do not fit.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttentionMask,
    key_valid: Option<&[Vec<bool>]>,
    scale: f64,
) -> Result<Tensor> {
    const OP: &str = "attention";
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        check::rank(OP, name, tensor, 4, "[B, H, T, Dh]")?;
    }
    let ((batch, heads, tq, d), (bk, kv_heads, tk, dk)) = (q.dims4()?, k.dims4()?);
    let fit = batch == bk && d == dk && kv_heads > 0 && heads % kv_heads == 0;
    check::fits(OP, ("q", q), ("k", k), fit, "same B and Dh, Hkv divides H")?;
    let sizes = Sizes { batch, heads, kv_heads, tq, tk, d };
    apply(OP, [q, k, v], sizes, Order::Heads, mask, key_valid, scale)
}

/// [`attention`] on tokens as linear layers leave them, no axis is moved: `q` [B, Tq, H * Dh], `k` and `v`
/// [B, Tk, Hkv * Dh], result [B, Tq, H * Dh]. The same bits as [`attention`].
///
/// # Errors
/// Shapes, dtypes or masks that do not fit; heads that do not divide the widths.
#[allow(clippy::too_many_arguments)]
pub fn attention_tokens(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    (heads, kv_heads): (usize, usize),
    mask: &AttentionMask,
    key_valid: Option<&[Vec<bool>]>,
    scale: f64,
) -> Result<Tensor> {
    const OP: &str = "attention_tokens";
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        check::rank(OP, name, tensor, 3, "[B, T, H * Dh]")?;
    }
    let ((batch, tq, width), (bk, tk, kv_width)) = (q.dims3()?, k.dims3()?);
    let divides = heads > 0 && width.is_multiple_of(heads);
    check::value(OP, "heads", heads, divides, &format!("a divisor of q's width {width}"))?;
    let d = width / heads;
    let divides = kv_heads > 0 && heads.is_multiple_of(kv_heads) && kv_width == kv_heads * d;
    let expected = format!("a divisor of {heads} with k {} wide, {d} times as much", kv_width);
    check::value(OP, "kv_heads", kv_heads, divides, &expected)?;
    check::fits(OP, ("q", q), ("k", k), batch == bk, "same B")?;
    if !q.device().is_cpu() {
        let apart = |x: &Tensor, t, heads| x.reshape((batch, t, heads, d))?.transpose(1, 2);
        let (q, k, v) = (apart(q, tq, heads)?, apart(k, tk, kv_heads)?, apart(v, tk, kv_heads)?);
        let seen = attention(&q, &k, &v, mask, key_valid, scale)?;
        return Ok(seen.transpose(1, 2)?.reshape((batch, tq, width))?);
    }
    let sizes = Sizes { batch, heads, kv_heads, tq, tk, d };
    apply(OP, [q, k, v], sizes, Order::Tokens, mask, key_valid, scale)
}

fn apply(
    op: &'static str,
    [q, k, v]: [&Tensor; 3],
    sizes: Sizes,
    order: Order,
    mask: &AttentionMask,
    key_valid: Option<&[Vec<bool>]>,
    scale: f64,
) -> Result<Tensor> {
    check::float(op, "q", q)?;
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        check::same_dtype(op, name, tensor, q)?;
        let full = tensor.dims().iter().all(|&n| n > 0);
        check::value(op, name, format!("{:?}", tensor.dims()), full, "no empty axis")?;
    }
    check::dims(op, "v", v, k.dims(), "the shape of k")?;
    check::value(op, "scale", scale, scale.is_finite(), "a finite number")?;
    mask.check(op, sizes.tq, sizes.tk)?;
    let (batch, tk) = (sizes.batch, sizes.tk);
    if let Some(rows) = key_valid
        && (rows.len() != batch || rows.iter().any(|row| row.len() != tk))
    {
        let got = vec![rows.len(), rows.first().map_or(0, Vec::len)];
        return Err(Error::Shape { op, arg: "key_valid", got, expected: format!("[{batch}, {tk}]") });
    }
    let key_valid = key_valid.map_or_else(Vec::new, |rows| rows.concat());
    let keep = recording(&[q, k, v]);
    let mask = mask.clone();
    Ok(apply3(Attention { mask, key_valid, scale, sizes, order, keep, log_sums: OnceLock::new() }, q, k, v)?)
}
