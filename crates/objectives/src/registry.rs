//! What there is: papers, base algorithms and blocks, by name.

use std::collections::BTreeMap;

use crate::advantage::{Gae, GroupNorm, LeaveOneOut, StreamGae, StreamReturns, TurnGae, WhitenAdvantages};
use crate::block::BlockKind;
use crate::composition::Composition;
use crate::critic::{ClippedValue, ValueTargets};
use crate::error::{Error, Result};
use crate::filter::{AccuracyFilter, VaryingGroups};
use crate::objective::Objective;
use crate::pairs::ComparablePairs;
use crate::papers::{self, Paper};
use crate::regularizer::{EntropyBonus, Kl};
use crate::surrogate::{ClippedRatio, Preference, ReferenceFree};

/// Blocks that belong to no single paper.
const SHARED: &[BlockKind] = &[
    BlockKind::advantage::<GroupNorm>(),
    BlockKind::advantage::<LeaveOneOut>(),
    BlockKind::advantage::<Gae>(),
    BlockKind::advantage::<TurnGae>(),
    BlockKind::advantage::<StreamGae>(),
    BlockKind::reward::<StreamReturns>(),
    BlockKind::filter::<AccuracyFilter>(),
    BlockKind::filter::<VaryingGroups>(),
    BlockKind::filter::<ComparablePairs>(),
    BlockKind::surrogate::<ClippedRatio>(),
    BlockKind::surrogate::<Preference>(),
    BlockKind::surrogate::<ReferenceFree>(),
    BlockKind::regularizer::<Kl>(),
    BlockKind::regularizer::<EntropyBonus>(),
    BlockKind::weight::<WhitenAdvantages>(),
    BlockKind::weight::<ValueTargets>(),
    BlockKind::surrogate::<ClippedValue>(),
    BlockKind::regularizer::<ClippedValue>(),
];

/// Every block: the shared ones and what each paper invents.
pub fn block_kinds() -> impl Iterator<Item = &'static BlockKind> {
    SHARED.iter().chain(papers::base::BLOCKS).chain(papers::all().flat_map(|paper| paper.blocks))
}

/// All papers and base algorithms, sorted by id.
pub fn algorithms() -> Vec<&'static Paper> {
    let mut all: Vec<_> = papers::all().collect();
    all.sort_by_key(|paper| paper.id);
    all
}

/// Every file of reference vectors: how many cases it has, and which algorithms it checks. A file that several share is
/// counted once.
pub fn vectors() -> BTreeMap<&'static str, (usize, Vec<&'static str>)> {
    let mut files: BTreeMap<&'static str, (usize, Vec<&'static str>)> = BTreeMap::new();
    for paper in algorithms() {
        if let Some((file, cases)) = paper.vectors {
            let entry = files.entry(file).or_insert((cases, Vec::new()));
            entry.0 = entry.0.max(cases);
            entry.1.push(paper.id);
        }
    }
    files
}

/// An algorithm with its settings.
pub struct Algorithm {
    /// Where it comes from.
    pub paper: &'static Paper,
    /// Its blocks and their settings.
    pub composition: Composition,
    /// Ready to run.
    pub objective: Objective,
}

impl Algorithm {
    /// The algorithm `id` with `settings` laid over its recipe (see [`Composition::with`]).
    ///
    /// # Errors
    /// [`Error::UnknownAlgorithm`]; what the composition and its blocks refuse.
    pub fn from_table(id: &str, settings: &toml::Table) -> Result<Self> {
        let Some(paper) = papers::all().find(|paper| paper.id == id) else {
            let known = algorithms().iter().map(|paper| paper.id.to_string()).collect();
            return Err(Error::UnknownAlgorithm { name: id.into(), known });
        };
        let composition = (paper.recipe)().with(settings)?;
        let objective = composition.build()?;
        Ok(Self { paper, composition, objective })
    }
}

/// Lays `over` on `base`, key by key; tables in both are laid on each other in the same way.
pub fn overlay(base: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => overlay(inner, value),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn settings_override_defaults_and_unknown_keys_are_refused() {
        let over =
            "[surrogate]\nclip_low = 0.1\n[filter.accuracy]\nlower = 0.0\n[regularizer.kl]\ncoef = 0.5";
        let srpo = Algorithm::from_table("srpo", &table(over)).unwrap().composition;
        assert_eq!(srpo.surrogate["clip_low"].as_float(), Some(0.1));
        assert_eq!(srpo.surrogate["clip_high"].as_float(), Some(0.28));
        assert_eq!(srpo.filter[0]["lower"].as_float(), Some(0.0));
        assert_eq!(srpo.regularizer[0]["coef"].as_float(), Some(0.5));
        let message = |id, text| Algorithm::from_table(id, &table(text)).err().unwrap().to_string();
        assert!(message("grpo", "[surrogate]\nclip_lo = 0.1").contains("clip_lo"));
        assert!(message("grpo", "[surrogate]\nkind = \"cliped_ratio\"").contains("clipped_ratio"));
        assert!(message("grpo", "clip = 1").contains("clip"));
        assert!(message("gpro", "").contains("grpo, "));
    }

    #[test]
    fn names_are_unique_and_every_recipe_builds_and_survives_toml() {
        let mut ids = BTreeSet::new();
        for paper in algorithms() {
            assert!(ids.insert(paper.id), "{} twice", paper.id);
            let recipe = (paper.recipe)();
            recipe.build().unwrap_or_else(|e| panic!("{}: {e}", paper.id));
            let text = toml::to_string(&recipe).unwrap();
            assert_eq!(toml::from_str::<Composition>(&text).unwrap(), recipe, "{}", paper.id);
        }
        let mut kinds = BTreeSet::new();
        for block in block_kinds() {
            assert!(kinds.insert((block.role, block.kind)), "{} twice", block.kind);
            (block.make)(&(block.defaults)().unwrap()).unwrap_or_else(|e| panic!("{}: {e}", block.kind));
        }
    }

    /// The preset files are what a person reads and copies from: each is its recipe, with every setting.
    #[test]
    fn preset_files_are_the_recipes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/algorithms");
        for paper in algorithms() {
            let path = folder.join(format!("{}.toml", paper.id));
            let recipe = (paper.recipe)();
            if std::env::var("EFFERENCE_WRITE_PRESETS").is_ok_and(|id| id == "1" || id == paper.id) {
                let head = format!("# {} (arXiv {}). {}\n", paper.title, paper.arxiv, paper.summary);
                std::fs::write(&path, head + &toml::to_string(&recipe).unwrap()).unwrap();
            }
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(toml::from_str::<Composition>(&text).unwrap(), recipe, "{}", path.display());
        }
    }
}
