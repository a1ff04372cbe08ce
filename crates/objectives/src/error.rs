//! What can be wrong with a batch or a setting.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error("tensor operation")]
    Tensor(#[from] candle_core::Error),
    /// A fused operation failed.
    #[error("fused operation")]
    Op(#[from] efference_ops::Error),
    /// Two inputs disagree about a size.
    #[error("`{name}` is {got:?}, expected {expected}")]
    Shape {
        /// Input.
        name: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What it must be.
        expected: String,
    },
    /// A number that no result can be made of.
    #[error("`{name}` holds {got} at index {index}: every value must be finite")]
    NotFinite {
        /// Input.
        name: &'static str,
        /// Where.
        index: usize,
        /// NaN or an infinity.
        got: f64,
    },
    /// A statistic of too few values.
    #[error("{what} needs at least {needed} valid tokens, the batch has {got}")]
    TooFew {
        /// Which statistic.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many it takes.
        needed: usize,
    },
    /// A setting outside its range.
    #[error("setting `{name}` is {got}: {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        got: f64,
        /// Its range.
        expected: &'static str,
    },
    /// The objective needs an input that the batch has not.
    #[error("this objective needs `{name}`, and the batch has none")]
    Missing {
        /// The input.
        name: &'static str,
    },
    /// No algorithm of this name.
    #[error("there is no algorithm `{name}`; known: {}", known.join(", "))]
    UnknownAlgorithm {
        /// What was asked for.
        name: String,
        /// All ids.
        known: Vec<String>,
    },
    /// The settings of an algorithm do not parse.
    #[error("settings of algorithm `{algorithm}`: {reason}")]
    Settings {
        /// Algorithm id.
        algorithm: &'static str,
        /// What the parser says: key and expectation.
        reason: String,
    },
    /// A block that a composition names and nobody has.
    #[error("there is no {role} block `{name}`; known: {}", known.join(", "))]
    UnknownBlock {
        /// What it should do.
        role: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Settings of a block that cannot be read.
    #[error("block `{block}`: {reason}")]
    Block {
        /// The block.
        block: &'static str,
        /// Which key, and why.
        reason: String,
    },
    /// A composition that does not fit together.
    #[error("this composition does not work: {0}")]
    Composition(String),
    /// An input of another kind than the block reads.
    #[error("`{name}` must hold {expected}")]
    Type {
        /// The input.
        name: &'static str,
        /// What the block reads.
        expected: &'static str,
    },
    /// A block's memory that cannot be read or written.
    #[error("memory of block `{block}`: {reason}")]
    State {
        /// The block.
        block: &'static str,
        /// Why.
        reason: String,
    },
    /// Values that contradict each other.
    #[error("{what}: {reason}")]
    Invalid {
        /// What was looked at.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
