//! How the random numbers behind an episode's actions hang together.

use efference_nets::Draw;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::seeds::{Purpose, seed_for};
use crate::trajectory::EpisodePlan;

/// What explores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Noise {
    /// Every action token is drawn for itself.
    #[default]
    Token,
    /// The steps of a chunk share one number per action dimension ([`Draw::Chunk`]), and a chunk keeps each number of
    /// the chunk before it with probability `persistence`: a deviation then lasts for several looks instead of being
    /// undone by the next one. Each token alone is still drawn exactly from its distribution.
    Chunk {
        /// 0 to below 1.
        persistence: f64,
    },
}

impl Noise {
    /// The numbers of look number `query` of an episode: a function of the plan, whatever was drawn before.
    pub fn draw(self, plan: &EpisodePlan, query: u64, action_dim: usize) -> Draw {
        let seed = |query: u64| seed_for(plan.action_seed, Purpose::Actions, &[query]);
        let Self::Chunk { persistence } = self else { return Draw::Tokens(seed(query)) };
        let mut numbers = vec![0.0; action_dim];
        // A number lasts since the latest look that replaced it; the first look always does.
        let mut open = vec![true; action_dim];
        for look in (0..=query).rev() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed(look));
            for d in 0..action_dim {
                let (number, stay): (f64, f64) = (rng.random(), rng.random());
                if open[d] && (look == 0 || stay >= persistence) {
                    numbers[d] = if plan.mirrored { 1.0 - number } else { number };
                    open[d] = false;
                }
            }
            if !open.contains(&true) {
                break;
            }
        }
        Draw::Chunk(numbers)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan(action_seed: u64, mirrored: bool) -> EpisodePlan {
        EpisodePlan { task: "t".into(), env_seed: 0, action_seed, mirrored, group: 0 }
    }

    fn numbers(noise: Noise, plan: &EpisodePlan, query: u64) -> Vec<f64> {
        match noise.draw(plan, query, 3) {
            Draw::Chunk(numbers) => numbers,
            Draw::Tokens(seed) => panic!("one seed {seed}"),
        }
    }

    #[test]
    fn numbers_last_as_often_as_asked_and_stay_uniform() {
        let noise = Noise::Chunk { persistence: 0.75 };
        let (mut same, mut sum, mut n) = (0, 0.0, 0.0);
        for episode in 0..500 {
            let plan = plan(episode, false);
            for query in 1..9 {
                let (before, now) = (numbers(noise, &plan, query - 1), numbers(noise, &plan, query));
                same += before.iter().zip(&now).filter(|(a, b)| a == b).count();
                sum += now.iter().sum::<f64>();
                n += 3.0;
            }
        }
        assert!((f64::from(same as u32) / n - 0.75).abs() < 0.02, "{same} of {n}");
        assert!((sum / n - 0.5).abs() < 0.02, "{}", sum / n);
        let fresh = Noise::Chunk { persistence: 0.0 };
        assert!(
            numbers(fresh, &plan(1, false), 3)
                .iter()
                .zip(numbers(fresh, &plan(1, false), 4))
                .all(|(a, b)| *a != b)
        );
    }

    #[test]
    fn a_mirrored_episode_deviates_the_other_way() {
        let noise = Noise::Chunk { persistence: 0.5 };
        for query in 0..5 {
            let pair = [false, true].map(|mirrored| numbers(noise, &plan(3, mirrored), query));
            assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| (a + b - 1.0).abs() < 1e-15));
        }
    }
}
