//! The algorithms that the papers build on, in verl's forms (and GRPO in TRL's): compositions of shared blocks. They
//! share one file of reference vectors, `base_grpo.json`, which checks their blocks.

use super::Paper;
use crate::advantage::{Gpg, Opo, PassAtK, ReinforcePlusPlus, ReinforcePlusPlusBaseline, Remax};
use crate::block::BlockKind;
use crate::filter::VaryingSuccess;
use crate::shaping::{DapoOverlong, KlInReward, SoftOverlong, Terminal};
use crate::surrogate::{Cispo, GeoMean, Gspo, KlCov, PolicyGradient, Sapo};
use crate::trl::{OffPolicyMask, TopEntropy, TrlKl, TrlNorm, TrlSurrogate};

/// The vectors of all of them.
const VECTORS: (&str, usize) = ("base_grpo.json", 74);

/// Blocks of the base algorithms; any composition may use them.
pub const BLOCKS: &[BlockKind] = &[
    BlockKind::reward::<Terminal>(),
    BlockKind::reward::<DapoOverlong>(),
    BlockKind::reward::<SoftOverlong>(),
    BlockKind::reward::<KlInReward>(),
    BlockKind::filter::<VaryingSuccess>(),
    BlockKind::advantage::<Opo>(),
    BlockKind::advantage::<Gpg>(),
    BlockKind::advantage::<PassAtK>(),
    BlockKind::advantage::<ReinforcePlusPlus>(),
    BlockKind::advantage::<ReinforcePlusPlusBaseline>(),
    BlockKind::advantage::<Remax>(),
    BlockKind::advantage::<TrlNorm>(),
    BlockKind::weight::<TopEntropy>(),
    BlockKind::weight::<OffPolicyMask>(),
    BlockKind::surrogate::<Gspo>(),
    BlockKind::surrogate::<GeoMean>(),
    BlockKind::surrogate::<Cispo>(),
    BlockKind::surrogate::<Sapo>(),
    BlockKind::surrogate::<PolicyGradient>(),
    BlockKind::surrogate::<KlCov>(),
    BlockKind::surrogate::<TrlSurrogate>(),
    BlockKind::regularizer::<TrlKl>(),
];

macro_rules! base {
    ($($id:ident),* $(,)?) => {
        $(pub mod $id;)*

        /// Every base algorithm, in no order.
        pub const ALL: &[&Paper] = &[$(&$id::PAPER),*];
    };
}
base! {
    cispo,
    dapo,
    dr_grpo,
    gmpo,
    gpg,
    grpo,
    grpo_trl,
    gspo,
    kl_cov,
    opo,
    ppo,
    reinforce_plus_plus,
    remax,
    rloo,
    sapo,
}
