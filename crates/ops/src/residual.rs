//! The sum of a residual connection.

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::build;
use crate::op::{Op, View, apply2};
use crate::{Result, check};

/// Elements per task.
const CHUNK: usize = 1 << 14;

pub(crate) struct Add;

impl Op<2> for Add {
    const NAME: &'static str = "add";
    const PASSES: bool = true;

    #[allow(unsafe_code)]
    fn forward<T: Float>(&self, [x, y]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        let terms = x.data.par_chunks(CHUNK).zip(y.data.par_chunks(CHUNK));
        // SAFETY: the chunks cover the result, and every element of each is written.
        let sum = unsafe {
            build(x.data.len(), |out| {
                out.par_chunks_mut(CHUNK).zip(terms).for_each(|(out, (x, y))| {
                    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                        out.write(x + y);
                    }
                });
            })
        };
        (sum, x.dims.into())
    }

    fn backward<T: Float>(
        &self,
        _args: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        needs.map(|needed| needed.then(|| grad.data.to_vec()))
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
    if !x.device().is_cpu() {
        return Ok((x + y)?);
    }
    Ok(apply2(Add, x, y)?)
}
