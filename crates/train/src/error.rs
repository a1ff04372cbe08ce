//! What can go wrong in a run.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::decisions;
use crate::metrics::MetricsError;
use crate::run_dir::RunDirError;

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] Box<ConfigError>),
    /// A setting that belongs to another part (the network's shape, an algorithm's preset, a task) was refused there.
    #[error("`{section}`: {source}")]
    Setting {
        /// Section of the configuration.
        section: &'static str,
        /// What that part said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The run folder.
    #[error(transparent)]
    RunDir(#[from] Box<RunDirError>),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] Box<CheckpointError>),
    /// The metrics log.
    #[error(transparent)]
    Metrics(#[from] Box<MetricsError>),
    /// A file of the run could not be written.
    #[error(transparent)]
    Write(#[from] Box<efference_data::atomic::Error>),
    /// Stored demonstrations.
    #[error(transparent)]
    Data(#[from] Box<efference_data::Error>),
    /// Demonstrations that the policy cannot learn from.
    #[error(transparent)]
    Examples(#[from] Box<decisions::Error>),
    /// A rollout.
    #[error(transparent)]
    Rollout(#[from] Box<efference_rollout::Error>),
    /// An environment outside a rollout.
    #[error(transparent)]
    Env(#[from] Box<efference_envs::Error>),
    /// The objective.
    #[error(transparent)]
    Objective(#[from] Box<efference_objectives::Error>),
    /// The network.
    #[error(transparent)]
    Net(#[from] Box<efference_nets::Error>),
    /// A fused operation or the optimiser.
    #[error(transparent)]
    Op(#[from] Box<efference_ops::Error>),
    /// Geometry of points and cameras.
    #[error(transparent)]
    Geometry(#[from] Box<efference_geometry::Error>),
    /// Episodes of flow that cannot be learned from or predicted.
    #[error("flow: {reason}")]
    Flow {
        /// Which, and why.
        reason: String,
    },
    /// A tensor operation.
    #[error("tensor operation")]
    Tensor(#[from] candle_core::Error),
    /// Weights that are marked trainable but that the loss does not reach would silently stay as they are.
    #[error(
        "{} trainable weights got no gradient in the first update of stage `{stage}`: {}; freeze them or mend the network",
        names.len(), some(names)
    )]
    Unreached {
        /// Stage of the run.
        stage: &'static str,
        /// Names of the weights.
        names: Vec<String>,
    },
    /// Updates went wrong again and again.
    #[error(
        "{count} updates in a row of stage `{stage}` had gradients that are not finite; the last good checkpoint is kept. \
         Lower `{stage}.lr` or `{stage}.max_grad_norm`"
    )]
    Diverged {
        /// Stage of the run.
        stage: &'static str,
        /// How many.
        count: u64,
    },
    /// The report.
    #[error(transparent)]
    Show(#[from] Box<crate::show::Error>),
    /// The run to be resumed was made with other settings.
    #[error(
        "the checkpoint `{}` belongs to other settings than this run's config.toml or `--set` gives it\n  hint: take the change \
         back; a resumed run may only change `run.threads`, `rl.minutes`, [checkpoint] and [record]", path.display()
    )]
    OtherConfig {
        /// The checkpoint.
        path: std::path::PathBuf,
    },
    /// The system refused a write in the middle of a run, which can go on later.
    #[error("{source}\n  hint: when that is mended, continue with `efference train --resume {}`", run.display())]
    BrokenOff {
        /// The run folder.
        run: std::path::PathBuf,
        /// What was refused.
        #[source]
        source: Box<Error>,
    },
}

impl Error {
    /// Adds how to go on with the run in folder `run`, if nothing is wrong but the disk.
    pub(crate) fn in_run(self, run: &std::path::Path) -> Self {
        match self {
            Self::Checkpoint(_) | Self::Metrics(_) | Self::Write(_) | Self::RunDir(_) => {
                Self::BrokenOff { run: run.into(), source: Box::new(self) }
            }
            other => other,
        }
    }
}

fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

macro_rules! boxed {
    ($($ty:ty),*) => {$(
        impl From<$ty> for Error {
            fn from(error: $ty) -> Self {
                Box::new(error).into()
            }
        }
    )*};
}
boxed!(
    ConfigError,
    RunDirError,
    CheckpointError,
    MetricsError,
    decisions::Error,
    crate::show::Error,
    efference_data::atomic::Error,
    efference_data::Error,
    efference_rollout::Error,
    efference_envs::Error,
    efference_objectives::Error,
    efference_nets::Error,
    efference_geometry::Error,
    efference_ops::Error
);
