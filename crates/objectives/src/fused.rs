//! Three operations that every loss goes through, in one pass each on the CPU: candle's graph of elementwise operations
//! reads and writes the whole batch a dozen times for them. On another device, or in another type than f32 and f64, they
//! are that graph.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, bail};

use crate::error::Result;
use crate::table::Table;

fn in_one_pass(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

fn apply<O: CustomOp1 + Send + Sync + 'static>(op: O, x: &Tensor) -> Result<Tensor> {
    Ok(if x.track_op() { x.contiguous()?.apply_op1(op)? } else { x.contiguous()?.apply_op1_no_bwd(&op)? })
}

/// Runs `$body` with `$data` as the slice of a contiguous f32 or f64 argument.
macro_rules! on_floats {
    ($storage:expr, $layout:expr, |$data:ident| $body:expr) => {{
        let Some((start, end)) = $layout.contiguous_offsets() else { bail!("argument is not contiguous") };
        match $storage {
            CpuStorage::F32(x) => {
                let $data = &x[start..end];
                CpuStorage::F32($body)
            }
            CpuStorage::F64(x) => {
                let $data = &x[start..end];
                CpuStorage::F64($body)
            }
            _ => bail!("only f32 and f64"),
        }
    }};
}

/// Numbers as a tensor like `like`.
fn tensor(values: &[f64], like: &Tensor) -> candle_core::Result<Tensor> {
    match like.dtype() {
        DType::F32 => {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            Tensor::from_vec(values, like.shape(), like.device())
        }
        _ => Tensor::from_slice(values, like.shape(), like.device())?.to_dtype(like.dtype()),
    }
}

struct Pointwise {
    values: Tensor,
    slopes: Tensor,
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (storage, values) = self.values.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("only the CPU is supported") };
        Ok((on_floats!(storage, values, |data| data.to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some((grad * &self.slopes)?))
    }
}

/// A function of every element of `x` with known `values` and `slopes`, in the order of `x`.
///
/// # Errors
/// Other lengths than that of `x`.
pub(crate) fn pointwise(x: &Tensor, values: &[f64], slopes: &[f64]) -> Result<Tensor> {
    let (values, slopes) = (tensor(values, x)?, tensor(slopes, x)?);
    if in_one_pass(x) {
        return apply(Pointwise { values, slopes }, x);
    }
    Ok((values + ((x - x.detach())? * slopes)?)?)
}

struct WeightedSum {
    weights: Vec<f64>,
}

impl CustomOp1 for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted sum"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        // 0 * NaN is NaN: what has no weight must not reach the sum at all.
        fn sum<T: Copy + Into<f64>>(x: &[T], weights: &[f64]) -> f64 {
            let valid = x.iter().zip(weights).filter(|(_, w)| **w != 0.0);
            valid.map(|(&x, w)| x.into() * w).sum()
        }
        let sum = on_floats!(storage, layout, |x| vec![sum(x, &self.weights) as _]);
        Ok((sum, Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad: f64 = grad.to_dtype(DType::F64)?.to_scalar()?;
        let weights: Vec<f64> = self.weights.iter().map(|w| if *w == 0.0 { 0.0 } else { w * grad }).collect();
        Ok(Some(tensor(&weights, x)?))
    }
}

/// Sum of `x` [B, T] times `weights`, a scalar in the type of `x` that is summed in f64; where the weight is 0, `x` may
/// be anything.
///
/// # Errors
/// Shapes that differ (the caller checks).
pub(crate) fn weighted_sum(x: &Tensor, weights: Table) -> Result<Tensor> {
    if in_one_pass(x) {
        return apply(WeightedSum { weights: weights.values }, x);
    }
    let weights = weights.to_tensor(x)?;
    Ok((weights.ne(0.0)?.where_cond(x, &x.zeros_like()?)? * weights)?.sum_all()?)
}

struct Keep {
    mask: Vec<bool>,
}

impl Keep {
    fn select(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<CpuStorage> {
        Ok(on_floats!(storage, layout, |data| {
            data.iter().zip(&self.mask).map(|(&x, &keep)| if keep { x } else { 0.0 }).collect()
        }))
    }
}

impl CustomOp1 for Keep {
    fn name(&self) -> &'static str {
        "keep where"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((self.select(storage, layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(self)?))
    }
}

/// `x` [B, T] where the mask is not 0, else 0, and so its gradient.
///
/// # Errors
/// Shapes that differ (the caller checks).
pub(crate) fn keep(x: &Tensor, mask: &Table) -> Result<Tensor> {
    if in_one_pass(x) {
        return apply(Keep { mask: mask.values.iter().map(|&m| m != 0.0).collect() }, x);
    }
    let flags: Vec<u8> = mask.values.iter().map(|&m| u8::from(m != 0.0)).collect();
    let flags = Tensor::from_vec(flags, (mask.rows, mask.cols), x.device())?;
    Ok(flags.where_cond(x, &x.zeros_like()?)?)
}
