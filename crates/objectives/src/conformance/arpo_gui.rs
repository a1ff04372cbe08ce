//! Cases of `arpo_gui.json`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::case::{Case, Failure, Outcome, Outputs, code, gradient, values};
use crate::advantage::{GroupNorm, Spread};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::grounding::smart_resize;
use crate::objective::Objective;
use crate::papers::arpo_gui::actions::{UiTars, add_box_tokens};
use crate::papers::arpo_gui::{
    EVAL_RESULTS, FORMAT_REWARDS, OutcomeWithFormat, ReplayBuffer, Rollout, Slot, SuccessReplay,
    group_spread, next_token, osworld_score,
};
use crate::state::State;
use crate::surrogate::ClippedRatio;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "replay" => replay(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        "parse" if case.params.contains_key("screen_w") => parse(case),
        "parse" => box_tokens(case),
        "resize" => resize(case),
        "metric" => osworld(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of arpo_gui"))),
    }
}

#[derive(Deserialize)]
struct TaskGroup {
    task: String,
    eval_results: Vec<f64>,
}

fn replay(case: &Case) -> Outcome {
    let iterations: Vec<Vec<TaskGroup>> = case.input("iterations")?;
    let mut draws = case.whole("uniform_index_draws")?.into_iter();
    let settings = SuccessReplay {
        capacity: case.param("buffer_size_per_task")?,
        success_above: case.param("positive_threshold")?,
        injected: case.param("injected")?,
        ..SuccessReplay::default()
    };
    let mut state = State::default();
    let mut out = Vec::new();
    for (round, groups) in iterations.iter().enumerate() {
        let mut fresh = Vec::new();
        for TaskGroup { task, eval_results } in groups {
            fresh.extend(eval_results.iter().enumerate().map(|(i, &eval)| Rollout {
                id: format!("i{round}.{task}.{i}"),
                task: task.clone(),
                eval,
                format: 0.0,
            }));
        }
        let mut buffer = ReplayBuffer::load(&state)?;
        let mut used = Vec::new();
        let slots = settings.compose(&fresh, &mut buffer, |n| {
            let index = draws.next().unwrap_or(0) as usize % n;
            used.push(index);
            index
        })?;
        buffer.save(&mut state)?;
        let batch: Vec<&Rollout> = slots
            .iter()
            .map(|slot| match slot {
                Slot::Fresh(i) => &fresh[*i],
                Slot::Stored(stored) => stored,
            })
            .collect();
        let after: serde_json::Map<String, Value> = buffer
            .tasks
            .iter()
            .map(|(task, stored)| (task.clone(), stored.iter().map(|r| r.id.clone()).collect()))
            .collect();
        out.push(json!({
            "draws_used": used,
            "final_batch": batch.iter().map(|r| &r.id).collect::<Vec<_>>(),
            "final_eval": batch.iter().map(|r| r.eval).collect::<Vec<_>>(),
            "buffer_after": after,
        }));
    }
    Ok(Outputs::from([("iterations", code(&Value::Array(out)))]))
}

fn advantages(case: &Case) -> Outcome {
    if !case.param::<Option<bool>>("unbiased_std")?.unwrap_or(true) {
        return Err(Failure::NotImplemented("a biased deviation".into()));
    }
    let groups = case.whole("group_ids")?;
    let norm = GroupNorm { epsilon: case.param("eps")?, spread: Spread::Unbiased, ..GroupNorm::default() };
    let objective = Objective {
        rewards: vec![Box::new(OutcomeWithFormat { format_weight: case.param("format_weight")? })],
        advantage: Some(Box::new(norm)),
        ..Objective::new(ClippedRatio::default(), Aggregation::TokenMean)
    };
    let batch = Batch::new(case.table("response_mask")?)
        .with(EVAL_RESULTS, case.numbers("eval_results")?)?
        .with(FORMAT_REWARDS, case.numbers("format_rewards")?)?
        .with(GROUP_IDS, groups.clone())?;
    let ready = objective.prepare(batch, &mut State::default())?;
    let rewards = ready.batch.outcomes()?;
    let (spread, flat) = group_spread(&rewards, &groups)?;
    Ok(Outputs::from([
        ("rewards", rewards),
        ("advantages", ready.signals.advantages.values),
        ("group_reward_std", spread),
        ("num_invalid_groups", vec![flat as f64]),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let mask = next_token(&case.table("response_mask_full")?);
    let signals = Signals::new(next_token(&case.table("advantages_full")?));
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?;
    let ratio = ClippedRatio {
        clip_low: case.param("clip_ratio_low")?,
        clip_high: case.param("clip_ratio_high")?,
        dual_clip: Some(case.param("clip_ratio_dual")?),
    };
    let objective = Objective::new(ratio, case.param("loss_agg_mode")?);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("clipfrac_higher", vec![parts.stat("clip_frac")]),
        ("clipfrac_lower", vec![parts.stat("clip_frac_lower")]),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn parse(case: &Case) -> Outcome {
    let [height, width]: [f64; 2] = case.param("smart_resize")?;
    let agent = UiTars {
        screen: [case.param("screen_w")?, case.param("screen_h")?],
        resized: [width, height],
        clipboard: case.param("type_uses_clipboard")?,
        press_fails: true,
    };
    let responses: Vec<String> = case.input("responses")?;
    let results: Vec<_> = responses.iter().map(|r| agent.parse(r)).collect();
    let results = serde_json::to_value(results).map_err(|e| Failure::Missing(e.to_string()))?;
    Ok(Outputs::from([("results", code(&results))]))
}

fn box_tokens(case: &Case) -> Outcome {
    let responses: Vec<String> = case.input("responses")?;
    let marked: Vec<String> = responses.iter().map(|r| add_box_tokens(r)).collect();
    Ok(Outputs::from([("with_tokens", code(&json!(marked)))]))
}

fn resize(case: &Case) -> Outcome {
    let sizes: Vec<[usize; 2]> = case.input("sizes_h_w")?;
    let (factor, least, most) = (case.param("factor")?, case.param("min_pixels")?, case.param("max_pixels")?);
    let mut out = Vec::new();
    for [height, width] in sizes {
        let (height, width) = smart_resize((height, width), factor, least, most)?;
        out.extend([height as f64, width as f64]);
    }
    Ok(Outputs::from([("resized_h_w", out)]))
}

#[derive(Deserialize)]
struct Episode {
    func: String,
    conj: String,
    metric_values: Option<Metrics>,
    last_action: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Metrics {
    One(f64),
    Several(Vec<Option<f64>>),
}

fn osworld(case: &Case) -> Outcome {
    let episodes: Vec<Episode> = case.input("cases")?;
    let score = |e: &Episode| {
        let metrics = match &e.metric_values {
            None => Vec::new(),
            Some(Metrics::One(x)) => vec![Some(*x)],
            Some(Metrics::Several(all)) => all.clone(),
        };
        osworld_score(e.func == "infeasible", &metrics, &e.conj, e.last_action.as_deref())
    };
    Ok(Outputs::from([("score", episodes.iter().map(score).collect())]))
}
