//! Replays reference vectors made with the authors' own code.
//!
//! A file is `{ id, cases: [{ name, function, params, inputs, outputs, tolerance }] }`; a tensor is `{ shape, data }` or a
//! plain list. Every case runs in f64 through the blocks of this crate; values and gradients are compared with
//! |got - expected| <= tolerance * (1 + |expected|), with the file's own tolerance.

mod case;
mod flow3d_action;
mod verl_loss;

use std::path::{Path, PathBuf};

use case::{Case, Failure, File};
pub use case::{Numbers, Question, in_numbers};

use crate::papers::for_each_paper;

/// What became of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseResult {
    /// File id.
    pub id: String,
    /// Case name.
    pub case: String,
    /// How it ended.
    pub verdict: Verdict,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every output is within the case's tolerance.
    Passed {
        /// Largest error relative to 1 + |expected| over all outputs.
        worst: f64,
    },
    /// An output differs, or could not be computed.
    Failed {
        /// Which output, at which place, and the largest error.
        reason: String,
    },
    /// No code here computes this; neither a pass nor a failure.
    Skipped {
        /// What is missing.
        reason: String,
    },
}

impl CaseResult {
    /// Whether every output was right.
    pub fn passed(&self) -> bool {
        matches!(self.verdict, Verdict::Passed { .. })
    }

    /// Whether it was computed and is wrong.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed { .. })
    }
}

/// Computes the outputs of a case with code of another crate. `None`: it does not know such cases.
pub type Replayer<'a> = dyn Fn(&Question) -> Option<Result<Numbers, String>> + 'a;

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

/// Replays a file, or every `.json` of a folder in order of name, with the blocks of this crate.
///
/// # Errors
/// [`ConformanceError`]; a case that fails is a result, not an error.
pub fn run(path: &Path) -> Result<Vec<CaseResult>, ConformanceError> {
    run_with(path, &|_| None)
}

/// As [`run`]; cases that this crate does not compute are given to `others`.
///
/// # Errors
/// As [`run`].
pub fn run_with(path: &Path, others: &Replayer) -> Result<Vec<CaseResult>, ConformanceError> {
    let read = |source| ConformanceError::Read { path: path.into(), source };
    if !path.is_dir() {
        return run_file(path, others);
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
    let results = files.iter().map(|file| run_file(file, others)).collect::<Result<Vec<_>, _>>()?;
    Ok(results.concat())
}

fn run_file(path: &Path, others: &Replayer) -> Result<Vec<CaseResult>, ConformanceError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConformanceError::Read { path: path.into(), source })?;
    let file = File::parse(&text)
        .map_err(|e| ConformanceError::Format { path: path.into(), reason: e.to_string() })?;
    Ok(file.cases.iter().map(|case| replay(&file.id, case, others)).collect())
}

/// The replay of each file of vectors that this crate computes: `conformance/ID.rs`.
macro_rules! replays {
    ($($id:ident),* $(,)?) => {
        mod base_grpo;
        mod model_dllm;
        $(mod $id;)*

        fn replay_of(id: &str) -> Option<fn(&Case) -> case::Outcome> {
            match id {
                "base_grpo" => Some(base_grpo::run),
                "model_dllm" => Some(model_dllm::run),
                $(stringify!($id) => Some($id::run),)*
                _ => None,
            }
        }
    };
}
for_each_paper!(replays);

fn replay(id: &str, case: &Case, others: &Replayer) -> CaseResult {
    let here = match replay_of(id) {
        Some(run) => run(case).and_then(|outputs| case.compare(&outputs)),
        // Its names of outputs hold parameters of the case.
        None if id == "flow3d_action" => flow3d_action::run(case).and_then(|outputs| case.compare(&outputs)),
        None => Err(Failure::NotHere(format!("`{}` of {id} is not implemented yet", case.function))),
    };
    let compared = match here {
        Err(Failure::NotHere(reason)) => match others(&case.question(id)) {
            Some(outputs) => outputs.map_err(Failure::Elsewhere).and_then(|outputs| case.compare(&outputs)),
            None => Err(Failure::NotHere(reason)),
        },
        here => here,
    };
    let verdict = match compared {
        Ok(worst) => Verdict::Passed { worst },
        // What nobody computes yet is no failure; an unknown function of a known file is.
        Err(Failure::NotHere(reason)) => Verdict::Skipped { reason },
        Err(failure) => Verdict::Failed { reason: failure.to_string() },
    };
    CaseResult { id: id.into(), case: case.name.clone(), verdict }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
    }

    /// Every file that some paper claims, each once: as many cases as all that claim it say, and all of them pass.
    #[test]
    fn all_vectors_pass() {
        let mut failures = Vec::new();
        for (file, (count, ids)) in crate::registry::vectors() {
            for paper in crate::algorithms() {
                assert!(paper.vectors.is_none_or(|v| v.0 != file || v.1 == count), "{}", paper.id);
            }
            let results = run(&golden(file)).unwrap();
            if results.len() != count {
                failures.push(format!("{file}, of {ids:?}, has {} cases and not {count}", results.len()));
            }
            let failed = results.iter().filter(|r| !r.passed());
            failures.extend(failed.map(|r| format!("{file}: {}: {:?}", r.case, r.verdict)));
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
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
        let passed = results.iter().filter(|r| r.passed()).count();
        assert!(passed <= 5, "{passed} cases pass with wrong numbers"); // plain lists of integers stay as they were
    }

    /// Texts are compared like numbers; a text of digits is no number.
    #[test]
    fn a_wrong_text_fails() {
        let text = std::fs::read_to_string(golden("igpo_inpaint.json")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.json");
        for (right, wrong) in [("\"42\"", "\"42.0\""), ("\"a{b}c\"", "\"a{b}d\"")] {
            assert!(text.contains(right));
            std::fs::write(&path, text.replace(right, wrong)).unwrap();
            let results = run(&path).unwrap();
            let failed: Vec<&CaseResult> = results.iter().filter(|r| !r.passed()).collect();
            assert!(
                failed.len() == 1 && failed[0].failed() && failed[0].case == "rewards_text",
                "{failed:?}"
            );
        }
    }

    #[test]
    fn what_nobody_computes_is_skipped_and_numbers_are_exact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        // Digits that a fast parser may read one bit off.
        let digits = "-0.9450980392156862";
        let text = format!(
            r#"{{"id": "x", "cases": [{{"name": "a \"1.5", "function": "f", "params": {{"p": 1.5}}, "tolerance": 1e-12,
            "inputs": {{"v": {{"shape": [2], "data": [{digits}, 7]}}}}, "outputs": {{"w": 2.5}}}}]}}"#
        );
        std::fs::write(&path, text).unwrap();
        assert!(matches!(run(&path).unwrap()[0].verdict, Verdict::Skipped { .. }));
        let others: &Replayer = &|question| {
            assert_eq!((question.id, question.function), ("x", "f"));
            assert_eq!(question.numbers()["v"], [digits.parse().unwrap(), 7.0]);
            assert_eq!((question.param("p"), question.shape("v")), (Ok(1.5), Ok(vec![2])));
            assert!(question.param::<String>("p").unwrap_err().contains("params.p"));
            assert!(question.input::<f64>("w").unwrap_err().contains("inputs.w"));
            Some(Ok(Numbers::from([("w".into(), vec![2.0])])))
        };
        let result = run_with(&path, others).unwrap().remove(0);
        assert_eq!(result.case, "a \"1.5");
        let Verdict::Failed { reason } = result.verdict else { panic!("{result:?}") };
        assert!(reason.contains("worst error 1.429e-1 at index 0"), "{reason}");
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
