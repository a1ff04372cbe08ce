//! Cases of `tapo.json`.

use serde_json::Value;

use super::arpo_agentic::{clip, group, input, policy_loss};
use super::case::{Case, Failure, Outcome, Outputs};
use crate::batch::{Batch, GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REWARDS, SUCCESS, Signals};
use crate::block::{Advantage, Filter};
use crate::papers::tapo::{ModelOverlong, Source, VaryingAccuracy, score};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" if case.inputs.contains_key("solutions") => rewards(case),
        "reward" => overlong(case),
        "filter" => filter(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of tapo"))),
    }
}

fn rewards(case: &Case) -> Outcome {
    let solutions: Vec<String> = input(case, "solutions")?;
    let references: Vec<Value> = input(case, "ground_truths")?;
    let sources: Vec<String> = input(case, "data_sources")?;
    let mut out = Outputs::new();
    for ((solution, reference), source) in solutions.iter().zip(&references).zip(&sources) {
        let references: Vec<&str> = match reference {
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        let score = score(solution, &references, Source::from_name(source)?)?;
        out.entry("score").or_default().push(score.score);
        out.entry("acc").or_default().push(f64::from(u8::from(score.accurate)));
        out.entry("search_calls").or_default().push(score.searches as f64);
        out.entry("code_calls").or_default().push(score.codes as f64);
    }
    Ok(out)
}

fn overlong(case: &Case) -> Outcome {
    let shaping = ModelOverlong {
        max_length: case.param("max_resp_len")?,
        buffer: case.param("overlong_buffer_len")?,
        factor: case.param("penalty_factor")?,
    };
    let penalties = case.numbers("model_token_counts")?.into_iter().map(|n| shaping.penalty(n));
    Ok(Outputs::from([("overlong_reward", penalties.collect())]))
}

fn filter(case: &Case) -> Outcome {
    let accuracy: Vec<Vec<Value>> = input(case, "group_acc")?;
    let groups: Vec<u64> =
        accuracy.iter().enumerate().flat_map(|(g, rows)| std::iter::repeat_n(g as u64, rows.len())).collect();
    let mask = Table { rows: groups.len(), cols: 1, values: vec![1.0; groups.len()] };
    let batch =
        Batch::new(mask).with(SUCCESS, case.numbers("group_acc")?)?.with(GROUP_IDS, groups.clone())?;
    let keep = VaryingAccuracy {}.keep(&batch, &mut State::default())?;
    let mut kept: Vec<u64> = groups.iter().zip(keep).filter(|(_, keep)| *keep).map(|(g, _)| *g).collect();
    kept.dedup();
    Ok(Outputs::from([("kept_groups", kept.iter().map(|&g| g as f64).collect())]))
}

fn advantages(case: &Case) -> Outcome {
    let batch = Batch::new(case.table("info_mask")?)
        .with(REWARDS, case.table("token_level_rewards")?.row_sums())?
        .with(GROUP_IDS, case.whole("group_ids")?)?;
    let advantages = group(case)?.advantages(&batch, &mut State::default())?;
    Ok(Outputs::from([("advantages", advantages.values)]))
}

fn loss(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let batch = Batch::new(case.table("loss_mask")?)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?;
    policy_loss(case, clip(case)?, &log_probs, &batch, &Signals::new(case.table("advantages")?))
}
