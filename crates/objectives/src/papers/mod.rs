//! One file per paper. To add one: its file here, one line in [`for_each_paper`], its preset
//! `configs/algorithms/ID.toml`, and the replay of its vectors in `conformance/ID.rs`.

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
    /// Reference vectors of `tests/golden` that check it, and how many.
    pub vectors: Option<(&'static str, usize)>,
    /// A configuration that trains with it from end to end, if there is one.
    pub end_to_end: Option<&'static str>,
}

/// Calls a macro with the names of all papers.
macro_rules! for_each_paper {
    ($with:ident) => {
        $with! {
            ampo,
            fapo,
            mpo,
            scaf_grpo,
            soft_grpo,
            spo_segment,
            srpo,
            tppo,
        }
    };
}
pub(crate) use for_each_paper;

macro_rules! declare {
    ($($id:ident),* $(,)?) => {
        $(pub mod $id;)*
        pub mod grpo;

        /// Every algorithm, in no order.
        pub const ALL: &[&Paper] = &[&grpo::PAPER, $(&$id::PAPER),*];
    };
}
for_each_paper!(declare);
