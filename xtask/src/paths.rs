//! Where things are: the repository's root, cargo's target folder, and what we keep below it.

use crate::error::{Error, Result};
use std::{env, path::PathBuf};

/// The MuJoCo whose results agree with the published LIBERO numbers; `EFFERENCE_MUJOCO` overrides it.
pub const DEFAULT_MUJOCO: &str = "3.3.2";

pub struct Paths {
    /// The repository's root.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
}

impl Paths {
    pub fn find() -> Self {
        // Cargo sets the variable at run time too, which stays right when the checkout is moved.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest.parent().unwrap_or(&manifest).to_path_buf();
        let target = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"]
            .iter()
            .find_map(|name| env::var_os(name).filter(|value| !value.is_empty()))
            .map_or_else(|| root.join("target"), PathBuf::from);
        let target = std::path::absolute(&target).unwrap_or(target);
        Self { root, target }
    }

    /// Everything that is fetched lives here, one folder per package and version.
    pub fn native(&self) -> PathBuf {
        self.target.join("native")
    }

    /// The files as they came from the package index.
    pub fn downloads(&self) -> PathBuf {
        self.native().join("downloads")
    }
}

/// The MuJoCo version to use: `EFFERENCE_MUJOCO`, or the default.
pub fn mujoco_version() -> Result<String> {
    let version = match env::var("EFFERENCE_MUJOCO") {
        Ok(version) if !version.is_empty() => version,
        _ => return Ok(DEFAULT_MUJOCO.to_owned()),
    };
    let numbers: Vec<_> = version.split('.').collect();
    if numbers.len() == 3 && numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
        Ok(version)
    } else {
        Err(Error::Version { got: version })
    }
}
