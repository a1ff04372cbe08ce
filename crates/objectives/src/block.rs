//! What a block is: one small trait per role.
//!
//! ```text
//! reward* -> filter* -> advantage -> weight* -> bounds -> surrogate -> regularizer* -> aggregation
//! ```
//!
//! A block is a settings struct (serde, with defaults) that implements its role's trait. Whatever it reads, it declares
//! in `needs`, so that a composition that lacks an input is refused before anything runs.

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, Signals};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// What all blocks have in common.
pub trait Block: Send + Sync {
    /// What it reads.
    fn needs(&self) -> Vec<Input> {
        Vec::new()
    }

    /// Inputs of which one is enough, beside [`Block::needs`].
    fn needs_one_of(&self) -> &'static [Input] {
        &[]
    }

    /// Why what it computes in an update depends on the other sequences of that update, if it does: then the losses of
    /// micro-batches do not add up to the loss of the batch.
    fn batch_wide(&self) -> Option<&'static str> {
        None
    }

    /// What it adds to the batch, for the blocks after it (reward blocks).
    fn gives(&self) -> Vec<Input> {
        Vec::new()
    }

    /// Refuses settings that no number can be made of.
    ///
    /// # Errors
    /// [`Error::Setting`].
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// A few words with the settings that matter, for a person.
    fn describe(&self) -> String;
}

/// The name of a block in configurations.
pub trait Kind: Block + Serialize + DeserializeOwned + Default + 'static {
    /// Snake case, unique within its role.
    const KIND: &'static str;
}

/// Makes or changes rewards: writes [`REWARDS`](crate::batch::REWARDS) or
/// [`TOKEN_REWARDS`](crate::batch::TOKEN_REWARDS) of the whole batch.
pub trait Reward: Block {
    /// Changes the batch.
    ///
    /// # Errors
    /// A missing input, numbers that are not finite.
    fn shape(&self, batch: &mut Batch, state: &mut State) -> Result<()>;
}

/// Chooses the sequences that are trained on.
pub trait Filter: Block {
    /// One flag per sequence, [B].
    ///
    /// # Errors
    /// A missing input.
    fn keep(&self, batch: &Batch, state: &mut State) -> Result<Vec<bool>>;
}

/// How much better a token was than its alternatives; sees the whole batch, computes in f64, no gradient.
pub trait Advantage: Block {
    /// [B, T], 0 where the mask is 0.
    ///
    /// # Errors
    /// A missing input, numbers that are not finite.
    fn advantages(&self, batch: &Batch, state: &mut State) -> Result<Table>;
}

/// Changes what is known about tokens: weights, masks, clip bounds, advantages (roles `weight` and `bounds`). A rule
/// works once per batch, or in every update on that update's (micro-)batch, or both.
pub trait TokenRule: Block {
    /// Once, on the whole batch, before the first update.
    ///
    /// # Errors
    /// A missing input, numbers that are not finite.
    fn prepare(&self, _batch: &Batch, _signals: &mut Signals, _state: &mut State) -> Result<()> {
        Ok(())
    }

    /// In every update, on the sequences of that update, with the current log-probabilities (use them without gradient).
    ///
    /// # Errors
    /// A missing input, numbers that are not finite.
    fn update(&self, _batch: &Batch, _signals: &mut Signals, _state: &State) -> Result<()> {
        Ok(())
    }
}

/// Terms of a loss, before they become one number.
#[derive(Clone, Debug)]
pub enum Terms {
    /// One per token, [B, T]; aggregated.
    Tokens(Tensor),
    /// One per sequence, [B]; the mean over sequences that have a valid token.
    Sequences(Tensor),
    /// One per pair, [B / 2]; the mean over pairs.
    Pairs(Tensor),
    /// A scalar that is already a sum over what the batch as a whole is divided by.
    Total(Tensor),
}

/// What a surrogate computed.
#[derive(Clone, Debug)]
pub struct SurrogateLoss {
    /// With gradient.
    pub terms: Terms,
    /// Numbers per token to log as token means, [B, T]: `clip_frac`, `clip_frac_lower`, `approx_kl`, ...
    pub stats: Vec<(&'static str, Table)>,
}

impl From<Terms> for SurrogateLoss {
    fn from(terms: Terms) -> Self {
        Self { terms, stats: Vec::new() }
    }
}

/// A loss whose gradient improves the policy.
pub trait Surrogate: Block {
    /// Loss terms and what to log.
    ///
    /// # Errors
    /// A missing input, shapes that differ, settings out of range.
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss>;

    /// Whether it reads advantages at all; preference losses do not.
    fn uses_advantages(&self) -> bool {
        true
    }

    /// Whether a `bounds` block can set its clip bounds: bounds that nobody reads are refused.
    fn uses_bounds(&self) -> bool {
        false
    }
}

/// A term that is added to the loss, sign and coefficient included.
pub trait Regularizer: Block {
    /// The term.
    ///
    /// # Errors
    /// A missing input, shapes that differ.
    fn terms(&self, batch: &Batch, signals: &Signals, state: &State) -> Result<Terms>;

    /// How its tokens are aggregated where that differs from the surrogate's.
    fn aggregation(&self) -> Option<Aggregation> {
        None
    }

    /// What it keeps in mind about the whole batch before the first update.
    ///
    /// # Errors
    /// A missing input.
    fn prepare(&self, _batch: &Batch, _signals: &Signals, _state: &mut State) -> Result<()> {
        Ok(())
    }
}

/// A block of any role.
pub enum AnyBlock {
    /// See [`Reward`].
    Reward(Box<dyn Reward>),
    /// See [`Filter`].
    Filter(Box<dyn Filter>),
    /// See [`Advantage`].
    Advantage(Box<dyn Advantage>),
    /// See [`TokenRule`].
    Weight(Box<dyn TokenRule>),
    /// See [`TokenRule`].
    Bounds(Box<dyn TokenRule>),
    /// See [`Surrogate`].
    Surrogate(Box<dyn Surrogate>),
    /// See [`Regularizer`].
    Regularizer(Box<dyn Regularizer>),
}

impl AnyBlock {
    /// What it has in common with all others.
    pub fn block(&self) -> &dyn Block {
        match self {
            Self::Reward(b) => &**b,
            Self::Filter(b) => &**b,
            Self::Advantage(b) => &**b,
            Self::Weight(b) | Self::Bounds(b) => &**b,
            Self::Surrogate(b) => &**b,
            Self::Regularizer(b) => &**b,
        }
    }
}

/// What a block does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See [`Reward`].
    Reward,
    /// See [`Filter`].
    Filter,
    /// See [`Advantage`].
    Advantage,
    /// See [`TokenRule`]: weights, masks, changed advantages.
    Weight,
    /// See [`TokenRule`]: clip bounds.
    Bounds,
    /// See [`Surrogate`].
    Surrogate,
    /// See [`Regularizer`].
    Regularizer,
}

impl Role {
    /// The key in a composition.
    pub fn key(self) -> &'static str {
        match self {
            Self::Reward => "reward",
            Self::Filter => "filter",
            Self::Advantage => "advantage",
            Self::Weight => "weight",
            Self::Bounds => "bounds",
            Self::Surrogate => "surrogate",
            Self::Regularizer => "regularizer",
        }
    }
}

/// How to make a block from its settings.
#[derive(Clone, Copy)]
pub struct BlockKind {
    /// Name in configurations.
    pub kind: &'static str,
    /// What it does.
    pub role: Role,
    /// Settings to block; keys that are absent have their defaults, unknown ones are refused.
    pub make: fn(&toml::Table) -> Result<AnyBlock>,
    /// All settings with their defaults.
    pub defaults: fn() -> Result<toml::Table>,
}

macro_rules! constructors {
    ($($name:ident: $trait:ident => $variant:ident;)*) => {
        $(
            #[doc = concat!("A [`", stringify!($trait), "`] block.")]
            pub const fn $name<T: Kind + $trait>() -> Self {
                Self {
                    kind: T::KIND,
                    role: Role::$variant,
                    make: |settings| Ok(AnyBlock::$variant(Box::new(parse::<T>(settings)?))),
                    defaults: || to_table(&T::default()),
                }
            }
        )*
    };
}

impl BlockKind {
    constructors! {
        reward: Reward => Reward;
        filter: Filter => Filter;
        advantage: Advantage => Advantage;
        weight: TokenRule => Weight;
        bounds: TokenRule => Bounds;
        surrogate: Surrogate => Surrogate;
        regularizer: Regularizer => Regularizer;
    }
}

fn parse<T: Kind>(settings: &toml::Table) -> Result<T> {
    let block: T = toml::Value::Table(settings.clone())
        .try_into()
        .map_err(|e: toml::de::Error| Error::Block { block: T::KIND, reason: e.message().into() })?;
    block.validate()?;
    Ok(block)
}

/// The settings of a block as a table.
///
/// # Errors
/// [`Error::Block`]: a setting that TOML cannot hold.
pub(crate) fn to_table<T: Kind>(block: &T) -> Result<toml::Table> {
    toml::Table::try_from(block).map_err(|e| Error::Block { block: T::KIND, reason: e.to_string() })
}
