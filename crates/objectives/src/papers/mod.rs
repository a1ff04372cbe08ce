//! One file per paper. To add one: its file here, one line in `for_each_paper!`, its preset
//! `configs/algorithms/ID.toml`, and the replay of its vectors in `conformance/ID.rs`.

pub mod base;

pub use base::grpo;

use crate::block::BlockKind;
use crate::composition::Composition;

/// What there is to know about an algorithm, and how it is composed.
pub struct Paper {
    /// Name in configurations, file name of its source, preset and vectors.
    pub id: &'static str,
    /// Its title.
    pub title: &'static str,
    /// arXiv number.
    pub arxiv: &'static str,
    /// What it changes, in one line.
    pub summary: &'static str,
    /// Blocks that it invents.
    pub blocks: &'static [BlockKind],
    /// The composition with the paper's defaults.
    pub recipe: fn() -> Composition,
    /// File of reference vectors in `tests/golden` that checks it, and how many cases that file has. Algorithms that
    /// share blocks may share a file.
    pub vectors: Option<(&'static str, usize)>,
    /// A configuration that trains with it from end to end, if there is one.
    pub end_to_end: Option<&'static str>,
}

/// Calls a macro with the names of all papers.
macro_rules! for_each_paper {
    ($with:ident) => {
        $with! {
            aepo_agentic,
            aepo_arbitrary,
            aepo_gui,
            ampo,
            apo,
            arpo_agentic,
            arpo_gui,
            bapo,
            bgpo,
            bnpo,
            copo,
            dcpo,
            drpo,
            drpo_reset,
            epo_entropy,
            epo_explicit,
            fapo,
            gigpo,
            grace,
            gtpo,
            hapo,
            hbpo,
            igpo_info,
            igpo_inpaint,
            inpo,
            lspo,
            mdpo,
            mpo,
            oorl_gepo,
            oppo,
            p3o,
            papo,
            pref_base,
            refuel,
            riskpo,
            scaf_grpo,
            seed_grpo,
            soft_grpo,
            spo_segment,
            spo_single,
            srpo,
            tapo,
            tgpo,
            tppo,
            tspo,
        }
    };
}
pub(crate) use for_each_paper;

macro_rules! declare {
    ($($id:ident),* $(,)?) => {
        $(pub mod $id;)*
        pub mod flow3d_action; // its replay names outputs by the case

        /// Every paper, and what its file offers beside its recipe, in no order.
        pub const ALL: &[&Paper] = &[
            &flow3d_action::PAPER,
            &mdpo::OFF_POLICY,
            &pref_base::CPO,
            &pref_base::DPO,
            &pref_base::IPO,
            &pref_base::ROBUST,
            &pref_base::SIMPO,
            &pref_base::SPPO,
            $(&$id::PAPER),*
        ];
    };
}
for_each_paper!(declare);

/// Every paper and base algorithm, in no order.
pub fn all() -> impl Iterator<Item = &'static Paper> {
    base::ALL.iter().chain(ALL).copied()
}
