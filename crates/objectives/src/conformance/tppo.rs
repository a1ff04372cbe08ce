//! Cases of `tppo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::WhitenAdvantages;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, Signals, VALUES};
use crate::batch::{RETURNS, VALUE_PREDICTIONS};
use crate::critic::ClippedValue;
use crate::objective::Objective;
use crate::papers::tppo::{Chunk, Egae, egae, policy_mask, schedule, value_mask, value_targets};
use crate::state::State;
use crate::surrogate::ClippedRatio;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "policy_loss" => policy_loss(case),
        "value_loss" => value_loss(case),
        "schedule" => rollout(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of tppo"))),
    }
}

fn counts(case: &Case, name: &str) -> Result<Vec<usize>, Failure> {
    Ok(case.whole(name)?.into_iter().map(|x| x as usize).collect())
}

fn advantages(case: &Case) -> Outcome {
    let (rewards, critic) = (case.table("token_rewards")?, case.table("values")?);
    let (starts, ends) = (counts(case, "step_start")?, counts(case, "step_end")?);
    let finished: Vec<bool> = case.numbers("finished")?.iter().map(|&x| x != 0.0).collect();
    let settings = Egae { gamma: case.param("gamma")?, lambda: case.param("lam")?, bootstrap: true };
    let cols = rewards.cols;
    Ok(Outputs::from([
        ("advantages", egae(&rewards, &critic, &ends, &finished, &settings)?.values),
        ("value_targets", value_targets(&rewards, &ends, &finished, settings.gamma)?.values),
        ("policy_mask", policy_mask(&starts, &ends, cols)?.values),
        ("value_mask", value_mask(&ends, &finished, cols)?.values),
    ]))
}

fn policy_loss(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let batch = Batch::new(case.table("policy_mask")?)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?;
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: None,
    };
    let mut objective = Objective::new(ratio, Aggregation::TokenMean);
    if case.param("whiten")? {
        let (epsilon, unbiased) = (case.param("whiten_eps")?, case.param("unbiased")?);
        objective.weights.push(Box::new(WhitenAdvantages { epsilon, unbiased, per_update: false }));
    }
    let (mut signals, mut state) = (Signals::new(case.table("advantages")?), State::default());
    for rule in &objective.weights {
        rule.prepare(&batch, &mut signals, &mut state)?;
    }
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &state)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn value_loss(case: &Case) -> Outcome {
    let predicted = case.var("values")?;
    let batch = Batch::new(case.table("value_mask")?)
        .with(VALUE_PREDICTIONS, predicted.as_tensor().clone())?
        .with(VALUES, case.table("old_values")?)?
        .with(RETURNS, case.table("value_targets")?)?;
    let clip = case.param::<Option<f64>>("clip_value")?.unwrap_or(0.0);
    // The block's own factor is 0.5.
    let value = ClippedValue { coef: case.param::<f64>("factor")? / 0.5, clip, aggregation: None };
    let objective = Objective::new(value, Aggregation::TokenMean);
    let signals = Signals::new(batch.mask().filled(0.0));
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([("loss", values(&parts.loss)?), ("grad_values", gradient(&parts.loss, &predicted)?)]))
}

fn rollout(case: &Case) -> Outcome {
    let (window, slots) = (case.param("window")?, case.param("batch")?);
    let (max_len, steps) = (case.param("max_len")?, case.param("steps")?);
    let chunks = schedule(&counts(case, "total_lengths")?, window, slots, max_len, steps)?;
    let column = |f: fn(&Chunk) -> usize| chunks.iter().map(|c| f(c) as f64).collect();
    Ok(Outputs::from([
        ("step", column(|c| c.step)),
        ("sample", column(|c| c.sequence)),
        ("start", column(|c| c.start)),
        ("end", column(|c| c.end)),
        ("finished", column(|c| usize::from(c.finished))),
    ]))
}
