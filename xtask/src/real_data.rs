//! Real human demonstrations: robosuite's wheel ships three tele-operated lifts of a cube, with the meshes that their
//! scenes need.

use crate::{
    error::Result,
    fetch::{self, Wheel},
    paths::Paths,
};
use std::path::{Path, PathBuf};

/// The last version that ships the demonstrations. MIT licence.
const WHEEL: Wheel = Wheel {
    package: "robosuite",
    version: "1.4.1",
    python: None,
    sha256: Some("62587cd5888d9d3d813f3ffcc7017f6f77efa618952527a0b9bb139ffd0a3741"),
};

/// The demonstrations, below the unpacked folder.
const LIFT: &str = "models/assets/demonstrations/lift/demo.hdf5";

/// Fetches the wheel (190 MB, once) and unpacks its assets to `<native>/robosuite-1.4.1/models/assets`, and the licence.
pub fn run(paths: &Paths) -> Result<()> {
    let (folder, fresh) = fetch::ensure(paths, &WHEEL, "robosuite/models/assets", &select)?;
    let state = if fresh { "fetched" } else { "already there, checksums match" };
    println!("robosuite {} assets: {} ({state})", WHEEL.version, folder.display());
    println!("three human demonstrations of lifting a cube: {}", folder.join(LIFT).display());
    Ok(())
}

/// What `cargo xtask doctor` says about the demonstrations.
pub fn check(paths: &Paths) -> std::result::Result<String, String> {
    let folder = fetch::folder(paths, &WHEEL);
    fetch::verify(&folder, &WHEEL).map(|_| format!("real demonstrations: {}", folder.join(LIFT).display()))
}

fn select(name: &str) -> Option<PathBuf> {
    if name.ends_with(".dist-info/LICENSE") {
        return Some("LICENSE".into());
    }
    let inside = name.strip_prefix("robosuite/")?;
    inside.starts_with("models/assets/").then(|| Path::new(inside).to_path_buf())
}
