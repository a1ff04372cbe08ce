//! Cases of `mpo.json`.

use serde_json::json;

use super::case::{Case, Failure, Outcome, Outputs, code, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::VALUES;
use crate::batch::{RETURNS, VALUE_PREDICTIONS};
use crate::critic::{ClippedValue, one_longer, within};
use crate::kl::KlEstimator;
use crate::objective::Objective;
use crate::papers::mpo::rubric::{distinct, items, join_within, stratified, total};
use crate::papers::mpo::{KlAndScore, PaddedGae, Truncated, penalise_missing_end, response_mask, truncate};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    let has = |name: &str| case.inputs.contains_key(name);
    match case.function.as_str() {
        "advantages" => advantages(case),
        "loss" => loss(case),
        "reward" => scores(case),
        "rubric" if has("parts") => joined(case),
        "rubric" if has("rubric_text") => parsed(case),
        "rubric" if has("sorted_sequences") => sampled(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of mpo"))),
    }
}

fn advantages(case: &Case) -> Outcome {
    let (end, pad) = (case.param("eos_token_id")?, case.param("pad_token_id")?);
    let cols = case.table("responses")?.cols;
    let answers: Vec<Truncated> =
        case.whole("responses")?.chunks(cols.max(1)).map(|row| truncate(row, end, pad)).collect();
    let mask = response_mask(&answers, cols);
    let penalty: f64 = case.param("missing_eos_penalty")?;
    let scores = case.numbers("scores")?;
    let scores: Vec<f64> =
        scores.iter().zip(&answers).map(|(s, a)| penalise_missing_end(*s, a.ended, penalty)).collect();
    let rewards = KlAndScore {
        kl_coef: case.param("kl_coef")?,
        estimator: case.param::<KlEstimator>("kl_estimator")?,
        whiten: case.param("whiten_rewards")?,
    };
    let (old, reference) = (case.table("old_log_probs")?, case.table("ref_log_probs")?);
    let rewards = rewards.rewards(&scores, &old, &reference, &mask)?;
    let gae = PaddedGae { gamma: case.param("gamma")?, lambda: case.param("lambda")?, whiten: true };
    let critic = case.table("values")?;
    let (advantages, returns) = gae.compute(&rewards, &critic, &mask)?;
    let learnt = one_longer(&mask);
    Ok(Outputs::from([
        ("truncated_responses", answers.iter().flat_map(|a| a.tokens.iter().map(|&t| t as f64)).collect()),
        ("sequence_lengths", answers.iter().map(|a| a.length as f64 - 1.0).collect()),
        ("masked_values", within(&critic, &learnt)?.values),
        ("response_mask", mask.values),
        ("value_mask", learnt.values),
        ("scores_after_penalty", scores),
        ("token_rewards", rewards.values),
        ("advantages", advantages.values),
        ("returns", returns.values),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mut batch, mut signals) = case.policy_batch()?;
    let predicted = case.var("value_preds")?;
    batch.set(VALUE_PREDICTIONS, predicted.as_tensor().clone())?;
    batch.set(VALUES, case.table("values")?)?;
    batch.set(RETURNS, case.table("returns")?)?;
    let learnt = case.table("value_mask")?;
    let count = |x: &Table| x.values.iter().filter(|&&m| m != 0.0).count() as f64;
    let factor = count(batch.mask()) / count(&learnt).max(1.0);
    let weights = learnt.values.iter().map(|m| m * factor).collect();
    signals.extra.insert("value_weights".into(), Table { values: weights, ..learnt });
    let coef: f64 = case.param("vf_coef")?;
    let value =
        ClippedValue { coef, clip: case.param("value_clip")?, aggregation: Some(Aggregation::TokenMean) };
    let (_, cut) = value.per_token(&batch, &signals)?;
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: None,
    };
    let objective =
        Objective { regularizers: vec![Box::new(value)], ..Objective::new(ratio, Aggregation::TokenMean) };
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    let cut: f64 = cut.values.iter().zip(&learnt.values).map(|(x, m)| x * m).sum();
    let vf: f64 = parts.regularizers.iter().map(|(_, x)| x / coef).sum();
    Ok(Outputs::from([
        ("pg_loss", vec![parts.pg_loss]),
        ("vf_loss", vec![vf]),
        ("loss", values(&parts.loss)?),
        ("value_clip_frac", vec![cut / count(&learnt)]),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        ("grad_value_preds", gradient(&parts.loss, &predicted)?),
    ]))
}

fn scores(case: &Case) -> Outcome {
    let evaluations: Vec<Vec<String>> = case.input("evaluations")?;
    let missing: Vec<bool> = case.input("missing")?;
    let score = |(texts, missing): (&Vec<String>, &bool)| if *missing { 0.0 } else { total(texts, true) };
    Ok(Outputs::from([("scores", evaluations.iter().zip(&missing).map(score).collect())]))
}

fn joined(case: &Case) -> Outcome {
    let (parts, separator): (Vec<String>, String) = (case.input("parts")?, case.param("sep")?);
    let limits = case.numbers("limits")?;
    let joined: Vec<String> = limits.iter().map(|&limit| join_within(&parts, &separator, limit)).collect();
    Ok(Outputs::from([("joined", code(&json!(joined)))]))
}

fn parsed(case: &Case) -> Outcome {
    let items = items(&case.input::<String>("rubric_text")?);
    let unique = distinct(&items);
    Ok(Outputs::from([("items", code(&json!(items))), ("unique_items_sorted", code(&json!(unique)))]))
}

fn sampled(case: &Case) -> Outcome {
    let sequences: Vec<Vec<f64>> = case.input("sorted_sequences")?;
    let k = case.param("k")?;
    let read = |seq: &Vec<f64>| {
        let rows = stratified(seq.len(), k, |part, count| part.take(count).collect());
        rows.into_iter().map(|i| seq[i]).collect::<Vec<f64>>()
    };
    Ok(Outputs::from([("first_k_of_each_part", sequences.iter().flat_map(read).collect())]))
}
