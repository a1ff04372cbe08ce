//! What CI runs, and what a person runs before a push.

use crate::{
    error::Result,
    native,
    paths::Paths,
    process::{cargo, loud},
};

const HINT: &str = "read what it printed above";

/// Says what is there and what is missing, with the command that brings it.
pub fn doctor(paths: &Paths) -> Result<()> {
    match native::check(paths) {
        Ok(there) => println!("ok       {there}"),
        Err(missing) => println!("missing  MuJoCo: {missing}; run `cargo xtask setup`"),
    }
    Ok(())
}

/// Set-up, then every test of the workspace in the release profile, which is the only one that runs anything: tests
/// work on real models, and one profile means candle and rerun are compiled once.
pub fn test(paths: &Paths) -> Result<()> {
    native::setup(paths)?;
    loud(cargo(&paths.root).args(["test", "--release", "--workspace"]), HINT)
}

/// Formatting, lints, documentation, tests; warnings are errors.
pub fn ci(paths: &Paths) -> Result<()> {
    native::setup(paths)?;
    let root = &paths.root;
    loud(cargo(root).args(["fmt", "--all", "--check"]), "run `cargo fmt --all`")?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    loud(cargo(root).args(clippy), HINT)?;
    let docs = ["doc", "--release", "--workspace", "--no-deps"];
    loud(cargo(root).args(docs).env("RUSTDOCFLAGS", "-D warnings"), HINT)?;
    test(paths)
}
