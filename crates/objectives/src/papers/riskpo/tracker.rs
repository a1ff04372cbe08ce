//! Quantiles of bundle scores over iterations, by stochastic approximation.

use serde::{Deserialize, Serialize};

use super::{MixedValueAtRisk, Tail, Tracked, band};
use crate::error::{Error, Result};

/// Tracked quantiles, and the means that they give.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantileTracker {
    /// Levels in rising order; evenly spaced ones are set by the first batch where there are none.
    pub levels: Vec<f64>,
    /// Quantile of every level; empty before the first batch.
    pub quantiles: Vec<f64>,
    /// Mean of the band term over the levels.
    pub band: f64,
    /// Mean of the tail term.
    pub tail: f64,
}

/// Quantile at `level` in [0, 1] with linear interpolation; 0 of nothing.
pub fn quantile(x: &[f64], level: f64) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = level * (sorted.len().max(1) - 1) as f64;
    let at = |i: f64| sorted.get(i as usize).or(sorted.last()).copied().unwrap_or(0.0);
    let (low, high, weight) = (at(place.floor()), at(place.ceil()), place - place.floor());
    // From the nearer end, so that both ends are met exactly.
    if weight < 0.5 { low + weight * (high - low) } else { high - (high - low) * (1.0 - weight) }
}

impl QuantileTracker {
    /// What the advantages of `settings` read.
    pub fn tracked(&self, settings: &MixedValueAtRisk) -> Tracked {
        let thresholds = self.nearest(settings.quantile_down).zip(self.nearest(settings.quantile_up));
        Tracked { thresholds, band: self.band, tail: self.tail }
    }

    /// The quantile of the level nearest to `level`, the first of two.
    fn nearest(&self, level: f64) -> Option<f64> {
        let gap = |x: f64| (x - level).abs();
        let pairs = self.levels.iter().zip(&self.quantiles);
        pairs.min_by(|(a, _), (b, _)| gap(**a).total_cmp(&gap(**b))).map(|(_, q)| *q)
    }

    /// One step on a batch's scores: the first batch sets the quantiles, later ones move them. No score changes
    /// nothing.
    ///
    /// # Errors
    /// The number of levels has changed.
    pub fn step(&mut self, scores: &[f64], settings: &MixedValueAtRisk) -> Result<()> {
        if scores.is_empty() {
            return Ok(());
        }
        if self.levels.is_empty() {
            let step = 1.0 / (settings.levels as f64 + 1.0);
            self.levels = (1..=settings.levels).map(|i| i as f64 * step).collect();
        }
        if self.levels.len() != settings.levels {
            let reason = format!("{} are tracked, {} are set", self.levels.len(), settings.levels);
            return Err(Error::Invalid { what: "levels", reason });
        }
        if self.quantiles.len() == self.levels.len() {
            let n = scores.len() as f64;
            for (q, level) in self.quantiles.iter_mut().zip(&self.levels) {
                let below = scores.iter().filter(|&&s| s < *q).count() as f64 / n;
                *q += settings.lr_q * (level - below);
            }
        } else {
            self.quantiles = self.levels.iter().map(|&level| quantile(scores, level)).collect();
        }
        if let Some((down, up)) = self.tracked(settings).thresholds {
            let natural = settings.natural_baseline_tracked;
            self.band = self.integral(|q| band(q, down, up, natural));
            self.tail = match settings.tail {
                Tail::Averse => self.integral(|q| -(down - q).max(0.0)),
                _ => 0.0,
            };
        }
        Ok(())
    }

    /// Trapezoids over the levels; not renormalised to the interval that they cover.
    fn integral(&self, g: impl Fn(f64) -> f64) -> f64 {
        let values: Vec<f64> = self.quantiles.iter().map(|&q| g(q)).collect();
        let pairs = values.windows(2).zip(self.levels.windows(2));
        pairs.map(|(y, x)| (x[1] - x[0]) * (y[0] + y[1]) / 2.0).sum()
    }
}
