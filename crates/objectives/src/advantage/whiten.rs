//! Whitening over the valid tokens of a batch (verl `masked_whiten`).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::table::Table;

/// How to whiten.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Whiten {
    /// Whether the result has mean 0; otherwise it keeps the input's mean.
    pub shift_mean: bool,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether the variance is the unbiased one, times N / (N - 1).
    pub unbiased: bool,
}

impl Default for Whiten {
    fn default() -> Self {
        Self { shift_mean: true, epsilon: 1e-8, unbiased: true }
    }
}

/// Added to the token count in verl's masked mean.
const COUNT_EPS: f64 = 1e-8;

/// sum(x m) / (N + 1e-8).
///
/// # Errors
/// Shapes differ.
pub fn masked_mean(x: &Table, mask: &Table) -> Result<f64> {
    x.same_shape("values", mask)?;
    let n: f64 = mask.values.iter().sum();
    Ok(x.values.iter().zip(&mask.values).map(|(x, m)| x * m).sum::<f64>() / (n + COUNT_EPS))
}

/// (x - mu) / sqrt(var + eps) at EVERY position, masked ones included (verl does not multiply by the mask again).
///
/// # Errors
/// Shapes differ, or fewer than two valid tokens.
pub fn masked_whiten(x: &Table, mask: &Table, settings: &Whiten) -> Result<Table> {
    x.same_shape("values", mask)?;
    let n: f64 = mask.values.iter().sum();
    if n <= 1.0 {
        return Err(Error::TooFew { what: "whitening", got: n as usize, needed: 2 });
    }
    let pairs = || x.values.iter().zip(&mask.values);
    let mean = masked_mean(x, mask)?;
    let biased = pairs().map(|(x, m)| (x - mean) * (x - mean) * m).sum::<f64>() / (n + COUNT_EPS);
    let variance = if settings.unbiased { biased * n / (n - 1.0) } else { biased };
    let scale = 1.0 / (variance + settings.epsilon).sqrt();
    let back = if settings.shift_mean { 0.0 } else { mean };
    let values = x.values.iter().map(|x| (x - mean) * scale + back).collect();
    Ok(Table { values, ..*x })
}
