//! Softmax statistics of a row of logits, taken chunk by chunk.
//!
//! Whoever reads logits from memory and whoever makes them a tile at a time come to the same bits: both hand a row over
//! in chunks of [`CHUNK`] columns, from the left. Everything is kept relative to the largest logit, so that logits of
//! 1e4 cost no digits of the log-probabilities.

use std::cmp::Ordering;

use crate::float::{Float, LANES, Lanes, max, sum_lanes};

/// Columns per chunk. A multiple of every panel width, and small enough for the first-level cache.
pub(crate) const CHUNK: usize = 512;

/// exp(z - top) (z - top) given both; an impossible token (-inf) adds nothing.
#[inline(always)]
fn weigh<T: Float>(e: T, z: T) -> T {
    if e > T::ZERO { e * z } else { T::ZERO }
}

/// Sums over the chunks seen so far; z = logit / temperature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running<T> {
    /// Largest z.
    top: T,
    /// Sum of exp(z - top).
    total: T,
    /// Sum of exp(z - top) (z - top).
    weighted: T,
}

impl<T: Float> Running<T> {
    /// Nothing seen.
    pub const EMPTY: Self = Self { top: T::NEG_INFINITY, total: T::ZERO, weighted: T::ZERO };

    /// Takes the next chunk of logits in; `inverse` is 1 / temperature.
    #[inline(always)]
    pub fn take(&mut self, x: &[T], inverse: T) {
        let top = max(x) * inverse;
        if top == T::NEG_INFINITY {
            // Nothing possible here; `max` passes over NaN, which must not get lost.
            if let Some(&nan) = x.iter().find(|x| x.partial_cmp(x).is_none()) {
                self.total = nan;
            }
            return;
        }
        if top > self.top {
            if self.total > T::ZERO {
                let shift = self.top - top;
                let factor = Float::exp(shift);
                self.weighted =
                    if factor > T::ZERO { (self.weighted + self.total * shift) * factor } else { T::ZERO };
                self.total *= factor;
            }
            self.top = top;
        }
        let (mut totals, mut weights) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        let (whole, rest) = x.as_chunks::<LANES>();
        for x in whole {
            let (mut e, mut w): (Lanes<T>, Lanes<T>) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            // A loop, not a closure: one as long as `exp` might not be inlined, and then lacks the instruction set.
            for ((&x, e), w) in x.iter().zip(&mut e).zip(&mut w) {
                let z = x * inverse - self.top;
                *e = Float::exp(z);
                *w = weigh(*e, z);
            }
            totals = std::array::from_fn(|i| totals[i] + e[i]);
            weights = std::array::from_fn(|i| weights[i] + w[i]);
        }
        for ((total, weight), &x) in totals.iter_mut().zip(&mut weights).zip(rest) {
            let z = x * inverse - self.top;
            let e = Float::exp(z);
            *total += e;
            *weight += weigh(e, z);
        }
        self.total += sum_lanes(&totals);
        self.weighted += sum_lanes(&weights);
    }

    /// What the row comes to.
    #[inline(always)]
    pub fn finish(self) -> Summary<T> {
        if self.top == T::NEG_INFINITY && self.total == T::ZERO {
            return Summary { top: T::ZERO, log_total: T::ONE, mean: T::ONE };
        }
        Summary { top: self.top, log_total: Float::ln(self.total), mean: self.weighted / self.total }
    }
}

/// A row's softmax in three numbers.
///
/// `mean` is never above 0, except in a row whose every logit is -infinity: that has `log_total` = `mean` = 1, which
/// gives log-probabilities of -infinity, an entropy of 0 and no gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary<T> {
    /// Largest z.
    pub top: T,
    /// log of the sum of exp(z - top).
    pub log_total: T,
    /// Mean of z - top under the softmax.
    pub mean: T,
}

impl<T: Float> Summary<T> {
    /// Of a whole row of logits.
    #[inline(always)]
    pub fn of(x: &[T], inverse: T) -> Self {
        let mut running = Running::EMPTY;
        for x in x.chunks(CHUNK) {
            running.take(x, inverse);
        }
        running.finish()
    }

    /// log softmax at logit `x`.
    #[inline(always)]
    pub fn log_prob(&self, x: T, inverse: T) -> T {
        (x * inverse - self.top) - self.log_total
    }

    #[inline(always)]
    pub fn entropy(&self) -> T {
        self.log_total - self.mean
    }

    /// Whether any logit is above -infinity.
    #[inline(always)]
    pub fn possible(&self) -> bool {
        // NaN must not pass for impossible, or it would get lost.
        self.mean.partial_cmp(&T::ZERO) != Some(Ordering::Greater)
    }

    /// Writes the slope of `log * log_prob(chosen) + entropy * entropy()` with respect to logits `x` into `dx`, except
    /// what the chosen one gets in addition: `log * inverse`. `log` and `entropy` already hold that factor.
    #[inline(always)]
    pub fn slopes(&self, x: &[T], inverse: T, log: T, entropy: T, dx: &mut [T]) {
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = self.slope(x, inverse, log, entropy);
        }
    }

    /// One of [`Summary::slopes`]: -p (log + entropy (z - mean)).
    #[inline(always)]
    pub fn slope(&self, x: T, inverse: T, log: T, entropy: T) -> T {
        let z = x * inverse - self.top;
        let p = Float::exp(z - self.log_total);
        let off = if p > T::ZERO { z - self.mean } else { T::ZERO };
        -p * (off * entropy + log)
    }
}
