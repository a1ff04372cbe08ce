//! What CI runs, and what a person runs before a push.

use crate::{
    error::Result,
    fused_ops, native,
    paths::Paths,
    process::{cargo, loud},
    system, tests_run,
};

/// Formatting, lints, documentation, tests; warnings are errors.
pub fn ci(paths: &Paths) -> Result<()> {
    native::setup(paths)?;
    system::setup()?;
    let root = &paths.root;
    loud(cargo(root).args(["fmt", "--all", "--check"]), "run `cargo fmt --all`")?;
    fused_ops::check(paths)?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    loud(cargo(root).args(clippy), "each lint above names its line and what it wants")?;
    let docs = ["doc", "--release", "--workspace", "--no-deps"];
    loud(cargo(root).args(docs).env("RUSTDOCFLAGS", "-D warnings"), "each warning above names its line")?;
    tests_run::run(paths, &[])
}
