//! TRL's forms of the group objectives (`GRPOTrainer`), where they differ from verl's: unclamped log-ratio, unclamped KL,
//! other denominators, several reward functions at once.

mod advantage;
mod config;
mod loss;

pub use advantage::{MultiReward, REWARD_TERMS, ScaleRewards, TrlNorm, advantages};
pub use config::{LossType, TrlConfig};
pub use loss::{OffPolicyMask, TopEntropy, TrlForm, TrlKl, TrlSurrogate};
