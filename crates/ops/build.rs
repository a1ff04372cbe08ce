//! Compiles the CUDA kernels when the feature `cuda` is on, and does nothing otherwise.
//!
//! Every `kernels/NAME.cu` is compiled twice: to PTX for compute capability 8.0, which any later GPU's driver can
//! translate when the program starts, and to machine code for 9.0 (H100, H200), which needs no translation. Both are
//! embedded in the library, with the names of the kernels read off the PTX.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

/// Compute capabilities of the two forms.
const PTX: &str = "-arch=compute_80";
const CUBIN: &str = "-arch=sm_90";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(error) = compile() {
        for line in error.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn compile() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let nvcc = nvcc();
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .map_err(|e| format!("cannot list kernels: {e}"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();

    let mut jobs: Vec<(PathBuf, &[&str], &str)> = Vec::new();
    for source in &sources {
        jobs.push((source.clone(), &["--ptx", PTX], "ptx"));
        jobs.push((source.clone(), &["--cubin", CUBIN], "cubin"));
    }
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).min(jobs.len());
    let (jobs, failed) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((source, how, extension)) = jobs.lock().ok().and_then(|mut jobs| jobs.pop())
                    else {
                        return;
                    };
                    let target = out.join(source.with_extension(extension).file_name().unwrap_or_default());
                    if let Err(error) = one(&nvcc, &source, how, &target) {
                        failed.lock().into_iter().for_each(|mut all| all.push(error.clone()));
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_default().first() {
        return Err(error.clone());
    }

    let mut table = String::from("const MODULES: &[Module] = &[\n");
    for source in &sources {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let path = |extension: &str| out.join(format!("{name}.{extension}")).display().to_string();
        let ptx = fs::read_to_string(path("ptx")).map_err(|e| format!("cannot read {}: {e}", path("ptx")))?;
        table.push_str(&format!(
            "    Module {{ name: {name:?}, ptx: include_str!({:?}), cubin: include_bytes!({:?}), kernels: &{:?} }},\n",
            path("ptx"),
            path("cubin"),
            entries(&ptx),
        ));
    }
    table.push_str("];\n");
    fs::write(out.join("kernels.rs"), table).map_err(|e| format!("cannot write kernels.rs: {e}"))
}

/// Names of the kernels in a PTX text.
fn entries(ptx: &str) -> Vec<&str> {
    let name = |line: &&str| line.trim_start().starts_with(".visible .entry ");
    ptx.lines()
        .filter(name)
        .filter_map(|line| line.split(".entry ").nth(1)?.split(['(', ' ']).next())
        .collect()
}

fn one(nvcc: &Path, source: &Path, how: &[&str], target: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(how).args(["-O3", "-std=c++17"]);
    if let Some(compiler) = env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(compiler);
    }
    command.arg("-o").arg(target).arg(source);
    let hint = "`cargo xtask cuda` brings a CUDA compiler and sets everything up";
    let output = command.output().map_err(|e| format!("cannot start {}: {e}; {hint}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{} ended with {}\n{}", source.display(), output.status, String::from_utf8_lossy(&text)))
}

/// The CUDA compiler: `NVCC`, that of `CUDA_HOME` or `CUDA_PATH`, or the one on the path.
fn nvcc() -> PathBuf {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let inside = homes.map(|home| Path::new(&home).join("bin/nvcc")).find(|nvcc| nvcc.is_file());
    named.or(inside).unwrap_or_else(|| "nvcc".into())
}
