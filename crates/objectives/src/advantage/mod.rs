//! Advantages: how much better a sampled sequence was than its alternatives. All statistics in f64, no gradient.

mod gae;
mod group;
mod reinforce;
mod whiten;

pub use gae::{Gae, gae};
pub use group::{
    GroupBaseline, GroupNorm, LeaveOneOut, Spread, gpg, group_norm, leave_one_out, members, opo, pass_at_k,
};
pub use reinforce::{reinforce_plus_plus, remax};
pub use whiten::{Whiten, WhitenAdvantages, masked_mean, masked_whiten, standardise};
