//! `efference algorithms`: what can be trained with, where it comes from, and what checks it.

use std::path::PathBuf;

use efference_objectives::conformance;
use efference_objectives::registry::{Card, algorithms};
use serde::Serialize;

use crate::errors::Result;
use crate::text::table;
use crate::ui::Ui;

/// List the algorithms, their papers, and how many of their reference vectors pass
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the reference vectors
    #[arg(long, value_name = "DIR", default_value = "tests/golden")]
    vectors: PathBuf,
}

#[derive(Serialize)]
struct Row<'a> {
    algorithm: &'a str,
    arxiv: &'a str,
    base: &'a str,
    summary: &'a str,
    vectors: &'a str,
    passed: Option<usize>,
    cases: Option<usize>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let header = ["algorithm", "paper (arXiv)", "base", "verified", "what it is"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut unchecked = false;
    for card in algorithms() {
        let Card { id, arxiv, base, summary, vectors } = *card;
        // Without a checkout there are no vectors; the list is useful all the same.
        let results = conformance::run(&args.vectors.join(vectors)).ok();
        let cases = results.as_ref().map(Vec::len);
        let passed = results.as_ref().map(|results| results.iter().filter(|r| r.passed()).count());
        let verified = match (passed, cases) {
            (Some(passed), Some(cases)) => format!("{passed}/{cases}"),
            _ => "-".into(),
        };
        unchecked |= cases.is_none();
        rows.push([id, arxiv, base, &verified, summary].map(str::to_owned).to_vec());
        ui.object(&Row { algorithm: id, arxiv, base, summary, vectors, passed, cases });
    }
    for line in table(&rows) {
        ui.line(line);
    }
    ui.note("\nverified: cases of the authors' own code that are reproduced, values and gradients");
    if unchecked {
        ui.note(format!("no vectors in {}; give their folder with --vectors", args.vectors.display()));
    }
    Ok(())
}
