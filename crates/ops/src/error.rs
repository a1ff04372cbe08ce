//! What can go wrong when an operation is called.

use candle_core::DType;

/// Result of every public function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Wrong input to an operation. Shapes and dtypes are checked before anything is computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One argument has a shape the operation cannot take.
    #[error("{op}: `{arg}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The function called.
        op: &'static str,
        /// The argument at fault.
        arg: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What would be right, in words.
        expected: String,
    },
    /// Two arguments do not fit each other.
    #[error("{op}: `{left}` {left_shape:?} does not fit `{right}` {right_shape:?}: {rule}")]
    Mismatch {
        /// The function called.
        op: &'static str,
        /// First argument.
        left: &'static str,
        /// Its shape.
        left_shape: Vec<usize>,
        /// Second argument.
        right: &'static str,
        /// Its shape.
        right_shape: Vec<usize>,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// An argument has a dtype the operation cannot take.
    #[error("{op}: `{arg}` is {got:?}, expected {expected}")]
    DType {
        /// The function called.
        op: &'static str,
        /// The argument at fault.
        arg: &'static str,
        /// Its dtype.
        got: DType,
        /// What would be right.
        expected: String,
    },
    /// A number is outside its range.
    #[error("{op}: `{arg}` is {got}, expected {expected}")]
    Value {
        /// The function called.
        op: &'static str,
        /// The argument at fault.
        arg: &'static str,
        /// Its value.
        got: String,
        /// What would be right, in words.
        expected: String,
    },
    /// Optimiser state or gradients name a parameter that does not fit.
    #[error("{what}: parameter `{name}`: {problem}")]
    Parameter {
        /// Where it happened, for example `AdamW::load_state`.
        what: &'static str,
        /// The parameter's name.
        name: String,
        /// What is wrong with it, with both shapes or dtypes.
        problem: String,
    },
    /// candle failed underneath.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// So that candle-returning code (a `Module`, a `CustomOp`) can call this crate with `?`.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}
