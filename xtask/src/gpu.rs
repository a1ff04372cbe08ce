//! `cargo xtask gpu`: what a machine with an NVIDIA GPU must show, see `crates/ops/examples/gpu_check`.

use crate::{
    cuda,
    error::{Error, Result, io},
    paths::Paths,
    process, system,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the table goes.
const REPORT: &str = "docs/performance.md";

/// Builds the program and runs it; `--build` stops before it runs.
pub fn run(paths: &Paths, args: &[String]) -> Result<()> {
    let build_only = args.iter().any(|arg| arg == "--build");
    if !build_only && !system::has_library("libcuda.so.1") {
        return Err(Error::NoGpu);
    }
    let program = build(paths)?;
    if build_only {
        return Ok(());
    }
    let mut command = Command::new(&program);
    command.current_dir(&paths.root).args(["--write", REPORT]).args(args);
    process::loud(&mut command, "what is wrong is above; `--quick` runs the checks without the timing")
}

fn build(paths: &Paths) -> Result<PathBuf> {
    let toolkit = cuda::toolkit(paths)?;
    let mut cargo = cuda::cargo(paths, &toolkit);
    cargo.args(["rustc", "--release", "--features", "cuda", "--package", "efference-ops"]);
    // What travels should be small.
    cargo.args(["--example", "gpu_check", "--", "-C", "strip=symbols"]);
    cargo.env("EFFERENCE_COMMIT", commit(&paths.root));
    process::loud(&mut cargo, "what failed is above")?;
    let program = cuda::build_folder(paths).join("release/examples/gpu_check");
    let size = fs::metadata(&program).map_err(io("look at", &program))?.len();
    println!("{}: {:.0} MB", program.display(), size as f64 / 1e6);
    println!("it needs an NVIDIA driver and {}, here or beside it", libraries(&toolkit).join(", "));
    Ok(program)
}

/// Libraries of the toolkit that the program opens.
fn libraries(toolkit: &Path) -> Vec<String> {
    let wanted = ["libcublas.so.", "libcublasLt.so.", "libcurand.so.", "libcudart.so.", "libnvrtc.so."];
    let mut found: Vec<String> = fs::read_dir(toolkit.join("lib64"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            wanted.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|v| !v.contains('.')))
        })
        .collect();
    found.sort();
    found
}

fn commit(root: &Path) -> String {
    let git = |args: &[&str]| process::quiet(Command::new("git").current_dir(root).args(args), "");
    let Ok(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|text| text.is_empty());
    format!("{}{}", hash.trim(), if clean { "" } else { " with changes" })
}
