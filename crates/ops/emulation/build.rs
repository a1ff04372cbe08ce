//! Compiles the kernels as C++ against the emulation.

use std::{env, fs, io, path::Path, path::PathBuf};

fn main() -> io::Result<()> {
    let kernels = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../kernels");
    let kernels = kernels.canonicalize()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rerun-if-changed={}", kernels.display());

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .include(&kernels)
        .flag("-Wall")
        .flag("-Wextra")
        // `#pragma unroll` is for the device compiler.
        .flag("-Wno-unknown-pragmas")
        // The kernels read numbers through wider types, as device code may.
        .flag("-fno-strict-aliasing")
        // A product and a sum stay two roundings, here as in the references.
        .flag("-ffp-contract=off");
    let faults = kernels.join("../emulation/faults").canonicalize()?;
    println!("cargo::rerun-if-changed={}", faults.display());
    for folder in [&kernels, &faults] {
        let entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
        let mut sources: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        sources.retain(|path| path.extension().is_some_and(|ext| ext == "cu"));
        sources.sort();
        for source in sources {
            build.file(wrapper(&out, &source)?);
        }
    }
    build.file(kernels.join("emulation/runtime.cpp"));
    // Kernels are found through static constructors that nothing refers to, so all objects must be linked.
    build.link_lib_modifier("+whole-archive");
    build.compile("efference_kernels");
    Ok(())
}

/// A C++ compiler does not know what `.cu` is.
fn wrapper(out: &Path, source: &Path) -> io::Result<PathBuf> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    let path = out.join(format!("{name}.cpp"));
    let text = format!("#include \"{}\"\n", source.display());
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(path);
    }
    fs::write(&path, text)?;
    Ok(path)
}
