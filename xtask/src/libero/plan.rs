//! What has to be exported, and whether the disk has room for it.

use super::venv;
use crate::{
    error::{Error, Result, io},
    paths::Paths,
    process,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, fs, path::Path, process::Command};

/// One task to export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    pub suite: String,
    pub task: usize,
    pub variants: Vec<String>,
}

/// What is missing of what is wanted.
pub struct Plan {
    pub wanted: usize,
    pub orders: Vec<Order>,
}

/// A suite of the Python package.
#[derive(Deserialize)]
pub struct Suite {
    pub suite: String,
    pub tasks: usize,
    /// Files that the package lacks, by task.
    pub missing: BTreeMap<usize, Vec<String>>,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:40} {:3} tasks", self.suite, self.tasks)?;
        let Some(first) = self.missing.values().next() else { return Ok(()) };
        write!(f, ", {} of them lack files: {}", self.missing.len(), first.join(", "))
    }
}

/// Asks the package for its suites.
pub fn package_suites(python: &Path, export: &Path) -> Result<Vec<Suite>> {
    let hint =
        "the virtual environment may be damaged: delete `target/libero/venv` and run the same command again";
    let text = process::quiet(Command::new(python).arg(export).arg("--list"), hint)?;
    let suites: std::result::Result<Vec<Suite>, _> = text.lines().map(serde_json::from_str).collect();
    suites.map_err(|e| Error::Libero { problem: format!("the exporter's list of suites is unreadable: {e}") })
}

/// Tasks of a suite whose number everybody knows, so that nothing has to be asked when all packs are there.
fn known(suite: &str) -> Option<usize> {
    match suite {
        "libero_90" => Some(90),
        suite if super::STANDARD.contains(&suite) => Some(10),
        suite => super::pro().any(|known| known == suite).then_some(10),
    }
}

/// Lists what is missing. `ask` is called for suites that are not built in.
pub fn plan(
    paths: &Paths,
    packs: &Path,
    suites: &[String],
    tasks: &[usize],
    variants: &[String],
    ask: &dyn Fn() -> Result<Vec<Suite>>,
) -> Result<Plan> {
    let mut asked: Option<Vec<Suite>> = None;
    let mut wanted = Vec::new();
    for suite in suites {
        let count = match known(suite) {
            Some(count) => count,
            None => {
                if asked.is_none() {
                    check_disk(paths, packs, &Plan { wanted: 0, orders: vec![] }, false)?;
                    asked = Some(ask()?);
                }
                count(suite, asked.as_deref().unwrap_or_default())?
            }
        };
        if let Some(task) = tasks.iter().find(|task| **task >= count) {
            let problem = format!("{suite} has the tasks 0 to {}, not {task}", count - 1);
            return Err(Error::Libero { problem });
        }
        wanted.extend((0..count).filter(|t| tasks.is_empty() || tasks.contains(t)).map(|t| (suite, t)));
    }
    let orders = wanted.iter().filter(|(suite, task)| !has(packs, suite, *task, variants));
    let orders = orders.map(|(suite, task)| Order {
        suite: (*suite).clone(),
        task: *task,
        variants: variants.to_vec(),
    });
    Ok(Plan { wanted: wanted.len(), orders: orders.collect() })
}

fn count(suite: &str, there: &[Suite]) -> Result<usize> {
    let Some(found) = there.iter().find(|known| known.suite == suite) else {
        let names: Vec<&str> =
            there.iter().filter(|s| s.tasks > s.missing.len()).map(|s| &*s.suite).collect();
        let problem = format!("the package has no suite `{suite}`; it has {}", names.join(", "));
        return Err(Error::Libero { problem });
    };
    if found.tasks <= found.missing.len() {
        let lacking = found.missing.values().next().map_or_else(|| "tasks".to_owned(), |m| m.join(", "));
        let problem =
            format!("the package names the suite `{suite}` but does not hold its files ({lacking})");
        return Err(Error::Libero { problem });
    }
    Ok(found.tasks)
}

/// Whether a finished pack holds the variants.
fn has(packs: &Path, suite: &str, task: usize, variants: &[String]) -> bool {
    #[derive(Deserialize)]
    struct Meta {
        pack_info: Info,
    }
    #[derive(Deserialize)]
    struct Info {
        variants: BTreeMap<String, Variant>,
    }
    #[derive(Deserialize)]
    struct Variant {
        model: String,
    }
    let folder = packs.join(format!("{suite}_{task}"));
    let Ok(text) = fs::read(folder.join("meta.json")) else { return false };
    let Ok(meta) = serde_json::from_slice::<Meta>(&text) else { return false };
    let there = |name| meta.pack_info.variants.get(name).is_some_and(|v| folder.join(&v.model).is_file());
    variants.iter().all(there) && folder.join("init_states.npy").is_file()
}

/// Says how much disk the export will take, and stops if there is less.
pub fn check_disk(paths: &Paths, packs: &Path, plan: &Plan, simplify: bool) -> Result<()> {
    let venv = if venv::is_there(paths, simplify) { 0 } else { venv::BYTES };
    let packs_need = bytes(&plan.orders);
    fs::create_dir_all(&paths.target).map_err(io("create", &paths.target))?;
    let (here, there) = (free(&paths.target)?, free(packs)?);
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    if packs_need > 0 {
        println!(
            "{} task packs to write: at most {} MB in {}, of {} MB free{}",
            plan.orders.len(),
            megabytes(packs_need),
            packs.display(),
            megabytes(there),
            if venv > 0 {
                format!(", and {} MB for Python packages", megabytes(venv))
            } else {
                String::new()
            },
        );
    }
    // The two folders are usually on one disk, so the sum has to fit where there is less.
    if venv + packs_need > here.min(there) {
        let problem = format!(
            "{} MB are needed, but {} MB are free\n  hint: set EFFERENCE_LIBERO to a folder on another disk, or ask for \
             fewer suites or for `--variant fast` alone",
            megabytes(venv + packs_need),
            megabytes(here.min(there)),
        );
        return Err(Error::Libero { problem });
    }
    Ok(())
}

/// An upper bound of what packs take, from what was measured: the assets of the largest suite, what each further suite
/// adds, and the files of one task.
fn bytes(orders: &[Order]) -> u64 {
    let mut suites: Vec<&str> = orders.iter().map(|order| &*order.suite).collect();
    suites.sort_unstable();
    suites.dedup();
    let Some(first) = orders.first() else { return 0 };
    let (mut first_suite, mut more) = (0, 0);
    for variant in &first.variants {
        let (one, next) = match &**variant {
            "faithful" => (65_000_000, 12_000_000),
            "fast" => (17_000_000, 5_000_000),
            _ => (2_000_000, 500_000),
        };
        first_suite += one;
        more += next;
    }
    first_suite + more * (suites.len() as u64 - 1) + 300_000 * orders.len() as u64
}

fn free(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder).map_err(|e| Error::Io {
        action: "ask for the free space of",
        path: folder.into(),
        source: e.into(),
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn paths(root: &Path) -> Paths {
        Paths { root: root.to_path_buf(), target: root.join("target") }
    }

    fn nobody() -> Result<Vec<Suite>> {
        panic!("nothing had to be asked")
    }

    fn package() -> Result<Vec<Suite>> {
        let lines = [
            r#"{"suite": "libero_goal_with_mug", "tasks": 10, "missing": {}}"#,
            r#"{"suite": "libero_goal_env", "tasks": 1, "missing": {"0": ["bddl"]}}"#,
        ];
        Ok(lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    fn pack(packs: &Path, name: &str, variants: &str) {
        let folder = packs.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model.xml"), "").unwrap();
        fs::write(folder.join("init_states.npy"), "").unwrap();
        fs::write(folder.join("meta.json"), format!(r#"{{"pack_info": {{"variants": {variants}}}}}"#))
            .unwrap();
    }

    #[test]
    fn finished_packs_are_not_ordered_again() {
        let root = tempfile::tempdir().unwrap();
        pack(root.path(), "libero_goal_0", r#"{"faithful": {"model": "model.xml"}}"#);
        pack(root.path(), "libero_goal_1", r#"{"fast": {"model": "model.xml"}}"#);
        pack(root.path(), "libero_goal_2", r#"{"faithful": {"model": "gone.xml"}}"#);
        pack(root.path(), "libero_goal_3", "[]");
        let suites = ["libero_goal".to_owned()];
        let variants = ["faithful".to_owned()];
        let paths = paths(root.path());
        let plan = plan(&paths, root.path(), &suites, &[0, 1, 2, 3], &variants, &nobody).unwrap();
        let tasks: Vec<usize> = plan.orders.iter().map(|order| order.task).collect();
        assert_eq!((plan.wanted, tasks), (4, vec![1, 2, 3]));
    }

    #[test]
    fn the_number_of_tasks_is_known_or_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let (paths, variants) = (paths(root.path()), ["fast".to_owned()]);
        let count = |suite: &str, task: &[usize]| {
            plan(&paths, root.path(), &[suite.to_owned()], task, &variants, &package).map(|p| p.orders.len())
        };
        assert_eq!(count("libero_90", &[]).unwrap(), 90);
        assert_eq!(count("libero_10_swap", &[]).unwrap(), 10);
        assert_eq!(count("libero_goal_with_mug", &[]).unwrap(), 10);
        for (suite, task, words) in [
            ("libero_gaol", &[][..], "libero_goal_with_mug"),
            ("libero_goal_env", &[], "bddl"),
            ("libero_goal", &[10], "0 to 9, not 10"),
        ] {
            let error = count(suite, task).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_need_grows_with_suites_and_tasks() {
        let order = |suite: &str, task| Order { suite: suite.into(), task, variants: vec!["fast".into()] };
        let one = bytes(&[order("a", 0)]);
        assert!(one > 0 && bytes(&[]) == 0);
        assert!(bytes(&[order("a", 0), order("a", 1)]) > one);
        assert!(bytes(&[order("a", 0), order("b", 1)]) > bytes(&[order("a", 0), order("a", 1)]));
    }
}
