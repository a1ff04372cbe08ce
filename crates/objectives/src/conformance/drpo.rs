//! Cases of `drpo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::{GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REWARDS};
use crate::objective::Objective;
use crate::papers::drpo::{Discriminative, HingeKl, LossValue, PerQuestion, mean_log_probs};
use crate::state::State;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of drpo"))),
    }
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mut batch, _) = case.policy_batch()?;
    batch.set(REWARDS, case.numbers("rewards")?)?;
    batch.set(GROUP_IDS, case.whole("group_ids")?)?;
    let surrogate = Discriminative {
        tau: case.param("tau")?,
        lambda: case.param::<Option<f64>>("Lambda")?.unwrap_or(f64::INFINITY),
        max_len: case.param::<Option<usize>>("max_response_len")?.unwrap_or(0),
        value: LossValue::Code,
    };
    let hinge =
        HingeKl { beta: case.param("beta")?, delta: case.param("delta")?, kl: case.param("kl_type")? };
    let mask = batch.mask().clone();
    let scores = mean_log_probs(&batch.tensor(LOG_PROBS)?, &mask)?;
    let kl = hinge.per_token(&batch.tensor(LOG_PROBS)?, &batch.tensor(OLD_LOG_PROBS)?)?;
    let kl = Aggregation::TokenMean.apply(&kl, &mask, &batch.normaliser())?;
    let objective = Objective {
        weights: vec![Box::new(PerQuestion::default())],
        regularizers: vec![Box::new(hinge)],
        ..Objective::new(surrogate, Aggregation::SeqMeanTokenMean)
    };
    let mut state = State::default();
    let ready = objective.prepare(batch, &mut state)?;
    let parts = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("kl", values(&kl)?),
        ("seq_scores", values(&scores)?),
        ("length_ratio", surrogate.length_ratios(&mask)),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}
