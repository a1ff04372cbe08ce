//! Advantages: how much better a sampled sequence was than its alternatives. All statistics in f64, no gradient.

mod gae;
mod group;
mod outcome;
mod reinforce;
mod stream;
mod whiten;

pub use gae::{Gae, TurnGae, gae};
pub use group::{
    GroupBaseline, GroupNorm, LeaveOneOut, Spread, gpg, group_norm, leave_one_out, members, opo, pass_at_k,
};
pub use outcome::{Gpg, Opo, PassAtK};
pub use reinforce::{
    GREEDY_REWARDS, ReinforcePlusPlus, ReinforcePlusPlusBaseline, Remax, reinforce_plus_plus,
    reinforce_plus_plus_baseline, remax,
};
pub use stream::{EPISODE_STARTS, NEXT_VALUES, StreamGae, StreamReturns, standardise, stream_gae};
pub use whiten::{Whiten, WhitenAdvantages, masked_mean, masked_standardise, masked_whiten};
