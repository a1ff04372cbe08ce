//! Cases of `scaf_grpo.json`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::case::{Case, Failure, Outcome, Outputs, code};
use super::fapo::{clipped_loss, group_settings};
use crate::advantage::group_norm;
use crate::batch::Signals;
use crate::papers::scaf_grpo::Scaffold;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "hint_prompts" => ladder(case),
        "hint_replacement" => replacement(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of scaf_grpo"))),
    }
}

fn ladder(case: &Case) -> Outcome {
    let scaffold = Scaffold {
        tiers: case.param("tiers")?,
        parts_per_tier: case.param("parts_per_tier")?,
        separator: case.param("separator")?,
        ..Scaffold::default()
    };
    let questions: Vec<String> = case.input("questions")?;
    // An input per tier is called like the first word of the tier's name.
    let mut parts: Vec<Vec<Vec<String>>> = Vec::new();
    for tier in &scaffold.tiers {
        let name = tier.split_whitespace().next().unwrap_or_default().to_lowercase();
        parts.push(case.input(&name)?);
    }
    let (mut levels, mut ids, mut messages) = (Vec::new(), Vec::new(), Vec::new());
    for (i, question) in questions.iter().enumerate() {
        let hints: Vec<Vec<String>> =
            parts.iter().map(|tier| tier.get(i).cloned().unwrap_or_default()).collect();
        messages.extend(scaffold.messages(question, &hints)?);
        levels.extend((1..=scaffold.levels()).map(|level| level as f64));
        ids.extend(std::iter::repeat_n(format!("u{i}"), scaffold.levels()));
    }
    Ok(Outputs::from([
        ("hint_levels", levels),
        ("uids", code(&json!(ids))),
        ("user_contents", code(&json!(messages))),
    ]))
}

fn replacement(case: &Case) -> Outcome {
    let full: bool = case.param("full_prompt_replacement")?;
    let scaffold =
        Scaffold { replace_num: case.param("replace_num")?, keep_prompt: !full, ..Scaffold::default() };
    let (groups, hinted): (Vec<String>, Vec<String>) =
        (case.input("group_ids")?, case.input("hinted_group_ids")?);
    // Numbers in the order of the names.
    let names: BTreeSet<&String> = groups.iter().chain(&hinted).collect();
    let number: BTreeMap<&String, u64> = names.iter().zip(0..).map(|(name, i)| (*name, i)).collect();
    let ids = |x: &[String]| x.iter().map(|name| number[name]).collect::<Vec<u64>>();
    let name = |id: &u64| names.iter().nth(*id as usize).map_or("", |name| name.as_str());
    let (rewards, hinted_rewards) = (case.numbers("rewards")?, case.numbers("hinted_rewards")?);
    let levels = case.whole("hint_levels")?;
    let rescue = scaffold.rescue(&rewards, &ids(&groups), &hinted_rewards, &ids(&hinted), &levels)?;
    let (mut response, mut prompt) = (vec![-1.0; rewards.len()], vec![-1.0; rewards.len()]);
    let mut new_rewards = rewards;
    for r in &rescue.replacements {
        response[r.row] = r.source as f64;
        new_rewards[r.row] = hinted_rewards[r.source];
        if r.with_prompt {
            prompt[r.row] = r.source as f64;
        }
    }
    let list = |x: &BTreeSet<u64>| code(&json!(x.iter().map(name).collect::<Vec<_>>()));
    let selected: serde_json::Map<_, _> =
        rescue.selected.iter().map(|(id, row)| (name(id).to_string(), json!(row))).collect();
    Ok(Outputs::from([
        ("stalled_groups", list(&rescue.stalled)),
        ("selected_hinted_index", code(&selected.into())),
        ("unsolved_groups", list(&rescue.unsolved)),
        ("replaced_rows", rescue.replacements.iter().map(|r| r.row as f64).collect()),
        ("response_source_row", response),
        ("prompt_source_row", prompt),
        ("new_rewards", new_rewards),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let per_row = group_norm(&case.numbers("rewards")?, &case.whole("group_ids")?, &group_settings(case)?)?;
    let advantages = Table::broadcast(&per_row, &case.table("response_mask")?)?;
    let mut outputs = clipped_loss(case, &Signals::new(advantages.clone()))?;
    outputs.insert("advantages", advantages.values);
    Ok(outputs)
}
