//! What can be wrong with geometry.

use crate::Frame;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Two arguments disagree in length.
    #[error("{what} has {got} entries, {want} are needed")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length that fits the other arguments.
        want: usize,
    },
    /// A number is NaN or infinite where it may not be.
    #[error("{what} [{index}] is not finite")]
    NotFinite {
        /// Which argument.
        what: &'static str,
        /// Index of the entry.
        index: usize,
    },
    /// A setting lies outside its range.
    #[error("{what} is {value}; it must be {range}")]
    Range {
        /// Which setting.
        what: &'static str,
        /// What it is.
        value: f64,
        /// What it may be, in words.
        range: &'static str,
    },
    /// Two flows are given in different frames.
    #[error("the flow is given in the {got:?} frame; the {want:?} frame is needed")]
    Frames {
        /// Its frame.
        got: Frame,
        /// The other's.
        want: Frame,
    },
}
