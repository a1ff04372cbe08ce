//! Cases of `bapo.json`.

use super::case::{Case, Failure, Outcome, Outputs};
use super::verl_loss::LossCase;
use crate::batch::{LOG_PROBS, OLD_LOG_PROBS};
use crate::papers::bapo::{BalancedBounds, Criterion, Found};
use crate::surrogate::ClippedRatio;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        "bound_search_paper" => {
            let target = case.param("rho0")?;
            let rule = BalancedBounds { criterion: Criterion::WeightedShare, target, ..rule(case)? };
            let found = search(case, &rule)?;
            Ok(Outputs::from([
                ("clip_low", vec![found.low]),
                ("clip_high", vec![found.high]),
                ("positive_share", vec![found.balance]),
            ]))
        }
        other => Err(Failure::NotImplemented(format!("function `{other}` of bapo"))),
    }
}

/// A start that is not given is the surrogate's own bound, a maximum that is not given its start.
fn rule(case: &Case) -> Result<BalancedBounds, Failure> {
    let default = BalancedBounds::default();
    let given = |name: &str| case.param::<Option<f64>>(name);
    let start = |name: &str, clip: &str, sign: f64| -> Result<f64, Failure> {
        match given(name)? {
            Some(start) => Ok(start),
            None => Ok(1.0 + sign * case.param::<f64>(clip)?),
        }
    };
    let lower_start = start("ratio_lower_start", "clip_ratio_low", -1.0)?;
    let upper_start = start("ratio_upper_start", "clip_ratio_high", 1.0)?;
    Ok(BalancedBounds {
        target: given("adv_ratio_target")?.unwrap_or(default.target),
        lower_start,
        lower_max: given("ratio_lower_max")?.unwrap_or(lower_start),
        lower_step: case.param("ratio_lower_step")?,
        upper_start,
        upper_max: given("ratio_upper_max")?.unwrap_or(upper_start),
        upper_step: case.param("ratio_upper_step")?,
        eps: given("eps")?.unwrap_or(default.eps),
        ..default
    })
}

fn search(case: &Case, rule: &BalancedBounds) -> Result<Found, Failure> {
    let (_, batch, signals) = case.policy_batch()?;
    let (log_probs, old) = (batch.table(LOG_PROBS)?, batch.table(OLD_LOG_PROBS)?);
    Ok(rule.search(&log_probs, &old, &signals.advantages, batch.mask())?)
}

fn loss(case: &Case) -> Outcome {
    let rule = rule(case)?;
    let found = search(case, &rule)?;
    let surrogate = ClippedRatio { dual_clip: Some(case.param("clip_ratio_c")?), ..ClippedRatio::default() };
    let mut outputs = LossCase::read(case)?.run(surrogate, Some(Box::new(rule)))?;
    outputs.insert("clip_low", vec![found.low]);
    outputs.insert("clip_high", vec![found.high]);
    outputs.insert("pos_neg_ratio", vec![found.balance]);
    Ok(outputs)
}
