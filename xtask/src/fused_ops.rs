//! Refuses candle-nn's fused operations outside the frozen encoders.
//!
//! In candle-nn 0.11 `softmax_last_dim`, `rms_norm`, `layer_norm`, `rope` and `sdpa` have no backward pass: a trained
//! network that uses one silently stops learning below it. Whatever is trained goes through `efference-ops`.

use crate::{
    error::{Error, Result, io},
    paths::Paths,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders whose networks are never trained.
const ALLOWED: &[&str] = &["crates/nets/src/frozen"];

/// Parts of a `candle_nn::…` path that lead to a fused operation. `as` is a rename, which would hide one.
const FUSED: &[&str] =
    &["ops", "rotary_emb", "layer_norm", "rms_norm", "LayerNorm", "RmsNorm", "sdpa", "as", "*"];

/// Reads the sources of all crates; the error lists each place.
pub fn check(paths: &Paths) -> Result<()> {
    let mut files = Vec::new();
    let crates = paths.root.join("crates");
    for entry in fs::read_dir(&crates).map_err(io("list", &crates))?.flatten() {
        rust_files(&entry.path().join("src"), &mut files)?;
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&paths.root).unwrap_or(&file);
        if ALLOWED.iter().any(|allowed| relative.starts_with(allowed)) {
            continue;
        }
        let text = fs::read_to_string(&file).map_err(io("read", &file))?;
        found.extend(
            uses(&text).into_iter().map(|(line, what)| format!("  {}:{line}: {what}\n", relative.display())),
        );
    }
    if found.is_empty() {
        println!("no fused operation of candle-nn where something could be trained");
        return Ok(());
    }
    Err(Error::FusedOps { places: found.concat(), allowed: ALLOWED.join(", ") })
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(io("list", folder))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Line number and text of each use. Knows comments, and `use` trees over several lines.
fn uses(text: &str) -> Vec<(usize, String)> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let mut found = Vec::new();
    for (number, line) in code.iter().enumerate() {
        if line.contains("softmax_last_dim") {
            found.push((number + 1, line.trim().to_owned()));
        }
        for (at, krate) in line.match_indices("candle_nn").chain(line.match_indices("candle_transformers")) {
            // A path ends at the first character that cannot be part of it; a `use` tree at its semicolon.
            let tail = format!("{}\n{}", &line[at + krate.len()..], code[number + 1..].join("\n"));
            let is_use = line[..at].trim_end().ends_with("use");
            let end = if is_use {
                tail.find(';')
            } else {
                tail.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)))
            };
            let path = &tail[..end.unwrap_or(tail.len())];
            let mut words = path.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*'));
            if krate == "candle_transformers" || words.any(|word| FUSED.contains(&word)) {
                found.push((
                    number + 1,
                    format!("{krate}{}", path.split_whitespace().collect::<Vec<_>>().join(" ")),
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::uses;

    #[test]
    fn each_way_of_naming_a_fused_operation_is_seen() {
        for code in [
            "let y = candle_nn::ops::rms_norm(&x, &w, 1e-5)?;",
            "use candle_nn::ops;",
            "use candle_nn::{\n    VarBuilder,\n    ops::{silu, softmax_last_dim},\n};",
            "use candle_nn::{Linear, LayerNorm};",
            "use candle_nn as nn;",
            "use candle_nn::*;",
            "candle_nn::rotary_emb::rope(&q, &cos, &sin)?",
            "let p = softmax_last_dim(&x)?;",
            "use candle_transformers::models::siglip;",
        ] {
            assert!(!uses(code).is_empty(), "{code}");
        }
    }

    #[test]
    fn our_own_operations_and_comments_are_fine() {
        for code in [
            "use efference_ops as ops;\nlet y = ops::rms_norm(&x, &w, eps)?;",
            "// candle_nn::ops::sdpa has no backward",
            "/// unlike candle_nn::rotary_emb::rope",
            "use candle_nn::{Init, VarMap};\nuse efference_ops::{layer_norm, rms_norm};",
            "let w = candle_nn::init::ZERO; let n = ops::layer_norm(&w);",
        ] {
            assert_eq!(uses(code), [], "{code}");
        }
    }
}
