//! Where `cargo xtask` keeps what it fetched.

use std::path::{Path, PathBuf};

/// The folder of robosuite's assets and demonstrations, relative to the fetched files.
const ROBOSUITE: &str = "robosuite-1.4.1";
/// The three human demonstrations of lifting a cube, below [`robosuite`].
pub const LIFT: &str = "models/assets/demonstrations/lift/demo.hdf5";

/// The folder that holds robosuite's `models/assets`, if `cargo xtask real-data` was run.
pub fn robosuite() -> Option<PathBuf> {
    // MuJoCo's library was linked from beside it; a copied program may stand in the checkout instead.
    let beside_mujoco = Path::new(efference_mujoco::LIBRARY_DIR).ancestors().nth(2);
    let here = Path::new("target/native");
    let folders = beside_mujoco.into_iter().chain([here]).map(|folder| folder.join(ROBOSUITE));
    folders.into_iter().find(|folder| folder.join(LIFT).is_file())
}
