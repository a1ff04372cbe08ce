//! Compiles the C shim against the headers of the chosen MuJoCo and links its library, both from `<target>/native`.

use std::{
    env,
    path::{Path, PathBuf},
};

const DEFAULT_VERSION: &str = "3.3.2";

fn main() {
    println!("cargo::rerun-if-env-changed=EFFERENCE_MUJOCO");
    println!("cargo::rerun-if-changed=csrc");
    let version = env::var("EFFERENCE_MUJOCO")
        .ok()
        .filter(|v| !v.is_empty())
        .unwrap_or_else(|| DEFAULT_VERSION.to_owned());
    let Some(native) = find_native(&version) else {
        println!(
            "cargo::error=MuJoCo {version} is not set up (no native/mujoco-{version} in cargo's target folder); run `cargo xtask setup`"
        );
        return;
    };
    let (lib, include) = (native.join("lib"), native.join("include"));
    println!("cargo::rerun-if-changed={}", include.display());

    cc::Build::new()
        .files(["csrc/shim.c", "csrc/egl.c"])
        .include(&include)
        .std("c11")
        .define("_GNU_SOURCE", None)
        .flag("-Wall")
        .flag("-Wextra")
        .compile("efference_mujoco_shim");

    // Cargo makes a search path a run-time path for `cargo run` and `cargo test` only below the profile's folder, hence
    // links in OUT_DIR. Binaries that shall start without cargo read DEP_MUJOCO_LIB_DIR in their build script and add an
    // rpath.
    let linked = match link_libraries(&lib, &version) {
        Ok(linked) => linked,
        Err(error) => {
            println!("cargo::error=cannot link {} into OUT_DIR: {error}", lib.display());
            return;
        }
    };
    println!("cargo::rustc-link-search=native={}", linked.display());
    println!("cargo::rustc-link-lib=dylib=mujoco");
    println!("cargo::rustc-link-lib=dylib=dl");
    println!("cargo::rustc-link-lib=dylib=pthread");
    println!("cargo::metadata=LIB_DIR={}", lib.display());
    println!("cargo::rustc-env=EFFERENCE_MUJOCO_LIB_DIR={}", lib.display());
}

fn link_libraries(lib: &Path, version: &str) -> std::io::Result<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("lib");
    std::fs::create_dir_all(&out)?;
    let library = format!("libmujoco.so.{version}");
    for name in ["libmujoco.so", &library] {
        let link = out.join(name);
        if link.symlink_metadata().is_ok() {
            std::fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(lib.join(&library), link)?;
    }
    Ok(out)
}

/// OUT_DIR is `<target>/[triple/]release/build/PACKAGE/out`; set-up works in `<target>/native`.
fn find_native(version: &str) -> Option<PathBuf> {
    let folder = Path::new("native").join(format!("mujoco-{version}"));
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    let named =
        ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    out.ancestors().map(Path::to_path_buf).chain(named).map(|target| target.join(&folder)).find(|native| {
        native.join("lib/libmujoco.so").exists() && native.join("include/mujoco/mujoco.h").exists()
    })
}
