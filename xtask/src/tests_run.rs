//! Runs the workspace's tests and counts them.

use crate::{
    error::{Error, Result},
    native, onnx,
    paths::Paths,
    process, system,
};

/// How many tests ran and how they ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

/// Set-up, then every test in the release profile, the only one that runs anything: tests work on real models, and one
/// profile means that candle and rerun are compiled once. `extra` goes to the runner (`-p CRATE`, a test's name).
pub fn run(paths: &Paths, extra: &[String]) -> Result<()> {
    native::setup(paths)?;
    onnx::setup(paths)?;
    system::setup()?;
    let chosen = extra.iter().any(|arg| arg == "-p" || arg.starts_with("--package"));
    let scope: &[&str] = if chosen { &["--release"] } else { &["--release", "--workspace"] };

    let cargo = || process::cargo(&paths.root);
    let nextest = process::quiet(cargo().args(["nextest", "--version"]), "").is_ok();
    let mut total = Count::default();
    let mut failure = None;
    let mut run = |words: &[&str], extra: &[String], read: fn(&str) -> Count| -> Result<()> {
        let mut command = cargo();
        command.args(words).args(scope).arg("--no-fail-fast").args(extra);
        let (text, ended) = process::teed(&mut command, "read what the tests printed above")?;
        let count = read(&text);
        total.passed += count.passed;
        total.failed += count.failed;
        failure = failure.take().or(ended.err());
        Ok(())
    };
    if nextest {
        run(&["nextest", "run"], extra, nextest_summary)?;
        // nextest does not run the examples in the documentation. Names of tests mean nothing to them.
        if extra.is_empty() {
            run(&["test", "--doc"], &[], libtest_results)?;
        }
    } else {
        run(&["test"], extra, libtest_results)?;
    }
    match failure {
        None => println!("{} passed, {} failed", total.passed, total.failed),
        // Something that did not compile, or crashed before it could say how many: no total would be true.
        Some(error) if total.failed == 0 => return Err(error),
        Some(_) => {
            println!("{} passed, {} failed", total.passed, total.failed);
            return Err(Error::Tests { failed: total.failed });
        }
    }
    Ok(())
}

/// nextest's last line, `Summary [ 1.2s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 3 skipped`.
fn nextest_summary(text: &str) -> Count {
    let mut count = Count::default();
    let summary = text.lines().rev().find(|line| line.trim_start().starts_with("Summary ["));
    let Some((_, results)) = summary.and_then(|line| line.split_once(" run: ")) else { return count };
    for part in results.split(", ") {
        let mut words = part.split_whitespace();
        let Some(number) = words.next().and_then(|n| n.parse::<usize>().ok()) else { continue };
        match words.next() {
            Some("passed") => count.passed += number,
            Some("skipped") | None => {}
            Some(_) => count.failed += number,
        }
    }
    count
}

/// All lines `test result: ok. 5 passed; 0 failed; …` together.
fn libtest_results(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().filter(|line| line.starts_with("test result: ")) {
        for part in line.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => count.passed += number.parse::<usize>().unwrap_or(0),
                Some((number, "failed")) => count.failed += number.parse::<usize>().unwrap_or(0),
                _ => {}
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nextest_counts_every_way_of_failing() {
        let text = "     PASS [   0.1s] a b\n────\n     Summary [   1.234s] 15 tests run: 11 passed (1 slow), 2 failed, 1 timed out, 1 exec failed, 3 skipped\n";
        assert_eq!(nextest_summary(text), Count { passed: 11, failed: 4 });
        let one = "     Summary [   0.004s] 1 test run: 1 passed, 0 skipped\n";
        assert_eq!(nextest_summary(one), Count { passed: 1, failed: 0 });
        assert_eq!(nextest_summary("error: could not compile"), Count::default());
    }

    #[test]
    fn libtest_lines_add_up() {
        let text = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        assert_eq!(libtest_results(text), Count { passed: 7, failed: 3 });
    }

    /// Otherwise `quickstart` and `test` compile candle and rerun twice, and so does everybody who types `cargo build`.
    #[test]
    fn the_program_alone_and_the_workspace_build_the_same_features() {
        let packages = |scope: &[&str]| {
            let mut cargo = process::cargo(&Paths::find().root);
            cargo
                .args(["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p} {f}"])
                .args(scope);
            let text = process::quiet(&mut cargo, "").unwrap();
            let lines = text.lines().map(|line| line.trim_end_matches(" (*)").to_owned());
            lines.collect::<std::collections::BTreeSet<_>>()
        };
        let alone = packages(&["--edges", "normal,build", "--package", "efference"]);
        let all = packages(&["--edges", "normal,build,dev", "--workspace"]);
        let other: Vec<_> = alone.difference(&all).collect();
        assert!(alone.len() > 100 && other.is_empty(), "other features in the workspace: {other:#?}");
    }
}
