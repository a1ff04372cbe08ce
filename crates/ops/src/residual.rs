//! The sum of a residual connection.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::build;
use crate::op::{cpu_storage, leaf, on_tape, recording};
use crate::tape::{self, Sum};
use crate::{Result, check};

/// Elements per task.
const CHUNK: usize = 1 << 14;

struct Add;

#[allow(unsafe_code)]
fn sum<T: Float>(x: &[T], y: &[T]) -> Vec<T> {
    // SAFETY: every element is written.
    unsafe {
        build(x.len(), |out| {
            out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK)).for_each(
                |((out, x), y)| {
                    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                        out.write(x + y);
                    }
                },
            );
        })
    }
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (Some((a, b)), Some((c, d))) = (x_layout.contiguous_offsets(), y_layout.contiguous_offsets())
        else {
            candle_core::bail!("add: argument is not contiguous")
        };
        let data = match (x, y) {
            (CpuStorage::F32(x), CpuStorage::F32(y)) => CpuStorage::F32(sum(&x[a..b], &y[c..d])),
            (CpuStorage::F64(x), CpuStorage::F64(y)) => CpuStorage::F64(sum(&x[a..b], &y[c..d])),
            _ => candle_core::bail!("add: only F32 and F64 are supported"),
        };
        Ok((data, x_layout.shape().clone()))
    }
}

/// Both arguments have the gradient of the sum: nothing is computed or copied.
struct Pass;

impl tape::Backward for Pass {
    fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> candle_core::Result<Vec<Option<Sum>>> {
        Ok(vec![Some(Sum::Shared(grad.clone())), Some(Sum::Shared(grad.clone()))])
    }
}

/// x + y for two tensors of one shape: a residual connection.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    check::float(OP, "x", x)?;
    check::same_dtype(OP, "y", y, x)?;
    check::dims(OP, "y", y, x.dims(), "the shape of x")?;
    let records = recording(&[x, y]);
    if !x.device().is_cpu() || records && !on_tape(x) {
        return Ok((x + y)?);
    }
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    if !records {
        return Ok(x.apply_op2_no_bwd(&y, &Add)?);
    }
    let (storage, shape) = {
        let ((x, x_layout), (y, y_layout)) = (x.storage_and_layout(), y.storage_and_layout());
        Add.cpu_fwd(cpu_storage(OP, &x)?, x_layout, cpu_storage(OP, &y)?, y_layout)?
    };
    let out = leaf(storage, shape, x.device())?;
    tape::record(vec![x, y], out.clone(), Box::new(Pass));
    Ok(out)
}
