//! `cargo xtask bench ops`: our operations and training steps beside PyTorch's, see `benches/`.

use crate::{
    error::{Error, Result},
    paths::Paths,
    process,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const USAGE: &str = "\
cargo xtask bench ops [--only WORD] [--rounds N] [--alone]

Operations and whole training steps beside PyTorch on the CPU, in turns with the same number of threads; medians of the
ratios. PyTorch is fetched into a virtual environment of its own, once (about 5 GB on disk). --alone leaves it out.
";

/// The version that is compared.
const TORCH: &str = "torch==2.15.0";

/// Fetches PyTorch unless it is there or not wanted, builds the benchmark and runs it.
pub fn run(paths: &Paths, args: &[String]) -> Result<()> {
    let Some(("ops", rest)) = args.split_first().map(|(what, rest)| (what.as_str(), rest)) else {
        return Err(Error::Usage { got: format!("bench {}", args.join(" ")), usage: USAGE });
    };
    let alone = rest.iter().any(|arg| arg == "--alone");
    let mut cargo = process::cargo(&paths.root);
    cargo.args(["run", "--release", "--package", "efference-benches", "--bin", "bench-ops", "--"]);
    cargo.args(rest.iter().filter(|arg| *arg != "--alone"));
    if !alone {
        cargo.arg("--peer").arg(torch(&paths.root)?);
    }
    process::loud(&mut cargo, "what is wrong is above; `--alone` runs without PyTorch")
}

/// The interpreter of an environment that has PyTorch.
fn torch(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/bench/torch");
    let python = folder.join("bin/python");
    let works = Command::new(&python)
        .args(["-c", "import torch, sys; sys.exit(torch.__version__.split('+')[0] != sys.argv[1])"])
        .arg(TORCH.trim_start_matches("torch=="))
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        println!("fetching PyTorch into {} (about 5 GB on disk, once)", folder.display());
        let hint = "Python 3 with venv and pip is needed, and 5 GB of disk";
        process::loud(Command::new("python3").args(["-m", "venv"]).arg(&folder), hint)?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", TORCH, "numpy"]);
        process::loud(&mut pip, hint)?;
    }
    Ok(python)
}
