//! Cases of `seed_grpo.json`.

use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread, group_norm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, OLD_LOG_PROBS, Signals};
use crate::block::TokenRule;
use crate::objective::Objective;
use crate::papers::seed_grpo::{ANSWER_KEYS, ConstantLength, EntropyEstimator, Modulation, SemanticEntropy};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "row_weights" => row_weights(case),
        "paper_modulation" => paper_modulation(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of seed_grpo"))),
    }
}

/// Null is "no answer", here the empty key.
fn keys(case: &Case) -> Result<Vec<String>, Failure> {
    let missing = || Failure::Missing("inputs.answer_keys".into());
    let list = case.inputs.get("answer_keys").and_then(Value::as_array).ok_or_else(missing)?;
    let key = |value: &Value| match value {
        Value::Null => Ok(String::new()),
        Value::String(key) => Ok(key.clone()),
        Value::Number(key) => Ok(key.to_string()),
        _ => Err(missing()),
    };
    list.iter().map(key).collect()
}

/// Advantages [B, T] of one value per row, times the factor of `rule`, back to one value per row.
fn scaled(case: &Case, rule: &SemanticEntropy, base: &[f64]) -> Result<Vec<f64>, Failure> {
    let mask = case.table("response_mask")?;
    let ones = mask.filled(1.0);
    let batch = Batch::new(mask)
        .with(OLD_LOG_PROBS, case.table("old_log_probs")?)?
        .with(GROUP_IDS, case.whole("group_ids")?)?
        .with(ANSWER_KEYS, keys(case)?)?;
    let mut signals = Signals::new(Table::broadcast(base, &ones)?);
    rule.prepare(&batch, &mut signals, &mut State::default())?;
    Ok(signals.advantages.iter().map(|row| row[0]).collect())
}

/// Entropy and factor of every group.
fn groups(case: &Case, rule: &SemanticEntropy) -> Result<Vec<(f64, f64)>, Failure> {
    let mask = case.table("response_mask")?;
    let scores = rule.scores(&case.table("old_log_probs")?, &mask)?;
    let counts: Vec<bool> = mask.row_sums().iter().map(|&l| l > 0.0).collect();
    Ok(rule.groups(&scores, &keys(case)?, &counts, &case.whole("group_ids")?)?.into_values().collect())
}

fn advantages(case: &Case) -> Outcome {
    let rule = SemanticEntropy {
        alpha: case.param("alpha")?,
        normalise: case.param("normalize_by_max_entropy")?,
        length_normalise: case.param("length_normalize")?,
        modulation: case.param("modulation")?,
        estimator: case.param::<Option<_>>("estimator")?.unwrap_or_default(),
        focal_gamma: case.param::<Option<f64>>("focal_gamma")?.unwrap_or(2.0),
        ..SemanticEntropy::default()
    };
    let spread = if case.param("scale_rewards_by_std")? { Spread::Unbiased } else { Spread::None };
    let norm = GroupNorm { epsilon: case.param("std_eps")?, spread, lone_spread_f32: false };
    let ids = case.whole("group_ids")?;
    let base = group_norm(&case.numbers("rewards")?, &ids, &norm)?;
    let groups = groups(case, &rule)?;
    let size = members(&ids).values().next().map_or(0, Vec::len);
    Ok(Outputs::from([
        ("semantic_entropy", groups.iter().map(|(entropy, _)| *entropy).collect()),
        ("scale", groups.iter().map(|(_, factor)| *factor).collect()),
        ("alpha_effective", vec![rule.effective_alpha(size)]),
        ("max_entropy", vec![(size as f64).ln()]),
        ("advantages", scaled(case, &rule, &base)?),
        ("base_advantages", base),
    ]))
}

fn row_weights(case: &Case) -> Outcome {
    let rule = SemanticEntropy {
        alpha: case.param("alpha")?,
        normalise: case.param("normalize_by_max_entropy")?,
        ..SemanticEntropy::default()
    };
    let (scores, size) = (case.numbers("seq_log_probs_mean")?, case.param::<usize>("group_size")?.max(1));
    let ids: Vec<u64> = (0..scores.len()).map(|i| (i / size) as u64).collect();
    let counts: Vec<bool> = case.numbers("row_mask")?.iter().map(|&m| m > 0.0).collect();
    let groups = rule.groups(&scores, &keys(case)?, &counts, &ids)?;
    Ok(Outputs::from([("weights", ids.iter().map(|id| groups[id].1).collect())]))
}

/// Groups as records in the order exponential, focal, linear, reciprocal, se_count, se_monte_carlo, se_shannon.
fn paper_modulation(case: &Case) -> Outcome {
    let rule = |estimator, modulation| -> Result<SemanticEntropy, Failure> {
        let (alpha, focal_gamma) = (case.param("alpha")?, case.param("focal_gamma")?);
        Ok(SemanticEntropy { alpha, focal_gamma, estimator, modulation, ..SemanticEntropy::default() })
    };
    let mut columns = Vec::new();
    for modulation in [Modulation::Exponential, Modulation::Focal, Modulation::Linear, Modulation::Reciprocal]
    {
        let groups = groups(case, &rule(EntropyEstimator::MonteCarlo, modulation)?)?;
        columns.push(groups.iter().map(|(_, factor)| *factor).collect::<Vec<f64>>());
    }
    for estimator in [EntropyEstimator::Count, EntropyEstimator::MonteCarlo, EntropyEstimator::Shannon] {
        let groups = groups(case, &rule(estimator, Modulation::Reciprocal)?)?;
        columns.push(groups.iter().map(|(entropy, _)| *entropy).collect());
    }
    let per_group = (0..columns[0].len()).flat_map(|g| columns.iter().map(move |c| c[g])).collect();
    let centred = GroupNorm { epsilon: 0.0, spread: Spread::None, lone_spread_f32: false };
    let base = group_norm(&case.numbers("rewards")?, &case.whole("group_ids")?, &centred)?;
    let linear = rule(EntropyEstimator::MonteCarlo, Modulation::Linear)?;
    Ok(Outputs::from([
        ("per_group", per_group),
        ("advantages_linear", scaled(case, &linear, &base)?),
        ("base_advantages", base),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mask) = (case.var("log_probs")?, case.table("response_mask")?);
    let clip: f64 = case.param("clip_range")?;
    let surrogate = ClippedRatio { clip_low: clip, clip_high: clip, dual_clip: None };
    let mut signals = Signals::new(Table::broadcast(&case.numbers("advantages")?, &mask)?);
    let batch = Batch::new(mask)
        .with(crate::batch::LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?;
    let mut state = State::default();
    ConstantLength { length: case.param("constant_length")? }.prepare(&batch, &mut signals, &mut state)?;
    // The mean is over all rows, also those without a token.
    let mut whole = batch.normaliser();
    whole.sequences = batch.rows() as f64;
    let objective = Objective::new(surrogate, Aggregation::SeqMeanTokenSum);
    let parts = objective.loss(&batch, &signals, &whole, &state)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}
