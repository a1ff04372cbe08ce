//! Log-probability and entropy of chosen tokens from logits, as a plain composition of tensor operations. It is the
//! readable definition in any float type; training goes through the fused operation of `efference_ops`, which keeps no
//! [tokens, vocabulary] tensor.

use candle_core::{D, Tensor};

use crate::error::{Error, Result};

/// `logits` [N, V] / temperature, `ids` [N] u32 -> natural log-probability [N] and entropy [N], both with gradient.
///
/// # Errors
/// Shapes that differ, a temperature that is not positive.
pub fn token_scores(logits: &Tensor, ids: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::Setting { name: "temperature", got: temperature, expected: "greater than 0" });
    }
    let z = (logits / temperature)?;
    let z = z.broadcast_sub(&z.detach().max_keepdim(D::Minus1)?)?; // [N, V], at most 0
    let exp = z.exp()?;
    let total = exp.sum_keepdim(D::Minus1)?; // [N, 1]
    let log_total = total.log()?.squeeze(D::Minus1)?; // [N]
    let chosen = z.gather(&ids.unsqueeze(D::Minus1)?, D::Minus1)?.squeeze(D::Minus1)?;
    let mean = (exp * z)?.sum(D::Minus1)?.div(&total.squeeze(D::Minus1)?)?;
    Ok(((chosen - &log_total)?, (log_total - mean)?))
}
