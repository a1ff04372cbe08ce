//! How sure a success rate is.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Two-sided 95% quantile of the normal distribution, the usual `z` of [`wilson`].
pub const Z_95: f64 = 1.959_963_984_540_054;

/// Wilson score interval of a binomial proportion, in `[0, 1]`.
///
/// With `p = successes / n`: centre `(p + z²/2n) / (1 + z²/n)`, half width
/// `z / (1 + z²/n) * sqrt(p(1-p)/n + z²/4n²)`. Unlike `p ± z·sqrt(p(1-p)/n)` it stays inside `[0, 1]` and is
/// honest at 0 and n successes. Without trials (`n == 0`) nothing is known: `(0, 1)`.
/// `successes` above `n` count as `n`.
///
/// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat.
/// Assoc. 22 (1927); recommended by Brown, Cai, DasGupta, Stat. Sci. 16 (2001).
///
/// ```
/// let (lo, hi) = efference_viz::wilson(47, 50, efference_viz::stats::Z_95);
/// assert!((lo - 0.8378).abs() < 1e-4 && (hi - 0.9794).abs() < 1e-4);
/// ```
#[must_use]
pub fn wilson(successes: u64, n: u64, z: f64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let trials = n as f64;
    let p = successes.min(n) as f64 / trials;
    let z2 = z * z;
    let shrink = 1.0 + z2 / trials;
    let centre = (p + z2 / (2.0 * trials)) / shrink;
    let half = z / shrink * (p * (1.0 - p) / trials + z2 / (4.0 * trials * trials)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// Successes among trials; prints as `94.0% [83.8, 97.9] (47/50)` with its 95% Wilson interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Successful trials.
    pub successes: u64,
    /// All trials.
    pub n: u64,
}

impl Tally {
    /// `successes` out of `n`.
    #[must_use]
    pub fn new(successes: u64, n: u64) -> Self {
        Self { successes, n }
    }

    /// Share of successes in `[0, 1]`; 0 without trials.
    #[must_use]
    pub fn rate(self) -> f64 {
        if self.n == 0 { 0.0 } else { self.successes as f64 / self.n as f64 }
    }

    /// 95% Wilson interval in `[0, 1]`.
    #[must_use]
    pub fn interval(self) -> (f64, f64) {
        wilson(self.successes, self.n, Z_95)
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::new(0, 0), |a, b| Self::new(a.successes + b.successes, a.n + b.n))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lo, hi) = self.interval();
        let Self { successes, n } = self;
        write!(f, "{:.1}% [{:.1}, {:.1}] ({successes}/{n})", 100.0 * self.rate(), 100.0 * lo, 100.0 * hi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_intervals() {
        // Values of statsmodels.stats.proportion.proportion_confint(k, n, method="wilson").
        for (k, n, lo, hi) in [
            (0, 10, 0.0, 0.277_532_799_862_889_3),
            (10, 10, 0.722_467_200_137_110_7, 1.0),
            (5, 10, 0.236_593_090_512_564_1, 0.763_406_909_487_436),
            (285, 300, 0.919_152_966_527_255_8, 0.969_468_359_370_652_6),
        ] {
            let got = wilson(k, n, Z_95);
            assert!((got.0 - lo).abs() < 1e-9 && (got.1 - hi).abs() < 1e-9, "{k}/{n}: {got:?}");
        }
        assert_eq!(wilson(0, 0, Z_95), (0.0, 1.0));
        assert_eq!(wilson(9, 5, Z_95), wilson(5, 5, Z_95));
    }

    #[test]
    fn symmetric_and_shrinking() {
        for k in 0..=20 {
            let (lo, hi) = wilson(k, 20, Z_95);
            let (mirror_lo, mirror_hi) = wilson(20 - k, 20, Z_95);
            assert!((lo - (1.0 - mirror_hi)).abs() < 1e-12 && (hi - (1.0 - mirror_lo)).abs() < 1e-12);
            let (lo_10, hi_10) = wilson(10 * k, 200, Z_95);
            assert!(hi_10 - lo_10 < hi - lo, "more trials must narrow the interval");
        }
    }

    #[test]
    fn tally_prints_rate_interval_and_counts() {
        assert_eq!(Tally::new(47, 50).to_string(), "94.0% [83.8, 97.9] (47/50)");
        let sum: Tally = [Tally::new(1, 2), Tally::new(3, 4)].into_iter().sum();
        assert_eq!(sum, Tally::new(4, 6));
    }
}
