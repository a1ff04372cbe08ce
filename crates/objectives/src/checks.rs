//! What settings and inputs are refused for, said in one way.

use crate::error::{Error, Result};

/// Refuses a setting unless `right` and finite.
pub(crate) fn setting(name: &'static str, got: f64, right: bool, expected: &'static str) -> Result<()> {
    if right && got.is_finite() { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
}

/// Refuses a setting below `low`, or not finite.
pub(crate) fn at_least(name: &'static str, got: f64, low: f64, expected: &'static str) -> Result<()> {
    setting(name, got, got >= low, expected)
}

/// Refuses a setting outside 0..=1.
pub(crate) fn unit(name: &'static str, got: f64) -> Result<()> {
    setting(name, got, (0.0..=1.0).contains(&got), "0 to 1")
}

/// Refuses an input of another length than the batch.
pub(crate) fn same_len(name: &'static str, got: usize, expected: usize) -> Result<()> {
    let wrong = || Error::Shape { name, got: vec![got], expected: format!("[{expected}], one per row") };
    if got == expected { Ok(()) } else { Err(wrong()) }
}
