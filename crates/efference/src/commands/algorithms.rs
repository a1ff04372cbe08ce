//! `efference algorithms`: what can be trained with, where it comes from, and what checks it.

use std::path::PathBuf;

use efference_objectives::{Algorithm, Composition, algorithms, conformance, page};
use serde::Serialize;

use crate::errors::Result;
use crate::text::table;
use crate::ui::Ui;

/// List the algorithms, their papers, and how many of their reference vectors pass; or show one as a composition
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show this algorithm: its blocks with all their settings
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Folder of the reference vectors
    #[arg(long, value_name = "DIR", default_value = "tests/golden")]
    vectors: PathBuf,
}

#[derive(Serialize)]
struct Row<'a> {
    algorithm: &'a str,
    arxiv: &'a str,
    title: &'a str,
    summary: &'a str,
    blocks: Vec<String>,
    vectors: Option<&'a str>,
    passed: Option<usize>,
    cases: Option<usize>,
    end_to_end: Option<&'a str>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    match &args.id {
        Some(id) => one(id, ui),
        None => all(args, ui),
    }
}

#[derive(Serialize)]
struct One<'a> {
    algorithm: &'a str,
    composition: &'a Composition,
}

fn one(id: &str, ui: &Ui) -> Result<()> {
    let algorithm = Algorithm::from_table(id, &Default::default())?;
    for line in page::recipe_text(id)?.lines() {
        ui.line(line);
    }
    ui.object(&One { algorithm: id, composition: &algorithm.composition });
    Ok(())
}

fn all(args: &Args, ui: &Ui) -> Result<()> {
    let header = ["algorithm", "paper (arXiv)", "verified", "end to end", "blocks"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut titles = vec![String::new()];
    let mut unchecked = false;
    for paper in algorithms() {
        let vectors = paper.vectors.map(|(file, _)| file);
        // Without a checkout there are no vectors; the list is useful all the same.
        let results = vectors.and_then(|file| conformance::run(&args.vectors.join(file)).ok());
        let cases = results.as_ref().map(Vec::len);
        let passed = results.as_ref().map(|results| results.iter().filter(|r| r.passed()).count());
        let verified = match (passed, cases) {
            (Some(passed), Some(cases)) => format!("{passed}/{cases}"),
            _ => "-".into(),
        };
        unchecked |= vectors.is_some() && cases.is_none();
        let end_to_end = if paper.end_to_end.is_some() { "yes" } else { "no" };
        let blocks = kinds(&(paper.recipe)());
        rows.push(
            [paper.id, paper.arxiv, &verified, end_to_end, &blocks.join(", ")].map(str::to_owned).to_vec(),
        );
        titles.push(paper.title.to_owned());
        ui.object(&Row {
            algorithm: paper.id,
            arxiv: paper.arxiv,
            title: paper.title,
            summary: paper.summary,
            blocks,
            vectors,
            passed,
            cases,
            end_to_end: paper.end_to_end,
        });
    }
    for (line, title) in table(&rows).into_iter().zip(titles) {
        ui.line(line);
        if !title.is_empty() {
            ui.line(format!("  {title}"));
        }
    }
    ui.note("\n`efference algorithms ID` shows what a paper changes and all its settings");
    ui.note("verified: cases of the authors' own code that are reproduced, values and gradients");
    if unchecked {
        ui.note(format!("no vectors in {}; give their folder with --vectors", args.vectors.display()));
    }
    Ok(())
}

/// The kinds of a composition's blocks, in the order in which they work.
fn kinds(composition: &Composition) -> Vec<String> {
    let kind = |block: &efference_objectives::composition::BlockTable| {
        block.get("kind").and_then(|kind| kind.as_str()).map(str::to_owned)
    };
    composition.tables().into_iter().filter_map(kind).collect()
}
