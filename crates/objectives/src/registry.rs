//! Algorithms by name.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::papers::grpo::Grpo;
use crate::papers::srpo::Srpo;

/// What there is to know about an algorithm before running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Name in configurations, file name of its source, preset and vectors.
    pub id: &'static str,
    /// arXiv number.
    pub arxiv: &'static str,
    /// What it starts from.
    pub base: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// Reference vectors that check it.
    pub vectors: &'static str,
}

/// An algorithm with its settings.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// See [`crate::papers::grpo`].
    Grpo(Grpo),
    /// See [`crate::papers::srpo`].
    Srpo(Srpo),
}

/// All algorithms, sorted by id.
pub fn algorithms() -> &'static [Card] {
    &[
        Card {
            id: "grpo",
            arxiv: "2402.03300",
            base: "ppo",
            summary: "rollouts of one prompt are each other's baseline; 0/1 reward",
            vectors: "base_grpo.json",
        },
        Card {
            id: "srpo",
            arxiv: "2511.15605",
            base: "grpo",
            summary: "failures are paid by their closeness to the batch's own successes",
            vectors: "srpo.json",
        },
    ]
}

impl Algorithm {
    /// The algorithm `id` with `settings` (a table as in `configs/algorithms/ID.toml`) over its defaults.
    ///
    /// # Errors
    /// [`Error::UnknownAlgorithm`], [`Error::Settings`], [`Error::Setting`].
    pub fn from_table(id: &str, settings: &toml::Table) -> Result<Self> {
        let algorithm = match id {
            "grpo" => Self::Grpo(parse("grpo", settings)?),
            "srpo" => Self::Srpo(parse("srpo", settings)?),
            _ => {
                let known = algorithms().iter().map(|card| card.id.to_string()).collect();
                return Err(Error::UnknownAlgorithm { name: id.into(), known });
            }
        };
        algorithm.validate()?;
        Ok(algorithm)
    }

    /// All settings of the algorithm `id` with their defaults.
    ///
    /// # Errors
    /// [`Error::UnknownAlgorithm`].
    pub fn defaults(id: &str) -> Result<toml::Table> {
        let table = match Self::from_table(id, &toml::Table::new())? {
            Self::Grpo(grpo) => toml::Table::try_from(grpo),
            Self::Srpo(srpo) => toml::Table::try_from(srpo),
        };
        table.map_err(|e| Error::Settings { algorithm: "defaults", reason: e.to_string() })
    }

    /// Numbers that no update can be made of.
    fn validate(&self) -> Result<()> {
        let least = |name, got: f64, low: f64, expected| {
            if got >= low && got.is_finite() { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
        };
        let grpo = self.grpo();
        least("dual_clip", grpo.dual_clip, 0.0, "0 (off) or greater than 1")?;
        least("advantage.epsilon", grpo.advantage.epsilon, 0.0, "0 or more")?;
        least("kl_coef", grpo.kl_coef, 0.0, "0 or more")?;
        least("entropy_coef", grpo.entropy_coef, f64::MIN, "a finite number")?;
        grpo.ratio().validate()?;
        grpo.filter.validate()?;
        if let Self::Srpo(srpo) = self {
            let p = &srpo.progress;
            least("reward_coef", srpo.reward_coef, 0.0, "0 or more")?;
            least("progress.fail_max", p.fail_max, 0.0, "0 or more")?;
            least("progress.steepness", p.steepness, f64::MIN, "a finite number")?;
            least("progress.offset", p.offset, f64::MIN, "a finite number")?;
            least("progress.alpha", p.alpha, f64::MIN, "a finite number")?;
            least("progress.range_epsilon", p.range_epsilon, 0.0, "0 or more")?;
            least("progress.dbscan_eps", p.dbscan_eps, 0.0, "0 (no clusters) or more")?;
            least("progress.missing_success", p.missing_success, 0.0, "0 or more")?;
        }
        Ok(())
    }

    /// The settings that SRPO shares with GRPO.
    pub fn grpo(&self) -> &Grpo {
        match self {
            Self::Grpo(grpo) => grpo,
            Self::Srpo(srpo) => &srpo.grpo,
        }
    }
}

/// `settings` laid over the algorithm's own defaults, level by level: a paper's defaults differ from its base's.
fn parse<T: DeserializeOwned + Default + Serialize>(
    algorithm: &'static str,
    settings: &toml::Table,
) -> Result<T> {
    let fail = |reason: String| Error::Settings { algorithm, reason };
    let mut table = toml::Table::try_from(T::default()).map_err(|e| fail(e.to_string()))?;
    overlay(&mut table, settings);
    toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| fail(e.message().into()))
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
    use super::*;

    #[test]
    fn settings_override_defaults_and_unknown_keys_are_refused() {
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        let srpo =
            Algorithm::from_table("srpo", &table("[grpo]\nclip_low = 0.1\n[grpo.filter]\nlower = 0.0"))
                .unwrap();
        assert_eq!(
            (srpo.grpo().clip_low, srpo.grpo().filter.lower, srpo.grpo().filter.upper),
            (0.1, 0.0, 0.9)
        );
        let wrong = Algorithm::from_table("grpo", &table("clip_lo = 0.1")).unwrap_err();
        assert!(wrong.to_string().contains("clip_lo"), "{wrong}");
        assert!(Algorithm::from_table("gpro", &table("")).unwrap_err().to_string().contains("grpo, srpo"));
    }

    #[test]
    fn every_card_has_an_algorithm() {
        for card in algorithms() {
            Algorithm::from_table(card.id, &toml::Table::new()).unwrap();
        }
    }
}
