//! Replays reference vectors made with the authors' own code.
//!
//! A file is `{ id, cases: [{ name, function, params, inputs, outputs, tolerance }] }`; a tensor is `{ shape, data }` or a
//! plain list. Every case runs in f64 through the blocks of this crate; values and gradients are compared with
//! |got - expected| <= tolerance * max(1, |expected|), with the file's own tolerance.

mod base;
mod case;
mod srpo;

use std::path::{Path, PathBuf};

use case::{Case, File};

/// What became of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseResult {
    /// File id.
    pub id: String,
    /// Case name.
    pub case: String,
    /// Why it failed: output, largest error, or what is not implemented. `None`: it passed.
    pub failure: Option<String>,
    /// Largest error relative to max(1, |expected|) over all outputs.
    pub worst: f64,
}

/// A file that cannot be replayed at all.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// Unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not in the format of this module.
    #[error("{} is no file of reference vectors: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A folder without vectors.
    #[error("{} holds no .json file", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// Replays a file, or every `.json` of a folder in order of name.
///
/// # Errors
/// [`ConformanceError`]; a case that fails is a result, not an error.
pub fn run(path: &Path) -> Result<Vec<CaseResult>, ConformanceError> {
    let read = |source| ConformanceError::Read { path: path.into(), source };
    if !path.is_dir() {
        return run_file(path);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        if file.extension().is_some_and(|e| e == "json") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(ConformanceError::Empty { path: path.into() });
    }
    files.sort();
    let results = files.iter().map(|file| run_file(file)).collect::<Result<Vec<_>, _>>()?;
    Ok(results.concat())
}

fn run_file(path: &Path) -> Result<Vec<CaseResult>, ConformanceError> {
    let text = std::fs::read(path).map_err(|source| ConformanceError::Read { path: path.into(), source })?;
    let file: File = serde_json::from_slice(&text)
        .map_err(|e| ConformanceError::Format { path: path.into(), reason: e.to_string() })?;
    Ok(file.cases.iter().map(|case| replay(&file.id, case)).collect())
}

fn replay(id: &str, case: &Case) -> CaseResult {
    let outcome = match id {
        "base_grpo" => base::run(case),
        "srpo" => srpo::run(case),
        _ => Err(case::Failure::NotImplemented(format!("vectors of `{id}` are not replayed yet"))),
    };
    let (worst, failure) = match outcome.and_then(|outputs| case.compare(&outputs)) {
        Ok(worst) => (worst, None),
        Err(failure) => (f64::NAN, Some(failure.to_string())),
    };
    CaseResult { id: id.into(), case: case.name.clone(), failure, worst }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
    }

    fn all_pass(name: &str, count: usize) {
        let results = run(&golden(name)).unwrap();
        let failed: Vec<&CaseResult> = results.iter().filter(|r| r.failure.is_some()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(results.len(), count);
    }

    #[test]
    fn srpo_vectors() {
        all_pass("srpo.json", 12);
    }

    #[test]
    fn base_grpo_vectors() {
        all_pass("base_grpo.json", 74);
    }

    #[test]
    fn a_wrong_expectation_fails_and_names_the_output() {
        let text = std::fs::read_to_string(golden("base_grpo.json")).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        for case in file["cases"].as_array_mut().unwrap() {
            for output in case["outputs"].as_object_mut().unwrap().values_mut() {
                let first = if output.is_object() { &mut output["data"][0] } else { output };
                if let Some(x) = first.as_f64() {
                    *first = serde_json::json!(x + 0.01);
                }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wrong.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let results = run(&path).unwrap();
        let passed = results.iter().filter(|r| r.failure.is_none()).count();
        assert!(passed <= 5, "{passed} cases pass with wrong numbers"); // plain lists of integers stay as they were
    }

    #[test]
    fn unreadable_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(run(dir.path()), Err(ConformanceError::Empty { .. })));
        std::fs::write(dir.path().join("x.json"), "{").unwrap();
        assert!(matches!(run(dir.path()), Err(ConformanceError::Format { .. })));
        assert!(matches!(run(&dir.path().join("none.json")), Err(ConformanceError::Read { .. })));
    }
}
