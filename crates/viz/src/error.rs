//! One error type for the crate: what, where, got, expected, and what to do.

use std::io;
use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong while recording, drawing, or looking for the viewer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An episode whose parts do not fit together; nothing of it was recorded.
    #[error("episode `{episode}`: {field} has {got}, expected {expected}")]
    Shape {
        /// Stage and name of the episode.
        episode: String,
        /// The field that does not fit.
        field: String,
        /// What it holds.
        got: String,
        /// What it should hold.
        expected: String,
    },

    /// The output could not be created or opened.
    #[error("cannot create {}: {source} (is the folder there and writable?)", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// Writing failed. The file was cut back to its last whole message and receives nothing more.
    #[error(
        "recording to {} stopped: {source}. What was written before can still be opened; the run goes on without it",
        path.display()
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason, for instance a full disk.
        source: io::Error,
    },

    /// An earlier recording that should be continued could not be read.
    #[error("cannot continue {}: {reason}. Move it away to start a new recording", path.display())]
    Resume {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The rerun library refused the data.
    #[error("cannot encode `{what}` for the recording: {reason}")]
    Encode {
        /// The entity or message.
        what: String,
        /// The library's reason.
        reason: String,
    },

    /// An `.rrd` recording was asked for, but the program was built without it.
    #[error("this build cannot write .rrd recordings: build with `--features rerun`, or turn `rrd` off")]
    NoRerun,

    /// An image could not be encoded.
    #[error("cannot encode the image `{what}`: {source}")]
    Image {
        /// Which image.
        what: String,
        /// The image library's reason.
        source: image::ImageError,
    },

    /// A film could not be made.
    #[error("cannot make the film {}: {reason}", path.display())]
    Film {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },

    /// A chart could not be drawn.
    #[error("cannot draw the chart `{chart}`: {reason}")]
    Chart {
        /// Title of the chart.
        chart: String,
        /// Why not.
        reason: String,
    },

    /// The report could not be made.
    #[error("cannot render the report: {0}")]
    Report(#[from] minijinja::Error),

    /// There is no recording to look at.
    #[error("no recording at {}: was the run started with recording off?", path.display())]
    NoRecording {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// The rerun viewer is not installed.
    #[error("the rerun viewer was not found on PATH. Install it: {install}")]
    ViewerMissing {
        /// The command that installs it.
        install: &'static str,
    },

    /// A rerun viewer is installed, but not one that reads our files for sure.
    #[error("`{command}` is version {found}, this recording needs {wanted}. Install it: {install}")]
    ViewerVersion {
        /// The command that was found.
        command: String,
        /// Its version.
        found: String,
        /// The versions that work.
        wanted: &'static str,
        /// The command that installs it.
        install: &'static str,
    },
}
