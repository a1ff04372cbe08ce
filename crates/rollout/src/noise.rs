//! How the random numbers behind an episode's actions hang together.

use efference_nets::Draw;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::seeds::{Purpose, seed_for};
use crate::trajectory::EpisodePlan;

/// What explores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noise {
    /// Every action token is drawn for itself.
    #[default]
    Token,
    /// The steps of a chunk share one number per action dimension ([`Draw::Chunk`]). Each token alone is still drawn
    /// exactly from its distribution.
    Chunk,
}

impl Noise {
    /// The numbers of look number `query` of an episode: a function of the plan, whatever was drawn before.
    pub fn draw(self, plan: &EpisodePlan, query: u64, action_dim: usize) -> Draw {
        let seed = seed_for(plan.action_seed, Purpose::Actions, &[query]);
        match self {
            Self::Token => Draw::Tokens(seed),
            Self::Chunk => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let number = |u: f64| if plan.mirrored { 1.0 - u } else { u };
                Draw::Chunk((0..action_dim).map(|_| number(rng.random())).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(action_seed: u64, mirrored: bool, query: u64) -> Vec<f64> {
        let plan = EpisodePlan { task: "t".into(), env_seed: 0, action_seed, mirrored, group: 0 };
        match Noise::Chunk.draw(&plan, query, 3) {
            Draw::Chunk(numbers) => numbers,
            Draw::Tokens(seed) => panic!("one seed {seed}"),
        }
    }

    #[test]
    fn numbers_are_uniform_and_new_at_every_look() {
        let all: Vec<f64> = (0..1000).flat_map(|i| numbers(i / 10, false, i % 10)).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|u| (u - mean) * (u - mean)).sum::<f64>() / all.len() as f64;
        assert!((mean - 0.5).abs() < 0.02 && (variance - 1.0 / 12.0).abs() < 0.005, "{mean} {variance}");
        assert!(all.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn a_mirrored_episode_deviates_the_other_way() {
        for query in 0..5 {
            let pair = [false, true].map(|mirrored| numbers(3, mirrored, query));
            assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| (a + b - 1.0).abs() < 1e-15));
        }
    }
}
