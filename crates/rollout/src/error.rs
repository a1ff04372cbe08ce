//! What can go wrong in a rollout.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment failed.
    #[error("environment of task `{task}`, initial state {env_seed}")]
    Env {
        /// Task id.
        task: String,
        /// Seed of the initial state.
        env_seed: u64,
        /// What it said.
        #[source]
        source: Box<efference_envs::Error>,
    },
    /// The network failed.
    #[error("policy network")]
    Net(#[source] Box<efference_nets::Error>),
    /// A tensor operation failed.
    #[error("tensor operation")]
    Tensor(#[from] candle_core::Error),
    /// Rollout and trainer disagree, so importance ratios would be wrong.
    #[error(
        "sampled and re-scored log-probabilities differ by {worst:e} (decision {decision}, token {token}); on this device they must agree within {allowed:e}"
    )]
    RatioNotOne {
        /// Index of the decision in its batch.
        decision: usize,
        /// Index of the token in the decision.
        token: usize,
        /// Largest difference.
        worst: f32,
        /// Largest difference that is accepted.
        allowed: f32,
    },
}

impl From<efference_nets::Error> for Error {
    fn from(error: efference_nets::Error) -> Self {
        Self::Net(Box::new(error))
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
