//! What can go wrong between a flow and an action.

/// Results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a flow could not be predicted, judged, planned or executed. That a plan was *refused* is no error: see the outcome
/// types.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Geometry refused its input.
    #[error("geometry")]
    Geometry(#[from] efference_geometry::Error),
    /// The environment failed.
    #[error("environment")]
    Env(#[from] efference_envs::Error),
    /// The question cannot be answered by anybody.
    #[error("query: {why}")]
    Query {
        /// What is wrong with it.
        why: String,
    },
    /// The predictor failed.
    #[error("flow predictor")]
    Predictor(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The predictor answered something that is no answer to the question.
    #[error("the predictor's answer: {why}")]
    Answer {
        /// What is wrong with it.
        why: String,
    },
    /// A judge gave no verdict.
    #[error("judge")]
    Judge(#[from] super::JudgeError),
    /// The journal of a table cannot be written.
    #[error("journal")]
    Journal(#[source] Box<crate::libero::JournalError>),
    /// A setting lies outside its range.
    #[error("`{setting}` is {value}; it must be {range}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What it may be, in words.
        range: &'static str,
    },
}
