//! Checks that stand on the first lines of every public function.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// `tensor` must be f32 or f64 on the CPU, f32, f16 or bf16 on CUDA.
pub(crate) fn float(op: &'static str, arg: &'static str, tensor: &Tensor) -> Result<()> {
    let expected = match (tensor.device(), tensor.dtype()) {
        (Device::Cpu, DType::F32 | DType::F64) => return Ok(()),
        (Device::Cuda(_), DType::F32 | DType::F16 | DType::BF16) => return Ok(()),
        (Device::Cpu, _) => "F32 or F64 (F16 and BF16 are for CUDA)",
        (Device::Cuda(_), _) => "F32, F16 or BF16 on CUDA",
        (Device::Metal(_), _) => "a tensor on the CPU or on CUDA",
    };
    Err(Error::DType { op, arg, got: tensor.dtype(), expected: expected.into() })
}

/// `tensor` must have the dtype of `like`.
pub(crate) fn same_dtype(op: &'static str, arg: &'static str, tensor: &Tensor, like: &Tensor) -> Result<()> {
    let (got, wanted) = (tensor.dtype(), like.dtype());
    if got == wanted {
        return Ok(());
    }
    Err(Error::DType { op, arg, got, expected: format!("{wanted:?} like the first argument") })
}

/// `tensor` must have exactly `dims`; `meaning` says what they are, for example "[O] of the weight".
pub(crate) fn dims(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    dims: &[usize],
    meaning: &str,
) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    Err(Error::Shape { op, arg, got: tensor.dims().to_vec(), expected: format!("{dims:?} ({meaning})") })
}

/// `tensor` must have `rank` axes.
pub(crate) fn rank(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    rank: usize,
    meaning: &str,
) -> Result<()> {
    if tensor.rank() == rank {
        return Ok(());
    }
    Err(Error::Shape { op, arg, got: tensor.dims().to_vec(), expected: meaning.into() })
}

/// Size of the last axis; a scalar or an empty last axis is an error.
pub(crate) fn last_dim(op: &'static str, arg: &'static str, tensor: &Tensor) -> Result<usize> {
    match tensor.dims().last() {
        Some(&size) if size > 0 => Ok(size),
        _ => Err(Error::Shape {
            op,
            arg,
            got: tensor.dims().to_vec(),
            expected: "at least one axis, the last of size 1 or more".into(),
        }),
    }
}

/// Two arguments whose shapes must agree in some way.
pub(crate) fn fits(
    op: &'static str,
    (left, left_tensor): (&'static str, &Tensor),
    (right, right_tensor): (&'static str, &Tensor),
    ok: bool,
    rule: &'static str,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Mismatch {
        op,
        left,
        left_shape: left_tensor.dims().to_vec(),
        right,
        right_shape: right_tensor.dims().to_vec(),
        rule,
    })
}

/// A number that must satisfy `ok`.
pub(crate) fn value(
    op: &'static str,
    arg: &'static str,
    got: impl ToString,
    ok: bool,
    expected: &str,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Value { op, arg, got: got.to_string(), expected: expected.into() })
}

/// Token ids as a plain vector, every one below `vocab`.
pub(crate) fn ids(op: &'static str, ids: &Tensor, vocab: usize) -> Result<Vec<u32>> {
    if ids.dtype() != DType::U32 {
        let got = ids.dtype();
        return Err(Error::DType { op, arg: "ids", got, expected: "U32".into() });
    }
    let ids = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some((row, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        return Err(Error::Value {
            op,
            arg: "ids",
            got: format!("{id} at position {row}"),
            expected: format!("ids below {vocab}"),
        });
    }
    Ok(ids)
}
