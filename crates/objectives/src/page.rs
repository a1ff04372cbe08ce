//! The algorithms as text for people: the page `docs/algorithms.md`, and one recipe with all its settings.

use std::fmt::Write;

use crate::block::Role;
use crate::composition::{BlockTable, Composition};
use crate::error::{Error, Result};
use crate::papers::Paper;
use crate::registry::{algorithms, block_kinds, vectors};

/// What the page says before it lists anything.
const HEAD: &str = "\
# Algorithms

Made by `efference_objectives::page::markdown()` from the registry; a test keeps it up to date
(`EFFERENCE_WRITE_PRESETS=1 cargo test --release -p efference-objectives --lib` writes it). `efference algorithms ID`
prints a recipe with all its settings, `configs/algorithms/ID.toml` holds them.

An algorithm is a composition of blocks:

    reward* -> filter* -> advantage -> weight* -> bounds -> surrogate -> regularizer* -> aggregation

Any block mixes with any other as long as what it reads is there; a composition that lacks something is refused with a
sentence that says what (`crates/objectives/tests/mixes.rs` mixes some).

*Cases* are reference vectors made with the authors' own code, values and gradients; all of them pass, or the test suite
does not. Algorithms that share blocks share a file of cases, which counts once. *Trained* names a configuration that
trains with it from end to end.
";

/// The page about all algorithms and blocks.
///
/// # Errors
/// A recipe or a block's defaults that do not build.
pub fn markdown() -> Result<String> {
    let mut out = String::from(HEAD);
    let papers = algorithms();
    let cases: usize = vectors().values().map(|(cases, _)| cases).sum();
    let _ = write!(out, "\n{} algorithms, {cases} cases in {} files.\n\n", papers.len(), vectors().len());
    out.push_str("| id | what it changes | cases | trained |\n|---|---|---|---|\n");
    for paper in &papers {
        let trained = paper.end_to_end.map_or("no".into(), |path| format!("[yes](../{path})"));
        let (id, summary) = (paper.id, cell(paper.summary));
        let _ = writeln!(out, "| [`{id}`](#{id}) | {summary} | {} | {trained} |", checked(paper));
    }
    out.push_str("\n## Recipes\n");
    for paper in &papers {
        let Paper { id, title, arxiv, summary, .. } = paper;
        let _ = write!(out, "\n### {id}\n\n{}. {summary}\n\n", link(title, arxiv));
        let recipe = (paper.recipe)();
        for (role, _, about) in lines(&recipe)? {
            let _ = writeln!(out, "    {role:11}  {about}");
        }
        let _ = writeln!(out, "    {:11}  {}", "aggregation", aggregation(&recipe));
    }
    out.push_str("\n## Blocks\n\nBy role, with their defaults.\n");
    let mut kinds: Vec<_> = block_kinds().collect();
    kinds.sort_by_key(|block| (block.role, block.kind));
    let mut last: Option<Role> = None;
    for block in kinds {
        if last.replace(block.role) != Some(block.role) {
            let _ = write!(out, "\n### {} blocks\n\n| kind | what it does |\n|---|---|\n", block.role.key());
        }
        let made = (block.make)(&(block.defaults)()?)?;
        let _ = writeln!(out, "| `{}` | {} |", block.kind, cell(&made.block().describe()));
    }
    Ok(out)
}

/// An algorithm's recipe with every setting, what it needs and what checks it; for a terminal.
///
/// # Errors
/// [`Error::UnknownAlgorithm`]; a recipe that does not build.
pub fn recipe_text(id: &str) -> Result<String> {
    let papers = algorithms();
    let Some(paper) = papers.iter().find(|paper| paper.id == id) else {
        let known = papers.iter().map(|paper| paper.id.to_string()).collect();
        return Err(Error::UnknownAlgorithm { name: id.into(), known });
    };
    let recipe = (paper.recipe)();
    let Paper { title, arxiv, summary, .. } = paper;
    let mut out = String::new();
    let _ = write!(out, "{id}: {title} (arXiv {arxiv})\n{summary}\n\n");
    for (role, table, about) in lines(&recipe)? {
        let _ = writeln!(out, "{role:11}  {:20}  {about}", kind(table));
        let settings = settings(table);
        if !settings.is_empty() {
            let _ = writeln!(out, "{:11}  {:20}  {}", "", "", settings.join(", "));
        }
    }
    let _ = write!(out, "{:11}  {}\n\n", "aggregation", aggregation(&recipe));
    for (i, input) in recipe.build()?.needs().iter().enumerate() {
        let _ = writeln!(
            out,
            "{:11}  {:20}  {} {}",
            ["needs", ""][i.min(1)],
            input.name,
            input.shape,
            input.about
        );
    }
    let (cases, preset) = (checked(paper), format!("configs/algorithms/{id}.toml"));
    let file = paper.vectors.map_or(String::new(), |(file, _)| format!(" of tests/golden/{file}"));
    let _ = write!(
        out,
        "\n{:11}  {cases}{file}\n{:11}  {}\n",
        "cases",
        "trained",
        paper.end_to_end.unwrap_or("no")
    );
    let _ = writeln!(out, "{:11}  {preset}", "preset");
    Ok(out)
}

/// Role, settings and description of every block, in the order in which they work.
fn lines(recipe: &Composition) -> Result<Vec<(&'static str, &BlockTable, String)>> {
    let objective = recipe.build()?;
    let blocks = objective.blocks().into_iter().zip(recipe.tables());
    Ok(blocks.map(|((role, block), table)| (role, table, block.describe())).collect())
}

fn kind(table: &BlockTable) -> &str {
    table.get("kind").and_then(toml::Value::as_str).unwrap_or_default()
}

fn settings(table: &BlockTable) -> Vec<String> {
    let set = table.iter().filter(|(key, _)| *key != "kind");
    set.map(|(key, value)| format!("{key} = {value}")).collect()
}

fn aggregation(recipe: &Composition) -> String {
    let name = toml::Value::try_from(recipe.aggregation).ok();
    name.as_ref().and_then(toml::Value::as_str).unwrap_or_default().into()
}

/// How many cases check it.
fn checked(paper: &Paper) -> String {
    let Some((file, cases)) = paper.vectors else { return "none".into() };
    let shared = vectors().get(file).is_some_and(|(_, ids)| ids.len() > 1);
    format!("{cases}{}", if shared { ", shared" } else { "" })
}

/// Text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn link(title: &str, arxiv: &str) -> String {
    let digits = arxiv.len() >= 9 && arxiv.chars().all(|c| c.is_ascii_digit() || c == '.');
    if digits { format!("[{title}](https://arxiv.org/abs/{arxiv})") } else { title.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_page_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/algorithms.md");
        let page = markdown().unwrap();
        if std::env::var("EFFERENCE_WRITE_PRESETS").is_ok_and(|id| id == "1") {
            std::fs::write(&path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = committed.lines().zip(page.lines()).find(|(a, b)| a != b);
        assert!(
            committed == page,
            "docs/algorithms.md is not what the registry says ({differs:?}); EFFERENCE_WRITE_PRESETS=1 writes it"
        );
    }

    #[test]
    fn a_recipe_shows_every_setting_and_what_it_needs() {
        for paper in algorithms() {
            let text = recipe_text(paper.id).unwrap();
            for table in (paper.recipe)().tables() {
                for (key, value) in table.iter().filter(|(key, _)| *key != "kind") {
                    assert!(text.contains(&format!("{key} = {value}")), "{}: {key}", paper.id);
                }
                assert!(text.contains(kind(table)), "{}", paper.id);
            }
        }
        let text = recipe_text("dapo").unwrap();
        for part in ["clip_high = 0.28", "varying_success", "token-mean", "success", "74"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(recipe_text("dappo").unwrap_err().to_string().contains("dapo, "));
    }
}
