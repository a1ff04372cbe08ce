//! The critic's clipped regression, in verl's form. [`ClippedValue`](crate::critic::ClippedValue) is the block.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::fused::pointwise;
use crate::table::Table;

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
    let now = Table::from_tensor(&values.detach())?;
    let (old, returns) = (Table::from_tensor(&old.detach())?, Table::from_tensor(&returns.detach())?);
    old.same_shape("values", &now)?;
    returns.same_shape("returns", &now)?;
    let (mut losses, mut slopes, mut cut) = (now.filled(0.0), now.filled(0.0), now.filled(0.0));
    for (i, &v) in now.values.iter().enumerate() {
        let (before, target) = (old.values[i], returns.values[i]);
        let (plain, near) = (v - target, v.max(before - range).min(before + range) - target);
        let further = near * near > plain * plain;
        // Only a value outside of the range can be further off inside: it has no slope.
        losses.values[i] = 0.5 * if further { near * near } else { plain * plain };
        slopes.values[i] = if further { 0.0 } else { plain };
        cut.values[i] = f64::from(u8::from(further));
    }
    Ok((pointwise(values, &losses.values, &slopes.values)?, cut.to_tensor(values)?))
}
