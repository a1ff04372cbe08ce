//! Cases of `aepo_arbitrary.json`.

use candle_core::Tensor;
use efference_ops::{TokenScores, token_scores};
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, flat, gradient, values};
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REWARDS};
use crate::objective::{LossParts, Objective};
use crate::papers::aepo_arbitrary::{
    DistributionCentric, MixedAdvantages, MixedRows, TEMPERED, TEMPERED_LOG_PROBS, TemperatureMix,
    entropy_estimate,
};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "schedule" => schedule(case),
        "compose_and_loss" => compose_and_loss(case),
        "loss" => loss(case),
        "distribution_centric_advantages" => distribution_centric(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of aepo_arbitrary"))),
    }
}

fn schedule(case: &Case) -> Outcome {
    let missing = || Failure::Missing("inputs.rows".into());
    let rows = case.inputs.get("rows").and_then(Value::as_array).ok_or_else(missing)?;
    let (mut temperature, mut count) = (Vec::new(), Vec::new());
    for row in rows {
        let number =
            |name: &str| row.get(name).and_then(flat).and_then(|x| x.first().copied()).ok_or_else(missing);
        let rule = TemperatureMix {
            entropy_target: number("entropy_target")?,
            temperature_high: case.param("temperature_high")?,
            temperature_low: case.param("temperature_low")?,
            reinforce_samples: number("reinforce_sample_num")? as usize,
            ..TemperatureMix::default()
        };
        let entropy = number("entropy")?;
        temperature.push(rule.temperature(entropy));
        count.push(rule.sample_count(entropy, number("n_selected")? as usize) as f64);
    }
    Ok(Outputs::from([("temperature", temperature), ("sample_num", count)]))
}

fn ratio(case: &Case) -> Result<ClippedRatio, Failure> {
    Ok(ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: Some(case.param("clip_dual")?),
    })
}

fn aggregation(case: &Case) -> Result<Aggregation, Failure> {
    Ok(case.param::<Option<Aggregation>>("loss_agg_mode")?.unwrap_or(Aggregation::TokenMean))
}

/// The numbers of a loss under the reference's names.
fn stats(parts: &LossParts) -> [(&'static str, Vec<f64>); 3] {
    [
        ("pg_clipfrac_higher", vec![parts.stat("clip_frac")]),
        ("pg_clipfrac_lower", vec![parts.stat("clip_frac_lower")]),
        ("ppo_kl", vec![parts.stat("approx_kl")]),
    ]
}

fn compose_and_loss(case: &Case) -> Outcome {
    let rule = TemperatureMix {
        entropy_target: case.param("entropy_target")?,
        temperature_high: case.param("temperature_high")?,
        temperature_low: case.param("temperature_low")?,
        reinforce_samples: case.param("reinforce_sample_num")?,
        select_threshold: case.param("select_threshold")?,
        epsilon: case.param("std_eps")?,
        ..TemperatureMix::default()
    };
    let entropy: f64 = case.param("entropy")?;
    let joined = |first: &str, then: &str| -> Result<Vec<f64>, Failure> {
        Ok([case.numbers(first)?, case.numbers(then)?].concat())
    };
    // Tempered rows first: the mixture keeps the order.
    let (temp, ordinary) = (case.table("temp_response_mask")?, case.table("response_mask")?);
    let rows = temp.rows + ordinary.rows;
    let mask = Table { rows, cols: ordinary.cols, values: [temp.values, ordinary.values].concat() };
    let rewards = joined("temp_rewards", "rewards")?;
    let groups: Vec<u64> = joined("temp_group_ids", "group_ids")?.into_iter().map(|x| x as u64).collect();
    let tempered: Vec<bool> = (0..rows).map(|i| i < temp.rows).collect();
    let mixture = rule.mix(&rewards, &groups, &tempered, entropy)?;
    let flags: Vec<f64> = tempered.iter().map(|&x| f64::from(u8::from(x))).collect();

    let objective = Objective {
        rewards: vec![Box::new(rule)],
        filters: vec![Box::new(MixedRows::default())],
        advantage: Some(Box::new(MixedAdvantages::default())),
        ..Objective::new(ratio(case)?, aggregation(case)?)
    };
    // Log-probabilities are given for the mixture only.
    let batch = Batch::new(mask.clone())
        .with(REWARDS, rewards)?
        .with(GROUP_IDS, groups)?
        .with(TEMPERED, flags)?
        .with(OLD_LOG_PROBS, mask.filled(0.0))?;
    let mut state = State::default();
    TemperatureMix::observe(&mut state, entropy)?;
    let mut ready = objective.prepare(batch, &mut state)?;
    let log_probs = case.var("log_probs")?;
    ready.batch.set(LOG_PROBS, log_probs.as_tensor().clone())?;
    ready.batch.set(OLD_LOG_PROBS, case.tensor("batch_old_log_probs")?)?;
    let parts = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state)?;

    let all = Table::broadcast(&mixture.advantages, &mask)?.values;
    let (of_temp, of_ordinary) = all.split_at(temp.rows * mask.cols);
    let estimate = entropy_estimate(&ready.batch.table(LOG_PROBS)?, ready.batch.mask())?;
    let mut out = Outputs::from([
        ("advantages", of_ordinary.to_vec()),
        ("temp_advantages", of_temp.to_vec()),
        ("selected_rows", mixture.selected[..mixture.taken].iter().map(|&i| i as f64).collect()),
        ("n_selected", vec![mixture.selected.len() as f64]),
        ("temperature", vec![rule.temperature(entropy)]),
        ("sample_num", vec![mixture.taken as f64]),
        ("mixed_advantages_masked", ready.signals.advantages.values.clone()),
        ("mixed_mask", ready.batch.mask().values.clone()),
        ("loss", values(&parts.loss)?),
        ("entropy_estimate", vec![estimate]),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]);
    out.extend(stats(&parts));
    Ok(out)
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, batch, signals) = case.policy_batch()?;
    let objective = Objective::new(ratio(case)?, aggregation(case)?);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    let mut out = Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]);
    out.extend(stats(&parts));
    Ok(out)
}

fn distribution_centric(case: &Case) -> Outcome {
    let rule = DistributionCentric {
        entropy_target: case.param("entropy_target")?,
        temperature_high: case.param("temperature_high")?,
        temperature_low: case.param("temperature_low")?,
        alpha_cap: case.param("alpha_cap")?,
        ..DistributionCentric::default()
    };
    let entropy: f64 = case.param("entropy")?;
    let logits = case.tensor("logits")?;
    let (b, t, v) = logits.dims3()?;
    let ids: Vec<u32> = case.whole("response_ids")?.iter().map(|&id| id as u32).collect();
    let ids = Tensor::from_vec(ids, b * t, logits.device())?;
    let flat_logits = logits.reshape((b * t, v))?;
    let at = |temperature: f64| -> Result<Tensor, Failure> {
        let TokenScores { log_probs, .. } = token_scores(&flat_logits, &ids, temperature)?;
        Ok(log_probs.reshape((b, t))?)
    };
    let (old, tempered) = (at(1.0)?, at(rule.temperature(entropy))?);
    let (log_probs, rewards) = (case.var("log_probs")?, case.numbers("rewards")?);
    let batch = Batch::new(case.table("response_mask")?)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, old.clone())?
        .with(TEMPERED_LOG_PROBS, tempered.clone())?
        .with(REWARDS, rewards.clone())?
        .with(GROUP_IDS, case.whole("group_ids")?)?;
    let objective = Objective {
        advantage: Some(Box::new(GroupNorm::default())),
        weights: vec![Box::new(rule)],
        ..Objective::new(ratio(case)?, aggregation(case)?)
    };
    let mut state = State::default();
    DistributionCentric::observe(&mut state, entropy)?;
    let ready = objective.prepare(batch, &mut state)?;
    let parts = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state)?;
    Ok(Outputs::from([
        ("old_log_probs", values(&old)?),
        ("old_log_probs_t", values(&tempered)?),
        ("alpha", vec![rule.alpha(entropy, &rewards)]),
        ("temperature", vec![rule.temperature(entropy)]),
        ("advantages_masked", ready.signals.advantages.values.clone()),
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}
