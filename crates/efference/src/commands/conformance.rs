//! `efference conformance`: replays reference vectors made with the authors' own code.

mod libero_tasks;

use std::path::PathBuf;

use efference_envs::libero::conformance as libero;
use efference_objectives::conformance::{CaseResult, Numbers, Question, Verdict, run_with};
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// Replay reference vectors and print what differs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A folder of recordings of Python LIBERO (`VERSION/*.json` beside their packs), or one such recording, is replayed \
in the simulator; those of another MuJoCo version are skipped. Otherwise values and gradients of each case are compared: |got - expected| <= tolerance * max(1, |expected|). Cases of functions \
that are not there yet are skipped and counted. The last line is `N passed, M failed`, with `, K skipped` where there \
are any; the exit code is 1 if a case failed or none was replayed.")]
pub(crate) struct Args {
    /// A file of vectors, or a folder whose .json files are replayed in order of name
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// Also list the cases that pass, with their largest error
    #[arg(long, short)]
    verbose: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let results = if libero::is_recording(&args.path) {
        libero::run(&args.path)?.into_iter().map(recorded).collect()
    } else {
        run_with(&args.path, &elsewhere)?
    };
    for result in &results {
        tell(result, args.verbose, ui);
    }
    let passed = results.iter().filter(|result| result.passed()).count();
    let failed = results.iter().filter(|result| result.failed()).count();
    let skipped = results.len() - passed - failed;
    let more = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    ui.object(&json!({ "passed": passed, "failed": failed, "skipped": skipped }));
    ui.line(format!("{passed} passed, {failed} failed{more}"));
    match (failed, passed) {
        (0, 0) => Err(Failure::new(format!("no case of `{}` was replayed", args.path.display()))),
        (0, _) => Ok(()),
        (1, _) => Err(Failure::new("a case differs from its reference")),
        _ => Err(Failure::new(format!("{failed} cases differ from their references"))),
    }
}

/// A replay of Python LIBERO, told like a case of a paper.
fn recorded(result: libero::CaseResult) -> CaseResult {
    let libero::CaseResult { file, case, verdict } = result;
    let verdict = match verdict {
        libero::Verdict::Passed { worst } => Verdict::Passed { worst },
        libero::Verdict::Failed { reason } => Verdict::Failed { reason },
        libero::Verdict::Skipped { reason } => Verdict::Skipped { reason },
    };
    CaseResult { id: file, case, verdict }
}

/// The parts of papers that live outside `objectives`.
fn elsewhere(question: &Question) -> Option<std::result::Result<Numbers, String>> {
    match question.id {
        "model_vla" => efference_nets::conformance::replay(question.function, &question.numbers()),
        "flow3d_action" => {
            let heads = question.params.get("heads").and_then(serde_json::Value::as_u64).unwrap_or(1);
            efference_nets::flow::conformance::replay(question.function, heads as usize, &question.numbers())
                .or_else(|| {
                    efference_geometry::conformance::replay(
                        question.function,
                        question.params,
                        question.inputs,
                    )
                })
        }
        "eval_libero" => libero_tasks::replay(question)
            .or_else(|| libero_simulation(question))
            .or_else(|| libero_evaluation(question)),
        _ => None,
    }
}

/// Predicates, goals and the scaling of actions.
fn libero_simulation(question: &Question) -> Option<std::result::Result<Numbers, String>> {
    let params = json!(question.params);
    libero::function(question.function, &params, &question.numbers())
}

/// Pictures, state vector, and the table.
fn libero_evaluation(question: &Question) -> Option<std::result::Result<Numbers, String>> {
    match question.function {
        "summary" => Some(success_of_a_suite(&question.numbers())),
        function => efference_rollout::libero::conformance::replay(function, &question.numbers()),
    }
}

/// Success per task and of the suite with Wilson's interval; LIBERO-Plus's totals, weighted by tasks and not.
fn success_of_a_suite(inputs: &Numbers) -> std::result::Result<Numbers, String> {
    let input =
        |name: &str| inputs.get(name).ok_or_else(|| format!("the case has no usable `inputs.{name}`"));
    let (success, rates, counts) = (input("success")?, input("plus_rates")?, input("plus_counts")?);
    let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
    let (low, high) = efference_viz::wilson(
        success.iter().sum::<f64>() as u64,
        success.len() as u64,
        efference_viz::stats::Z_95,
    );
    // 50 saved initial states per task.
    let per_task: Vec<f64> = success.chunks(50).map(mean).collect();
    let weighted = rates.iter().zip(counts).map(|(r, n)| r * n).sum::<f64>() / counts.iter().sum::<f64>();
    let outputs = [
        ("per_task", per_task),
        ("suite_rate", vec![mean(success)]),
        ("wilson_low", vec![low]),
        ("wilson_high", vec![high]),
        ("plus_weighted", vec![weighted]),
        ("plus_unweighted", vec![mean(rates)]),
    ];
    Ok(outputs.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect())
}

fn tell(result: &CaseResult, verbose: bool, ui: &Ui) {
    let CaseResult { id, case, verdict } = result;
    let (word, worst, reason) = match verdict {
        Verdict::Passed { worst } => ("passed", Some(*worst), None),
        Verdict::Failed { reason } => ("failed", None, Some(reason)),
        Verdict::Skipped { reason } => ("skipped", None, Some(reason)),
    };
    ui.object(&json!({ "id": id, "case": case, "verdict": word, "worst": worst, "reason": reason }));
    match (worst, reason) {
        (_, Some(reason)) => ui.line(format!("{word:7}  {id}  {case}: {reason}")),
        (Some(0.0), None) if verbose => ui.line(format!("{word:7}  {id}  {case}: exact")),
        (Some(worst), None) if verbose => ui.line(format!("{word:7}  {id}  {case}: worst error {worst:.1e}")),
        _ => {}
    }
}
