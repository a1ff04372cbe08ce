//! The cases of `eval_libero.json` about task files and names.

use efference_envs::libero::bddl::{self, Fact, Region, Task, Typed};
use efference_envs::libero::perturb::PlusName;
use efference_envs::libero::suite;
use efference_objectives::conformance::{Numbers, Question, in_numbers};
use serde_json::{Value, json};

/// The outputs of a case; `None` for functions that belong to other parts of LIBERO.
pub(super) fn replay(question: &Question) -> Option<Result<Numbers, String>> {
    Some(match question.function {
        "parse_bddl" => parse_bddl(question),
        "language" => language(question),
        "plus_name" => plus_name(question),
        _ => return None,
    })
}

fn parse_bddl(question: &Question) -> Result<Numbers, String> {
    let text: String = question.input("text")?;
    let task = bddl::parse(&text).map_err(|e| e.to_string())?;
    Ok(in_numbers(as_the_benchmark_has_it(&task)))
}

fn as_the_benchmark_has_it(task: &Task) -> [(&'static str, Value); 8] {
    let typed = |list: &[Typed]| list.iter().map(|t| (t.category.clone(), json!(t.names))).collect::<Value>();
    let facts = |list: &[Fact]| list.iter().map(|fact| json!(fact.words())).collect::<Value>();
    let region = |r: &Region| {
        let fields = json!({
            "target": r.target, "ranges": r.ranges, "extra": [], "yaw_rotation": r.yaw, "rgba": r.rgba
        });
        (r.key(), fields)
    };
    [
        ("problem_name", json!(task.problem)),
        ("language", json!(task.language)),
        ("fixtures", typed(&task.fixtures)),
        ("objects", typed(&task.objects)),
        ("obj_of_interest", json!(task.obj_of_interest)),
        ("regions", task.regions.iter().map(region).collect()),
        ("initial_state", facts(&task.init)),
        ("goal_state", facts(&task.goal)),
    ]
}

fn language(question: &Question) -> Result<Numbers, String> {
    let names: Vec<String> = question.input("names")?;
    let words: Vec<String> = names.iter().map(|name| suite::language(name)).collect();
    Ok(in_numbers([("language", json!(words))]))
}

fn plus_name(question: &Question) -> Result<Numbers, String> {
    let names: Vec<String> = question.input("names")?;
    let fields: Result<Vec<Value>, String> = names
        .iter()
        .map(|name| {
            let parts: PlusName =
                name.parse().map_err(|e: efference_envs::libero::perturb::UnreadableName| e.to_string())?;
            // The original marks what a name does not have with -1.
            let number = |n: Option<u64>| n.map_or(json!(-1), |n| json!(n));
            Ok(json!({
                "base": parts.base,
                "language": number(parts.language),
                "horizontal": parts.horizontal,
                "vertical": parts.vertical,
                "scale": parts.scale,
                "end_rot": parts.end_rot,
                "end_vertical": parts.end_vertical,
                "init_variant": parts.init_variant,
                "noise": parts.noise,
                "table": number(parts.table),
                "light": number(parts.light),
                "add": number(parts.add),
                "level": number(parts.level),
                "sample": number(parts.sample),
                "moved": i32::from(parts.moved),
            }))
        })
        .collect();
    Ok(in_numbers([("fields", json!(fields?))]))
}
