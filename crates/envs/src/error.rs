//! What can go wrong: each variant says what, where, and what to do.

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the environments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such task.
    #[error("unknown task `{name}`\n  hint: did you mean `{nearest}`? The tasks are: {known}")]
    UnknownTask {
        /// The name asked for.
        name: String,
        /// The most similar task id.
        nearest: String,
        /// All task ids, with commas between.
        known: String,
    },

    /// There is no such camera.
    #[error("unknown camera `{name}`; this environment has: {known}")]
    UnknownCamera {
        /// The name asked for.
        name: String,
        /// All cameras, with commas between.
        known: String,
    },

    /// A setting that cannot be meant.
    #[error("option `{field}` must be {expected}, got {got}")]
    Option {
        /// Its name.
        field: &'static str,
        /// The accepted range, in words.
        expected: &'static str,
        /// The value.
        got: String,
    },

    /// A step before the first reset, or after the end of the episode.
    #[error("cannot step: {why}\n  hint: call `reset` first")]
    NotRunning {
        /// `no episode was started`, or that it ended and when.
        why: String,
    },

    /// An action with a number that is not finite.
    #[error("action component {index} is {value}; actions are finite numbers in -1..=1")]
    Action {
        /// Which of the numbers.
        index: usize,
        /// Its value.
        value: f32,
    },

    /// A snapshot of another environment.
    #[error(
        "this snapshot holds {got} numbers, but this scene's state has {expected}\n  \
         hint: it was taken with other options (distractors) or another scene"
    )]
    Snapshot {
        /// Numbers in this environment's state.
        expected: usize,
        /// Numbers in the snapshot.
        got: usize,
    },

    /// No motion of the object does the task without touching something.
    #[error("no free motion was found for `{task}` in the scene of seed {seed}\n  hint: take another seed")]
    NoMotion {
        /// Family of the task.
        task: &'static str,
        /// Of the scene.
        seed: u64,
    },

    /// The camera sees too little of the object.
    #[error("the camera sees too little of the object of `{task}`, seed {seed}: {seen} of {wanted} points")]
    Hidden {
        /// Family of the task.
        task: &'static str,
        /// Of the scene.
        seed: u64,
        /// Points found.
        seen: usize,
        /// Points asked for.
        wanted: usize,
    },

    /// Geometry that cannot be.
    #[error(transparent)]
    Geometry(#[from] efference_geometry::Error),

    /// Lists of the wrong length.
    #[error("{what}: expected {expected}, got {got}")]
    Length {
        /// What the list is for.
        what: &'static str,
        /// Length it must have.
        expected: usize,
        /// Length it has.
        got: usize,
    },

    /// The worker threads could not be started.
    #[error("cannot start {threads} environment threads: {source}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why not.
        source: rayon::ThreadPoolBuildError,
    },

    /// A task pack or its simulation.
    #[error(transparent)]
    Libero(#[from] Box<crate::libero::Error>),

    /// The simulator or the renderer failed.
    #[error(transparent)]
    Simulator(#[from] efference_mujoco::Error),
}

impl From<crate::libero::Error> for Error {
    fn from(error: crate::libero::Error) -> Self {
        Self::Libero(Box::new(error))
    }
}

impl Error {
    /// No task is called `name`; these are.
    pub(crate) fn unknown_task(name: &str, known: &[&'static str]) -> Self {
        let likeness = |id: &str| strsim::jaro_winkler(id, name);
        let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Self::UnknownTask {
            name: name.to_owned(),
            nearest: nearest.map_or_else(String::new, |id| (*id).to_owned()),
            known: known.join(", "),
        }
    }
}
