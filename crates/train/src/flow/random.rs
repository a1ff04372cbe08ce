//! Normal random numbers from a seed.

use std::f64::consts::TAU;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of standard normal numbers (Box-Muller), with the uniform ones behind it.
pub(super) struct Gaussian(pub ChaCha8Rng);

impl Gaussian {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (self.0.random(), self.0.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos()
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal() as f32).collect()
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.random::<f64>()
    }

    /// `count` different numbers below `total`, in random order; all of them where `count` is not smaller.
    pub fn choose(&mut self, count: usize, total: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..total).collect();
        let count = count.min(total);
        for i in 0..count {
            let j = self.0.random_range(i..total);
            all.swap(i, j);
        }
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_and_choices_distinct() {
        let mut random = Gaussian::new(1);
        let numbers = random.normals(20_000);
        let mean = numbers.iter().sum::<f32>() / 20_000.0;
        let variance = numbers.iter().map(|x| x * x).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        let mut chosen = random.choose(5, 9);
        chosen.sort_unstable();
        chosen.dedup();
        assert!(chosen.len() == 5 && chosen.iter().all(|&i| i < 9));
        assert_eq!(random.choose(9, 4).len(), 4);
    }
}
