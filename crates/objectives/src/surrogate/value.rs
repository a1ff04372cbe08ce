//! The critic's clipped regression, in verl's form. [`ClippedValue`](crate::critic::ClippedValue) is the block.

use candle_core::Tensor;

use super::larger;
use crate::error::{Error, Result};

/// Per-token 0.5 max((v - R)^2, (clamp(v, v_old - c, v_old + c) - R)^2), and 1 where the clipped branch was strictly
/// larger; both [B, T]. Gradient through `values` only.
///
/// # Errors
/// A negative range, shapes that differ.
pub fn clipped_value_loss(
    values: &Tensor,
    old: &Tensor,
    returns: &Tensor,
    range: f64,
) -> Result<(Tensor, Tensor)> {
    if !(range >= 0.0 && range.is_finite()) {
        return Err(Error::Setting { name: "value_clip", got: range, expected: "0 or more" });
    }
    let old = old.detach();
    let (low, high) = ((&old - range)?, (&old + range)?);
    let inside = values.ge(&low)?.mul(&values.le(&high)?)?;
    let ends = values.detach().maximum(&low)?.minimum(&high)?;
    let near = inside.where_cond(values, &ends)?;
    let returns = returns.detach();
    let plain = (values - &returns)?.sqr()?;
    let clipped = (near - &returns)?.sqr()?;
    let cut = clipped.gt(&plain)?.to_dtype(plain.dtype())?;
    Ok(((larger(&plain, &clipped)? * 0.5)?, cut))
}
