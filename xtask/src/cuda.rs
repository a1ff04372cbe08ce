//! The CUDA build, on machines with and without a GPU: NVIDIA's compiler, headers and libraries out of their Python
//! wheels, a stand-in for the driver's library to link against, and cargo with the right environment.
//!
//! A machine that has a CUDA toolkit of its own uses that one.

use crate::{
    error::{Error, Result, io},
    fetch::{self, Wheel},
    native,
    paths::Paths,
    process, system,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// CUDA 13.0: the last that needs no driver newer than 580.
const VERSION: &str = "13.0";

/// What the wheels and their unpacked files take, and what cargo adds for `efference`.
const DISK: &str = "1.8 GB for the toolkit below native/, and about 3 GB for the build below cuda/";

/// Package, version, SHA-256 of the wheel for x86_64.
const WHEELS: [(&str, &str, &str); 8] = [
    ("nvidia_cuda_nvcc", "13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
    ("nvidia_cuda_crt", "13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    ("nvidia_nvvm", "13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"),
    ("nvidia_cuda_runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia_cuda_cccl", "13.0.85", "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
    ("nvidia_cublas", "13.1.0.3", "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    ("nvidia_curand", "10.4.5.25", "22bb226a857e5888fe6b54ae465fc4371296bcff13a35f79e19691bcf454f529"),
    ("nvidia_cuda_nvrtc", "13.0.88", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
];

/// Every wheel's files lie below this folder.
const INSIDE: &str = "nvidia/cu13/";

/// H100 and H200. What a machine without a GPU builds for, unless CUDA_COMPUTE_CAP says otherwise.
const COMPUTE_CAP: &str = "90";

const USAGE: &str = "\
cargo xtask cuda [--check] [--package PACKAGE] [--example NAME] [-- CARGO ARGUMENTS]

  --check            compile without linking
  --package PACKAGE  build this package instead of `efference`
  --example NAME     build an example of it
";

/// What the arguments ask for.
#[derive(Debug, PartialEq)]
struct Options {
    check: bool,
    package: String,
    example: Option<String>,
    cargo: Vec<String>,
}

impl Options {
    /// `None` when only the usage was asked for, which is printed.
    fn read(args: &[String]) -> Result<Option<Self>> {
        let mut options =
            Options { check: false, package: "efference".to_owned(), example: None, cargo: Vec::new() };
        let mut args = args.iter();
        let wrong = |got: &str| Error::Usage { got: format!("cuda {got}"), usage: USAGE };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--check" => options.check = true,
                "--package" | "-p" => options.package = args.next().ok_or_else(|| wrong(arg))?.clone(),
                "--example" => options.example = Some(args.next().ok_or_else(|| wrong(arg))?.clone()),
                "--help" | "-h" => {
                    print!("{USAGE}");
                    return Ok(None);
                }
                "--" => options.cargo = args.by_ref().cloned().collect(),
                other => return Err(wrong(other)),
            }
        }
        Ok(Some(options))
    }
}

/// Builds with `--features cuda` into `<target>/cuda`.
pub fn run(paths: &Paths, args: &[String]) -> Result<()> {
    let Some(options) = Options::read(args)? else { return Ok(()) };
    if options.package != "efference-ops" {
        native::setup(paths)?; // the simulator, which all of `efference` links
    }
    let toolkit = toolkit(paths)?;
    let mut cargo = cargo(paths, &toolkit);
    cargo.arg(if options.check { "check" } else { "build" });
    cargo.args(["--release", "--features", "cuda", "--package", &options.package]);
    if let Some(example) = &options.example {
        cargo.args(["--example", example]);
    }
    cargo.args(&options.cargo);
    process::loud(&mut cargo, "what failed is above; after `cargo clean` in that folder it starts anew")?;
    if !options.check {
        println!("built into {}", build_folder(paths).join("release").display());
    }
    Ok(())
}

/// Where CUDA builds go: their flags would otherwise make cargo build everything anew, both ways.
pub fn build_folder(paths: &Paths) -> PathBuf {
    paths.target.join("cuda")
}

/// The machine's own toolkit, or the one from the wheels.
pub fn toolkit(paths: &Paths) -> Result<PathBuf> {
    if let Some(own) = own_toolkit() {
        println!("CUDA toolkit: {} (this machine's)", own.display());
        return Ok(own);
    }
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    if os != "linux" || !matches!(arch, "x86_64" | "aarch64") {
        return Err(Error::Platform { what: "CUDA toolkit".to_owned(), os, arch });
    }
    println!("no nvcc on the path and no CUDA_HOME: NVIDIA's wheels are used ({DISK})");
    let mut unpacked = Vec::new();
    for (package, version, sha256) in WHEELS {
        let pin = cfg!(target_arch = "x86_64").then_some(sha256);
        let wheel = Wheel { package, version, python: None, sha256: pin };
        unpacked.push(fetch::ensure(paths, &wheel, INSIDE, &select)?);
    }
    let fresh = unpacked.iter().any(|(_, fresh)| *fresh);
    let folders: Vec<&Path> = unpacked.iter().map(|(folder, _)| folder.as_path()).collect();
    let merged = paths.native().join(format!("cuda-{VERSION}"));
    let _lock = fetch::lock(paths)?;
    if fresh || !merged.exists() {
        merge(&folders, &merged)?;
    }
    let state = if fresh { "fetched" } else { "already there, checksums match" };
    println!("CUDA {VERSION} toolkit: {} ({state})", merged.display());
    Ok(merged)
}

/// CUDA_HOME or CUDA_PATH when it holds nvcc, else the folder of the nvcc on the path.
fn own_toolkit() -> Option<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let found = std::env::var_os("PATH").into_iter().flat_map(|path| {
        let bins: Vec<_> = std::env::split_paths(&path).collect();
        bins.into_iter()
            .filter_map(|bin| fs::canonicalize(bin.join("nvcc")).ok())
            .filter_map(|nvcc| Some(nvcc.parent()?.parent()?.to_path_buf()))
    });
    named.chain(found).find(|home| home.join("bin/nvcc").is_file())
}

/// The compiler, the headers and the libraries, without the debugging twins of nvrtc and files about packaging.
fn select(name: &str) -> Option<PathBuf> {
    let inside = name.strip_prefix(INSIDE)?;
    let wanted = ["bin/", "include/", "lib/", "nvvm/"].iter().any(|folder| inside.starts_with(folder));
    let useless = inside.contains(".alt.") || inside.contains("libnvblas") || inside.contains("/cmake/");
    (wanted && !useless).then(|| inside.into())
}

/// One toolkit out of the packages' folders: hard links to their files, the names a linker looks for, the stand-in for
/// the driver's library. Appears by rename.
fn merge(folders: &[&Path], merged: &Path) -> Result<()> {
    let parent = merged.parent().unwrap_or(merged);
    let staging = tempfile::Builder::new()
        .prefix(fetch::UNPACK)
        .tempdir_in(parent)
        .map_err(io("create a folder in", parent))?;
    for folder in folders {
        link_tree(folder, staging.path())?;
    }
    let lib = staging.path().join("lib");
    for library in libraries(&lib)? {
        // libcublas.so.13 -> libcublas.so, libnvrtc-builtins.so.13.0 -> libnvrtc-builtins.so
        if let Some((stem, _)) = library.split_once(".so.") {
            let plain = lib.join(format!("{stem}.so"));
            std::os::unix::fs::symlink(&library, &plain).map_err(io("create", &plain))?;
        }
    }
    let lib64 = staging.path().join("lib64");
    std::os::unix::fs::symlink("lib", &lib64).map_err(io("create", &lib64))?;
    stand_in_for_the_driver(staging.path())?;
    if merged.exists() {
        fs::remove_dir_all(merged).map_err(io("delete", merged))?;
    }
    fs::rename(staging.keep(), merged).map_err(io("move into place", merged))
}

fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(io("create", to))?;
    for entry in fs::read_dir(from).map_err(io("list", from))?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            link_tree(&source, &target)?;
        } else if entry.file_name() != fetch::MANIFEST {
            fs::hard_link(&source, &target)
                .or_else(|_| fs::copy(&source, &target).map(|_| ()))
                .map_err(io("link", &target))?;
        }
    }
    Ok(())
}

fn libraries(lib: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(lib).map_err(io("list", lib))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// `lib/stubs/libcuda.so`: every function of the driver as an empty one. Programs are linked against it and find the
/// real driver's `libcuda.so.1` where they run.
fn stand_in_for_the_driver(toolkit: &Path) -> Result<()> {
    let header = toolkit.join("include/cuda.h");
    let text = fs::read_to_string(&header).map_err(io("read", &header))?;
    let stubs = toolkit.join("lib/stubs");
    fs::create_dir_all(&stubs).map_err(io("create", &stubs))?;
    let source = stubs.join("cuda.c");
    let functions: String =
        driver_functions(&text).iter().map(|name| format!("int {name}(void) {{ return 100; }}\n")).collect();
    fs::write(&source, functions).map_err(io("write", &source))?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o"]);
    cc.arg(stubs.join("libcuda.so")).arg(&source);
    process::quiet(&mut cc, "a C compiler is needed (Debian, Ubuntu: `apt-get install -y gcc libc6-dev`)")?;
    Ok(())
}

/// Names of the form `cuSomething` in the driver's header, among them all its functions.
fn driver_functions(header: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let named = |name: &&str| {
        name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
    };
    header.split(word).filter(named).collect()
}

/// cargo with the toolkit in its environment and `<target>/cuda` as its target folder.
pub fn cargo(paths: &Paths, toolkit: &Path) -> Command {
    let mut cargo = process::cargo(&paths.root);
    for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
        cargo.env(name, toolkit);
    }
    let mut path = vec![toolkit.join("bin")];
    path.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    if let Ok(path) = std::env::join_paths(path) {
        cargo.env("PATH", path);
    }
    if std::env::var_os("CUDA_COMPUTE_CAP").is_none() && !system::has("nvidia-smi") {
        cargo.env("CUDA_COMPUTE_CAP", COMPUTE_CAP);
    }
    // The libraries are found beside the program (where it was carried to) or in the toolkit (where it was built).
    let lib = toolkit.join("lib64");
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(&format!(" -L native={0} -L native={0}/stubs", lib.display()));
    flags.push_str(&format!(" -C link-arg=-Wl,-rpath,$ORIGIN -C link-arg=-Wl,-rpath,{}", lib.display()));
    cargo.env("RUSTFLAGS", flags.trim());
    cargo.env("CARGO_TARGET_DIR", build_folder(paths));
    cargo
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn arguments() {
        let read =
            |text: &str| Options::read(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let options = read("--check -p efference-ops -- --quiet --jobs 1").unwrap().unwrap();
        assert_eq!((options.check, options.package.as_str()), (true, "efference-ops"));
        assert_eq!(options.cargo, ["--quiet", "--jobs", "1"]);
        assert!(read("--package").is_err() && read("--fast").is_err());
    }

    #[test]
    fn of_the_wheels_only_what_a_build_needs() {
        let kept = |name: &str| select(name).map(|path| path.display().to_string());
        assert_eq!(kept("nvidia/cu13/bin/nvcc").as_deref(), Some("bin/nvcc"));
        assert_eq!(kept("nvidia/cu13/nvvm/bin/cicc").as_deref(), Some("nvvm/bin/cicc"));
        for name in ["nvidia/cu13/lib/libnvrtc.alt.so.13", "nvidia/cu13/.metadata/x", "x.dist-info/RECORD"] {
            assert_eq!(kept(name), None, "{name}");
        }
    }

    #[test]
    fn names_of_the_driver() {
        let text = "CUresult CUDAAPI cuInit(unsigned int Flags);\n#define cuMemAlloc cuMemAlloc_v2\ntypedef cudaX curious;";
        assert_eq!(
            driver_functions(text).into_iter().collect::<Vec<_>>(),
            ["cuInit", "cuMemAlloc", "cuMemAlloc_v2"]
        );
    }

    #[test]
    fn packages_become_one_toolkit() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/include/cuda.h", "CUresult cuInit(unsigned int Flags);");
        write("a/manifest.json", "{}");
        write("b/lib/libcublas.so.13", "code");
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        let merged = root.path().join("cuda");
        for _ in 0..2 {
            merge(&[&a, &b], &merged).unwrap();
            assert_eq!(fs::read_to_string(merged.join("lib64/libcublas.so")).unwrap(), "code");
            assert!(merged.join("lib64/stubs/libcuda.so").exists() && !merged.join("manifest.json").exists());
        }
    }
}
