//! `cargo xtask bench ops`: our operations and training steps beside PyTorch's; `cargo xtask bench libero`: our LIBERO
//! beside Python's; `cargo xtask bench flow`: planning from flow beside SciPy. See `benches/`.

use crate::{
    error::{Error, Result},
    libero,
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

cargo xtask bench libero [--task SUITE_N]... [--rounds N]

Control steps and resets of our LIBERO beside Python's, in turns, one thread each, with the same MuJoCo and GL. Fetches
Python LIBERO once (1 GB) and writes the task packs that it needs. Default tasks: libero_spatial_0, libero_object_1 and
libero_goal_0.

cargo xtask bench flow [--rounds N] [--scenes N] [--alone]

Chunks of hand poses from a flow beside SciPy, which minimises the same costs of the same inputs, in turns, one thread each;
and the time of a robust rigid fit. SciPy is fetched into a virtual environment of its own, once (about 200 MB on disk).
--alone leaves it out.
";

/// One task of each suite of single steps.
const LIBERO_TASKS: [&str; 3] = ["libero_spatial_0", "libero_object_1", "libero_goal_0"];

/// The version that is compared.
const TORCH: &str = "torch==2.15.0";

/// The versions that are compared.
const SCIPY: [&str; 2] = ["scipy==1.17.1", "numpy==2.4.6"];

/// Fetches PyTorch unless it is there or not wanted, builds the benchmark and runs it.
pub fn run(paths: &Paths, args: &[String]) -> Result<()> {
    match args.split_first().map(|(what, rest)| (what.as_str(), rest)) {
        Some(("ops", rest)) => ops(paths, rest),
        Some(("libero", rest)) => beside_python_libero(paths, rest),
        Some(("flow", rest)) => beside_scipy(paths, rest),
        _ => Err(wrong(&args.join(" "))),
    }
}

fn wrong(got: &str) -> Error {
    Error::Usage { got: format!("bench {got}"), usage: USAGE }
}

fn ops(paths: &Paths, rest: &[String]) -> Result<()> {
    let alone = rest.iter().any(|arg| arg == "--alone");
    let mut cargo = process::cargo(&paths.root);
    cargo.args(["run", "--release", "--package", "efference-benches", "--bin", "bench-ops", "--"]);
    cargo.args(rest.iter().filter(|arg| *arg != "--alone"));
    if !alone {
        cargo.arg("--peer").arg(torch(&paths.root)?);
    }
    process::loud(&mut cargo, "what is wrong is above; `--alone` runs without PyTorch")
}

/// Fetches Python LIBERO and writes the packs, unless they are there, builds the benchmark and runs it.
fn beside_python_libero(paths: &Paths, rest: &[String]) -> Result<()> {
    let mut tasks: Vec<String> = Vec::new();
    let mut more: Vec<&String> = Vec::new();
    let mut rest = rest.iter();
    while let Some(arg) = rest.next() {
        let value = rest.next().ok_or_else(|| wrong(&format!("libero {arg}")))?;
        match arg.as_str() {
            "--task" => tasks.push(value.clone()),
            "--rounds" => more.extend([arg, value]),
            other => return Err(wrong(&format!("libero {other}"))),
        }
    }
    if tasks.is_empty() {
        tasks = LIBERO_TASKS.map(str::to_owned).to_vec();
    }
    for task in &tasks {
        let (suite, number) = task.rsplit_once('_').ok_or_else(|| wrong(&format!("libero --task {task}")))?;
        libero::run(paths, &["--suite", suite, "--task", number].map(str::to_owned))?;
    }
    let mut cargo = process::cargo(&paths.root);
    cargo.args(["run", "--release", "--package", "efference-bench-libero", "--bin", "bench-libero", "--"]);
    cargo.arg("--peer").arg(libero::python(paths)?).arg("--packs").arg(libero::packs_dir(paths));
    for task in &tasks {
        cargo.arg("--task").arg(task);
    }
    cargo.args(more);
    // One thread for everything, and no windows. Mesa draws on the calling thread.
    for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"] {
        cargo.env(name, "1");
    }
    cargo.env("LP_NUM_THREADS", "0").env("MUJOCO_GL", "egl");
    process::loud(&mut cargo, "what is wrong is above")
}

fn beside_scipy(paths: &Paths, rest: &[String]) -> Result<()> {
    let alone = rest.iter().any(|arg| arg == "--alone");
    let mut cargo = process::cargo(&paths.root);
    cargo.args(["run", "--release", "--package", "efference-bench-flow", "--bin", "bench-flow", "--"]);
    cargo.args(rest.iter().filter(|arg| *arg != "--alone"));
    if !alone {
        cargo.arg("--peer").arg(scipy(&paths.root)?);
    }
    // One thread for everything.
    for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
        cargo.env(name, "1");
    }
    process::loud(&mut cargo, "what is wrong is above; `--alone` runs without SciPy")
}

/// The interpreter of an environment that has SciPy.
fn scipy(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/bench/scipy");
    let version = SCIPY[0].trim_start_matches("scipy==");
    let check = "import scipy, sys; sys.exit(scipy.__version__ != sys.argv[1])";
    environment(&folder, (check, version), &SCIPY, "SciPy", "200 MB")
}

/// The interpreter of an environment that has PyTorch.
fn torch(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/bench/torch");
    let version = TORCH.trim_start_matches("torch==");
    let check = "import torch, sys; sys.exit(torch.__version__.split('+')[0] != sys.argv[1])";
    environment(&folder, (check, version), &[TORCH, "numpy"], "PyTorch", "5 GB")
}

/// The interpreter of a virtual environment, which is made unless it passes a check.
fn environment(
    folder: &Path,
    (check, version): (&str, &str),
    packages: &[&str],
    name: &str,
    size: &str,
) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    let works = Command::new(&python).args(["-c", check, version]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        println!("fetching {name} into {} (about {size} on disk, once)", folder.display());
        let hint = "Python 3 with venv and pip is needed, and the disk space";
        process::loud(Command::new("python3").args(["-m", "venv"]).arg(folder), hint)?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
        process::loud(&mut pip, hint)?;
    }
    Ok(python)
}
