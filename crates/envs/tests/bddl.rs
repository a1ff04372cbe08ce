//! Task files of the benchmark, texts made at random, and damaged ones.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use efference_envs::libero::bddl::{self, Fact, Region, Task, Typed};
use proptest::collection::vec;
use proptest::prelude::*;

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "bddl") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The same task again after writing and reading it.
fn reads_and_prints(path: &Path) -> Task {
    let task = bddl::read(path).unwrap();
    assert_eq!(bddl::parse(&task.to_string()).unwrap(), task, "{}", path.display());
    task
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bddl")
}

#[test]
fn files_of_the_benchmark_are_read() {
    let files = files_below(&golden());
    assert_eq!(files.len(), 5);
    let task = reads_and_prints(&golden().join("libero_goal/turn_on_the_stove.bddl"));
    assert_eq!(task.problem, "libero_tabletop_manipulation");
    assert_eq!(task.language, "turn on the stove");
    assert_eq!(task.goal, [Fact { predicate: "turnon".into(), args: vec!["flat_stove_1".into()] }]);
    let cabinet = task.region("main_table_cabinet_region").unwrap();
    assert_eq!(cabinet.ranges, [[0.02, -0.25, 0.04, -0.23]]);
    assert_eq!(cabinet.yaw, [std::f64::consts::PI; 2]);
    assert_eq!(task.region("flat_stove_1_cook_region").unwrap().ranges, [[0.0; 4]; 0]);
    let things: Vec<&str> = task.things().collect();
    assert_eq!(things[..2], ["main_table", "wooden_cabinet_1"]);
    for file in files {
        let task = reads_and_prints(&file);
        // What facts speak of is declared, and regions have the names of facts.
        for fact in task.init.iter().chain(&task.goal) {
            let known = |name: &String| task.things().any(|t| t == name) || task.region(name).is_some();
            assert!(fact.args.iter().all(known), "{}: {fact}", file.display());
        }
    }
}

/// Every file of the package, where it is installed: `cargo xtask libero` does that.
#[test]
fn every_file_of_the_package_is_read() {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/libero/venv/lib");
    let Ok(versions) = std::fs::read_dir(&venv) else {
        eprintln!("skipped: {} is not there (`cargo xtask libero` makes it)", venv.display());
        return;
    };
    let roots = versions.flatten().map(|v| v.path().join("site-packages/libero/libero/bddl_files"));
    let files: Vec<PathBuf> =
        roots.filter(|root| root.is_dir()).flat_map(|root| files_below(&root)).collect();
    assert!(files.len() > 700, "{} files", files.len());
    for file in &files {
        reads_and_prints(file);
    }
    println!("{} task files read", files.len());
}

fn name() -> impl Strategy<Value = String> {
    // `-` alone separates categories from names; a colon begins a section.
    "[a-z_][a-z0-9_.-]{0,12}"
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![-3.0..3.0f64, any::<f64>().prop_filter("finite", |x| x.is_finite()), Just(0.0)]
}

fn region() -> impl Strategy<Value = Region> {
    let four = || [number(), number(), number(), number()];
    (name(), name(), vec(four(), 0..3), [number(), number()], four())
        .prop_map(|(name, target, ranges, yaw, rgba)| Region { name, target, ranges, yaw, rgba })
}

fn typed() -> impl Strategy<Value = Vec<Typed>> {
    let lists = vec((name(), vec(name(), 1..4)), 0..4);
    lists.prop_map(|lists| {
        let (mut categories, mut all) = (Vec::new(), Vec::new());
        let mut found = Vec::new();
        for (category, mut names) in lists {
            names.retain(|name| {
                !all.contains(name) && {
                    all.push(name.clone());
                    true
                }
            });
            if !names.is_empty() && !categories.contains(&category) {
                categories.push(category.clone());
                found.push(Typed { category, names });
            }
        }
        found
    })
}

fn fact() -> impl Strategy<Value = Fact> {
    (0..Fact::PREDICATES.len(), vec(name(), 2)).prop_map(|(which, mut args)| {
        let (predicate, count) = Fact::PREDICATES[which];
        args.truncate(count);
        Fact { predicate: predicate.to_owned(), args }
    })
}

prop_compose! {
    fn any_task()(
        problem in name(),
        language in vec("[^\\s();A-Z\\p{Lu}\\p{Lt}]{1,8}", 0..6),
        mut regions in vec(region(), 0..4),
        fixtures in typed(),
        objects in typed(),
        obj_of_interest in vec(name(), 0..3),
        init in vec(fact(), 0..4),
        goal in vec(fact(), 1..4),
    ) -> Task {
        let mut keys = Vec::new();
        regions.retain(|r| !keys.contains(&r.key()) && { keys.push(r.key()); true });
        // Words that lower-casing would change are another task.
        let language = language.join(" ").to_lowercase();
        Task { problem, language, regions, fixtures, objects, obj_of_interest, init, goal }
    }
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(task in any_task()) {
        let text = task.to_string();
        prop_assert_eq!(bddl::parse(&text).unwrap(), task, "{}", text);
    }

    #[test]
    fn case_and_comments_and_blanks_do_not_matter(task in any_task(), comment in "[^\n]{0,20}") {
        let text = task.to_string().replace('\n', &format!(" ;{comment}\r\n\t"));
        prop_assert_eq!(bddl::parse(&text).unwrap(), task);
    }

    #[test]
    fn no_text_panics(text in "[(): a-z0-9.;\\-\n\u{e4}]{0,200}") {
        let _ = bddl::parse(&text);
    }

    /// A damaged file is read or refused with a place inside it.
    #[test]
    fn damage_is_located(at in 0.0..1.0f64, with in prop_oneof![Just(""), Just("("), Just(")"), Just("x"), Just(";")]) {
        let whole = std::fs::read_to_string(golden().join("libero_goal/turn_on_the_stove.bddl")).unwrap();
        let at = (whole.len() as f64 * at) as usize;
        let text = format!("{}{with}{}", &whole[..at], &whole[at + 1..]);
        if let Err(bddl::Error::Syntax { place, expected, found }) = bddl::parse(&text) {
            let line = text.lines().nth(place.line - 1).unwrap_or_default();
            prop_assert!((1..=line.chars().count() + 1).contains(&place.column), "{}", place);
            prop_assert!(!expected.is_empty() && !found.is_empty());
        }
    }
}

fn error(text: &str) -> String {
    bddl::parse(text).unwrap_err().to_string()
}

/// A task with one section more, which begins on line 2.
fn with(section: &str) -> String {
    format!("(define (problem p) (:domain robosuite) (:goal (and (open c)))\n{section})")
}

#[test]
fn errors_say_where_and_what_was_expected() {
    for (text, message) in [
        ("", "line 1, column 1: expected `(define`, found the end of the file"),
        ("; only this\n", "line 2, column 1: expected `(define`"),
        (
            "(define",
            "line 1, column 8: expected a `)` for the `(` of line 1, column 1, found the end of the file",
        ),
        (")", "line 1, column 1: expected `(define`, found `)`"),
        ("(define) x", "expected"),
        ("(domain x)", "line 1, column 2: expected `define`, found `domain`"),
    ] {
        assert!(error(text).contains(message), "{text}: {}", error(text));
    }
    for (section, message) in [
        ("(:objcts)", "line 2, column 2: expected one of `(problem ..)`"),
        (") extra (", "line 2, column 3: expected the end of the file after the task, found `extra`"),
        ("(:domain other)", "line 2, column 2: expected each section once, found another `:domain`"),
        (
            "(:regions (r (:ranges ((0 0 1)))))",
            "line 2, column 24: expected four numbers `(x0 y0 x1 y1)`, found a list of 3",
        ),
        ("(:regions (r (:target t) (:ranges ((0 0 1 nan)))))", "line 2, column 43: expected four numbers"),
        (
            "(:regions (r (:rgba (0 0 1 0))))",
            "line 2, column 31: expected a `(:target ..)` in the region `r`",
        ),
        ("(:regions (r (:target t) (:yaw_rotation ((0 tau)))))", "line 2, column 45: expected two angles"),
        (
            "(:regions (r (:target t)) (r (:target t)))",
            "line 2, column 27: expected each region of a target once",
        ),
        ("(:objects a b -)", "line 2, column 16: expected a category after `-`, found `)`"),
        ("(:objects - cup)", "line 2, column 11: expected a name before `-`"),
        ("(:objects a - cup b - cup)", "line 2, column 23: expected each category once"),
        ("(:objects a a - cup)", "line 2, column 13: expected each name once"),
        ("(:init (On a))", "line 2, column 13: expected 2 names after `on`, found `)` after 1"),
        ("(:init (Under a b))", "line 2, column 9: expected `(on A B)`"),
        ("(:init Open)", "line 2, column 8: expected `(on A B)`"),
    ] {
        let got = error(&with(section));
        assert!(got.contains(message), "{section}\n  {got}");
    }
    assert!(error("(define (problem p) (:domain robosuite))").contains("a section `(:goal ..)`"));
    assert!(
        error("(define (problem p) (:domain pddl) (:goal (open c)))").contains("`robosuite`, found `pddl`")
    );
    assert!(
        error("(define (problem p) (:domain robosuite) (:goal (and)))").contains("at least one predicate")
    );
}

#[test]
fn size_and_depth_are_bounded() {
    let deep = format!("(define {}{})", "(".repeat(100_000), ")".repeat(100_000));
    assert!(error(&deep).contains("at most 32 nested brackets"));
    assert!(error(&" ".repeat(bddl::MAX_BYTES + 1)).contains("at most 1048576"));
    let long = "x".repeat(10_000);
    assert!(error(&with(&format!("({long})"))).len() < 500);
}

#[test]
fn files_are_named_in_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.bddl");
    assert!(bddl::read(&path).unwrap_err().to_string().contains("task.bddl"));
    std::fs::write(&path, "(define)").unwrap();
    assert!(bddl::read(&path).unwrap_err().to_string().contains("task.bddl: line 1, column 8"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(bddl::read(&path).unwrap_err(), bddl::Error::Read { .. }));
}
