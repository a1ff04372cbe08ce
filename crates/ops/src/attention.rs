//! Scaled dot-product attention. Probabilities exist for one (sample, head) at a time and are computed again for the
//! backward pass: nothing of size [heads, len, len] is kept.

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::{Float, max, sum, sum_of2};
use crate::matmul::{Left, Product, Right, Start, Target, pack};
use crate::op::{Op, View, apply3};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Error, Result, check};

/// Which keys a query may see, besides the padding that `key_valid` hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// Every key.
    Full,
    /// Keys up to the query's own position; with Tk > Tq the queries are the last Tq positions.
    Causal,
    /// Key j where block\[j\] <= block\[i\]: one block id per position, Tq = Tk.
    Blocks(Vec<u32>),
}

pub(crate) struct Attention {
    pub(crate) mask: AttentionMask,
    /// \[B * Tk\], empty when everything is valid.
    pub(crate) key_valid: Vec<bool>,
    pub(crate) scale: f64,
}

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    tq: usize,
    tk: usize,
    d: usize,
}

/// Scores of one head to probabilities, in place; a row with nothing visible becomes zeros.
struct Softmax<'a, T> {
    scores: &'a mut [T],
    hidden: &'a [bool],
    scale: T,
    tk: usize,
}

impl<T: Float> Kernel for Softmax<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for (i, row) in self.scores.chunks_exact_mut(self.tk).enumerate() {
            for x in row.iter_mut() {
                *x *= self.scale;
            }
            if !self.hidden.is_empty() {
                // one row of the mask for all queries, or one for each
                let start = if self.hidden.len() == self.tk { 0 } else { i * self.tk };
                for (x, &hide) in row.iter_mut().zip(&self.hidden[start..start + self.tk]) {
                    *x = if hide { T::NEG_INFINITY } else { *x };
                }
            }
            let top = max(row);
            if top == T::NEG_INFINITY {
                row.fill(T::ZERO);
                continue;
            }
            for x in row.iter_mut() {
                *x = Float::exp(*x - top);
            }
            let inverse = T::ONE / sum(row);
            for x in row.iter_mut() {
                *x *= inverse;
            }
        }
    }
}

/// dS = P (dP - sum(dP P)) * scale, in place of dP.
struct SoftmaxGrad<'a, T>(&'a [T], &'a mut [T], T, usize);

impl<T: Float> Kernel for SoftmaxGrad<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for (p, grad) in self.0.chunks_exact(self.3).zip(self.1.chunks_exact_mut(self.3)) {
            let along = sum_of2(p, grad, |p, g| p * g);
            for (g, &p) in grad.iter_mut().zip(p) {
                *g = p * (*g - along) * self.2;
            }
        }
    }
}

/// c = left [m, k] * right [k, n] into `c`, on this thread.
fn product<T: Float>(
    (m, n, k): (usize, usize, usize),
    left: Left<'_, T>,
    packed: &[T],
    c: &mut [T],
    start: Start<'_, T>,
) {
    assert_eq!(c.len(), m * n, "the destination holds the product");
    let right = Right::packed(packed, k);
    // SAFETY: `c` is exclusively ours and holds m rows of n.
    #[allow(unsafe_code)]
    unsafe {
        Product { m, n, k, left, right, c: Target::of(c), stride: n, start }.write();
    }
}

impl Attention {
    /// What sample `b` hides: empty, one row for all queries \[Tk\], or \[Tq * Tk\].
    fn hidden(&self, b: usize, s: Sizes) -> Vec<bool> {
        let pad = |j: usize| !self.key_valid.is_empty() && !self.key_valid[b * s.tk + j];
        let rows = |hide: &dyn Fn(usize, usize) -> bool| {
            (0..s.tq * s.tk).map(|at| hide(at / s.tk, at % s.tk) || pad(at % s.tk)).collect()
        };
        match &self.mask {
            AttentionMask::Full if self.key_valid.is_empty() => Vec::new(),
            AttentionMask::Full => (0..s.tk).map(pad).collect(),
            AttentionMask::Causal => rows(&|i, j| j > i + s.tk - s.tq),
            AttentionMask::Blocks(block) => rows(&|i, j| block[j] > block[i]),
        }
    }

    fn probabilities<T: Float>(&self, q: &[T], k: &[T], hidden: &[bool], s: Sizes) -> Vec<T> {
        let mut p = vec![T::ZERO; s.tq * s.tk];
        let keys = pack(k, s.d, s.tk, 1, s.d);
        product((s.tq, s.tk, s.d), Left::rows(q, s.d), &keys, &mut p, Start::Zero);
        dispatch(Softmax { scores: &mut p, hidden, scale: T::of(self.scale), tk: s.tk });
        p
    }
}

fn sizes<T>(q: View<'_, T>, k: View<'_, T>) -> Sizes {
    Sizes { heads: q.dims[1], kv_heads: k.dims[1], tq: q.dims[2], tk: k.dims[2], d: q.dims[3] }
}

impl Op<3> for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, [q, k, v]: [View<'_, T>; 3]) -> (Vec<T>, Shape) {
        let s = sizes(q, k);
        let (q_head, kv_head) = (s.tq * s.d, s.tk * s.d);
        let group = s.heads / s.kv_heads;
        let mut out = vec![T::ZERO; q.data.len()];
        let hidden: Vec<Vec<bool>> = (0..q.dims[0]).map(|b| self.hidden(b, s)).collect();
        out.par_chunks_mut(q_head).enumerate().for_each(|(at, out)| {
            let kv = (at / s.heads * s.kv_heads + at % s.heads / group) * kv_head;
            let q = &q.data[at * q_head..][..q_head];
            let p = self.probabilities(q, &k.data[kv..][..kv_head], &hidden[at / s.heads], s);
            let values = pack(&v.data[kv..][..kv_head], s.tk, s.d, s.d, 1);
            product((s.tq, s.d, s.tk), Left::rows(&p, s.tk), &values, out, Start::Zero);
        });
        (out, q.dims.into())
    }

    fn backward<T: Float>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let s = sizes(q, k);
        let (q_head, kv_head) = (s.tq * s.d, s.tk * s.d);
        let group = s.heads / s.kv_heads;
        let (mut dq, mut dk, mut dv) =
            (vec![T::ZERO; q.data.len()], vec![T::ZERO; k.data.len()], vec![T::ZERO; v.data.len()]);
        let hidden: Vec<Vec<bool>> = (0..q.dims[0]).map(|b| self.hidden(b, s)).collect();
        // A task is one key-value head with the query heads that read it, so no two tasks add to one place.
        let tasks =
            dq.par_chunks_mut(group * q_head).zip(dk.par_chunks_mut(kv_head)).zip(dv.par_chunks_mut(kv_head));
        tasks.enumerate().for_each(|(at, ((dq, dk), dv))| {
            let (keys, values) = (&k.data[at * kv_head..][..kv_head], &v.data[at * kv_head..][..kv_head]);
            let (keys_right, values_right) = (pack(keys, s.tk, s.d, s.d, 1), pack(values, s.d, s.tk, 1, s.d));
            for (head, dq) in dq.chunks_exact_mut(q_head).enumerate() {
                let from = (at * group + head) * q_head;
                let (q, grad) = (&q.data[from..][..q_head], &grad.data[from..][..q_head]);
                let p = self.probabilities(q, keys, &hidden[at / s.kv_heads], s);
                let start = if head == 0 { Start::Zero } else { Start::Add };
                let grad_right = pack(grad, s.tq, s.d, s.d, 1);
                product((s.tk, s.d, s.tq), Left::transposed(&p, s.tk), &grad_right, dv, start);
                let mut ds = vec![T::ZERO; s.tq * s.tk];
                product((s.tq, s.tk, s.d), Left::rows(grad, s.d), &values_right, &mut ds, Start::Zero);
                dispatch(SoftmaxGrad(&p, &mut ds, T::of(self.scale), s.tk));
                product((s.tq, s.d, s.tk), Left::rows(&ds, s.tk), &keys_right, dq, Start::Zero);
                let q_right = pack(q, s.tq, s.d, s.d, 1);
                product((s.tk, s.d, s.tq), Left::transposed(&ds, s.tk), &q_right, dk, start);
            }
        });
        [Some(dq), Some(dk), Some(dv)]
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
    check::float(OP, "q", q)?;
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        check::same_dtype(OP, name, tensor, q)?;
        check::rank(OP, name, tensor, 4, "[B, H, T, Dh]")?;
        let full = tensor.dims().iter().all(|&n| n > 0);
        check::value(OP, name, format!("{:?}", tensor.dims()), full, "no empty axis")?;
    }
    check::dims(OP, "v", v, k.dims(), "the shape of k")?;
    let ((b, h, tq, d), (bk, hk, tk, dk)) = (q.dims4()?, k.dims4()?);
    let fit = b == bk && d == dk && h % hk == 0;
    check::fits(OP, ("q", q), ("k", k), fit, "same B and Dh, Hkv divides H")?;
    check::value(OP, "scale", scale, scale.is_finite(), "a finite number")?;
    match mask {
        AttentionMask::Full => {}
        AttentionMask::Causal => check::value(OP, "Tq", tq, tq <= tk, "at most Tk for a causal mask")?,
        AttentionMask::Blocks(block) => {
            let fits = block.len() == tk && tq == tk;
            check::value(OP, "mask", format!("{} block ids", block.len()), fits, "Tq = Tk block ids")?;
        }
    }
    if let Some(rows) = key_valid
        && (rows.len() != b || rows.iter().any(|row| row.len() != tk))
    {
        let got = vec![rows.len(), rows.first().map_or(0, Vec::len)];
        return Err(Error::Shape { op: OP, arg: "key_valid", got, expected: format!("[{b}, {tk}]") });
    }
    let key_valid = key_valid.map_or_else(Vec::new, |rows| rows.concat());
    Ok(apply3(Attention { mask: mask.clone(), key_valid, scale }, q, k, v)?)
}
