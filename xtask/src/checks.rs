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
    // `cargo fmt` follows `mod` lines only, and the papers' modules are declared by a macro.
    for folder in ["papers", "conformance"] {
        let files = rust_files(&root.join("crates/objectives/src").join(folder))?;
        let mut rustfmt = std::process::Command::new("rustfmt");
        rustfmt.current_dir(root).args(["--edition", "2024", "--check"]).args(files);
        loud(&mut rustfmt, "run `rustfmt --edition 2024` on the files named above")?;
    }
    fused_ops::check(paths)?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    loud(cargo(root).args(clippy), "each lint above names its line and what it wants")?;
    let docs = ["doc", "--release", "--workspace", "--no-deps"];
    loud(cargo(root).args(docs).env("RUSTDOCFLAGS", "-D warnings"), "each warning above names its line")?;
    tests_run::run(paths, &[])
}

/// All Rust files below `folder`.
fn rust_files(folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let read = |source| crate::error::Error::Io { action: "read", path: folder.into(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
