//! Whitening over the valid tokens of a batch (verl `masked_whiten`).

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Signals};
use crate::block::{Block, Kind, TokenRule};
use crate::error::{Error, Result};
use crate::state::State;
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

/// (x - mu) / sqrt(var + epsilon) at every position, with mean and variance over the tokens where `mask` is not 0 and
/// nothing added to their count (TRL). Fewer than two such tokens have no spread: all results are 0.
///
/// # Errors
/// Shapes differ.
pub fn masked_standardise(x: &Table, mask: &Table, epsilon: f64, unbiased: bool) -> Result<Table> {
    x.same_shape("values", mask)?;
    let valid = || x.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0).map(|(x, _)| *x);
    let n = valid().count() as f64;
    if n < 2.0 {
        return Ok(x.filled(0.0));
    }
    let mean = valid().sum::<f64>() / n;
    let squares: f64 = valid().map(|x| (x - mean) * (x - mean)).sum();
    let variance = squares / if unbiased { n - 1.0 } else { n };
    // Equal values may miss their own mean by a rounding, which a small epsilon would blow up.
    let first = valid().next();
    let constant = valid().all(|x| Some(x) == first);
    let scale = if constant { 0.0 } else { 1.0 / (variance + epsilon).sqrt() };
    Ok(Table { values: x.values.iter().map(|x| (x - mean) * scale).collect(), ..*x })
}

/// Advantages standardised over the tokens that take part: valid and of a weight that is not 0; all valid tokens
/// where none has one. Stands behind the rules that set weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhitenAdvantages {
    /// Added to the variance, 0 or more.
    pub epsilon: f64,
    /// Whether the variance is divided by N - 1.
    pub unbiased: bool,
    /// Over the sequences of every (micro-)batch anew instead of once over the whole batch.
    pub per_update: bool,
}

impl Default for WhitenAdvantages {
    fn default() -> Self {
        Self { epsilon: 1e-8, unbiased: true, per_update: false }
    }
}

impl WhitenAdvantages {
    fn apply(&self, mask: &Table, signals: &mut Signals) -> Result<()> {
        signals.weights.same_shape("weights", mask)?;
        let both = signals.weights.values.iter().zip(&mask.values);
        let taken: Vec<f64> = both.map(|(w, m)| f64::from(u8::from(*w != 0.0 && *m != 0.0))).collect();
        let support = if taken.contains(&1.0) { &Table { values: taken, ..*mask } } else { mask };
        signals.advantages = masked_standardise(&signals.advantages, support, self.epsilon, self.unbiased)?;
        Ok(())
    }
}

impl Block for WhitenAdvantages {
    fn batch_wide(&self) -> Option<&'static str> {
        self.per_update.then_some("advantages are standardised over the sequences of the update")
    }

    fn validate(&self) -> Result<()> {
        if self.epsilon >= 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("advantages standardised over the {}", if self.per_update { "micro-batch" } else { "batch" })
    }
}

impl Kind for WhitenAdvantages {
    const KIND: &'static str = "whiten";
}

impl TokenRule for WhitenAdvantages {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        if self.per_update { Ok(()) } else { self.apply(batch.mask(), signals) }
    }

    fn update(&self, batch: &Batch, signals: &mut Signals, _state: &State) -> Result<()> {
        if self.per_update { self.apply(batch.mask(), signals) } else { Ok(()) }
    }
}
