//! A composition: which blocks with which settings. This is what a paper's recipe, a preset and a configuration hold.

use serde::{Deserialize, Serialize};

use crate::aggregation::Aggregation;
use crate::block::{AnyBlock, BlockKind, Kind, Role, to_table};
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::registry::block_kinds;

/// A block's kind and settings, as a table with the key `kind`.
pub type BlockTable = toml::Table;

/// Blocks by role. In TOML:
///
/// ```toml
/// aggregation = "token-mean"
/// [advantage]
/// kind = "group_norm"
/// [surrogate]
/// kind = "clipped_ratio"
/// clip_high = 0.28
/// [[regularizer]]
/// kind = "kl"
/// coef = 0.01
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composition {
    /// From tokens to one number.
    pub aggregation: Aggregation,
    /// Make or change rewards, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reward: Vec<BlockTable>,
    /// Choose sequences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<BlockTable>,
    /// How much better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advantage: Option<BlockTable>,
    /// Change what is known about tokens, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weight: Vec<BlockTable>,
    /// Sets clip bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<BlockTable>,
    /// What improves the policy.
    pub surrogate: BlockTable,
    /// Added to the loss.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regularizer: Vec<BlockTable>,
}

/// A block as a table with all its settings.
fn table<T: Kind>(block: &T) -> BlockTable {
    let mut table = toml::Table::new();
    table.insert("kind".into(), T::KIND.into());
    // Settings are numbers, flags, names and lists of them: TOML holds them all. A test makes every block's table.
    table.extend(to_table(block).unwrap_or_default());
    table
}

impl Composition {
    /// A surrogate with nothing else.
    pub fn new<T: Kind + crate::block::Surrogate>(surrogate: &T, aggregation: Aggregation) -> Self {
        Self {
            aggregation,
            reward: Vec::new(),
            filter: Vec::new(),
            advantage: None,
            weight: Vec::new(),
            bounds: None,
            surrogate: table(surrogate),
            regularizer: Vec::new(),
        }
    }

    /// With one more reward block.
    pub fn reward<T: Kind + crate::block::Reward>(mut self, block: &T) -> Self {
        self.reward.push(table(block));
        self
    }

    /// With one more filter.
    pub fn filter<T: Kind + crate::block::Filter>(mut self, block: &T) -> Self {
        self.filter.push(table(block));
        self
    }

    /// With this advantage.
    pub fn advantage<T: Kind + crate::block::Advantage>(mut self, block: &T) -> Self {
        self.advantage = Some(table(block));
        self
    }

    /// With one more token rule.
    pub fn weight<T: Kind + crate::block::TokenRule>(mut self, block: &T) -> Self {
        self.weight.push(table(block));
        self
    }

    /// With this rule for clip bounds.
    pub fn bounds<T: Kind + crate::block::TokenRule>(mut self, block: &T) -> Self {
        self.bounds = Some(table(block));
        self
    }

    /// With one more regulariser.
    pub fn regularizer<T: Kind + crate::block::Regularizer>(mut self, block: &T) -> Self {
        self.regularizer.push(table(block));
        self
    }

    /// The settings of every block, in the order of [`Objective::blocks`].
    pub fn tables(&self) -> Vec<&BlockTable> {
        let lists = [&self.reward, &self.filter].into_iter().flatten();
        let middle = lists.chain(&self.advantage).chain(&self.weight).chain(&self.bounds);
        middle.chain(std::iter::once(&self.surrogate)).chain(&self.regularizer).collect()
    }

    /// Puts the blocks together.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`], [`Error::Block`], [`Error::Setting`].
    pub fn build(&self) -> Result<Objective> {
        let wrong =
            |role: Role| Error::Composition(format!("`{}` holds a block of another role", role.key()));
        macro_rules! all {
            ($tables:expr, $role:ident) => {
                $tables
                    .iter()
                    .map(|table| match make(table, Role::$role)? {
                        AnyBlock::$role(block) => Ok(block),
                        _ => Err(wrong(Role::$role)),
                    })
                    .collect::<Result<Vec<_>>>()?
            };
        }
        let surrogate = match make(&self.surrogate, Role::Surrogate)? {
            AnyBlock::Surrogate(block) => block,
            _ => return Err(wrong(Role::Surrogate)),
        };
        Ok(Objective {
            rewards: all!(self.reward, Reward),
            filters: all!(self.filter, Filter),
            advantage: all!(self.advantage, Advantage).pop(),
            weights: all!(self.weight, Weight),
            bounds: all!(self.bounds, Bounds).pop(),
            surrogate,
            regularizers: all!(self.regularizer, Regularizer),
            aggregation: self.aggregation,
        })
    }

    /// This composition with `over` laid on it: a block's keys change its settings, another `kind` replaces the block.
    /// Lists (`reward`, `filter`, `weight`, `regularizer`) are replaced by lists; a table of tables changes the blocks of
    /// the kinds that it names and appends those that are not there: `regularizer.kl.coef = 0.1`.
    ///
    /// # Errors
    /// [`Error::Composition`], [`Error::Block`]: a key that no composition has, or a value of another type.
    pub fn with(&self, over: &toml::Table) -> Result<Self> {
        let odd = |e: String| Error::Composition(e);
        let mut base = toml::Table::try_from(self).map_err(|e| odd(e.to_string()))?;
        for (key, value) in over {
            let list = ["reward", "filter", "weight", "regularizer"].contains(&key.as_str());
            match value {
                toml::Value::Table(changes) if list => {
                    let entry = base.entry(key).or_insert_with(|| toml::Value::Array(Vec::new()));
                    if let toml::Value::Array(blocks) = entry {
                        lay_on_list(blocks, changes).map_err(odd)?;
                    }
                }
                toml::Value::Table(changes) => {
                    let kept = base.get(key).and_then(toml::Value::as_table);
                    let same = |old: &toml::Table| {
                        changes.get("kind").is_none_or(|kind| old.get("kind") == Some(kind))
                    };
                    let mut block = kept.filter(|old| same(old)).cloned().unwrap_or_default();
                    crate::registry::overlay(&mut block, changes);
                    base.insert(key.clone(), toml::Value::Table(block));
                }
                _ => {
                    base.insert(key.clone(), value.clone());
                }
            }
        }
        toml::Value::Table(base)
            .try_into()
            .map_err(|e: toml::de::Error| Error::Block { block: "composition", reason: e.message().into() })
    }
}

impl Composition {
    /// Every key that [`Composition::with`] may be given beside `over`'s own `kind`s, with a value of its type: what a
    /// reader of configurations compares `over` with to name a misspelt key.
    pub fn keys(&self, over: &toml::Table) -> toml::Table {
        let mut keys = toml::Table::new();
        keys.insert("aggregation".into(), toml::Value::try_from(self.aggregation).unwrap_or("".into()));
        let defaults = |block: &BlockKind| {
            let mut table = (block.defaults)().unwrap_or_default();
            table.insert("kind".into(), block.kind.into());
            table
        };
        for (role, own) in [
            (Role::Advantage, self.advantage.as_ref()),
            (Role::Bounds, self.bounds.as_ref()),
            (Role::Surrogate, Some(&self.surrogate)),
        ] {
            let asked = over.get(role.key()).and_then(|block| block.get("kind"));
            let kind = asked.or_else(|| own.and_then(|block| block.get("kind")));
            let found =
                block_kinds().find(|b| b.role == role && kind.and_then(toml::Value::as_str) == Some(b.kind));
            let mut table = found.map(defaults).unwrap_or_default();
            table.insert("kind".into(), "a name".into());
            keys.insert(role.key().into(), toml::Value::Table(table));
        }
        for role in [Role::Reward, Role::Filter, Role::Weight, Role::Regularizer] {
            let of_role = block_kinds().filter(|b| b.role == role);
            let tables = of_role.map(|b| (b.kind.to_string(), toml::Value::Table(defaults(b))));
            let list = over.get(role.key()).filter(|value| value.is_array()).cloned();
            keys.insert(role.key().into(), list.unwrap_or_else(|| toml::Value::Table(tables.collect())));
        }
        keys
    }
}

fn lay_on_list(blocks: &mut Vec<toml::Value>, changes: &toml::Table) -> std::result::Result<(), String> {
    for (kind, settings) in changes {
        let toml::Value::Table(settings) = settings else {
            return Err(format!("`{kind}` must be a table of settings"));
        };
        let of_kind = |block: &toml::Value| block.get("kind").and_then(toml::Value::as_str) == Some(kind);
        let at = blocks.iter().position(of_kind).unwrap_or_else(|| {
            let mut block = toml::Table::new();
            block.insert("kind".into(), kind.as_str().into());
            blocks.push(toml::Value::Table(block));
            blocks.len() - 1
        });
        if let toml::Value::Table(block) = &mut blocks[at] {
            crate::registry::overlay(block, settings);
        }
    }
    Ok(())
}

fn make(table: &BlockTable, role: Role) -> Result<AnyBlock> {
    let Some(kind) = table.get("kind").and_then(toml::Value::as_str) else {
        return Err(Error::Composition(format!("`{}` has no `kind`", role.key())));
    };
    let of_role = || block_kinds().filter(|b: &&BlockKind| b.role == role);
    let Some(found) = of_role().find(|b| b.kind == kind) else {
        let mut known: Vec<String> = of_role().map(|b| b.kind.to_string()).collect();
        known.sort();
        return Err(Error::UnknownBlock { role: role.key(), name: kind.into(), known });
    };
    let settings: toml::Table =
        table.iter().filter(|(key, _)| *key != "kind").map(|(k, v)| (k.clone(), v.clone())).collect();
    (found.make)(&settings)
}
