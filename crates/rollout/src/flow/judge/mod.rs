//! Whether a plan would do what was asked, decided before anything moves.

mod learned;
mod network;
mod predicate;
mod samples;
mod vlm;

use efference_geometry::Isometry3;

pub use learned::{JudgeSample, JudgeTraining, LearnedJudge, TrainReport, train_judge};
pub use predicate::PredicateJudge;
pub use samples::judge_samples;
pub use vlm::{VlmJudge, VlmOptions};

use super::{FinalPicture, Result};

/// What a judge is shown.
#[derive(Clone, Copy, Debug)]
pub struct JudgeQuestion<'a> {
    /// What was asked for.
    pub instruction: &'a str,
    /// The state that the plan leads to.
    pub picture: &'a FinalPicture,
    /// The camera of the picture.
    pub camera: &'a efference_geometry::Camera,
    /// Motion of the object from the present to the end, world frame.
    pub motion: &'a Isometry3<f64>,
}

/// What a judge says.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether the plan may be executed.
    pub accept: bool,
    /// How good it is, 0 to 1, for ranking.
    pub score: f64,
    /// Why, in words.
    pub reason: String,
}

/// Says whether a plan does what was asked.
pub trait Judge {
    /// Looks at one plan.
    ///
    /// # Errors
    /// [`super::Error::Judge`] when there is no verdict: no answer in time, or nonsense. It never means "accepted".
    fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict>;

    /// A short name for reports.
    fn name(&self) -> &'static str;
}

impl<J: Judge + ?Sized> Judge for Box<J> {
    fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict> {
        (**self).judge(question)
    }
    fn name(&self) -> &'static str {
        (**self).name()
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// No whole answer within the limit.
    #[error("no answer within {limit_secs} s, {tries} tries")]
    Timeout {
        /// Seconds per try.
        limit_secs: f64,
        /// How often it was asked.
        tries: usize,
    },
    /// The connection failed.
    #[error("{url}: {why} ({tries} tries)")]
    Transport {
        /// Where it was asked.
        url: String,
        /// What the system says.
        why: String,
        /// How often it was asked.
        tries: usize,
    },
    /// The server refused.
    #[error("the server answered with status {status}: {body} ({tries} tries)")]
    Status {
        /// HTTP status.
        status: u16,
        /// The beginning of what it says.
        body: String,
        /// How often it was asked.
        tries: usize,
    },
    /// The answer is none.
    #[error(
        "the answer is not {{\"accept\": true or false, \"reason\": \"..\"}}: {why}; it begins with `{answer}` ({tries} tries)"
    )]
    Nonsense {
        /// What is wrong.
        why: String,
        /// The beginning of the answer.
        answer: String,
        /// How often it was asked.
        tries: usize,
    },
    /// The learned scorer failed.
    #[error("scorer network")]
    Network(#[from] efference_nets::Error),
}
