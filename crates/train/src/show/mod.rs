//! From what training leaves behind (trajectories, metrics, success tables) to what a person looks at.
//!
//! [`episode_record`] replays a trajectory for the recording, [`strip`] makes a row of frames from it, [`report`]
//! gathers a run for its page. Nothing here draws or writes: that is `efference_viz`.

use efference_envs::libero::suite::{Suite, language};

pub mod episode;
pub mod report;

pub use episode::{Filmed, Label, episode_record, strip};
pub use report::report;

/// What can go wrong on the way to a picture. None of it needs to stop a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trajectory did not keep one state per frame, so there is nothing to draw.
    #[error(
        "the episode of task `{task}`, initial state {env_seed}, kept {got} states instead of {expected}: collect it \
         with `keep_snapshots`"
    )]
    Snapshots {
        /// Task id.
        task: String,
        /// Seed of the initial state.
        env_seed: u64,
        /// Control steps + 1.
        expected: usize,
        /// States in the trajectory.
        got: usize,
    },
    /// The environment could not go back to a state of the episode, or not draw it.
    #[error("replaying an episode of task `{task}`, initial state {env_seed}")]
    Env {
        /// Task id.
        task: String,
        /// Seed of the initial state.
        env_seed: u64,
        /// What the environment said.
        #[source]
        source: Box<efference_envs::Error>,
    },
    /// A filmstrip was asked of a record without images.
    #[error("episode `{stage}/{name}` has no images to make a filmstrip of")]
    NoImages {
        /// Stage of the record.
        stage: String,
        /// Name of the record.
        name: String,
    },
    /// The picture could not be made.
    #[error(transparent)]
    Viz(Box<efference_viz::Error>),
}

impl From<efference_viz::Error> for Error {
    fn from(error: efference_viz::Error) -> Self {
        Self::Viz(Box::new(error))
    }
}

/// Results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A task id as people read it, the same in recording and report: `pick_red_cube` is "pick red cube", `libero_goal_7` is
/// "goal 7: turn on the stove".
pub fn task_title(id: &str) -> String {
    let libero = id.rsplit_once('_').and_then(|(suite, task)| {
        let (suite, task): (Suite, usize) = (suite.parse().ok()?, task.parse().ok()?);
        let name = suite.to_string();
        let short = name.strip_prefix("libero_").unwrap_or(&name).to_owned();
        Some(format!("{short} {task}: {}", language(suite.task(task)?)))
    });
    libero.unwrap_or_else(|| id.replace('_', " "))
}
