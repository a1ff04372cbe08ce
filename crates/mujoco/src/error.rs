//! What can go wrong: each variant says what, where, and what to do.

use std::path::PathBuf;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the simulator and the renderer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file that cannot be read.
    #[error("cannot read the model {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// MuJoCo refused a model.
    #[error("MuJoCo {version} cannot load {model}: {message}")]
    Load {
        /// File name, or `(string)`.
        model: String,
        /// MuJoCo's own words, with the line number where it gives one.
        message: String,
        /// The version that refused it.
        version: String,
    },

    /// The shared library at run time is not the one that this program was compiled for.
    #[error(
        "compiled against MuJoCo {compiled}, but libmujoco.so at run time is {found}\n  hint: LD_LIBRARY_PATH leads to \
         another MuJoCo, or EFFERENCE_MUJOCO changed since the build; rebuild after `cargo xtask setup`"
    )]
    Version {
        /// As in the headers: 332 is 3.3.2.
        compiled: i32,
        /// As the library says.
        found: i32,
    },

    /// The model has nothing of this kind and name.
    #[error("the model has no {kind} named `{name}`{hint}")]
    Name {
        /// `body`, `joint`, …
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The nearest name, or the list of those there are.
        hint: String,
    },

    /// An index past the end.
    #[error("{kind} {index} does not exist: the model has {count}")]
    Index {
        /// `camera`, `keyframe`, …
        kind: &'static str,
        /// The index asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },

    /// A slice of the wrong length.
    #[error("{what} needs {expected} numbers, got {got}")]
    Length {
        /// What the slice is for.
        what: &'static str,
        /// Length it must have.
        expected: usize,
        /// Length it has.
        got: usize,
    },

    /// A value that cannot be meant.
    #[error("{what} must be {expected}, got {got}")]
    Value {
        /// What the value is for.
        what: &'static str,
        /// The accepted range, in words.
        expected: &'static str,
        /// The value.
        got: String,
    },

    /// The simulation blew up. MuJoCo has set the state back to the model's initial one.
    #[error(
        "simulation became unstable at t = {time_secs:.4} s: NaN or huge value in {quantity}{place}; the state was reset\n  \
         hint: a smaller timestep, softer actuators, or smaller controls"
    )]
    Unstable {
        /// `qpos`, `qvel`, `qacc` or `ctrl`.
        quantity: &'static str,
        /// Index into the quantity.
        index: usize,
        /// ` (joint NAME)` where it is known, else empty.
        place: String,
        /// Simulated time of the last good state.
        time_secs: f64,
    },

    /// MuJoCo's own error handler was called.
    #[error("MuJoCo failed in {call}: {message}")]
    MuJoCo {
        /// What was being done.
        call: &'static str,
        /// MuJoCo's own words.
        message: String,
    },

    /// A renderer that belongs to another model.
    #[error(
        "this renderer was made for another model\n  hint: make a renderer per loaded model; copies by `try_clone` may share one"
    )]
    OtherModel,

    /// No offscreen OpenGL.
    #[error("no headless rendering: {message}\n  hint: `cargo xtask doctor` names the missing packages")]
    Render {
        /// Why.
        message: String,
    },
}
