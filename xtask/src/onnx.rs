//! ONNX Runtime: the shared library, out of its Python wheel. Only commands that run ONNX files load it.

use crate::{
    error::{Error, Result},
    fetch::{self, Wheel},
    paths::Paths,
};
use std::path::Path;

/// The version that the `ort` crate is built for.
const VERSION: &str = "1.24.4";

/// SHA-256 of its wheel on this machine's architecture.
const PIN: Option<&str> = if cfg!(target_arch = "x86_64") {
    Some("e54ad52e61d2d4618dcff8fa1480ac66b24ee2eab73331322db1049f11ccf330")
} else {
    None
};

// The C library is the same in the wheel of every Python version.
const WHEEL: Wheel<'static> =
    Wheel { package: "onnxruntime", version: VERSION, python: Some("311"), sha256: PIN };

/// Fetches it if needed; afterwards it is `<native>/onnxruntime-VERSION/lib/libonnxruntime.so.VERSION`.
pub fn setup(paths: &Paths) -> Result<()> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    if os != "linux" || !matches!(arch, "x86_64" | "aarch64") {
        return Err(Error::Platform { what: "ONNX Runtime".to_owned(), os, arch });
    }
    let library = format!("libonnxruntime.so.{VERSION}");
    let (folder, fresh) = fetch::ensure(paths, &WHEEL, "onnxruntime/capi/libonnxruntime.so", &|name| {
        let inside = name.strip_prefix("onnxruntime/capi/")?;
        (inside == library).then(|| Path::new("lib").join(inside))
    })?;
    let state = if fresh { "fetched" } else { "already there, checksums match" };
    println!("ONNX Runtime {VERSION}: {} ({state})", folder.display());
    Ok(())
}

/// What `cargo xtask doctor` says about it.
pub fn check(paths: &Paths) -> std::result::Result<String, String> {
    let folder = fetch::folder(paths, &WHEEL);
    fetch::verify(&folder, &WHEEL)?;
    Ok(format!("ONNX Runtime {VERSION} in {}", folder.display()))
}
