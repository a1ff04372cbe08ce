//! Where every random number of a run comes from.
//!
//! Nothing here keeps a generator between steps: a seed is a pure function of the run's seed, what the number
//! is for, and where it is used. So a resumed run needs no stored random state, and neither the number of
//! threads nor the order in which environments finish can change a result.

/// What a random number is for. Two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights.
    Weights = 1,
    /// Which demonstration steps form a batch, and their augmentation.
    DataOrder = 2,
    /// Which tasks and initial states an iteration visits.
    Prompts = 3,
    /// Action tokens sampled in a rollout.
    Actions = 4,
    /// Which trajectories form a mini-batch.
    MiniBatches = 5,
    /// Random play scenes.
    Play = 6,
    /// Demonstrations made by the scripted expert.
    Demonstrations = 7,
    /// The shuffled-embedding control.
    Shuffle = 8,
    /// Points, predictions and motions of a trial that plans from flow.
    Flow = 9,
}

/// The seed for `purpose` at `place` (for example iteration, episode, query) of the run seeded by `run`.
pub fn seed_for(run: u64, purpose: Purpose, place: &[u64]) -> u64 {
    let start = splitmix(splitmix(run) ^ purpose as u64);
    place.iter().fold(start, |state, &x| splitmix(state ^ splitmix(x)))
}

/// One round of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words with good avalanche.
fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_purposes_and_depths_do_not_collide() {
        let mut seen = std::collections::HashSet::new();
        for run in 0..4 {
            for purpose in [Purpose::Actions, Purpose::Prompts, Purpose::Play] {
                assert!(seen.insert(seed_for(run, purpose, &[])));
                for a in 0..20 {
                    assert!(seen.insert(seed_for(run, purpose, &[a])));
                    for b in 0..20 {
                        assert!(seen.insert(seed_for(run, purpose, &[a, b])));
                    }
                }
            }
        }
    }
}
