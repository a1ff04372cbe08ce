//! What can go wrong with task packs and their simulation: each variant says what, where, and what to do.

use std::path::PathBuf;

/// Shorthand for the results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the LIBERO simulation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Geometry that cannot be.
    #[error(transparent)]
    Geometry(#[from] efference_geometry::Error),

    /// A file of a pack that cannot be read.
    #[error("cannot read {}: {source}\n  hint: `cargo xtask libero` writes task packs", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// A file that is larger than anything an exporter writes.
    #[error("{} is {bytes} bytes long; at most {limit} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The most that is accepted.
        limit: u64,
    },

    /// `meta.json` is no JSON, or a field has another type.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        source: serde_json::Error,
    },

    /// A field with a value that cannot be meant.
    #[error("{}: `{field}` {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Its place in the file, for example `robot.joints[3].qpos_adr`.
        field: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },

    /// `init_states.npy` is damaged or belongs to another model.
    #[error("{}: {problem}", path.display())]
    InitStates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// The scene does not compile, or not to what `meta.json` describes.
    #[error("{}: {source}", path.display())]
    Model {
        /// The scene's file.
        path: PathBuf,
        /// What MuJoCo says.
        source: efference_mujoco::Error,
    },

    /// There is no pack of this task.
    #[error(
        "no pack of task {task} of suite `{suite}` in {}{hint}\n  hint: `cargo xtask libero --suite {suite}` writes it",
        root.display()
    )]
    NoPack {
        /// The folder of all packs.
        root: PathBuf,
        /// The suite asked for.
        suite: String,
        /// The task asked for.
        task: usize,
        /// What is there instead, starting with `;`, or empty.
        hint: String,
    },

    /// A fact that cannot be evaluated.
    #[error("cannot evaluate `{fact}`: {problem}")]
    Predicate {
        /// The fact, its words joined by blanks.
        fact: String,
        /// Why not.
        problem: String,
    },

    /// A name that the scene does not have.
    #[error("the task has no {kind} named `{name}`; there are: {known}")]
    Name {
        /// `object`, `camera`, ...
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// All names, with commas between.
        known: String,
    },

    /// A state vector of another model, or with numbers that are not finite.
    #[error("cannot set the state: {problem}")]
    State {
        /// What is wrong with it.
        problem: String,
    },

    /// A snapshot of another task.
    #[error(
        "this snapshot holds {got} numbers, but a snapshot of this task has {expected}: it is of another task"
    )]
    Snapshot {
        /// Numbers that this task needs.
        expected: usize,
        /// Numbers in the snapshot.
        got: usize,
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

    /// An action with a number that is not finite.
    #[error("action component {index} is {value}; actions are finite numbers")]
    Action {
        /// Which of the seven.
        index: usize,
        /// Its value.
        value: f64,
    },

    /// A step before the first reset or after the end.
    #[error("cannot step: {why}\n  hint: call `reset` or `set_init_state` first")]
    NotRunning {
        /// What happened before.
        why: String,
    },

    /// The simulator or the renderer failed.
    #[error(transparent)]
    Simulator(#[from] efference_mujoco::Error),
}
