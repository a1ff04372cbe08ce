//! MuJoCo: the shared library and the C headers, out of its Python wheel.

use crate::{
    error::{Error, Result, io},
    fetch::{self, Wheel},
    paths::{DEFAULT_MUJOCO, Paths, mujoco_version},
};
use std::path::{Path, PathBuf};

/// The C interface is the same in the wheel of every Python version, so any one of them will do.
const PYTHON: &str = "311";

/// SHA-256 of the default version's wheel on this machine's architecture.
const PIN: Option<&str> = if cfg!(target_arch = "x86_64") {
    Some("f7e19ef4ded262d9ff454ac9346203dcb35a6f794e7d9406ee803f1c73702560")
} else {
    None
};

fn wheel(version: &str) -> Wheel<'_> {
    let sha256 = if version == DEFAULT_MUJOCO { PIN } else { None };
    Wheel { package: "mujoco", version, python: Some(PYTHON), sha256 }
}

/// Fetches MuJoCo if needed; afterwards `<native>/mujoco-VERSION/{lib,include}` can be compiled and linked against.
pub fn setup(paths: &Paths) -> Result<()> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    if os != "linux" || !matches!(arch, "x86_64" | "aarch64") {
        return Err(Error::Platform { what: "MuJoCo".to_owned(), os, arch });
    }
    let version = mujoco_version()?;
    let library = format!("libmujoco.so.{version}");
    let (folder, fresh) =
        fetch::ensure(paths, &wheel(&version), "mujoco/libmujoco.so and mujoco/include", &|name| {
            let inside = name.strip_prefix("mujoco/")?;
            match inside.strip_prefix("include/") {
                Some(header) => Some(Path::new("include").join(header)),
                None if inside == library => Some(Path::new("lib").join(inside)),
                None => None,
            }
        })?;
    link(&folder, &library)?;
    println!(
        "MuJoCo {version}: {} ({})",
        folder.display(),
        if fresh { "fetched" } else { "already there, checksums match" }
    );
    Ok(())
}

/// What `cargo xtask doctor` says about MuJoCo.
pub fn check(paths: &Paths) -> std::result::Result<String, String> {
    let version = mujoco_version().map_err(|e| e.to_string())?;
    let folder = paths.native().join(format!("mujoco-{version}"));
    let manifest = fetch::verify(&folder, &wheel(&version))?;
    if !folder.join("lib/libmujoco.so").exists() {
        return Err("lib/libmujoco.so is missing".to_owned());
    }
    let pin = if manifest.pinned { "pinned checksum" } else { "no pin for this version" };
    Ok(format!("MuJoCo {version} in {} ({pin}, {} files match)", folder.display(), manifest.files.len()))
}

/// `-lmujoco` looks for the name without a version.
fn link(folder: &Path, library: &str) -> Result<()> {
    let link: PathBuf = folder.join("lib/libmujoco.so");
    if link.exists() {
        return Ok(());
    }
    let _ = std::fs::remove_file(&link); // a dangling one
    std::os::unix::fs::symlink(library, &link).map_err(io("create", &link))
}
